"""A learned scale hyperprior, with exact arithmetic: the same bytes on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfqa_data.lazy import lazy_modules

if TYPE_CHECKING:
    from cfqa_data.codecs.hyperprior.codec import Hyperprior, HyperpriorCodec, load_hyperprior

__all__ = ["Hyperprior", "HyperpriorCodec", "load_hyperprior"]

_HOMES = dict.fromkeys(__all__, "cfqa_data.codecs.hyperprior.codec")

__getattr__, __dir__ = lazy_modules(__name__, __path__, _HOMES)
