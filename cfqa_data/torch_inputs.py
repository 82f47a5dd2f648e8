"""Convert tensors, NumPy arrays and array-likes to tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["as_tensor", "unmasked"]


def unmasked(values: Any) -> Any:
    """Return a masked array with NaN where it has no value, and anything else as it is."""
    return values.astype(np.float64).filled(np.nan) if np.ma.is_masked(values) else values


def as_tensor(values: Any) -> Tensor:
    """Return a tensor as it is, and an array as a tensor of its dtype.

    Memory is shared where the array is plain and may be written to.

    Raises:
        TypeError: It holds no real numbers; the message says what it is.
    """
    import torch

    tensor = values
    if not isinstance(values, torch.Tensor):
        try:
            array = np.asarray(unmasked(values))
            if array.dtype.kind == "V":  # bfloat16 and its like, which NumPy itself has not
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
