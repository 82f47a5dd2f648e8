"""What a person sees on a terminal: progress, sizes, durations, tables."""

from __future__ import annotations

from cfqa_data.lazy import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
