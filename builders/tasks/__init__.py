"""Task heads: how a feature is scored against the ground truth."""

from __future__ import annotations

from cfqa_data.lazy import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
