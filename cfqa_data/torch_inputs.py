"""Convert tensors, NumPy arrays and array-likes to tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["as_tensor", "unmasked"]


def unmasked(values: Any) -> Any:
    """Replace masked values of an array by NaN; return anything else unchanged."""
    return values.astype(np.float64).filled(np.nan) if np.ma.is_masked(values) else values


def as_tensor(values: Any) -> Tensor:
    """Convert an array to a tensor of the same dtype; return a tensor unchanged.

    The tensor shares the memory of a C-contiguous, writable array.

    Raises:
        TypeError: If the values are not a dense array of real numbers.
    """
    import torch

    tensor = values
    if not isinstance(values, torch.Tensor):
        try:
            array = np.asarray(unmasked(values))
            if array.dtype.kind == "V":  # bfloat16 and similar dtypes of ml_dtypes
                array = array.astype(np.float32)
            elif array.dtype == np.longdouble:
                array = array.astype(np.float64)
            native = array.dtype.newbyteorder("=")
            tensor = torch.from_numpy(np.require(array, native, ["C", "W"]))
        except (TypeError, ValueError):
            kind = getattr(getattr(values, "dtype", None), "name", type(values).__name__)
            raise TypeError(f"expected an array or tensor of numbers, not {kind}") from None
    if tensor.layout is not torch.strided or tensor.is_meta:
        kind = "meta" if tensor.is_meta else str(tensor.layout)
        raise TypeError(f"expected a dense tensor of numbers, not {kind}")
    if tensor.is_complex():
        raise TypeError(f"expected real numbers, not {tensor.dtype}")
    return tensor
