"""Codecs of packed planes: HEVC (x265, HM), VVC (VVenC, VTM) and a learned scale hyperprior.

>>> codec = get_codec("x265")
>>> decoded = codec.decode(codec.encode(plane, 32), plane.shape)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from types import UnionType
from typing import Any

from cfqa_data.codecs.base import Codec
from cfqa_data.errors import CodecError, unknown_name
from cfqa_data.lazy import lazy_modules

__all__ = ["Codec", "get_codec", "list_codecs"]

__getattr__, __dir__ = lazy_modules(__name__, __path__)

_REFERENCE_OPTIONS: Mapping[str, type | UnionType] = {
    "encoder": str | Path | None,
    "config": str | Path | None,
    "seconds_per_megasample": Real,
}


def _x265(**options: Any) -> Codec:
    from cfqa_data.codecs.h26x.hevc import X265

    _check("x265", options, preset=str, parameters=Mapping | None)
    return X265(**options)


def _vvenc(**options: Any) -> Codec:
    from cfqa_data.codecs.h26x.vvc import VVenC

    known = {"preset": str, "parameters": Mapping | None, "seconds_per_megasample": Real}
    _check("vvenc", options, **known)
    return VVenC(**options)


def _hm(**options: Any) -> Codec:
    from cfqa_data.codecs.h26x.reference import ReferenceCodec
    from cfqa_data.codecs.h26x.reference_software import HM

    _check("hm", options, **_REFERENCE_OPTIONS)
    return ReferenceCodec(HM, **options)


def _vtm(**options: Any) -> Codec:
    from cfqa_data.codecs.h26x.reference import ReferenceCodec
    from cfqa_data.codecs.h26x.reference_software import VTM

    _check("vtm", options, **_REFERENCE_OPTIONS)
    return ReferenceCodec(VTM, **options)


def _hyperprior_multi_task(**options: Any) -> Codec:
    from cfqa_data.codecs.hyperprior.codec import HyperpriorCodec

    _check("hyperprior_multi_task", options, models=str | Path | None)
    models = options.get("models") or shipped("hyperprior_multi_task")
    return HyperpriorCodec("hyperprior_multi_task", models)


def _hyperprior_task_specific(**options: Any) -> Codec:
    from cfqa_data.codecs.hyperprior.codec import HyperpriorCodec

    _check("hyperprior_task_specific", options, models=str | Path | None, task=str | None)
    models, task = options.get("models"), options.get("task")
    if models is None and task is None:
        raise CodecError("hyperprior_task_specific: needs models=FILE or task='cls'|'seg'|'dpt'")
    models = models or shipped(f"hyperprior_task_specific-{task}")
    return HyperpriorCodec("hyperprior_task_specific", models)


CODEC_FACTORIES = {
    "x265": _x265,
    "vvenc": _vvenc,
    "hm": _hm,
    "vtm": _vtm,
    "hyperprior_multi_task": _hyperprior_multi_task,
    "hyperprior_task_specific": _hyperprior_task_specific,
}
"""Every codec by name; a new codec is one entry here."""


def shipped(stem: str) -> str:
    """Return the URI of a ladder of models that comes with the package."""
    return f"package://cfqa_data.codecs/weights/{stem}.safetensors"


def _check(codec: str, options: Mapping[str, Any], /, **known: type | UnionType) -> None:
    """See that a codec has each of the options, and that their values are of the right types."""
    for option, value in options.items():
        if option not in known:
            raise CodecError(f"{codec}: {unknown_name('option', option, known)}")
        if not isinstance(value, known[option]):
            raise CodecError(f"{codec}: option {option} cannot be {value!r}")


def list_codecs() -> list[str]:
    """Return the names that :func:`get_codec` knows."""
    return list(CODEC_FACTORIES)


def get_codec(name: str, /, *, untrusted: bool = False, **options: Any) -> Codec:
    """Return a codec.

    Args:
        name: one of :func:`list_codecs`.
        untrusted: decode in a child process that can do nothing else; for bitstreams that may come
            from anyone (see :mod:`cfqa_data.codecs.sandbox.isolated`).
        options: of that codec, such as ``preset`` or ``models``.

    Raises:
        CodecError: there is no codec of that name, it has no such option, or an option has a value
            of a wrong type.
    """
    try:
        factory = CODEC_FACTORIES[name]
    except (KeyError, TypeError):
        raise CodecError(unknown_name("codec", name, CODEC_FACTORIES)) from None
    if untrusted:
        from cfqa_data.codecs.sandbox.isolated import IsolatedCodec

        return IsolatedCodec(name, options)
    try:
        return factory(**options)
    except TypeError as error:
        raise CodecError(f"{name}: impossible options {options}: {error}") from None
