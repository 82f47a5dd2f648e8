"""Import torch on first use, so that listing metrics does not import it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["Tensor", "torch"]


class _LazyModule:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(import_module(self._name), attribute)
        setattr(self, attribute, found)  # so that it is looked up once
        return found


if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch, Tensor = _LazyModule("torch"), Any
