"""The hyperprior codec, on a ladder of two small models that are trained here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from codec_samples import extreme_planes, feature_plane, ideal_bits, mse
from safetensors.numpy import load_file, save_file

from cfqa_data.builders.training.hyperprior import Trainings, main, train_ladders
from cfqa_data.builders.training.hyperprior_init import (
    block_statistics,
    rescale,
    start_at_transform,
    step_size,
)
from cfqa_data.builders.training.hyperprior_plan import Job, Settings, plan, read_planes
from cfqa_data.builders.training.hyperprior_train import train
from cfqa_data.codecs import get_codec
from cfqa_data.codecs.hyperprior.codec import Hyperprior, HyperpriorCodec, load_hyperprior
from cfqa_data.codecs.hyperprior.module import GDN, ScaleHyperprior
from cfqa_data.codecs.hyperprior.weights import (
    PAPER_PAD,
    HyperpriorWeights,
    Pad,
    read_ladder,
    write_ladder,
)
from cfqa_data.errors import BuildError, CfqaError, CodecError

LAMBDAS = (0.1, 0.002)


def tiny_settings(folder: Path) -> Settings:
    planes = {
        "cls": [feature_plane(33, 64, 255, seed) for seed in range(12)],
        "seg": [feature_plane(66, 64, 255, seed) for seed in range(6)],
        "dpt": [feature_plane(66, 128, 255, seed) for seed in range(6)],
    }
    save_file({task: np.stack(kept) for task, kept in planes.items()}, folder / "planes")
    return Settings(
        features=str(folder / "planes"),
        out=str(folder / "out"),
        n=16,
        m=16,
        batch=4,
        patch=(32, 32),
        first_steps=30,
        steps=15,
        rate=1e-2,
    )


@pytest.fixture(scope="session")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a multi-task ladder of two lambdas and a task-specific one with the training script."""
    folder = tmp_path_factory.mktemp("ladder")
    lambdas = {"hyperprior_multi_task": LAMBDAS, "hyperprior_task_specific-cls": (0.1,)}
    threads, noise = torch.get_num_threads(), torch.get_rng_state()
    paths = train_ladders(tiny_settings(folder), lambdas, workers=1)
    torch.set_num_threads(threads)
    torch.set_rng_state(noise)
    assert [path.name for path in paths] == [f"{name}.safetensors" for name in lambdas]
    return paths[0]


@pytest.fixture(scope="session")
def codec(ladder: Path) -> HyperpriorCodec:
    made = get_codec("hyperprior_multi_task", models=ladder)
    assert isinstance(made, HyperpriorCodec)
    return made


@pytest.fixture(scope="session")
def weights(ladder: Path) -> HyperpriorWeights:
    return dict(read_ladder(ladder)[1])[0.1]


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (130, 192)])
def test_round_trip(codec: HyperpriorCodec, shape: tuple[int, int]) -> None:
    plane = feature_plane(*shape, peak=255)
    decoded = codec.decode(codec.encode(plane, 0.1), shape)
    assert decoded.shape == shape
    assert decoded.dtype == np.uint8
    if min(shape) > 16:
        assert mse(decoded, plane) < np.var(plane)


def test_extremes_survive_by_escapes(codec: HyperpriorCodec, weights: HyperpriorWeights) -> None:
    for plane in extreme_planes(33, 47, peak=255).values():
        stream = codec.encode(plane, 0.1)
        assert codec.decode(stream, plane.shape).shape == plane.shape
    # Latents far too large for the tables: the last layer scaled up.
    state = {**weights.state, "g_a.4.weight": weights.state["g_a.4.weight"].astype(float) * 1000}
    model = Hyperprior(dataclasses.replace(weights, state=state))
    noise = extreme_planes(33, 47, peak=255)["noise"] / 256.0
    y, _ = model.latents(noise)
    assert np.abs(y).max() > 2000
    model.decode(model.encode(noise), noise.shape)


def test_decoding_is_the_synthesis_of_what_was_encoded(weights: HyperpriorWeights) -> None:
    """Against the torch module that was trained, in float32."""
    model = Hyperprior(weights)
    twin = ScaleHyperprior(16, 16, 3).eval()
    twin.load_state_dict({k: torch.tensor(v.astype(np.float32)) for k, v in weights.state.items()})
    plane = feature_plane(64, 64, 255) / 256.0
    with torch.no_grad():
        y = twin.g_a(torch.tensor(plane[None, None], dtype=torch.float32))
        expected = twin.g_s(torch.round(y)).clamp(0, 1)[0, 0].numpy()
    found = model.decode(model.encode(plane), plane.shape)
    assert (np.round(y[0].numpy()) == model.latents(plane)[0]).mean() > 0.99
    assert np.abs(found - expected).max() < 0.02
    assert np.abs(found - expected).mean() < 1e-3


def test_the_rate_is_what_the_tables_promise(weights: HyperpriorWeights) -> None:
    model = Hyperprior(weights)
    plane = feature_plane(130, 192, 255) / 256.0
    bits = 8 * len(model.encode(plane))
    y, z = model.latents(plane)
    ideal = ideal_bits(model._y_coder, y.ravel(), model._y_table_indexes(z, y.shape))
    ideal += ideal_bits(model._z_coder, z.ravel(), model._z_table_indexes(z.shape[1:]))
    assert ideal <= bits <= 1.01 * ideal + 8 * 8


def test_training_saw_the_rate_that_coding_has(weights: HyperpriorWeights) -> None:
    """The likelihoods of the torch module against the length of the bitstream."""
    twin = ScaleHyperprior(16, 16, 3).eval()
    twin.load_state_dict({k: torch.tensor(v.astype(np.float32)) for k, v in weights.state.items()})
    twin.entropy_bottleneck.quantiles[:, 0, 1] = torch.tensor(weights.medians)
    plane = feature_plane(128, 192, 255) / 256.0
    with torch.no_grad():
        _, y, z = twin(torch.tensor(plane[None, None], dtype=torch.float32))
    bits = -float(y.log2().sum() + z.log2().sum())
    assert 8 * len(Hyperprior(weights).encode(plane)) == pytest.approx(bits, rel=0.03, abs=80)


def test_cut_damaged_and_foreign_streams_are_refused(codec: HyperpriorCodec) -> None:
    plane = feature_plane(33, 40, peak=255)
    stream = codec.encode(plane, 0.002)
    generator = np.random.default_rng(0)
    broken = [stream[:length] for length in range(len(stream))]
    for place in range(len(stream)):
        damaged = bytearray(stream)
        damaged[place] ^= 1 << generator.integers(8)
        broken.append(bytes(damaged))
    broken += [stream + b"\1", generator.bytes(300), b"\xff" * 9, bytes(50)]
    for candidate in broken:
        with pytest.raises(CodecError):
            codec.decode(candidate, plane.shape)
    for shape in [(40, 33), (33, 39), (34, 40), (33, 0)]:
        with pytest.raises(CodecError):
            codec.decode(stream, shape)


def test_unknown_lambdas_name_the_known_ones(codec: HyperpriorCodec) -> None:
    with pytest.raises(CodecError, match=r"0\.5.*0\.002, 0\.1"):
        codec.encode(feature_plane(16, 16, 255), 0.5)


def test_a_fresh_process_agrees_whatever_its_threads(ladder: Path, codec: HyperpriorCodec) -> None:
    plane = feature_plane(130, 192, peak=255)
    stream = codec.encode(plane, 0.1)
    script = (
        "import sys; from codec_samples import feature_plane; from cfqa_data.codecs import *\n"
        f"codec = get_codec('hyperprior_multi_task', models={str(ladder)!r})\n"
        "stream = sys.stdin.buffer.read(); decoded = codec.decode(stream, (130, 192))\n"
        "assert codec.encode(feature_plane(130, 192, 255), 0.1) == stream\n"
        "assert 'torch' not in sys.modules\n"
        "sys.stdout.buffer.write(decoded.tobytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=stream,
        capture_output=True,
        cwd=Path(__file__).parent,
        env={**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"},
        check=True,
    )
    expected = codec.decode(stream, plane.shape)
    assert np.array_equal(np.frombuffer(done.stdout, np.uint8).reshape(130, 192), expected)


@pytest.mark.parametrize(("prefix", "wrapped"), [("", True), ("module.", False)])
def test_compressai_checkpoints_load(
    tmp_path: Path, weights: HyperpriorWeights, prefix: str, wrapped: bool
) -> None:
    torch.manual_seed(0)
    state = ScaleHyperprior(4, 6, 4).state_dict()
    for buffer in ("_offset", "_quantized_cdf", "_cdf_length"):
        state[f"entropy_bottleneck.{buffer}"] = torch.zeros(3, dtype=torch.int32)
    state = {prefix + key: value for key, value in state.items()}
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, tmp_path / "a.pth")
    model = load_hyperprior(tmp_path / "a.pth")
    assert model.stages == 4
    assert model.weights.pad == PAPER_PAD
    plane = feature_plane(65, 100, 255) / 256.0
    decoded = model.decode(model.encode(plane), plane.shape)
    assert decoded.shape == plane.shape


def test_state_dict_names_are_compressais() -> None:
    names = set(ScaleHyperprior(4, 6, 4).state_dict())
    expected = {
        f"{net}.{i}.{kind}"
        for net in ("g_a", "g_s")
        for i in (0, 2, 4, 6)
        for kind in ("weight", "bias")
    }
    expected |= {
        f"{net}.{i}.{kind}"
        for net in ("g_a", "g_s")
        for i in (1, 3, 5)
        for kind in ("beta", "gamma")
    }
    expected |= {
        f"{net}.{i}.{kind}"
        for net in ("h_a", "h_s")
        for i in (0, 2, 4)
        for kind in ("weight", "bias")
    }
    expected |= {f"entropy_bottleneck._{kind}{i}" for kind in ("matrix", "bias") for i in range(5)}
    expected |= {f"entropy_bottleneck._factor{i}" for i in range(4)}
    assert names == expected | {"entropy_bottleneck.quantiles"}


def test_files_that_are_no_models_are_refused(tmp_path: Path, ladder: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    (tmp_path / "a.pth").write_bytes(b"nothing")
    save_file({"x": np.zeros(3)}, tmp_path / "b.safetensors", metadata={"hyperprior": "{}"})
    for name in ("a.safetensors", "b.safetensors", "a.pth"):
        with pytest.raises(CodecError, match=name):
            load_hyperprior(tmp_path / name)
    with pytest.raises(CodecError, match="name one lambda"):
        load_hyperprior(ladder)
    assert load_hyperprior(ladder, 0.1).index == 1
    with pytest.raises(CfqaError, match="no such file"):
        get_codec("hyperprior_multi_task", models=tmp_path / "c.safetensors")


def test_pickles_that_run_code_are_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(CodecError):
        load_hyperprior(tmp_path / "trap.pth")
    assert not (tmp_path / "ran").exists()


def test_padding_is_a_fact_of_the_model() -> None:
    assert Pad(8, "edge", "start").margins((65, 192)) == ((0, 7), (0, 0))
    assert Pad(64, "zero", "centre").margins((257, 1536)) == ((31, 32), (0, 0))
    for broken in [(0, "edge", "start"), (8, "wrap", "start"), (8, "edge", "end")]:
        with pytest.raises(CodecError):
            Pad(*broken)


def test_training_resumes_and_reports(ladder: Path) -> None:
    folder = ladder.parent.parent
    models = sorted((folder / "out" / "models").iterdir())
    times = [path.stat().st_mtime_ns for path in models]
    before = ladder.read_bytes()
    lambdas = {"hyperprior_multi_task": LAMBDAS, "hyperprior_task_specific-cls": (0.1,)}
    train_ladders(tiny_settings(folder), lambdas, workers=1)
    assert [path.stat().st_mtime_ns for path in models] == times
    assert ladder.read_bytes() == before
    report = json.loads((folder / "out" / "report.json").read_text())
    assert len(report["models"]) == 3
    assert set(report["models"][0]["held_out"]) == {"cls", "seg", "dpt"}


@pytest.mark.release
def test_models_are_the_same_by_two_processes(ladder: Path, tmp_path: Path) -> None:
    lambdas = {"hyperprior_multi_task": LAMBDAS, "hyperprior_task_specific-cls": (0.1,)}
    paths = train_ladders(tiny_settings(tmp_path), lambdas, workers=2)
    assert read_ladder(paths[0])[0] == read_ladder(ladder)[0]
    assert paths[0].read_bytes() == ladder.read_bytes()


def test_a_training_can_be_given_to_another_process(tmp_path: Path) -> None:
    jobs = plan({"hyperprior_multi_task": LAMBDAS}, True)
    stage = Trainings(jobs, tiny_settings(tmp_path))
    assert pickle.loads(pickle.dumps(stage)) == stage


@pytest.fixture
def kept(ladder: Path, tmp_path: Path) -> Settings:
    """Return settings of the ladder's training, with its finished models in a separate folder."""
    settings = tiny_settings(tmp_path)
    shutil.copytree(ladder.parent / "models", Path(settings.out) / "models")
    return settings


def test_kept_models_say_how_they_were_made(kept: Settings) -> None:
    lambdas = {"hyperprior_multi_task": LAMBDAS}
    later = dataclasses.replace(kept, seed=7, rate=1e-3, steps=5, first_steps=5, batch=2)
    (path,) = train_ladders(later, lambdas, workers=1)
    facts, _ = read_ladder(path)
    assert (facts["n"], facts["m"], facts["stages"]) == (16, 16, 3)
    report = json.loads((Path(kept.out) / "report.json").read_text())
    assert set(report) == {"models"}
    low, high = report["models"]
    assert (low["lambda"], low["parent"]) == (0.002, "hyperprior_multi_task-0.1")
    assert (high["lambda"], high["parent"]) == (0.1, None)
    assert (low["steps"], high["steps"]) == (15, 30)
    digest = hashlib.sha256(Path(kept.features).read_bytes()).hexdigest()
    for line in report["models"]:
        assert (line["n"], line["m"], line["stages"], line["batch"]) == (16, 16, 3, 4)
        assert (line["rate"], line["seed"], line["planes"]) == (1e-2, 0, digest)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"n": 32}, "has n 16, not 32: give the same settings, or another --out"),
        ({"n": 64, "m": 8, "stages": 4}, "has n 16, not 64; m 16, not 8; stages 3, not 4: give"),
    ],
)
@pytest.mark.parametrize("earlier", [False, True])
def test_models_of_another_size_are_not_mixed_in(
    kept: Settings, changes: dict, told: str, earlier: bool
) -> None:
    if earlier:
        as_by_an_earlier_version(kept)
    with pytest.raises(BuildError, match=f"task-0.1.safetensors {told}"):
        train_ladders(dataclasses.replace(kept, **changes), {"hyperprior_multi_task": LAMBDAS}, 1)


def test_models_of_other_planes_are_not_mixed_in(kept: Settings) -> None:
    lambdas = {"hyperprior_multi_task": LAMBDAS}
    tensors = load_file(kept.features)
    tensors["seg"][0, 0, 0] ^= 1
    save_file(tensors, kept.features)
    with pytest.raises(
        BuildError, match=r"task-0.1.safetensors has planes \w{12}, not \w{12}: give"
    ):
        train_ladders(kept, lambdas, workers=1)
    as_by_an_earlier_version(kept)
    train_ladders(kept, lambdas, workers=1)


def as_by_an_earlier_version(settings: Settings) -> None:
    """Rewrite the finished models with the metadata of an earlier version."""
    for path in sorted((Path(settings.out) / "models").iterdir()):
        facts, models = read_ladder(path)
        known = ("ladder", "lambda", "steps", "seconds", "held_out")
        report = {key: facts["report"][key] for key in known}
        write_ladder(path, facts["name"], models, {"report": report})


def test_models_of_an_earlier_version_are_used_as_they_are(ladder: Path, kept: Settings) -> None:
    as_by_an_earlier_version(kept)
    later = dataclasses.replace(kept, seed=7)
    (path,) = train_ladders(later, {"hyperprior_multi_task": LAMBDAS}, workers=1)
    assert path.read_bytes() == ladder.read_bytes()
    report = json.loads((Path(kept.out) / "report.json").read_text())
    for line in report["models"]:
        assert (line["n"], line["m"], line["stages"]) == (16, 16, 3)
        assert not {"seed", "rate", "planes", "parent"} & set(line)


def test_without_steps_a_model_is_its_parent_with_another_step_size(kept: Settings) -> None:
    parent = Job("hyperprior_multi_task", 0.1, None)
    child = Job("hyperprior_task_specific-cls", 0.025, parent)
    here = dataclasses.replace(kept, steps=0, threads=torch.get_num_threads())
    train(child, here)
    [(_, before)] = read_ladder(parent.path(kept))[1]
    [(_, after)] = read_ladder(child.path(kept))[1]
    assert set(after.state) == set(before.state)
    factors = dict.fromkeys(("g_a.4.weight", "g_a.4.bias", "h_s.4.weight", "h_s.4.bias"), 0.5)
    factors |= dict.fromkeys(("g_s.0.weight", "h_a.0.weight"), 2.0)
    for key, value in before.state.items():
        # Half the y for a quarter of the lambda; exact but for what float16 has no digits for.
        wanted = factors.get(key, 1.0) * value.astype(np.float64)
        np.testing.assert_allclose(after.state[key], wanted, rtol=1e-6, atol=6e-8, err_msg=key)


def test_stored_tables_are_those_of_the_stored_weights(ladder: Path) -> None:
    paths = [*ladder.parent.glob("*.safetensors"), *(ladder.parent / "models").iterdir()]
    assert len(paths) == 5
    for weights in (weights for path in paths for _, weights in read_ladder(path)[1]):
        state = {key: value.astype(np.float64) for key, value in weights.state.items()}
        again = HyperpriorWeights.from_state(state, weights.pad)
        for name in ("y_tables", "z_tables"):
            for part in ("counts", "sizes", "firsts"):
                stored = getattr(getattr(weights, name), part)
                assert np.array_equal(stored, getattr(getattr(again, name), part)), (name, part)
        assert np.array_equal(weights.medians, again.medians)
        assert np.array_equal(weights.y_thresholds, again.y_thresholds)


@pytest.mark.parametrize(("stages", "n", "patch"), [(2, 8, (36, 48)), (4, 64, (48, 48))])
def test_patches_and_padding_follow_the_stride(
    tmp_path: Path, stages: int, n: int, patch: tuple[int, int]
) -> None:
    settings = dataclasses.replace(
        tiny_settings(tmp_path), n=n, m=8, stages=stages, patch=(34, 47), batch=2, first_steps=2
    )
    assert settings.patch_shape == patch
    job = Job("hyperprior_task_specific-cls", 0.1, None)
    train(job, dataclasses.replace(settings, threads=torch.get_num_threads()))
    model = load_hyperprior(job.path(settings))
    assert model.weights.pad == Pad(2**stages, "edge", "start")
    plane = feature_plane(33, 50, 255) / 256.0
    assert model.decode(model.encode(plane), plane.shape).shape == plane.shape


def test_the_sizes_that_ship_keep_their_patches_and_padding() -> None:
    settings = Settings("planes", "out")
    assert (settings.patch_shape, settings.pad) == ((72, 96), Pad(8, "edge", "start"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--n 8", "3 stages need n = 16 or more, got 8"),
        ("--stages 4", "4 stages need n = 64 or more, got 32"),
        ("--stages 1", "stages must be a whole number of at least 2, got 1"),
        ("--m 0", "m must be a whole number of at least 1, got 0"),
        ("--batch 0", "batch must be a whole number of at least 1, got 0"),
        ("--steps -1", "steps must be a whole number of at least 0, got -1"),
        ("--rate nan", "rate must be a number of at least 0, got nan"),
        ("--seed -1", "seed must be a whole number of at least 0, got -1"),
        ("--workers 0", "workers must be 1 or more, got 0"),
        ("--lambdas 0", "hyperprior_multi_task: lambdas must be positive and finite, got 0"),
        ("--lambdas-seg inf", "specific-seg: lambdas must be positive and finite, got inf"),
        ("--lambdas 0.1 0.10", "task: lambdas must differ in six digits, got 0.1 0.1"),
        ("", "no-planes: not a file of planes"),
    ],
)
def test_impossible_settings_are_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, told: str
) -> None:
    path = tmp_path / ("planes" if arguments else "no-planes")
    tasks = ("cls", "seg", "words")
    save_file({task: np.zeros((2, 8, 8), np.uint8) for task in tasks}, tmp_path / "planes")
    files = ["--features", str(path), "--out", str(tmp_path / "out")]
    assert main([*files, *arguments.split()]) == 2
    out, error = capsys.readouterr()
    assert told in error
    assert (out, error.count("\n")) == ("", 1)
    assert not (tmp_path / "out").exists()


def test_plans_start_every_model_from_its_neighbour() -> None:
    jobs = plan({"hyperprior_multi_task": LAMBDAS, "hyperprior_task_specific-seg": (0.003, 0.4)})
    told = [(job.task, job.lmbda, job.parent.lmbda if job.parent else None) for job in jobs]
    assert told == [(None, 0.1, None), (None, 0.002, 0.1), ("seg", 0.4, 0.1), ("seg", 0.003, 0.002)]


def test_unusable_features_are_one_clear_line(tmp_path: Path) -> None:
    save_file({"cls": np.zeros((4, 8, 8), np.float32)}, tmp_path / "planes")
    with pytest.raises(BuildError, match="'cls', uint8"):
        train_ladders(
            Settings(str(tmp_path / "planes"), str(tmp_path)), {"hyperprior_multi_task": (0.1,)}, 1
        )


def test_planes_may_be_of_tasks_of_any_name(tmp_path: Path) -> None:
    planes = {name: np.zeros((4, 8, 8), np.uint8) for name in ("a", "seg", "words", "cls")}
    save_file(planes, tmp_path / "planes")
    assert list(read_planes(str(tmp_path / "planes"), None)) == ["cls", "seg", "a", "words"]
    with pytest.raises(BuildError, match="needs a tensor 'dpt'"):
        read_planes(str(tmp_path / "planes"), "dpt")


def smooth_planes() -> np.ndarray:
    """Return planes whose 8 x 8 blocks are correlated: columns that hardly change downwards."""
    generator = np.random.default_rng(0)
    columns = generator.normal(0, 25, (6, 1, 64)) + generator.normal(0, 3, (6, 64, 64))
    return np.clip(columns + 110, 0, 255).astype(np.uint8)


def test_training_starts_as_the_transform_coder_it_says_it_is() -> None:
    planes = smooth_planes()
    lmbda = 0.1
    torch.manual_seed(0)
    model = ScaleHyperprior(16, 64, 3).eval()
    mean, covariance = block_statistics([planes], 8)
    start_at_transform(model, mean, covariance, lmbda)
    x = torch.from_numpy(planes[:, None] / 256.0).float()
    with torch.no_grad():
        y = model.g_a(x)
        decoded, likelihoods, _ = model(x)
        finer = model(x)[0]
    _, vectors = np.linalg.eigh(covariance)
    block = (planes[0, 8:16, 24:32] / 256.0 - mean).ravel()
    wanted = vectors[:, ::-1].T @ block / step_size(lmbda)
    np.testing.assert_allclose(y[0, :, 1, 3].numpy(), wanted, rtol=0.05, atol=0.05)
    # Rounding makes an error of a twelfth of the squared step, or less where y rounds to zero.
    error = float((decoded - x).square().mean())
    assert error < 1.1 * step_size(lmbda) ** 2 / 12
    bits = -float(likelihoods.log2().mean())
    white = 0.5 * np.log2(2 * np.pi * np.e * planes.var() / 256**2 / step_size(lmbda) ** 2)
    assert bits < white - 0.5
    rescale(model, 4.0)
    with torch.no_grad():
        np.testing.assert_allclose(model.g_a(x).numpy(), 4 * y.numpy(), rtol=1e-4, atol=1e-4)
        finer = model(x)[0]
    assert float((finer - x).square().mean()) < error / 3


def test_rescaling_moves_y_and_its_scales_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = ScaleHyperprior(8, 6, 2).eval()
    with torch.no_grad():
        for bias in (part for name, part in model.named_parameters() if name.endswith("bias")):
            bias.normal_(0.0, 0.3)
        x = torch.randn(2, 1, 32, 48)

        def stages() -> tuple[torch.Tensor, ...]:
            y = model.g_a(x)
            z = model.h_a(y.abs())
            return y, model.h_s(z), z, model.g_s(y)

        before = stages()
        rescale(model, 3.0)
        after = stages()
    assert float(before[1].max()) > 0.1
    assert float(before[2].std()) > 0.01
    for old, new, factor in zip(before, after, (3.0, 3.0, 1.0, 1.0), strict=True):
        torch.testing.assert_close(new, factor * old, rtol=1e-4, atol=1e-5)


def test_a_transform_needs_its_channels() -> None:
    with pytest.raises(ValueError, match="3 stages need 16 inner channels, got 8"):
        start_at_transform(ScaleHyperprior(8, 64, 3), 0.5, np.eye(64), 0.1)


def test_step_sizes_minimise_the_loss_of_a_fine_quantiser() -> None:
    for lmbda in (0.001, 0.1):
        steps = step_size(lmbda) * np.linspace(0.8, 1.25, 91)
        loss = lmbda * 255**2 * steps**2 / 12 - np.log2(steps)
        assert steps[np.argmin(loss)] == pytest.approx(step_size(lmbda), rel=0.01)


def test_gdn_stays_where_exact_arithmetic_resolves_it() -> None:
    layer = GDN(4)
    with torch.no_grad():
        layer.gamma.fill_(50.0)
    layer.bound()
    assert float(layer.gamma.detach().square().sum(1).max()) == pytest.approx(32.0)
