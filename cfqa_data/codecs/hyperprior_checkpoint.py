"""Checkpoints of CompressAI's ``bmshj2018-hyperprior`` with one channel in and out.

Read without running any code from them, and held against the architecture tensor by tensor.  A
checkpoint's own quantiles (the second is what z is counted from) and scales are used, so that the
latents are those of its authors; its quantised probabilities are not, but made again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cfqa_data.codecs.entropy_tables import scale_table
from cfqa_data.codecs.hyperprior_weights import PAPER_PAD, HyperpriorWeights, Pad
from cfqa_data.errors import CodecError
from cfqa_data.torch_state import torch_state

__all__ = ["expected_shapes", "read_checkpoint"]

FILTERS = (3, 3, 3, 3)
QUANTILES = "entropy_bottleneck.quantiles"
SCALES = "gaussian_conditional.scale_table"
MOST_SCALES, LARGEST_SCALE = 256, 4096.0
UNUSED = re.compile(
    r"(entropy_bottleneck|gaussian_conditional)\."
    r"(_offset|_quantized_cdf|_cdf_length|target|scale_table|scale_bound|\w+\.bound)"
    r"|g_[as]\.\d+\.(beta|gamma)_reparam\..+"
)
"""Names of tensors that follow from the others."""


def read_checkpoint(path: str | Path, pad: Pad = PAPER_PAD) -> HyperpriorWeights:
    """Return the weights of a checkpoint.

    Args:
        path: a ``.pth`` file, a state dict or a dict with one under ``state_dict``, its keys
            with or without ``module.``.
        pad: how planes are padded.

    Raises:
        CodecError: the file is not one, or one of its tensors is not the architecture's.
    """
    loaded = _load(path)
    try:
        state = _checked(loaded)
        scales = loaded.get(SCALES, np.empty(0)).astype(np.float64)
        if scales.size and (scales.ndim != 1 or not (np.diff(scales, prepend=0.0) > 0).all()):
            raise CodecError(f"{SCALES} does not rise from above zero")
        if scales.size > MOST_SCALES or (scales > LARGEST_SCALE).any():
            told = f"{MOST_SCALES} scales up to {LARGEST_SCALE:g}"
            raise CodecError(f"{SCALES} is beyond {told}, which is what can be tabulated")
        standard = scale_table()
        if scales.shape == standard.shape and np.allclose(scales, standard, rtol=1e-4):
            scales = standard
        return HyperpriorWeights.as_published(state, pad, scales if scales.size else None)
    except CodecError as error:
        raise CodecError(f"{path}: {error}") from None


def expected_shapes(n: int, m: int, stages: int) -> dict[str, tuple[int, ...]]:
    """Return the tensors that the architecture has, by name: N, M and convolutions of stride 2."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, weight: tuple[int, ...], outputs: int) -> None:
        shapes[f"{name}.weight"] = weight
        shapes[f"{name}.bias"] = (outputs,)

    widths = [1, *[n] * (stages - 1), m]
    for stage in range(stages):
        inner, outer = widths[stage : stage + 2]
        layer(f"g_a.{2 * stage}", (outer, inner, 5, 5), outer)
        layer(f"g_s.{2 * (stages - 1 - stage)}", (outer, inner, 5, 5), inner)
        for network in ("g_a", "g_s") if stage else ():
            shapes[f"{network}.{2 * stage - 1}.beta"] = (n,)
            shapes[f"{network}.{2 * stage - 1}.gamma"] = (n, n)
    layer("h_a.0", (n, m, 3, 3), n)
    layer("h_s.4", (m, n, 3, 3), m)
    for name in ("h_a.2", "h_a.4", "h_s.0", "h_s.2"):
        layer(name, (n, n, 5, 5), n)
    sizes = (1, *FILTERS, 1)
    for place in range(len(FILTERS) + 1):
        shapes[f"entropy_bottleneck._matrix{place}"] = (n, sizes[place + 1], sizes[place])
        shapes[f"entropy_bottleneck._bias{place}"] = (n, sizes[place + 1], 1)
        if place < len(FILTERS):
            shapes[f"entropy_bottleneck._factor{place}"] = (n, sizes[place + 1], 1)
    shapes[QUANTILES] = (n, 1, 3)
    return shapes


@torch_state(grad=False)
def _load(path: str | Path) -> dict[str, np.ndarray]:
    """Return all tensors of a file, by CompressAI's older names."""
    import pickle

    import torch

    if not Path(path).is_file():
        raise CodecError(f"{path}: no such file; needs a CompressAI checkpoint")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        loaded = loaded.get("state_dict", loaded)
        state = {
            _plain_key(key): value.detach().numpy()
            for key, value in loaded.items()
            if isinstance(value, torch.Tensor)
        }
    except (OSError, RuntimeError, AttributeError, TypeError, EOFError) as error:
        raise CodecError(f"{path}: not a CompressAI checkpoint ({_line(error)})") from None
    except (pickle.UnpicklingError, ValueError, KeyError, IndexError) as error:
        raise CodecError(f"{path}: not a CompressAI checkpoint ({_line(error)})") from None
    return state


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _checked(loaded: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors of the architecture.

    Raises:
        CodecError: one is missing, has another shape, is not finite, or is not of it.
    """
    stages = next((i for i in range(16) if f"g_a.{2 * i}.weight" not in loaded), 0)
    first, last = loaded.get("g_a.0.weight"), loaded.get(f"g_a.{2 * stages - 2}.weight")
    if first is None or last is None or stages < 2 or not first.ndim == last.ndim == 4:
        raise CodecError("not a scale hyperprior: needs g_a.0.weight, g_a.2.weight, ...")
    expected = expected_shapes(len(first), len(last), stages)
    for name, shape in expected.items():
        found = loaded.get(name)
        if found is None:
            raise CodecError(f"not a scale hyperprior of one channel: {name} is missing")
        if found.shape != shape:
            told = f"{name} has shape {found.shape}, not {shape}"
            raise CodecError(f"not a scale hyperprior of one channel: {told}")
        if found.dtype.kind != "f" or not np.isfinite(found).all():
            raise CodecError(f"{name} does not hold finite numbers")
    for name in loaded:
        if name not in expected and not UNUSED.fullmatch(name):
            raise CodecError(f"not a scale hyperprior of one channel: {name} is not part of one")
    return {name: loaded[name] for name in expected}


def _plain_key(key: str) -> str:
    """Return a key without ``module.`` and with the older of CompressAI's namings."""
    key = key.removeprefix("module.")
    for newer, older in (("matrices", "_matrix"), ("biases", "_bias"), ("factors", "_factor")):
        pattern = rf"entropy_bottleneck\._?{newer}\.(\d+)"
        key = re.sub(pattern, rf"entropy_bottleneck.{older}\1", key)
    return key
