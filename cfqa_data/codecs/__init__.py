"""Codecs of packed planes: HEVC (x265), VVC (VVenC) and a learned scale hyperprior.

>>> codec = get_codec("x265")
>>> decoded = codec.decode(codec.encode(plane, 32), plane.shape)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

from cfqa_data.codecs.base import Codec
from cfqa_data.errors import CodecError, unknown_name

__all__ = ["Codec", "get_codec", "list_codecs"]


def _x265(**options: Any) -> Codec:
    from cfqa_data.codecs.hevc import X265

    return X265(**options)


def _vvenc(**options: Any) -> Codec:
    from cfqa_data.codecs.vvc import VVenC

    return VVenC(**options)


def _hyperprior_multi_task(**options: Any) -> Codec:
    from cfqa_data.codecs.hyperprior import HyperpriorCodec

    models = options.pop("models", None) or shipped("hyperprior_multi_task")
    return HyperpriorCodec("hyperprior_multi_task", models, **options)


def _hyperprior_task_specific(**options: Any) -> Codec:
    from cfqa_data.codecs.hyperprior import HyperpriorCodec

    models, task = options.pop("models", None), options.pop("task", None)
    if models is None and task is None:
        raise CodecError("hyperprior_task_specific: needs models=FILE or task='cls'|'seg'|'dpt'")
    models = models or shipped(f"hyperprior_task_specific-{task}")
    return HyperpriorCodec("hyperprior_task_specific", models, **options)


CODEC_FACTORIES = {
    "x265": _x265,
    "vvenc": _vvenc,
    "hyperprior_multi_task": _hyperprior_multi_task,
    "hyperprior_task_specific": _hyperprior_task_specific,
}
"""Every codec by name; a new codec is one entry here."""


def shipped(stem: str) -> str:
    """Return the URI of a ladder of models that comes with the package."""
    return f"package://cfqa_data.codecs/weights/{stem}.safetensors"


def list_codecs() -> list[str]:
    """Return the names that :func:`get_codec` knows."""
    return list(CODEC_FACTORIES)


def get_codec(name: str, **options: Any) -> Codec:
    """Return a codec.

    Args:
        name: one of :func:`list_codecs`.
        options: of that codec, such as ``preset`` or ``models``.

    Raises:
        CodecError: there is no codec of that name, or it has no such option.
    """
    try:
        factory = CODEC_FACTORIES[name]
    except (KeyError, TypeError):
        raise CodecError(unknown_name("codec", name, CODEC_FACTORIES)) from None
    try:
        return factory(**options)
    except TypeError as error:
        raise CodecError(f"{name}: {str(error).split('() ')[-1]}") from None
