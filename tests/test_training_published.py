"""The hyperpriors' training as published, on networks of eight channels."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from codec_samples import feature_plane
from safetensors.numpy import save_file
from scipy.optimize import brentq

from cfqa_data.builders.training import hyperprior_train
from cfqa_data.builders.training.hyperprior import main, train_ladders
from cfqa_data.builders.training.hyperprior_plan import (
    LAMBDAS,
    MULTI_TASK,
    SEG_LISTED,
    Job,
    Settings,
    published,
)
from cfqa_data.builders.training.hyperprior_train import Training, evaluate, train
from cfqa_data.codecs import get_codec
from cfqa_data.codecs.hyperprior.codec import load_hyperprior
from cfqa_data.codecs.hyperprior.module import EntropyBottleneck
from cfqa_data.codecs.hyperprior.weights import PAPER_PAD, read_ladder
from cfqa_data.errors import BuildError

JOB = Job(MULTI_TASK, 0.015, None)
ONLY = {MULTI_TASK: (0.015,)}
TASKS = ("cls", "seg", "dpt")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Trainings set the threads and the noise of the whole process."""
    before, noise = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(before)
    torch.set_rng_state(noise)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    planes = {
        task: np.stack([feature_plane(70, 90, 255, 10 * place + seed) for seed in range(4)])
        for place, task in enumerate(TASKS)
    }
    path = tmp_path_factory.mktemp("features") / "planes"
    save_file(planes, path)
    return path


def tiny(features: Path, folder: Path) -> Settings:
    small: dict[str, Any] = {"n": 8, "m": 12, "batch": 2, "patch": (64, 64), "epoch": 3}
    small |= {"steps": 8, "first_steps": 8}
    return replace(published(str(features), str(folder / "out")), **small)


@pytest.fixture
def settings(features: Path, tmp_path: Path) -> Settings:
    return tiny(features, tmp_path)


def test_lambdas_and_settings_are_the_published_ones() -> None:
    """As the public code of arXiv 2506.07412 lists them."""
    thousandths = {
        MULTI_TASK: (0.5, 1, 2.5, 3, 4, 5, 6, 7, 10, 15),
        "hyperprior_task_specific-cls": (1.6, 2, 2.5, 3, 4, 5, 8, 10, 12, 15),
        "hyperprior_task_specific-seg": (0.7, 0.8, 1.5, 2, 2.5, 3, 4, 5, 10, 15),
        "hyperprior_task_specific-dpt": (1.3, 1.5, 1.7, 2.4, 2.8, 3.2, 5, 7, 8, 9),
    }
    assert set(LAMBDAS) == set(thousandths)
    for ladder, values in thousandths.items():
        np.testing.assert_allclose(LAMBDAS[ladder], np.array(values) / 1000, rtol=1e-12)
    listed = (0.3, 0.5, 0.7, 0.8, 1.5, 2, 2.5, 3, 4, 5, 10, 15)
    np.testing.assert_allclose(SEG_LISTED, np.array(listed) / 1000, rtol=1e-12)
    found = published("planes", "out")
    assert (found.n, found.m, found.stages, found.patch_shape) == (128, 192, 4, (256, 256))
    assert (found.rate, found.batch, found.start, found.published) == (1e-4, 16, "random", True)
    assert (found.pad.multiple, found.pad.mode, found.pad.align) == (64, "zero", "centre")


def test_a_step_is_adams_on_the_clipped_gradient_of_the_published_loss(settings: Settings) -> None:
    training = Training(replace(JOB, lmbda=20.0), settings)
    before = {name: p.detach().clone() for name, p in training.model.named_parameters()}
    seen: list[np.ndarray] = []
    noise = torch.get_rng_state()
    sample = hyperprior_train.sample_batch

    def kept(*arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        patches, mask = sample(*arguments)
        seen.append(patches)
        return patches, mask

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hyperprior_train, "sample_batch", kept)
        training.advance()
    after = {name: p.detach().clone() for name, p in training.model.named_parameters()}
    assert seen[0].shape == (2, 1, 64, 64)
    assert {p.dtype for p in after.values()} == {torch.float32}

    with torch.no_grad():
        for name, parameter in training.model.named_parameters():
            parameter.copy_(before[name])
    training.model.zero_grad()
    torch.set_rng_state(noise)
    decoded, y, z = training.model(torch.from_numpy(seen[0]))
    error = (decoded - torch.from_numpy(seen[0])).square().mean()
    bits = -(torch.log2(y).sum() + torch.log2(z).sum()) / seen[0].size
    (20.0 * 255**2 * error + bits).backward()
    gradients = {n: p.grad for n, p in training.model.named_parameters() if p.grad is not None}
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
    assert norm > 10  # there is something to clip
    assert set(before) - set(gradients) == {"entropy_bottleneck.quantiles"}
    for name, gradient in gradients.items():
        clipped = gradient / norm
        # Adam's first step, with bias correction, is the gradient over its own size.
        wanted = before[name] - 1e-4 * clipped / (clipped.abs() + 1e-8)
        clear = clipped.abs() > 1e-6
        torch.testing.assert_close(after[name][clear], wanted[clear], rtol=0, atol=2e-6)


def test_training_and_validation_share_no_plane(settings: Settings, tmp_path: Path) -> None:
    planes = {
        task: np.repeat(np.arange(20, dtype=np.uint8) + 40 * place, 4096).reshape(20, 64, 64)
        for place, task in enumerate(TASKS)
    }
    save_file(planes, tmp_path / "planes")
    training = Training(JOB, replace(settings, features=str(tmp_path / "planes")))
    sample = hyperprior_train.sample_batch
    seen: set[int] = set()

    def kept(*arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        patches, mask = sample(*arguments)
        seen.update(np.unique(patches * 256).astype(int).tolist())
        return patches, mask

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hyperprior_train, "sample_batch", kept)
        state = training.generator.bit_generator.state, torch.get_rng_state()
        first = training.validate()
        assert seen == {40 * place + last for place in range(3) for last in (18, 19)}
        assert training.validate() == first
        assert training.generator.bit_generator.state == state[0]
        assert torch.equal(torch.get_rng_state(), state[1])
        assert training.model.training
        seen.clear()
        for _ in range(60):
            kept(training.training, 2, (64, 64), 1, training.generator)
    assert len(seen) > 30
    assert not seen & {40 * place + last for place in range(3) for last in (18, 19)}


def test_validation_is_the_loss_with_rounding(settings: Settings) -> None:
    training = Training(JOB, settings)
    for _ in range(3):
        training.advance()
    found, model = training.validate(), training.model.eval()
    losses = []
    for _, held_out in training.planes.values():
        for plane in held_out:
            draws = np.random.default_rng(settings.seed)
            draws.integers(1), draws.integers(1)  # the task and the plane, of one each
            top, left = int(draws.integers(7)), int(draws.integers(27))
            patch = plane[top : top + 64, left : left + 64] / np.float32(256)
            with torch.no_grad():
                y = torch.round(model.g_a(torch.from_numpy(patch[None, None])))
                error = float((model.g_s(y)[0, 0] - torch.from_numpy(patch)).square().mean())
                _, y_mass, z_mass = model(torch.from_numpy(patch[None, None]))
            bits = -float(y_mass.log2().sum() + z_mass.log2().sum()) / patch.size
            losses.append(0.015 * 255**2 * error + bits)
    assert found == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_step_size_falls_on_a_plateau_until_it_ends(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Training, "validate", lambda self: 1.0)
    monkeypatch.setattr(Training, "_loss", lambda self, *_: sum(p.sum() for p in self.parameters))
    training = Training(JOB, replace(settings, epoch=1, batch=1, steps=99, first_steps=99))
    rates = []
    while not training.ended:
        rates.append(training.optimizer.param_groups[0]["lr"])
        training.advance()
    # The first epoch is the best; the rate falls after eleven more that are not better.
    np.testing.assert_allclose(rates, [1e-4] * 12 + [1e-5] * 11 + [1e-6] * 11, rtol=1e-9)
    assert training.finish()["ended"] == 34
    assert training.job.path(training.settings).is_file()
    assert not training.state.exists()


class Interrupt(Exception):
    pass


def interrupted(job: Job, settings: Settings, steps: int) -> None:
    """Train until as many steps are done in all, then break off."""
    training = Training(job, settings)
    while training.step < steps:
        training.advance()


@pytest.fixture(scope="module")
def saved(features: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The state after the first epoch of a training with `settings`."""
    settings = tiny(features, tmp_path_factory.mktemp("saved"))
    interrupted(JOB, settings, 3)
    return hyperprior_train.state_path(JOB, settings).read_bytes()


@pytest.fixture
def state(settings: Settings, saved: bytes) -> Path:
    """The file of that state, from which a training with `settings` goes on."""
    path = hyperprior_train.state_path(JOB, settings)
    path.parent.mkdir(parents=True)
    path.write_bytes(saved)
    return path


def whole(job: Job, settings: Settings) -> tuple[bytes, dict[str, Any]]:
    """Train to the end; return the ladder's bytes and the report's line but for the time."""
    train(job, settings)
    (path,) = train_ladders(settings, {job.ladder: (job.lmbda,)}, workers=1)
    (line,) = json.loads((Path(settings.out) / "report.json").read_text())["models"]
    assert line.pop("seconds") > 0
    return path.read_bytes(), line


def test_an_interrupted_training_ends_with_the_same_bytes(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The rate falls within these steps, so the schedule has something to take up.
    validate = Training.validate
    monkeypatch.setattr(hyperprior_train, "PATIENCE", 0)
    monkeypatch.setattr(Training, "validate", lambda self: self.step + 0 * validate(self))
    expected = whole(JOB, settings)
    again = replace(settings, out=str(tmp_path / "again"))
    for steps, rate in [(2, 1e-4), (4, 1e-4), (4, 1e-4), (7, 1e-5)]:
        interrupted(JOB, again, steps)
        torch.manual_seed(steps)
        resumed = Training(JOB, again)
        assert resumed.step == 3 * (steps // 3)
        assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
    assert whole(JOB, again) == expected
    assert sorted(p.name for p in (tmp_path / "again" / "models").iterdir()) == [
        "hyperprior_multi_task-0.015.safetensors"
    ]


@pytest.mark.release
def test_a_chained_training_resumes_too(features: Path, tmp_path: Path) -> None:
    small: dict[str, Any] = {"n": 16, "m": 8, "batch": 2, "patch": (32, 32), "epoch": 3}
    small |= {"steps": 5, "first_steps": 5}
    first = Settings(str(features), str(tmp_path / "whole"), **small)
    child = Job("hyperprior_task_specific-cls", 0.1, Job(MULTI_TASK, 0.1, None))
    found = []
    for name, stop in (("whole", 0), ("parts", 4)):
        here = replace(first, out=str(tmp_path / name))
        for job in (child.parent, child):
            assert job
            interrupted(job, here, stop)
            train(job, here)
        [(_, weights)] = read_ladder(child.path(here))[1]
        found.append({key: value.tobytes() for key, value in weights.state.items()})
    assert found[0] == found[1]


def test_the_time_of_earlier_runs_counts(settings: Settings, state: Path) -> None:
    foreign(state, lambda kept: {**kept, "seconds": 1000.0})
    assert 1000 < train(JOB, settings)["seconds"] < 1100


def foreign(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    torch.save(change(torch.load(path, weights_only=True)), path)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), "not a training state"),
        (lambda path: path.write_bytes(b""), "not a training state"),
        (lambda path: path.write_bytes(b"PK\3\4" + bytes(99)), "not a training state"),
        (lambda path: foreign(path, lambda state: torch.zeros(3)), "not a training state"),
        (lambda path: foreign(path, lambda state: [1]), "not a training state"),
        (lambda path: foreign(path, lambda state: {"made": 3}), "not a training state"),
        (
            lambda path: foreign(path, lambda s: {**s, "made": {**s["made"], "seed": 5}}),
            "seed 5, not 0: give the same settings, or delete it",
        ),
        (
            lambda path: foreign(path, lambda s: {**s, "made": {**s["made"], "epoch": 9}}),
            "epoch 9, not 3: give the same settings, or delete it",
        ),
    ],
)
def test_states_that_cannot_be_used_are_told_before_anything_is_trained(
    settings: Settings, state: Path, damage: Callable[[Path], Any], told: str
) -> None:
    damage(state)
    before = state.read_bytes()
    with pytest.raises(BuildError) as caught:
        train_ladders(settings, {MULTI_TASK: (0.02, 0.015)}, workers=1)
    assert str(state) in str(caught.value)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert state.read_bytes() == before
    assert list(state.parent.iterdir()) == [state]


@pytest.mark.parametrize(
    "change",
    [
        {"model": {}},
        {"generator": {}},
        {"generator": 3},
        {"noise": torch.zeros(3)},
        {"noise": None},
        {"optimizer": {"state": {}, "param_groups": []}},
        {"optimizer": None},
        {"plateau": None},
        {"step": "many"},
        {"seconds": None},
    ],
)
def test_states_with_a_damaged_part_are_refused(
    settings: Settings, state: Path, change: dict[str, Any]
) -> None:
    foreign(state, lambda kept: {**kept, **change})
    with pytest.raises(BuildError, match=r"not a training state .*; delete it to start"):
        Training(JOB, settings)


def test_a_state_is_replaced_whole(
    settings: Settings, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state.read_bytes()

    def full(_: Any, partial: Path) -> None:
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(partial))

    monkeypatch.setattr(hyperprior_train.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        interrupted(JOB, settings, 6)
    assert state.read_bytes() == before
    assert list(state.parent.iterdir()) == [state]


def test_a_training_that_goes_astray_is_told(settings: Settings) -> None:
    training = Training(JOB, settings)
    with torch.no_grad():
        training.model.g_a[0].weight.fill_(math.nan)
    for _ in range(2):
        training.advance()
    with pytest.raises(
        BuildError, match=r"task-0\.015: .* weights are not finite after step 3; delete .*"
    ):
        training.advance()
    with pytest.raises(BuildError, match=r"task-0\.015: the training failed: weights .*"):
        training.finish()
    assert not Path(settings.out).exists()


def test_quantiles_are_roots_of_the_density() -> None:
    """Where CompressAI's auxiliary loss, |logits(quantiles) - targets|, is zero."""
    torch.manual_seed(3)
    bottleneck = EntropyBottleneck(5)
    with torch.no_grad():
        for name, parameter in bottleneck.named_parameters():
            if name != "quantiles":
                parameter.add_(0.4 * torch.randn_like(parameter))
    before = {n: p.detach().clone() for n, p in bottleneck.named_parameters() if n != "quantiles"}
    bottleneck.solve_quantiles()
    part = {name: value.double().tolist() for name, value in before.items()}
    for channel in range(5):

        def logit(x: float, channel: int = channel) -> float:
            values = [x]
            for layer in range(5):
                rows = part[f"_matrix{layer}"][channel]
                shifts = part[f"_bias{layer}"][channel]
                values = [
                    sum(math.log1p(math.exp(w)) * v for w, v in zip(row, values, strict=True)) + b
                    for row, (b,) in zip(rows, shifts, strict=True)
                ]
                if layer < 4:
                    bends = part[f"_factor{layer}"][channel]
                    values = [
                        v + math.tanh(a) * math.tanh(v)
                        for v, (a,) in zip(values, bends, strict=True)
                    ]
            return values[0]

        # Half of 1e-9 of the mass lies beyond each end.
        goal = math.log(2 / 1e-9 - 1)
        for place, target in enumerate((-goal, 0.0, goal)):
            root = brentq(lambda x, t=target: logit(x) - t, -1e4, 1e4, xtol=1e-10)
            assert float(bottleneck.quantiles[channel, 0, place]) == pytest.approx(root, rel=1e-6)
    for name, value in before.items():
        assert torch.equal(bottleneck.get_parameter(name), value)


def test_a_trained_model_codes_alike_from_its_file_and_from_a_ladder(settings: Settings) -> None:
    jobs = [JOB, replace(JOB, lmbda=0.001)]
    for job in jobs:
        train(job, settings)
    (path,) = train_ladders(settings, {MULTI_TASK: (0.001, 0.015)}, workers=1)
    codec = get_codec("hyperprior_multi_task", models=path)
    plane = feature_plane(65, 100, 255, 5)
    for index, job in enumerate(reversed(jobs)):
        model = load_hyperprior(path, job.lmbda)
        assert model.weights.convention == "compressai"
        assert model.weights.pad == PAPER_PAD
        assert {value.dtype for value in model.weights.state.values()} == {np.dtype(np.float32)}
        stream = codec.encode(plane, job.lmbda)
        assert stream == model.encode(plane / 256.0)
        assert stream[0] == index
        decoded = model.decode(stream, plane.shape)
        codes = np.clip(np.rint(256 * decoded), 0, 255)
        assert np.array_equal(codec.decode(stream, plane.shape), codes)
        # A file of one model says the same but for the model's place.
        alone = load_hyperprior(job.path(settings))
        assert alone.encode(plane / 256.0)[1:] == stream[1:]
        assert np.array_equal(alone.decode(b"\0" + stream[1:], plane.shape), decoded)


def test_large_held_out_planes_are_measured_in_pieces(settings: Settings) -> None:
    train(JOB, replace(settings, first_steps=1))
    weights = load_hyperprior(JOB.path(settings)).weights
    small, large = np.full((1, 64, 64), 90, np.uint8), np.full((1, 400, 700), 90, np.uint8)
    seen: list[tuple[int, ...]] = []
    encode = hyperprior_train.Hyperprior.encode

    def kept(self: Any, plane: np.ndarray) -> bytes:
        seen.append(plane.shape)
        return encode(self, plane)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hyperprior_train.Hyperprior, "encode", kept)
        found = evaluate(weights, {"cls": small, "dpt": large})
    assert seen == [(64, 64), (256, 512)]
    # The plane has one value, so a piece of it errs as the whole does.
    model = hyperprior_train.Hyperprior(weights)
    stream = model.encode(small[0] / 256.0)
    codes = np.clip(np.rint(256 * model.decode(stream, (64, 64))), 0, 255)
    assert found["cls"]["mse"] == pytest.approx(float(np.square(codes - 90).mean()), abs=1e-3)
    assert found["cls"]["bpfp"] == pytest.approx(8 * len(stream) / 4096, abs=1e-5)


def arguments(features: Path, out: Path, *more: str) -> list[str]:
    size = ["--published", "--n=8", "--m=12", "--batch=1", "--workers=1", "--lambdas=0.01"]
    return ["--features", str(features), "--out", str(out), *size, *more]


def test_the_command_trains_shows_and_writes(
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(hyperprior_train, "EVERY", 0.0)
    assert main(arguments(features, tmp_path, "--steps", "4", "--epoch", "2")) == 0
    out, error = capsys.readouterr()
    assert out.count(" bpfp mse ") == 6  # the tasks of the first ladder, one task of the others
    assert out.count(" MB\n") == 4
    assert "hyperprior_multi_task-0.01: 2 of 4 steps, " in error
    assert "/s, " in error
    ladders = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert ladders == sorted(f"{name}.safetensors" for name in LAMBDAS)
    for name in ladders:
        facts, [(lmbda, weights)] = read_ladder(tmp_path / name)
        assert (facts["n"], facts["m"], facts["stages"], lmbda) == (8, 12, 4, 0.01)
        assert weights.convention == "compressai"
    for line in json.loads((tmp_path / "report.json").read_text())["models"]:
        assert (line["steps"], line["ended"], line["epoch"], line["parent"]) == (4, 4, 2, None)
        assert (line["patch"], line["start"], line["rate"]) == ([256, 256], "random", 1e-4)


def test_an_error_is_told_at_once_and_ends_the_command(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(features, tmp_path, "--steps", "3", "--rate", "1e30")) == 2
    error = capsys.readouterr().err
    told = "hyperprior_multi_task-0.01: the training failed"
    assert error.count(told) == 2  # when it happens, and at the end
    assert "hyperprior_task_specific-dpt-0.01" in error  # which was tried, too


def test_an_interrupt_is_told(
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def press(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hyperprior_train, "train", press)
    assert main(arguments(features, tmp_path)) == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to resume\n"


def test_the_recipe_asks_for_the_lambdas_that_are_trained() -> None:
    recipe = tomllib.loads((files("cfqa_data") / "recipes" / "paper.toml").read_text("utf-8"))
    for task in TASKS:
        for name in (MULTI_TASK, "hyperprior_task_specific"):
            ladder = name if name == MULTI_TASK else f"{name}-{task}"
            asked = recipe["tasks"][task]["codecs"][name]
            assert sorted(asked["levels"]) == sorted(LAMBDAS[ladder])
            assert asked["models"] == f"root://weights/{ladder}.safetensors"
