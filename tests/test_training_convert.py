"""The converter: CompressAI's checkpoints, made here by its names, to a ladder of models."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from codec_samples import feature_plane
from safetensors import safe_open

from cfqa_data.builders.training.convert import main
from cfqa_data.codecs import get_codec
from cfqa_data.codecs.hyperprior.checkpoint import read_checkpoint
from cfqa_data.codecs.hyperprior.codec import load_hyperprior
from cfqa_data.codecs.hyperprior.module import ScaleHyperprior
from cfqa_data.codecs.hyperprior.weights import PAPER_PAD

State = dict[str, torch.Tensor]


def scales(high: float = 256.0) -> torch.Tensor:
    return torch.exp(torch.linspace(float(np.log(0.11)), float(np.log(high)), 64))


def checkpoint(seed: int, n: int = 4, m: int = 6) -> State:
    """Tensors by CompressAI's names, the ones that follow from others among them."""
    torch.manual_seed(seed)
    state: State = dict(ScaleHyperprior(n, m, 4).state_dict())
    state |= {
        "gaussian_conditional.scale_table": scales(),
        "gaussian_conditional._quantized_cdf": torch.zeros(64, 9, dtype=torch.int32),
        "gaussian_conditional._cdf_length": torch.zeros(64, dtype=torch.int32),
        "entropy_bottleneck._offset": torch.zeros(n, dtype=torch.int32),
        "entropy_bottleneck.target": torch.zeros(3),
        "entropy_bottleneck.likelihood_lower_bound.bound": torch.zeros(1),
        "g_a.1.beta_reparam.pedestal": torch.zeros(1),
        "g_a.1.beta_reparam.lower_bound.bound": torch.zeros(1),
    }
    return state


def newer(state: State) -> State:
    """The names that CompressAI 1.2.7 and later give the density's parts."""
    names = (("_matrix", "matrices."), ("_bias", "biases."), ("_factor", "factors."))
    renamed = {}
    for key, value in state.items():
        for old, new in names:
            key = key.replace(f"entropy_bottleneck.{old}", f"entropy_bottleneck.{new}")
        renamed[key] = value
    return renamed


def trained(state: State) -> dict[str, Any]:
    """What CompressAI's example of a training saves."""
    optimizer = torch.optim.Adam([torch.zeros(2, requires_grad=True)])
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    told = {"optimizer": optimizer.state_dict(), "lr_scheduler": plateau.state_dict()}
    return {"epoch": 3, "state_dict": state, "loss": torch.tensor(1.5), **told}


def under(start: str, state: State) -> State:
    return {start + key: value for key, value in state.items()}


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "bare": dict,
    "wrapped module": lambda state: {"state_dict": under("module.", state), "epoch": 3},
    "newer": newer,
    "trained": lambda state: trained(newer(state)),
    "NumPy numbers": lambda state: {"network": state, "loss": np.float64(0.5), "n": np.int64(3)},
    "numbers beside": lambda state: {**state, "loss": np.float32(0.5), "epoch": 3},
    "compiled": lambda state: {"net": under("module._orig_mod.module.", newer(state))},
    "in a model": lambda state: {
        "model": {"state_dict": under("_orig_mod.codec.", state) | {"scorer.weight": torch.ones(2)}}
    },
}


def run(folder: Path, *pairs: str) -> int:
    return main(["--out", str(folder / "out.safetensors"), "--name", "mine", *pairs])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_its_tensors(tmp_path: Path, layout: str) -> None:
    torch.save(LAYOUTS[layout](checkpoint(1)), tmp_path / "a.pth")
    found, wanted = read_checkpoint(tmp_path / "a.pth").state, checkpoint(1)
    assert len(found) == len(ScaleHyperprior(4, 6, 4).state_dict())
    for name, value in found.items():
        assert np.array_equal(value, wanted[name].numpy()), name


def test_a_ladder_has_the_models_of_its_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2):
        torch.save(trained(checkpoint(seed)), tmp_path / f"{seed}.pth.tar")
    files = {0.01: tmp_path / "1.pth.tar", 0.002: tmp_path / "2.pth.tar"}
    assert run(tmp_path, *(f"{lmbda}={path}" for lmbda, path in files.items())) == 0
    out, error = capsys.readouterr()
    assert error == ""
    assert out.startswith(f"{tmp_path / 'out.safetensors'}  ")
    codec = get_codec("hyperprior_multi_task", models=tmp_path / "out.safetensors")
    assert codec.lambdas == [0.002, 0.01]
    plane = feature_plane(40, 70, 255)
    for index, (lmbda, path) in enumerate(sorted(files.items())):
        model = load_hyperprior(path)
        stream = codec.encode(plane, lmbda)
        assert stream[0] == index
        assert stream[1:] == model.encode(plane / 256.0)[1:]
        decoded = np.clip(np.rint(256 * model.decode(b"\0" + stream[1:], plane.shape)), 0, 255)
        assert np.array_equal(codec.decode(stream, plane.shape), decoded)
        ours = load_hyperprior(tmp_path / "out.safetensors", lmbda).weights
        assert (ours.pad, ours.convention) == (PAPER_PAD, "compressai")
        wanted = checkpoint({0.01: 1, 0.002: 2}[lmbda])
        for name, value in ours.state.items():
            assert np.array_equal(value, wanted[name].numpy()), name


def test_halves_are_read_as_what_they_are(tmp_path: Path) -> None:
    for name, dtype in (("b", torch.bfloat16), ("h", torch.float16)):
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in checkpoint(1).items()}
        torch.save(state, tmp_path / f"{name}.pth")
        for key, value in read_checkpoint(tmp_path / f"{name}.pth").state.items():
            assert value.dtype == np.float32
            assert np.array_equal(value, state[key].float().numpy()), key


def test_the_file_says_what_it_was_made_of(tmp_path: Path) -> None:
    for seed in (1, 2):
        torch.save(checkpoint(seed), tmp_path / f"{seed}.pth")
    assert run(tmp_path, f"0.5={tmp_path / '1.pth'}", f"0.25={tmp_path / '2.pth'}") == 0
    with safe_open(tmp_path / "out.safetensors", framework="numpy") as file:
        facts = json.loads(file.metadata()["hyperprior"])
    digests = [
        hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("2.pth", "1.pth")
    ]
    assert facts == {
        "name": "mine",
        "lambdas": [0.25, 0.5],
        "n": 4,
        "m": 6,
        "stages": 4,
        "pad": {"multiple": 64, "mode": "zero", "align": "centre"},
        "convention": "compressai",
        "checkpoints": [
            {"file": "2.pth", "sha256": digests[0]},
            {"file": "1.pth", "sha256": digests[1]},
        ],
    }


def test_the_same_checkpoints_give_the_same_bytes(tmp_path: Path) -> None:
    torch.save(checkpoint(1), tmp_path / "a.pth")
    torch.save(checkpoint(2), tmp_path / "b.pth")
    pairs = [f"0.1={tmp_path / 'a.pth'}", f"0.2={tmp_path / 'b.pth'}"]
    assert run(tmp_path, *pairs) == 0
    first = (tmp_path / "out.safetensors").read_bytes()
    assert run(tmp_path, *reversed(pairs)) == 0
    assert (tmp_path / "out.safetensors").read_bytes() == first


def without(name: str) -> Callable[[State], Any]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def other(name: str, value: Any) -> Callable[[State], Any]:
    return lambda state: {**state, name: value}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("h_a.2.bias"), "tensor 'h_a.2.bias' is missing"),
        (without("g_a.0.weight"), "of a scale hyperprior (needs g_a.0.weight, g_a.2.weight, ...)"),
        (without("entropy_bottleneck.quantiles"), "quantiles' is missing"),
        (other("h_a.2.bias", torch.zeros(5)), "tensor 'h_a.2.bias' is (5,), not (4,)"),
        (
            other("g_a.0.weight", torch.zeros(4, 3, 5, 5)),
            "tensor 'g_a.0.weight' is (4, 3, 5, 5), not (4, 1, 5, 5)",
        ),
        (
            other("g_s.2.bias", torch.full((4,), torch.nan)),
            "g_s.2.bias contains values that are not finite",
        ),
        (other("g_s.2.bias", torch.zeros(4, dtype=torch.int32)), "is int32, not dense floating"),
        (
            other("g_a.8.extra", torch.zeros(4)),
            "tensor 'g_a.8.extra' does not belong to a scale hyperprior",
        ),
        (
            other("context.weight", torch.zeros(4)),
            "tensor 'context.weight' does not belong to a scale hyperprior",
        ),
        (
            other("gaussian_conditional.scale_table", scales().flip(0)),
            "scale_table is not increasing from above zero",
        ),
        (
            other("gaussian_conditional.scale_table", torch.full((64,), torch.nan)),
            "scale_table is not increasing from above zero",
        ),
        (other("gaussian_conditional.scale_table", scales(1e9)), "up to 4096"),
        (
            other(
                "entropy_bottleneck.quantiles",
                torch.full((4, 1, 3), 1e9) * torch.tensor([-1.0, 0.0, 1.0]),
            ),
            "density of z is too wide to tabulate",
        ),
        (other("g_a.2.weight", torch.full((4, 4, 5, 5), 1e30)), "weights are too large"),
        (lambda state: list(state), "contains no state dict of tensors, but a list"),
        (
            lambda state: state | newer({"entropy_bottleneck._bias0": torch.zeros(4, 3, 1)}),
            "has tensor 'entropy_bottleneck._bias0' under two names",
        ),
        (
            lambda state: under("a.", state) | under("b.", state),
            "contains several networks ('a.g_a.0.weight', 'b.g_a.0.weight')",
        ),
        (other("h_a.2.bias", torch.zeros(1).expand(4)), "'h_a.2.bias' is one value repeated"),
        (lambda state: {"state_dict": 3}, "not a CompressAI checkpoint"),
        (lambda state: {}, "contains no state dict of tensors"),
        (lambda state: {3: torch.zeros(2)}, "not a CompressAI checkpoint"),
    ],
)
def test_what_is_no_such_checkpoint_is_one_clear_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[State], Any],
    told: str,
) -> None:
    torch.save(checkpoint(1), tmp_path / "sound.pth")
    torch.save(change(checkpoint(2)), tmp_path / "other.pth")
    pairs = [f"0.1={tmp_path / 'sound.pth'}", f"0.2={tmp_path / 'other.pth'}"]
    assert run(tmp_path, *pairs) == 2
    check_line(tmp_path, capsys, told, "other.pth")


def test_a_library_s_message_comes_without_codes_of_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": checkpoint(1), "notes": np.ones(2)}, tmp_path / "a.pth")
    assert run(tmp_path, f"0.1={tmp_path / 'a.pth'}") == 2
    error = capsys.readouterr().err
    assert "_reconstruct; only tensors and plain values are" in error
    assert "[1m" not in error


def check_line(
    folder: Path, capsys: pytest.CaptureFixture[str], told: str, name: str | None = None
) -> None:
    out, error = capsys.readouterr()
    assert told in error
    assert name is None or str(folder / name) in error
    assert (out, error.count("\n")) == ("", 1)
    assert not [path for path in folder.iterdir() if path.name.startswith("out")]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "not a CompressAI checkpoint of a scale hyperprior (no such weights file)"),
        (b"", "not a CompressAI checkpoint"),
        (b"nothing of the kind", "not a CompressAI checkpoint"),
        (b"PK\3\4" + bytes(200), "not a CompressAI checkpoint"),
        (b"\x80\x02}q\x00.", "not a CompressAI checkpoint"),
    ],
)
def test_foreign_and_missing_files_are_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, told: str
) -> None:
    if content is not None:
        (tmp_path / "a.pth").write_bytes(content)
    assert run(tmp_path, f"0.1={tmp_path / 'a.pth'}") == 2
    check_line(tmp_path, capsys, told, "a.pth")


def test_a_checkpoint_that_is_cut_off_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(checkpoint(1), tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    for length in (100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.pth").write_bytes(whole[:length])
        assert run(tmp_path, f"0.1={tmp_path / 'a.pth'}") == 2
        check_line(tmp_path, capsys, "not a CompressAI checkpoint", "a.pth")


def test_pickles_that_run_code_are_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"state_dict": checkpoint(1), "trap": Trap()}, tmp_path / "a.pth")
    assert run(tmp_path, f"0.1={tmp_path / 'a.pth'}") == 2
    check_line(tmp_path, capsys, "mkdir; only tensors and plain", "a.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: checkpoint(2, n=8), "{'n': 8, 'm': 6, 'stages': 4}, the others {'n': 4,"),
        (lambda: checkpoint(2, m=5), "{'n': 4, 'm': 5, 'stages': 4}, the others {'n': 4,"),
        (
            lambda: checkpoint(2) | {"gaussian_conditional.scale_table": scales(64.0)},
            "has a different table of scales than the other",
        ),
    ],
)
def test_models_of_a_ladder_are_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[], State], told: str
) -> None:
    torch.save(checkpoint(1), tmp_path / "a.pth")
    torch.save(make(), tmp_path / "b.pth")
    assert run(tmp_path, f"0.1={tmp_path / 'a.pth'}", f"0.2={tmp_path / 'b.pth'}") == 2
    check_line(tmp_path, capsys, told, "b.pth")


@pytest.mark.parametrize("lambdas", [("0.1", "0.10"), ("inf",), ("0.1", "0.2", "1e-1")])
def test_lambdas_differ_and_are_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lambdas: tuple[str, ...]
) -> None:
    torch.save(checkpoint(1), tmp_path / "a.pth")
    assert run(tmp_path, *(f"{lmbda}={tmp_path / 'a.pth'}" for lmbda in lambdas)) == 2
    check_line(tmp_path, capsys, "mine: lambdas must ")


@pytest.mark.parametrize("pair", ["a.pth", "x=a.pth", "-1=a.pth", "0=a.pth", "nan=a.pth", "0.1="])
def test_pairs_are_lambda_and_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pair: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--out", str(tmp_path / "out.safetensors"), "--name", "mine", "--", pair])
    assert left.value.code == 2
    assert f"{pair!r} is not LAMBDA=FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("models.pth", "models.pth: the file name must end in .safetensors"),
        ("folder.safetensors", "folder.safetensors: is a folder"),
        ("a.pth/models.safetensors", "a.pth"),
    ],
)
def test_where_no_ladder_can_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, told: str
) -> None:
    torch.save(checkpoint(1), tmp_path / "a.pth")
    (tmp_path / "folder.safetensors").mkdir()
    before = sorted(tmp_path.iterdir())
    pair = f"0.1={tmp_path / 'a.pth'}"
    assert main(["--out", str(tmp_path / out), "--name", "mine", pair]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
