"""Order among numbers: what is smallest, and ranks.

On a CPU by NumPy, which sorts and selects several times faster than torch.
"""

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
    """Return the numbers of each row in ascending order, and their places before: (..., P) each.

    Args:
        numbers: (..., P) float64, not negative.
    """
    if numbers.device.type != "cpu":
        return tuple(numbers.sort(-1))  # type: ignore[return-value]
    order = torch.from_numpy(np.apply_along_axis(_argsort, -1, numbers.detach().numpy()))
    return numbers.gather(-1, order), order


def _argsort(numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the order of numbers that are not negative: (P,).

    The bits of such numbers have the order of the numbers. Their last ones make room for the place,
    so that integers can be sorted, in a fifth of the time; numbers that differ in the last bits
    only are then put into order.
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
