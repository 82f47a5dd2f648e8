"""Whether a dataset folder is whole, agrees with itself, and has labels that tell metrics apart."""

from __future__ import annotations

from cfqa_data.lazy import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
