"""Deep verification (decoding and scoring again) and repair of dataset folders."""

from __future__ import annotations

from cfqa_data.lazy import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
