"""Import torch on first use, so that listing metrics does not import it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cfqa_data.lazy import LazyModule

__all__ = ["Tensor", "torch"]

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch, Tensor = LazyModule("torch"), Any
