"""Checkpoints of CompressAI's ``bmshj2018-hyperprior`` with one channel in and out.

Read without running any code from them, and held against the architecture tensor by tensor.  A
checkpoint's own quantiles (the second is what z is counted from) and scales are used, so that the
latents are those of its authors; its quantised probabilities are not, but made again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cfqa_data.codecs.hyperprior.entropy_tables import scale_table
from cfqa_data.codecs.hyperprior.weights import PAPER_PAD, HyperpriorWeights, Pad
from cfqa_data.errors import BuildError, CodecError, prefixed
from cfqa_data.format.checkpoints import check_tensors, read_tensors, without_prefix
from cfqa_data.paths import absolute_path
from cfqa_data.torch_state import torch_state

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["read_checkpoint"]

QUANTILES = "entropy_bottleneck.quantiles"
SCALES = "gaussian_conditional.scale_table"
KNOWN_BY = ("g_a.0.weight", "h_a.0.weight", QUANTILES)
MOST_SCALES, LARGEST_SCALE = 256, 4096.0
UNUSED = re.compile(
    r"(entropy_bottleneck|gaussian_conditional)\."
    r"(_offset|_quantized_cdf|_cdf_length|target|scale_bound|\w+\.bound)"
    r"|g_[as]\.\d+\.(beta|gamma)_reparam\..+"
)
"""Names of tensors that follow from the others."""


def read_checkpoint(path: str | Path, pad: Pad = PAPER_PAD) -> HyperpriorWeights:
    """Return the weights of a checkpoint.

    Args:
        path: What `torch.save` wrote: a state dict, or one as :func:`state_of
            <cfqa_data.format.checkpoints.state_of>` finds it; or its safetensors file.
        pad: How planes are padded.

    Raises:
        CodecError: If the file is not one, or one of its tensors is not the architecture's.
    """
    path = absolute_path(path)
    with prefixed(path, CodecError, CodecError):
        state = _load(path)
        scales = state.pop(SCALES, np.empty(0)).astype(np.float64)
        if scales.size and (scales.ndim != 1 or not (np.diff(scales, prepend=0.0) > 0).all()):
            raise CodecError(f"{SCALES} is not increasing from above zero")
        if scales.size > MOST_SCALES or (scales > LARGEST_SCALE).any():
            detail = f"{MOST_SCALES} scales up to {LARGEST_SCALE:g}"
            raise CodecError(f"{SCALES} is beyond {detail}, which is what can be tabulated")
        standard = scale_table()
        if scales.shape == standard.shape and np.allclose(scales, standard, rtol=1e-4):
            scales = standard
        return HyperpriorWeights.from_state(state, pad, scales if scales.size else None, True)


@torch_state(grad=False)
def _load(path: str | Path) -> dict[str, np.ndarray]:
    """Return the tensors of a checkpoint that are used, by CompressAI's older names.

    Raises:
        CodecError: If it is no such file; a tensor is missing, left over, misshapen or not finite.
    """
    origin = str(path)
    try:
        found, prefix = without_prefix(read_tensors(path), KNOWN_BY, origin)
        state: dict[str, Tensor] = {}
        for key, tensor in found.items():
            name = _plain_key(key.removeprefix(prefix))
            if name in state:
                raise BuildError(f"{origin}: has tensor '{name}' under two names")
            if not UNUSED.fullmatch(name):
                state[name] = tensor
        expected = _expected(state)
        check_tensors(state, expected, origin, "scale hyperprior of one channel")
    except BuildError as error:
        detail = str(error).removeprefix(f"{origin}: ")
        raise CodecError(f"not a CompressAI checkpoint of a scale hyperprior ({detail})") from None
    arrays = {name: _array(state[name]) for name in expected}
    for name, array in arrays.items():
        if name != SCALES and not np.isfinite(array).all():
            raise CodecError(f"{name} contains values that are not finite")
    return arrays


def _expected(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without data of the shapes that a state dict must have.

    Raises:
        BuildError: If it is of another architecture.
    """
    import torch

    stages = next((i for i in range(16) if f"g_a.{2 * i}.weight" not in state), 0)
    first, last = state.get("g_a.0.weight"), state.get(f"g_a.{2 * stages - 2}.weight")
    if first is None or last is None or stages < 2 or not first.ndim == last.ndim == 4:
        raise BuildError("needs g_a.0.weight, g_a.2.weight, ...")
    expected = dict(_tensors(len(first), len(last), stages))
    if SCALES in state:
        expected[SCALES] = torch.empty(state[SCALES].shape, device="meta")
    return expected


@lru_cache(maxsize=4)  # all models of a ladder have the same
def _tensors(n: int, m: int, stages: int) -> dict[str, Tensor]:
    """Return the tensors of an architecture, without data."""
    import torch

    from cfqa_data.codecs.hyperprior.module import ScaleHyperprior

    with torch.device("meta"):
        return ScaleHyperprior(n, m, stages).state_dict()


def _array(tensor: Tensor) -> np.ndarray:
    """Return a tensor's numbers as an array of their own, halves as float32."""
    wide = tensor.detach().float() if tensor.itemsize < 4 else tensor.detach()
    return np.array(wide.numpy(), order="C")


def _plain_key(key: str) -> str:
    """Return a key in the older of CompressAI's namings."""
    for newer, older in (("matrices", "matrix"), ("biases", "bias"), ("factors", "factor")):
        key = re.sub(rf"(entropy_bottleneck\.)_?{newer}\.(\d+)", rf"\1_{older}\2", key)
    return key
