"""Sources: providers of samples (inputs and ground truth), one class each."""

from __future__ import annotations

from cfqa_data.lazy import lazy_modules

_BASE = "cfqa_data.builders.sources.base"
__getattr__, __dir__ = lazy_modules(
    __name__, __path__, dict.fromkeys(("SOURCES", "Sample", "Source", "get_source"), _BASE)
)
