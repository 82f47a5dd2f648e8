"""Sorting and selection, on a CPU by NumPy, which is several times faster than torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cfqa_data.eval.features.lazy_torch import Tensor, torch

__all__ = ["ascending", "in_order", "smallest"]


def smallest(numbers: Tensor, k: int) -> Tensor:
    """Return the k-th smallest number of each row, counted from 1: (..., P) to (...)."""
    if numbers.device.type != "cpu" or numbers.requires_grad:
        return numbers.kthvalue(k).values
    return torch.from_numpy(np.partition(numbers.numpy(), k - 1)[..., k - 1].copy())


def in_order(numbers: Tensor) -> Tensor:
    """Return the numbers of each row in ascending order, (..., P)."""
    if numbers.device.type != "cpu" or numbers.requires_grad:
        return numbers.sort(-1).values
    return torch.from_numpy(np.sort(numbers.numpy()))


def ascending(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sorted numbers of each row and the indices that sort them, (..., P) each.

    Args:
        numbers: (..., P) float64, not negative.
    """
    if numbers.device.type != "cpu":
        return tuple(numbers.sort(-1))  # type: ignore[return-value]
    order = torch.from_numpy(np.apply_along_axis(_argsort, -1, numbers.detach().numpy()))
    return numbers.gather(-1, order), order


def _argsort(numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices that sort numbers which are not negative, (P,).

    The bit patterns of such floats, read as integers, have the order of the numbers. The lowest
    bits are replaced by the index, and the integers sorted, in a fifth of the time of an argsort.
    Runs of numbers that differ in the replaced bits only are then sorted by value.
    """
    places = (1 << len(numbers).bit_length()) - 1
    keys = (numbers + 0.0).view(np.int64) & ~places  # -0.0 becomes 0.0
    keys |= np.arange(len(keys))
    keys.sort()
    order = keys & places
    keys &= ~places
    same = keys[1:] == keys[:-1]
    if same.any():
        close = np.flatnonzero(np.append(same, False) | np.append(False, same))
        order[close] = order[close][np.lexsort((numbers[order[close]], keys[close]))]
    return order
