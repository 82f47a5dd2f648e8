"""Where the originals' images and truths come from, one class a source."""

from __future__ import annotations

from cfqa_data.builders.sources.base import Sample, Source, get_source, normalise

__all__ = ["Sample", "Source", "get_source", "normalise"]
