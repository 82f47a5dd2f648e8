"""Pictures of a dataset: what compression does to features, and to what tasks make of them."""

from __future__ import annotations

from cfqa_data.lazy import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
