"""The dataset format: paths, tables, arrays, manifest, and the invariants that hold in a folder."""

from __future__ import annotations

from cfqa_data.lazy import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
