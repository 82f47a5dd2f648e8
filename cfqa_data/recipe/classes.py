"""The codecs that a recipe names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cfqa_data.codecs import CODEC_FACTORIES
from cfqa_data.errors import CodecError
from cfqa_data.format.facts import CodecFacts, Parameter
from cfqa_data.format.tasks import CODEC_PARAMETERS, HIGHEST_QP
from cfqa_data.registry import Found, Registry

__all__ = ["codec_facts", "codec_names", "codec_weights", "find_codec"]

# Until codecs are classes in a registry of their own.
CODECS = Registry(
    "codec",
    {name: f"cfqa_data.codecs:{factory.__name__}" for name, factory in CODEC_FACTORIES.items()},
    CodecError,
)


def codec_names() -> list[str]:
    """Return the names of the built-in codecs, in the order that tables show them."""
    return list(CODECS.builtin)


def find_codec(name: str) -> Found:
    """Return a codec's class."""
    return CODECS.find(name, classes=True)


def codec_facts(found: Found) -> CodecFacts:
    """Return what a codec's class says of itself."""
    if not found.builtin:
        facts: CodecFacts = found.target.facts()
        return facts
    if CODEC_PARAMETERS[found.name] == "lambda":
        parameter = Parameter("lambda", "higher", lowest=5e-324)
    else:
        limit = HIGHEST_QP[found.name]
        parameter = Parameter("qp", "lower", whole=True, lowest=0, highest=limit)
    return CodecFacts(found.name, found.name, "planes", parameter)


def codec_weights(found: Found, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the URIs of the weights that decide what a codec does."""
    if not found.builtin:
        return tuple(getattr(found.target, "weights", lambda _: ())(options))
    if options.get("models"):
        return (options["models"],)
    if CODEC_PARAMETERS[found.name] != "lambda":
        return ()
    task = f"-{options['task']}" if "task" in options else ""
    return (f"package://cfqa_data.codecs/weights/{found.name}{task}.safetensors",)
