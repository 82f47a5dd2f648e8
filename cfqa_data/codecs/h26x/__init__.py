"""HEVC and VVC: x265 in PyAV, VVenC in ffmpeg, and the reference encoders HM and VTM."""

from __future__ import annotations

from cfqa_data.lazy import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
