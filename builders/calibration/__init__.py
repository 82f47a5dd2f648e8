"""Calibration: choose the levels of codecs so that they spread the distortion evenly."""

from __future__ import annotations

from cfqa_data.lazy import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
