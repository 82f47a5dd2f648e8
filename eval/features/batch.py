"""Batches of features, with a cache of the quantities that several metrics derive from them.

An evaluation scores forty compressed versions against one original with many metrics. What belongs
to the original alone (its token norms, its Gram matrix) is then computed once for all of them, and
what belongs to a compressed feature once for all metrics.

Precision: arithmetic is in the dtype of the values, float32 or float64, and means over tokens and
slices are float64. Similarities near 1 are computed from the difference of unit vectors, on which
float32's rounding acts in second order only, never as a quotient of products.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property, partial, wraps
from typing import Any, TypeVar

import numpy as np

from cfqa_data.eval.features.lazy_torch import Tensor, torch

__all__ = [
    "Features",
    "by_rows",
    "derived",
    "first_nonfinite",
    "own",
    "root",
    "saves_passes",
    "slice_mean",
    "token_mean",
    "token_std",
]

Derives = TypeVar("Derives", bound=Callable[..., Any])

CHUNK, GPU_CHUNK = 2**17, 2**25
"""Numbers of a temporary over rows: 512 kB of float32 stay in a core's cache with what they are
made of; a GPU has few operations, in 128 MB."""

MANY = 2**17
"""Values from which on a pass over them takes a CPU longer than a few more operations do."""


class Features:
    """A batch of features (B, N, C, T, D): views, layers, tokens, channels.

    What is derived is kept for as long as the object is. At the paper's largest size, (2, 4, 1611,
    1536), ``centred`` takes about 80 MB in float32, and so does a T x T matrix.

    Attributes:
        values: (B, N, C, T, D), float32 or float64.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values if values.dtype == torch.float64 else values.float()
        self._kept: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, N, C, T, D)."""
        return tuple(self.values.shape)

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what ``make()`` gives, computed when it is first asked for under this key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def keeps(self, key: Hashable) -> bool:
        """Return whether something was derived under this key."""
        return key in self._kept

    @cached_property
    def norms(self) -> Tensor:
        """Euclidean length of each token, float64 (B, N, C, T)."""
        return torch.linalg.vector_norm(self.values, dim=-1).double()

    @cached_property
    def energies(self) -> Tensor:
        """Sum of squares of each token, float64 (B, N, C, T)."""
        return self.norms.square()

    @cached_property
    def stds(self) -> Tensor:
        """Standard deviation of each token's channels, float64 (B, N, C, T).

        Exactly zero where all channels are equal, which rounding of their mean would hide.
        """
        return by_rows(token_std, self.values)

    @cached_property
    def centred(self) -> Tensor:
        """Tokens minus their mean, (B, N, C, T, D); exactly zero where all tokens are equal.

        The first token is subtracted before the mean: the mean of T equal numbers need not round to
        that number, and a measure of similarity would then measure the rounding.
        """
        z = self.values - self.values[..., :1, :]
        return z - z.mean(-2, keepdim=True)


def derived(function: Derives) -> Derives:
    """Keep what a function derives from ``(features, ...)``, or from a pair ``(x, y, ...)``.

    It is kept on the features, or on ``y``, under the other arguments, and goes with them.
    """

    @wraps(function)
    def cached(*arguments: Any) -> Any:
        pair = isinstance(arguments[1], Features) if len(arguments) > 1 else False
        owner = arguments[1] if pair else arguments[0]
        others = (argument for argument in arguments if argument is not owner)
        return owner.once((function, *others), partial(function, *arguments))

    return cached  # type: ignore[return-value]


def by_rows(function: Callable[..., Tensor], *batches: Tensor, share: int = 1) -> Tensor:
    """Apply a function of rows to a few rows at a time, so that its temporaries stay in cache.

    Args:
        function: Takes rows of each batch, (b or 1, rows, D), and returns float64 (b, rows).
        batches: (B or 1, N, C, T, D or 1); the last one has all items and columns.
        share: How many times as much the function's temporaries take on a CPU as one of float32.

    Returns:
        float64 (B, N, C, T).
    """
    whole = batches[-1]
    flat = [batch.flatten(1, 3) for batch in batches]
    items, tokens, channels = flat[-1].shape
    room = CHUNK // share if whole.device.type == "cpu" else GPU_CHUNK
    step = max(1, room // (items * channels))
    if step * 4 >= tokens:
        return function(*flat).reshape(whole.shape[:-1])
    parts = range(0, tokens, step)
    done = [function(*(z[:, first : first + step] for z in flat)) for first in parts]
    return torch.cat(done, dim=1).reshape(whole.shape[:-1])


def token_std(tokens: Tensor) -> Tensor:
    """Return the standard deviation of channels, (..., D) to float64 (...), see `Features.stds`."""
    z = tokens - tokens.mean(-1, keepdim=True)
    stds = torch.linalg.vector_norm(z, dim=-1).double() / z.shape[-1] ** 0.5
    return stds.masked_fill(tokens.amax(-1) == tokens.amin(-1), 0.0)


def saves_passes(values: Tensor) -> bool:
    """Whether to save passes over values, by a formula that must look at what it finds.

    That is on a CPU, with many values; no other device is to be waited for, and what gradients are
    recorded of has one formula.
    """
    return values.device.type == "cpu" and values.numel() >= MANY and not values.requires_grad


def root(squares: Tensor) -> Tensor:
    """Return the square root, whose gradient at zero is zero and not infinite."""
    if not squares.requires_grad:
        return squares.sqrt()
    empty = squares == 0
    return squares.masked_fill(empty, 1.0).sqrt().masked_fill(empty, 0.0)


def own(temporary: Tensor) -> Tensor:
    """Return what may be overwritten: a tensor itself, or a copy if a gradient may need it."""
    return temporary.clone() if temporary.requires_grad else temporary


def slice_mean(values: Tensor) -> Tensor:
    """Mean of (B, N, C, ...) over all but the first axis, float64 (B,)."""
    return values.flatten(1).mean(1, dtype=torch.float64)


def token_mean(values: Tensor) -> Tensor:
    """Return the mean over tokens, (..., T, D) to float64 (..., D).

    NumPy adds float32 numbers in float64 without a converted copy of all of them.
    """
    if values.dtype == torch.float64 or values.device.type != "cpu" or values.requires_grad:
        return values.mean(-2, dtype=torch.float64)
    sums = np.add.reduce(values.numpy(), axis=-2, dtype=np.float64)
    return torch.from_numpy(sums) / values.shape[-2]


def first_nonfinite(batch: Tensor) -> int | None:
    """Return the index of the first item that holds NaN or Inf, or None.

    NaN or Inf cannot leave a sum. One of finite float32 values may overflow float32, which is when
    the sum is taken again in float64, which it cannot overflow.
    """
    if batch.is_floating_point() and bool(batch.sum(-1).isfinite().all()):
        return None
    bad = ~batch.reshape(len(batch), -1).sum(1, dtype=torch.float64).isfinite()
    return int(bad.int().argmax()) if bool(bad.any()) else None
