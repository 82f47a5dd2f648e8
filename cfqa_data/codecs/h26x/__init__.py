"""HEVC and VVC: x265 and VVenC as libraries, HM and VTM as programs."""

from __future__ import annotations

from cfqa_data.lazy import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
