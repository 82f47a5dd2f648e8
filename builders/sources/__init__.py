"""Where samples come from, one class a source."""

from __future__ import annotations

from cfqa_data.lazy import lazy_modules

_BASE = "cfqa_data.builders.sources.base"
__getattr__, __dir__ = lazy_modules(
    __name__, __path__, dict.fromkeys(("SOURCES", "Sample", "Source", "get_source"), _BASE)
)
