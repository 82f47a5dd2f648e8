"""Batches of features, with a cache of the quantities that several metrics derive from them.

An evaluation scores forty compressed versions of one original by many metrics. Quantities of the
original (token norms, Gram matrices) are computed once for all versions, and those of a version
once for all metrics.

Precision: arithmetic is in the dtype of the values, float32 or float64, and means over tokens and
slices are float64. Similarities near 1 are computed from the difference of unit vectors, where
float32 rounding has a second-order effect only, never as a quotient of products.
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
"""Maximum number of elements of a temporary of `by_rows`. On a CPU, 512 kB of float32 stay in a
core's cache together with the operands; on a GPU, fewer operations on up to 128 MB are faster."""

MANY = 2**17
"""Number of values from which one pass over them takes a CPU longer than a few small operations."""


class Features:
    """A batch of features (B, N, C, T, D): views, layers, tokens, channels.

    Derived quantities are cached for the lifetime of the object. At the largest published size,
    (2, 4, 1611, 1536), ``centred`` takes about 80 MB in float32, and so do T x T matrices.

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
        """Return the result of ``make()``, which is called once per key and then cached."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def keeps(self, key: Hashable) -> bool:
        """Return whether a result is cached under this key."""
        return key in self._kept

    @cached_property
    def norms(self) -> Tensor:
        """Euclidean norm of each token, float64 (B, N, C, T)."""
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
    """Cache the results of a function of ``(features, ...)`` or of a pair ``(x, y, ...)``.

    The cache is that of the features, or of ``y``; its keys are the other arguments.
    """

    @wraps(function)
    def cached(*arguments: Any) -> Any:
        pair = isinstance(arguments[1], Features) if len(arguments) > 1 else False
        owner = arguments[1] if pair else arguments[0]
        others = (argument for argument in arguments if argument is not owner)
        return owner.once((function, *others), partial(function, *arguments))

    return cached  # type: ignore[return-value]


def by_rows(function: Callable[..., Tensor], *batches: Tensor, share: int = 1) -> Tensor:
    """Apply a function to a few tokens at a time, so that its temporaries stay in the CPU cache.

    Args:
        function: Takes rows of each batch, (B or 1, rows, D), and returns float64 (B, rows).
        batches: (B or 1, N, C, T, D or 1); the last one has all items and channels.
        share: Divisor of the number of rows on a CPU, for functions with several or float64
            temporaries.

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
    """Return the standard deviation over channels, (..., D) to float64 (...)."""
    z = tokens - tokens.mean(-1, keepdim=True)
    stds = torch.linalg.vector_norm(z, dim=-1).double() / z.shape[-1] ** 0.5
    return stds.masked_fill(tokens.amax(-1) == tokens.amin(-1), 0.0)


def saves_passes(values: Tensor) -> bool:
    """Return whether to use formulas with fewer passes, which branch on computed values.

    They are used for many values on a CPU. On other devices the branch would be a host
    synchronisation, and gradients are recorded through one formula only.
    """
    return values.device.type == "cpu" and values.numel() >= MANY and not values.requires_grad


def root(squares: Tensor) -> Tensor:
    """Return the square root, whose gradient at zero is zero and not infinite."""
    if not squares.requires_grad:
        return squares.sqrt()
    empty = squares == 0
    return squares.masked_fill(empty, 1.0).sqrt().masked_fill(empty, 0.0)


def own(temporary: Tensor) -> Tensor:
    """Return a tensor that may be overwritten: a copy where autograd may need the original."""
    return temporary.clone() if temporary.requires_grad else temporary


def slice_mean(values: Tensor) -> Tensor:
    """Return the mean of (B, N, C, ...) over all axes but the first, float64 (B,)."""
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

    A sum that includes NaN or Inf is not finite. A float32 sum of finite values may overflow, too;
    a float64 sum, which cannot, then decides.
    """
    if batch.is_floating_point() and bool(batch.sum(-1).isfinite().all()):
        return None
    bad = ~batch.reshape(len(batch), -1).sum(1, dtype=torch.float64).isfinite()
    return int(bad.int().argmax()) if bool(bad.any()) else None
