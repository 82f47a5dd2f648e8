"""What a dataset folder is: its paths, tables, arrays, manifest, and what always holds in it."""

from __future__ import annotations

from cfqa_data.lazy import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
