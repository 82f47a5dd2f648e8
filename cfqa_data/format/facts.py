"""What a manifest says of its tasks and codecs: all that a reader has to know of them.

A task or a codec states these facts on its class; a dataset carries them, so that it can be opened,
scored and shown where nobody has ever heard of the class. All are checked when they are made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import pairwise
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from cfqa_data.errors import FormatError, unknown_name
from cfqa_data.format.limits import LARGEST_FEATURE
from cfqa_data.format.quantizers import Quantizer, quantizer_from_dict

__all__ = [
    "MOST_CODECS",
    "MOST_LEVELS",
    "MOST_TASKS",
    "PROGRAMS",
    "CodecEntry",
    "CodecFacts",
    "Layer",
    "Loss",
    "Origin",
    "Parameter",
    "Score",
    "TaskEntry",
    "TaskFacts",
    "Terms",
    "Truth",
    "check_name",
    "keyed",
]

MOST_LEVELS = 128
MOST_TASKS = 64
MOST_CODECS = 256

PROGRAMS = ("encoder", "config")
"""Options of codecs that name a program of one machine, and what it reads."""

On = Literal["planes", "features", "inputs"]
Stored = Literal["codes", "values"]
Bits = Literal["bitstream", "stated", "unknown"]
Better = Literal["higher", "lower"]
Norm = Literal["before", "after"]


def check_name(what: str, name: object) -> str:
    """Return the name of a task or codec.

    Raises:
        FormatError: it is no text of a-z, 0-9, ``_`` and ``-``, 1 to 64 characters, that begins
            with a letter.
    """
    if not isinstance(name, str) or not re.fullmatch("[a-z][a-z0-9_-]{0,63}", name):
        raise FormatError(
            f"{name!r} is no name of a {what}: 1 to 64 of a-z, 0-9, _ and -, a letter first"
        )
    return name


@dataclass(frozen=True)
class Score:
    """The score of a task.

    Attributes:
        name: what it is called.
        lower_better: whether a smaller score is a better one.
        unit: its unit, empty if it has none.
        noticeable: the smallest difference of two distortions that counts, in the score's unit.
    """

    name: str
    lower_better: bool
    unit: str = ""
    noticeable: float = 0.0

    def __post_init__(self) -> None:
        _texts("score", name=self.name)
        _texts("score", least=0, unit=self.unit)
        _flags("score", lower_better=self.lower_better)
        _number("score.noticeable", self.noticeable, least=0)

    def distortion(self, score: Any, reference: Any) -> Any:
        """Return the harm done: the score against that of the original; larger is worse.

        Args:
            score: of the compressed feature, or an array of several.
            reference: of its original, likewise.
        """
        return score - reference if self.lower_better else reference - score


@dataclass(frozen=True)
class Loss:
    """A continuous loss beside the score, of which less is better.

    Attributes:
        name: what it is called.
        unit: its unit, empty if it has none.
        noticeable: the smallest difference of two losses that counts.
    """

    name: str
    unit: str = ""
    noticeable: float = 0.0

    def __post_init__(self) -> None:
        _texts("loss", name=self.name)
        _texts("loss", least=0, unit=self.unit)
        _number("loss.noticeable", self.noticeable, least=0)


@dataclass(frozen=True)
class Truth:
    """What the features of a task are scored against.

    Attributes:
        dtype: NumPy's name of its type: a number, or a boolean.
        axes: how many axes it has.
    """

    dtype: str
    axes: int

    def __post_init__(self) -> None:
        try:
            known = np.dtype(self.dtype).kind in "biuf" and np.dtype(self.dtype).name == self.dtype
        except (TypeError, ValueError):
            known = False
        if not known:
            raise FormatError(f"truth.dtype {self.dtype!r} is no type of numbers")
        _count("truth.axes", self.axes, least=0)


@dataclass(frozen=True)
class Terms:
    """On what terms the inputs and truths of a task may be used.

    Attributes:
        licence: its identifier, as hubs write it; "other" where it has none.
        link: where it stands.
        attribution: whom to name.
        inputs: whether inputs may be given on.
        truths: whether truths may be given on.
    """

    licence: str = "other"
    link: str = ""
    attribution: str = ""
    inputs: bool = False
    truths: bool = False

    def __post_init__(self) -> None:
        _texts("terms", licence=self.licence)
        _texts("terms", least=0, link=self.link, attribution=self.attribution)
        _flags("terms", inputs=self.inputs, truths=self.truths)


@dataclass(frozen=True)
class TaskFacts:
    """What is known of a task before it has any data.

    Attributes:
        name: in paths and tables.
        title: the task in words.
        score: what it measures.
        loss: a continuous loss beside the score, or None.
        truth: what features are scored against, or None.
    """

    name: str
    title: str
    score: Score
    loss: Loss | None = None
    truth: Truth | None = None

    def __post_init__(self) -> None:
        check_name("task", self.name)
        _texts(self.name, title=self.title)

    def distortion(self, score: Any, reference: Any) -> Any:
        """Return :meth:`Score.distortion` of the task's score."""
        return self.score.distortion(score, reference)


@dataclass(frozen=True)
class Parameter:
    """The number that sets how strongly a codec compresses.

    Attributes:
        name: what it is called, such as "qp".
        better: which way quality rises.
        unit: its unit, empty if it has none.
        whole: whether it is a whole number.
        lowest: the lowest value that it may have; None where there is no limit.
        highest: the highest one.
    """

    name: str
    better: Better
    unit: str = ""
    whole: bool = False
    lowest: float | None = None
    highest: float | None = None

    def __post_init__(self) -> None:
        _texts("parameter", name=self.name)
        _texts("parameter", least=0, unit=self.unit)
        _flags("parameter", whole=self.whole)
        _choice("parameter.better", self.better, Better)
        for limit in (self.lowest, self.highest):
            if limit is not None:
                _number(f"{self.name}: a limit", limit)

    def check(self, value: object) -> float:
        """Return a value that the parameter may have.

        Raises:
            FormatError: it may not have it.
        """
        low = -math.inf if self.lowest is None else self.lowest
        high = math.inf if self.highest is None else self.highest
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or (self.whole and value != int(value))
            or not low <= value <= high
        ):
            kind = "a whole number" if self.whole else "a number"
            above = f" from {low:g}" if self.lowest is not None else ""
            below = f" to {high:g}" if self.highest is not None else ""
            raise FormatError(f"a {self.name} is {kind}{above}{below}, got {value!r}")
        return value

    def check_levels(self, levels: object) -> tuple[float, ...]:
        """Return the parameters of a codec's levels, the best first.

        Raises:
            FormatError: there are none or too many, one is impossible, or they are out of order.
        """
        if not isinstance(levels, list | tuple) or not 1 <= len(levels) <= MOST_LEVELS:
            raise FormatError(f"levels must be 1 to {MOST_LEVELS} numbers, got {levels!r}")
        values = tuple(map(self.check, levels))
        worse = 1 if self.better == "lower" else -1
        if any((b - a) * worse <= 0 for a, b in pairwise(values)):
            order = "rise" if worse > 0 else "fall"
            raise FormatError(
                f"{self.name} must {order} from level 0 (best) on, got {list(values)}"
            )
        return values


@dataclass(frozen=True)
class CodecFacts:
    """What is known of a codec before it has coded anything.

    Attributes:
        name: in paths and tables.
        title: the codec in words.
        on: what it compresses: packed planes of codes, features, or inputs of the backbone.
        parameter: what sets its rate.
        bits: what the column `bits` is: 8 times the bytes of the bitstream, what the codec states,
            or unknown.
    """

    name: str
    title: str
    on: On
    parameter: Parameter
    bits: Bits = "bitstream"

    def __post_init__(self) -> None:
        check_name("codec", self.name)
        _texts(self.name, title=self.title)
        _choice(f"{self.name}: on", self.on, On)
        _choice(f"{self.name}: bits", self.bits, Bits)


@dataclass(frozen=True)
class Origin:
    """What a codec is made from again, for decoding.

    Attributes:
        name: of the codec, among the built-in ones and the installed entry points.
        options: its keyword arguments, without :data:`PROGRAMS`: a manifest may be a stranger's,
            and what is run is for this machine's environment to say.
        package: the distribution that has it.
        version: of that distribution.
        sha256: of the codec's source, as hex; empty for built-in ones.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    package: str = "cfqa-data"
    version: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        check_name("codec", self.name)
        _texts("codec", package=self.package)
        _texts("codec", least=0, version=self.version)
        if not isinstance(self.options, Mapping):
            raise FormatError(f"the options of codec {self.name} are no table")
        kept = {key: value for key, value in self.options.items() if key not in PROGRAMS}
        object.__setattr__(self, "options", kept)
        if not re.fullmatch("|[0-9a-f]{64}", str(self.sha256)):
            raise FormatError(f"the sha256 of codec {self.name} is none: {self.sha256!r}")


@dataclass(frozen=True)
class CodecEntry:
    """One codec on one task.

    Attributes:
        facts: what is known of the codec.
        levels: its parameter at each level, the best first.
        quantizer: between features and codes, where codes are stored; None where values are.
        tables: files below `tables/` that a receiver has in advance.
        origin: what it is made from again.
    """

    facts: CodecFacts
    levels: tuple[float, ...]
    quantizer: Quantizer | None = None
    tables: tuple[str, ...] = ()
    origin: Origin | None = None

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "levels", self.facts.parameter.check_levels(self.levels))
        except FormatError as error:
            raise FormatError(f"codecs.{self.name}: {error}") from None
        if (self.facts.on == "planes") != (self.quantizer is not None):
            raise FormatError(
                f"codecs.{self.name}: a codec on planes, and no other, has a quantiser"
            )
        for name in self.tables:
            if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9_-]+\.safetensors", name):
                raise FormatError(f"codecs.{self.name}: {name!r} is no file below tables/")

    @property
    def name(self) -> str:
        """Name of the codec."""
        return self.facts.name

    @property
    def stored(self) -> Stored:
        """What the arrays hold."""
        return "values" if self.quantizer is None else "codes"

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as format 2 has it."""
        facts = _plain(self.facts)
        del facts["name"]
        return facts | {
            "levels": list(self.levels),
            "stored": self.stored,
            "quantizer": self.quantizer.to_dict() if self.quantizer else None,
            "tables": list(self.tables),
            "codec": _plain(self.origin) if self.origin else None,
        }

    @classmethod
    def from_dict(cls, name: str, data: object) -> CodecEntry:
        """Return the entry that :meth:`to_dict` describes.

        Raises:
            FormatError: a key is missing, unknown or has an impossible value.
        """
        where = f"codecs.{name}"
        facts = ("title", "on", "parameter", "bits")
        table = keyed(where, data, (*facts, "levels", "stored", "quantizer", "tables", "codec"))
        entry = cls(
            facts=CodecFacts(
                name=name,
                title=table["title"],
                on=table["on"],
                parameter=_make(Parameter, f"{where}.parameter", table["parameter"]),
                bits=table["bits"],
            ),
            levels=table["levels"],
            quantizer=_optional(quantizer_from_dict, table["quantizer"]),
            tables=tuple(_list(f"{where}.tables", table["tables"])),
            origin=_optional(lambda d: _make(Origin, f"{where}.codec", d), table["codec"]),
        )
        if table["stored"] != entry.stored:
            raise FormatError(f"{where}.stored is {table['stored']!r}, not {entry.stored!r}")
        return entry


@dataclass(frozen=True)
class Layer:
    """One layer of a feature.

    Attributes:
        name: such as "block 7".
        norm: whether its tokens are from before or after the backbone's final norm; None if that
            is not known or there is no such norm.
    """

    name: str
    norm: Norm | None = None

    def __post_init__(self) -> None:
        _texts("layer", name=self.name)
        if self.norm is not None:
            _choice("layer.norm", self.norm, Norm)


@dataclass(frozen=True)
class TaskEntry:
    """What a folder holds of one task.

    Attributes:
        facts: what is known of the task.
        shape: (N, C, T, D) of its features; T is that of the longest.
        sources: the ids, in the order of the arrays' source axis.
        codecs: by name, in the order that tables show them.
        shard: sources per shard of originals and bitstreams.
        varying_tokens: whether features have different numbers of tokens.
        prefix_tokens: leading tokens that stand for no place of the input.
        grid: (rows, columns) of the remaining tokens of a view, or None.
        layers: of which the C axis is.
        views: names of which the N axis is.
        groups: the group of each source; None where each is its own.
        gallery: file below `truth/` that all sources are scored against, or None.
        terms: on which inputs and truths may be used; None where nothing is known.
    """

    facts: TaskFacts
    shape: tuple[int, int, int, int]
    sources: tuple[str, ...]
    codecs: Mapping[str, CodecEntry]
    shard: int
    varying_tokens: bool = False
    prefix_tokens: int = 0
    grid: tuple[int, int] | None = None
    layers: tuple[Layer, ...] = ()
    views: tuple[str, ...] = ()
    groups: tuple[str, ...] | None = None
    gallery: str | None = None
    terms: Terms | None = None

    def __post_init__(self) -> None:
        where = f"tasks.{self.facts.name}"
        shape = self.shape
        if (
            not isinstance(shape, list | tuple)
            or len(shape) != 4
            or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape)
        ):
            raise FormatError(f"{where}.shape is not (N, C, T, D)")
        object.__setattr__(self, "shape", tuple(shape))
        if math.prod(shape) > LARGEST_FEATURE:
            raise FormatError(
                f"{where}.shape {list(shape)} has more than {LARGEST_FEATURE:,} elements"
            )
        if not self.sources:
            raise FormatError(f"{where}.sources is not a list of ids")
        _count(f"{where}.shard", self.shard)
        _count(f"{where}.prefix_tokens", self.prefix_tokens, least=0)
        _flags(where, varying_tokens=self.varying_tokens)
        if self.prefix_tokens > shape[2]:
            raise FormatError(f"{where}.prefix_tokens is more than the {shape[2]} tokens")
        if self.grid is not None and (
            self.varying_tokens
            or len(self.grid) != 2
            or math.prod(self.grid) != shape[2] - self.prefix_tokens
        ):
            raise FormatError(
                f"{where}.grid {self.grid} is not that of the tokens after the prefix"
            )
        for what, names, size in (
            ("layers", self.layers, shape[1]),
            ("views", self.views, shape[0]),
        ):
            if names and len(names) != size:
                raise FormatError(f"{where}.{what} are {len(names)}, the shape has {size}")
        if self.groups is not None and len(self.groups) != len(self.sources):
            raise FormatError(f"{where}.groups are not one per source")
        if self.gallery is not None and not re.fullmatch(
            r"[a-z0-9_-]+\.safetensors", str(self.gallery)
        ):
            raise FormatError(f"{where}.gallery {self.gallery!r} is no file below truth/")
        if not 1 <= len(self.codecs) <= MOST_CODECS:
            raise FormatError(f"{where}.codecs must be 1 to {MOST_CODECS}")
        for name, codec in self.codecs.items():
            if codec.quantizer is not None and codec.quantizer.layers != shape[1]:
                raise FormatError(
                    f"{where}.codecs.{name}: the quantiser has {codec.quantizer.layers} layer(s), "
                    f"the shape {shape[1]}"
                )

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.facts.name

    @property
    def points(self) -> int:
        """Numbers in a feature of the longest T."""
        return math.prod(self.shape)

    @property
    def shards(self) -> int:
        """Shards of originals, and of each codec's bitstreams."""
        return -(-len(self.sources) // self.shard)

    @property
    def group_of(self) -> Sequence[str]:
        """The group of each source; its own id where it has none."""
        return self.sources if self.groups is None else self.groups

    @property
    def rows(self) -> int:
        """Rows of the task's labels."""
        return len(self.sources) * sum(len(codec.levels) for codec in self.codecs.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as format 2 has it."""
        facts = _plain(self.facts)
        del facts["name"]
        return facts | {
            "shape": list(self.shape),
            "tokens": "varying" if self.varying_tokens else None,
            "prefix_tokens": self.prefix_tokens,
            "grid": list(self.grid) if self.grid else None,
            "layers": [_plain(layer) for layer in self.layers],
            "views": list(self.views),
            "sources": list(self.sources),
            "groups": list(self.groups) if self.groups is not None else None,
            "shard": self.shard,
            "gallery": self.gallery,
            "terms": _plain(self.terms) if self.terms else None,
            "codecs": {name: codec.to_dict() for name, codec in self.codecs.items()},
        }

    @classmethod
    def from_dict(cls, name: str, data: object) -> TaskEntry:
        """Return the entry that :meth:`to_dict` describes.

        Raises:
            FormatError: a key is missing, unknown or has an impossible value.
        """
        where = f"tasks.{name}"
        keys = (
            *("title", "score", "loss", "truth", "shape", "tokens", "prefix_tokens", "grid"),
            *("layers", "views", "sources", "groups", "shard", "gallery", "terms", "codecs"),
        )
        table = keyed(where, data, keys)
        if table["tokens"] not in (None, "varying"):
            raise FormatError(f"{where}.tokens is {table['tokens']!r}, not null or 'varying'")

        def texts(key: str) -> tuple[str, ...]:
            found = _list(f"{where}.{key}", table[key])
            if not all(isinstance(entry, str) for entry in found):
                raise FormatError(f"{where}.{key} is not a list of texts")
            return tuple(found)

        layers = _list(f"{where}.layers", table["layers"])
        codecs = table["codecs"]
        if not isinstance(codecs, dict):
            raise FormatError(f"{where}.codecs is not a table")
        try:
            return cls(
                facts=TaskFacts(
                    name=name,
                    title=table["title"],
                    score=_make(Score, f"{where}.score", table["score"]),
                    loss=_optional(lambda d: _make(Loss, f"{where}.loss", d), table["loss"]),
                    truth=_optional(lambda d: _make(Truth, f"{where}.truth", d), table["truth"]),
                ),
                shape=table["shape"],
                sources=texts("sources"),
                codecs={key: CodecEntry.from_dict(key, entry) for key, entry in codecs.items()},
                shard=table["shard"],
                varying_tokens=table["tokens"] == "varying",
                prefix_tokens=table["prefix_tokens"],
                grid=_optional(lambda d: tuple(_list(f"{where}.grid", d)), table["grid"]),
                layers=tuple(_make(Layer, f"{where}.layers", layer) for layer in layers),
                views=texts("views"),
                groups=None if table["groups"] is None else texts("groups"),
                gallery=table["gallery"],
                terms=_optional(lambda d: _make(Terms, f"{where}.terms", d), table["terms"]),
            )
        except FormatError as error:
            if str(error).startswith(where):
                raise
            raise FormatError(f"{where}: {error}") from None


T = TypeVar("T")


def _optional(make: Callable[[Any], T], data: object) -> T | None:
    return None if data is None else make(data)


def _make(kind: type[T], where: str, data: object) -> T:
    """Return what a table of plain values says; keys are the fields, all of them."""
    names = tuple(entry.name for entry in fields(kind))  # type: ignore[arg-type]
    return kind(**keyed(where, data, names))


def _plain(value: Any) -> dict[str, Any]:
    """Return a dataclass of plain values and of such dataclasses as a table."""
    return {
        entry.name: _plain(found) if is_dataclass(found) else found
        for entry in fields(value)
        for found in (getattr(value, entry.name),)
    }


def keyed(
    where: str, data: object, required: Iterable[str], optional: Iterable[str] = ()
) -> dict[str, Any]:
    """Return a copy of a table that has the keys that it must have, and no others.

    Raises:
        FormatError: it is none, or lacks a key, or has one that nobody knows.
    """
    required = tuple(required)
    known = (*required, *optional)
    if not isinstance(data, Mapping):
        raise FormatError(f"{where} is not a table")
    for key in data:
        if key not in known:
            raise FormatError(unknown_name(f"key in {where}", key, known))
    if missing := [key for key in required if key not in data]:
        raise FormatError(f"{where} lacks {', '.join(missing)}")
    return dict(data)


def _list(where: str, data: object) -> list[Any]:
    if not isinstance(data, list | tuple):
        raise FormatError(f"{where} is not a list")
    return list(data)


def _texts(where: str, least: int = 1, **values: object) -> None:
    for key, value in values.items():
        if not isinstance(value, str) or len(value) < least or not value.isprintable():
            raise FormatError(f"{where}.{key} must be a text, got {value!r}")


def _flags(where: str, **values: object) -> None:
    for key, value in values.items():
        if not isinstance(value, bool):
            raise FormatError(f"{where}.{key} must be true or false, got {value!r}")


def _choice(where: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        raise FormatError(f"{where} must be one of {', '.join(get_args(choices))}, got {value!r}")


def _count(where: str, value: object, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise FormatError(f"{where} must be a whole number of at least {least}, got {value!r}")


def _number(where: str, value: object, least: float = -math.inf) -> None:
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or value < least:  # type: ignore[operator]
        raise FormatError(f"{where} must be a number, got {value!r}")
