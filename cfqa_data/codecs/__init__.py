"""Codecs: HEVC (x265, HM), VVC (VVenC, VTM), a learned scale hyperprior; on float features fewer
channels, coarse numbers, sparse and product coding; JPEG before the backbone; and those of plugins.

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
"""Every codec by name. What is known of one stands on its class."""


def list_codecs() -> list[str]:
    """Return the names that :func:`get_codec` knows: built-in codecs and installed entry points."""
    return CODECS.names()


def find_codec(name: object, *, classes: bool = False, plugins: Plugins = ()) -> RegistryEntry:
    """Return the class of a codec and where it comes from; see :meth:`Registry.find`."""
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
    """Return a codec: a `Codec` on planes, a `FeatureCodec` or an `InputCodec`.

    Args:
        name: One of :func:`list_codecs`, or of a plugin.
        untrusted: Decode in a child process that can do nothing else; for bitstreams that may come
            from anyone (see :mod:`cfqa_data.codecs.sandbox.isolated`). Built-in codecs only.
        plugins: Classes of further codecs, or `module:Class` of some.
        tables: What the codec gave as `tables()` when the bitstreams were made, or what reads it,
            which is called for a codec that takes tables.
        options: Of that codec, such as ``preset`` or ``models``.

    Raises:
        CodecError: If there is no codec of that name, it has no such option, or an option has a
            value of a wrong type.
    """
    found = find_codec(name, plugins=plugins)
    given = {} if tables is None else {"tables": tables}
    bound = bind_options(found.target, options, name, CodecError, **given)
    if untrusted:
        from cfqa_data.codecs.sandbox.isolated import IsolatedCodec

        if not found.builtin:
            message = "untrusted=True runs built-in codecs only, and this is a plugin"
            raise CodecError(f"{name}: {message} of {found.package}")
        if not issubclass(found.target, Codec):
            raise CodecError(f"{name}: untrusted=True decodes planes only, not {found.target.on}")
        return IsolatedCodec(name, bound)
    if callable(tables) and "tables" in bound:
        bound["tables"] = tables()
    with prefixed(f"{name}: invalid options {options}", CodecError, TypeError):
        return found.target(**bound)
