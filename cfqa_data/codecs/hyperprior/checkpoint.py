"""Read checkpoints of CompressAI's ``bmshj2018-hyperprior`` with one channel in and out.

Reading runs no code from the file, and checks every tensor against the architecture. The
checkpoint's quantiles (the median is the offset of z) and scales are used, so that the latents
equal those of its authors. Its quantised probabilities are not used but computed again.
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
from cfqa_data.format.checkpoints import check_tensors, find_network, read_tensors
from cfqa_data.paths import absolute_path
from cfqa_data.torch_state import torch_state

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["read_checkpoint"]

QUANTILES = "entropy_bottleneck.quantiles"
SCALES = "gaussian_conditional.scale_table"
MARKER_KEYS = ("g_a.0.weight", "h_a.0.weight", QUANTILES)
MAX_SCALES, LARGEST_SCALE = 256, 4096.0
DERIVED = re.compile(
    r"(entropy_bottleneck|gaussian_conditional)\."
    r"(_offset|_quantized_cdf|_cdf_length|target|scale_bound|\w+\.bound)"
    r"|g_[as]\.\d+\.(beta|gamma)_reparam\..+"
)
"""Names of tensors that are computed from the others."""


def read_checkpoint(path: str | Path, pad: Pad = PAPER_PAD) -> HyperpriorWeights:
    """Return the weights of a checkpoint.

    Args:
        path: A file by `torch.save` with a state dict, alone or nested as :func:`state_of
            <cfqa_data.format.checkpoints.state_of>` accepts; or a safetensors file of one.
        pad: How planes are padded.

    Raises:
        CodecError: If the file is no such checkpoint, or a tensor does not fit the architecture.
    """
    path = absolute_path(path)
    with prefixed(path, CodecError, CodecError):
        state = _read_state(path)
        scales = state.pop(SCALES, np.empty(0)).astype(np.float64)
        if scales.size and (scales.ndim != 1 or not (np.diff(scales, prepend=0.0) > 0).all()):
            raise CodecError(f"{SCALES} is not increasing from above zero")
        if scales.size > MAX_SCALES or (scales > LARGEST_SCALE).any():
            detail = f"{MAX_SCALES} scales up to {LARGEST_SCALE:g}"
            raise CodecError(f"{SCALES} is beyond {detail}, which is what can be tabulated")
        standard = scale_table()
        if scales.shape == standard.shape and np.allclose(scales, standard, rtol=1e-4):
            scales = standard
        return HyperpriorWeights.from_state(state, pad, scales if scales.size else None, True)


@torch_state(grad=False)
def _read_state(path: str | Path) -> dict[str, np.ndarray]:
    """Return the tensors that are used, under CompressAI's older names.

    Raises:
        CodecError: If the file is no checkpoint, or a tensor is missing, unexpected, of a wrong
            shape or not finite.
    """
    origin = str(path)
    try:
        tensors, prefix = find_network(read_tensors(path), MARKER_KEYS, origin)
        state: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            name = _normalise_key(key.removeprefix(prefix))
            if name in state:
                raise BuildError(f"{origin}: has tensor '{name}' under two names")
            if not DERIVED.fullmatch(name):
                state[name] = tensor
        expected = _expected_tensors(state)
        check_tensors(state, expected, origin, "scale hyperprior of one channel")
    except BuildError as error:
        detail = str(error).removeprefix(f"{origin}: ")
        raise CodecError(f"not a CompressAI checkpoint of a scale hyperprior ({detail})") from None
    arrays = {name: _to_array(state[name]) for name in expected}
    for name, array in arrays.items():
        if name != SCALES and not np.isfinite(array).all():
            raise CodecError(f"{name} contains values that are not finite")
    return arrays


def _expected_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the meta device with the shapes that a state dict must have.

    Raises:
        BuildError: If the state dict is of another architecture.
    """
    import torch

    stages = next((i for i in range(16) if f"g_a.{2 * i}.weight" not in state), 0)
    first, last = state.get("g_a.0.weight"), state.get(f"g_a.{2 * stages - 2}.weight")
    if first is None or last is None or stages < 2 or not first.ndim == last.ndim == 4:
        raise BuildError("needs g_a.0.weight, g_a.2.weight, ...")
    expected = dict(_architecture(len(first), len(last), stages))
    if SCALES in state:
        expected[SCALES] = torch.empty(state[SCALES].shape, device="meta")
    return expected


@lru_cache(maxsize=4)  # all models of a ladder share one architecture
def _architecture(n: int, m: int, stages: int) -> dict[str, Tensor]:
    """Return the state dict of an architecture on the meta device."""
    import torch

    from cfqa_data.codecs.hyperprior.module import ScaleHyperprior

    with torch.device("meta"):
        return ScaleHyperprior(n, m, stages).state_dict()


def _to_array(tensor: Tensor) -> np.ndarray:
    """Return a copy of a tensor as an array; half precision becomes float32."""
    wide = tensor.detach().float() if tensor.itemsize < 4 else tensor.detach()
    return np.array(wide.numpy(), order="C")


def _normalise_key(key: str) -> str:
    """Return a key in the older of CompressAI's naming schemes."""
    for newer, older in (("matrices", "matrix"), ("biases", "bias"), ("factors", "factor")):
        key = re.sub(rf"(entropy_bottleneck\.)_?{newer}\.(\d+)", rf"\1_{older}\2", key)
    return key
