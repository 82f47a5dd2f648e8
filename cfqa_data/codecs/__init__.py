"""Codecs of planes, features and backbone inputs, by name.

Built in are HEVC (x265, HM), VVC (VVenC, VTM) and a learned scale hyperprior on planes; channel
reduction, scalar, sparse and product quantisation on features; and JPEG on the image before the
backbone. Plugins add others.

>>> codec = get_codec("x265")
>>> decoded = codec.decode(codec.encode(plane, 32), plane.shape)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cfqa_data.codecs.base import Codec, FeatureCodec, InputCodec
from cfqa_data.errors import CodecError, prefixed
from cfqa_data.lazy import lazy_modules
from cfqa_data.registry import Plugins, Registry, RegistryEntry, bind_options

__all__ = ["Codec", "FeatureCodec", "InputCodec", "find_codec", "get_codec", "list_codecs"]

__getattr__, __dir__ = lazy_modules(__name__, __path__)

CODECS = Registry(
    "codec",
    {
        "x265": "cfqa_data.codecs.h26x.hevc:X265",
        "vvenc": "cfqa_data.codecs.h26x.vvc:VVenC",
        "hm": "cfqa_data.codecs.h26x.reference:HM",
        "vtm": "cfqa_data.codecs.h26x.reference:VTM",
        "hyperprior_multi_task": "cfqa_data.codecs.hyperprior.codec:MultiTask",
        "hyperprior_task_specific": "cfqa_data.codecs.hyperprior.codec:TaskSpecific",
        "slice": "cfqa_data.codecs.features.channels:Slice",
        "prune": "cfqa_data.codecs.features.channels:Prune",
        "lowrank": "cfqa_data.codecs.features.channels:LowRank",
        "topk": "cfqa_data.codecs.features.channels:TopK",
        "int": "cfqa_data.codecs.features.scalar:Int",
        "fp": "cfqa_data.codecs.features.scalar:Minifloat",
        "mxfp": "cfqa_data.codecs.features.scalar:Mxfp",
        "nvfp4": "cfqa_data.codecs.features.scalar:Nvfp4",
        "pq": "cfqa_data.codecs.features.product:ProductQuantizer",
        "jpeg": "cfqa_data.codecs.inputs.jpeg:Jpeg",
    },
    CodecError,
    (Codec, FeatureCodec, InputCodec),
)
"""All built-in codecs by name. The facts about a codec are attributes of its class."""


def list_codecs() -> list[str]:
    """Return the names that :func:`get_codec` accepts: built-in codecs and entry points."""
    return CODECS.names()


def find_codec(name: object, *, classes: bool = False, plugins: Plugins = ()) -> RegistryEntry:
    """Return the class of a codec and the package that provides it; see :meth:`Registry.find`."""
    return CODECS.find(name, classes=classes, plugins=plugins)


def get_codec(
    name: str,
    /,
    *,
    untrusted: bool = False,
    plugins: Plugins = (),
    tables: Mapping[str, np.ndarray] | Callable[[], Mapping[str, np.ndarray]] | None = None,
    **options: Any,
) -> Any:
    """Create a codec by name.

    Args:
        name: One of :func:`list_codecs`, or the name of a plugin.
        untrusted: Whether to decode in a sandboxed child process, for bitstreams from unknown
            sources (see :mod:`cfqa_data.codecs.sandbox.isolated`). Only built-in codecs support it.
        plugins: Classes of further codecs, or their ``module:Class`` names.
        tables: What ``tables()`` of the codec returned when the bitstreams were encoded, or a
            function that returns it. The function is called only for a codec that takes tables.
        options: Options of that codec, such as ``preset`` or ``models``.

    Returns:
        A :class:`Codec` of planes, a :class:`FeatureCodec` or an :class:`InputCodec`.

    Raises:
        CodecError: If there is no codec of that name, it has no such option, or the value of an
            option has the wrong type.
    """
    entry = find_codec(name, plugins=plugins)
    extra = {} if tables is None else {"tables": tables}
    bound = bind_options(entry.target, options, name, CodecError, **extra)
    if untrusted:
        from cfqa_data.codecs.sandbox.isolated import IsolatedCodec

        if not entry.builtin:
            message = "untrusted=True runs built-in codecs only, and this is a plugin"
            raise CodecError(f"{name}: {message} of {entry.package}")
        if not issubclass(entry.target, Codec):
            raise CodecError(f"{name}: untrusted=True decodes planes only, not {entry.target.on}")
        return IsolatedCodec(name, bound)
    if callable(tables) and "tables" in bound:
        bound["tables"] = tables()
    with prefixed(f"{name}: invalid options {options}", CodecError, TypeError):
        return entry.target(**bound)
