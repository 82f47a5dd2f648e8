"""Facts of tasks and codecs as recorded in a manifest: all that readers need.

The class of a task or codec declares its facts, and the manifest records them. A dataset can
therefore be opened, scored and shown where the class is not installed. All facts are validated on
construction.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np

from cfqa_data.errors import FormatError, prefixed
from cfqa_data.format.fields import (
    INLINE,
    NAME,
    Amount,
    Checked,
    Count,
    Number,
    Text,
    is_number,
)
from cfqa_data.format.limits import LARGEST_FEATURE, MAX_ROWS
from cfqa_data.format.quantizers import Quantizer

__all__ = [
    "MAX_CODECS",
    "MAX_LEVELS",
    "MAX_TASKS",
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
]

MAX_LEVELS = 128
MAX_TASKS = 64
MAX_CODECS = 256

PROGRAMS = ("encoder", "config")
"""Options of codecs that name a local program or its configuration."""

On = Literal["planes", "features", "inputs"]
Stored = Literal["codes", "values"]
Bits = Literal["bitstream", "stated", "unknown"]
Better = Literal["higher", "lower"]
Norm = Literal["before", "after"]

NUMERIC_DTYPES = {
    np.dtype(code).name for code in "?" + np.typecodes["AllInteger"] + np.typecodes["Float"]
}
"""NumPy's names of numeric and boolean dtypes."""

FILE_NAME = re.compile(r"[a-z0-9_-]+\.safetensors")
"""Pattern of the file names in entries."""


def check_name(what: str, name: object) -> str:
    """Return the name of a task or codec after checking it.

    Raises:
        FormatError: If it is not a string of 1 to 64 of the characters a-z, 0-9, ``_`` and ``-``
            that begins with a letter.
    """
    if not isinstance(name, str) or not re.fullmatch("[a-z][a-z0-9_-]{0,63}", name):
        raise FormatError(
            f"{name!r} is not a valid name of a {what}: 1 to 64 of a-z, 0-9, _ and -, starting "
            "with a letter"
        )
    return name


@dataclass(frozen=True)
class Score(Checked):
    """The score of a task.

    Attributes:
        name: Name of the score.
        lower_better: Whether smaller scores are better.
        unit: Unit of the score; empty if it has none.
        noticeable: Smallest difference of two distortions that matters, in the score's unit.
    """

    name: Text
    lower_better: bool
    unit: str = ""
    noticeable: Amount = 0.0

    def distortion(self, score: Any, reference: Any) -> Any:
        """Return how much worse than the original's a score is; larger is worse.

        Args:
            score: Score of the compressed feature, or an array of scores.
            reference: Score of the original, or an array of scores.
        """
        return score - reference if self.lower_better else reference - score


@dataclass(frozen=True)
class Loss(Checked):
    """A continuous loss in addition to the score; smaller is better.

    Attributes:
        name: Name of the loss.
        unit: Unit of the loss; empty if it has none.
        noticeable: Smallest difference of two losses that matters.
    """

    name: Text
    unit: str = ""
    noticeable: Amount = 0.0


@dataclass(frozen=True)
class Truth(Checked):
    """The ground truth of a task.

    Attributes:
        dtype: NumPy's name of its numeric or boolean dtype.
        axes: Number of its axes.
    """

    dtype: Text
    axes: Number

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.dtype in NUMERIC_DTYPES, f".dtype {self.dtype!r} is not a numeric type")


@dataclass(frozen=True)
class Terms(Checked):
    """Licence terms of the inputs and truths of a task.

    Attributes:
        licence: Identifier as used on the Hub; "other" if it has none.
        link: URL of the licence text.
        attribution: Authors to credit.
        inputs: Whether inputs may be redistributed.
        truths: Whether truths may be redistributed.
    """

    licence: Text = "other"
    link: str = ""
    attribution: str = ""
    inputs: bool = False
    truths: bool = False


@dataclass(frozen=True)
class TaskFacts(Checked):
    """Facts of a task that do not depend on data.

    Attributes:
        name: Name in paths and tables.
        title: Short description of the task.
        score: The task's score.
        loss: A continuous loss in addition to the score, or None.
        truth: The ground truth that features are scored against, or None.
    """

    name: str = field(metadata=NAME)
    title: Text
    score: Score
    loss: Loss | None = None
    truth: Truth | None = None

    where_format = "tasks.{0.name}"

    def __post_init__(self) -> None:
        check_name("task", self.name)
        super().__post_init__()

    def distortion(self, score: Any, reference: Any) -> Any:
        """Return :meth:`Score.distortion` of the task's score."""
        return self.score.distortion(score, reference)


@dataclass(frozen=True)
class Parameter(Checked):
    """The parameter that controls the rate of a codec.

    Attributes:
        name: Name of the parameter, such as "qp".
        better: Whether "higher" or "lower" values give better quality.
        unit: Unit of the parameter; empty if it has none.
        whole: Whether it is an integer.
        lowest: Lowest valid value; None if there is no limit.
        highest: Highest valid value; None if there is no limit.
    """

    name: Text
    better: Better
    unit: str = ""
    whole: bool = False
    lowest: float | None = None
    highest: float | None = None

    def check(self, value: float) -> float:
        """Return a value of the parameter after checking it.

        Raises:
            FormatError: If the value is not valid.
        """
        low = -math.inf if self.lowest is None else self.lowest
        high = math.inf if self.highest is None else self.highest
        if not is_number(value, low) or value > high or (self.whole and value != int(value)):
            kind = "a whole number" if self.whole else "a number"
            above = f" from {low:g}" if self.lowest is not None else ""
            below = f" to {high:g}" if self.highest is not None else ""
            raise FormatError(f"{self.name} must be {kind}{above}{below}, got {value!r}")
        return value

    def check_levels(self, levels: object) -> tuple[float, ...]:
        """Return the parameters of a codec's levels, best first, after checking them.

        Raises:
            FormatError: If there are none or too many, or one is invalid or out of order.
        """
        if not isinstance(levels, list | tuple) or not 1 <= len(levels) <= MAX_LEVELS:
            got = f"{len(levels)} of them" if isinstance(levels, list | tuple) else repr(levels)
            raise FormatError(f"levels must be 1 to {MAX_LEVELS} numbers, got {got}")
        values = tuple(map(self.check, levels))
        worse = 1 if self.better == "lower" else -1
        if any((b - a) * worse <= 0 for a, b in pairwise(values)):
            order = "rise" if worse > 0 else "fall"
            raise FormatError(
                f"{self.name} must {order} from level 0 (best) on, got {list(values)}"
            )
        return values


@dataclass(frozen=True)
class CodecFacts(Checked):
    """Facts of a codec that do not depend on data.

    Attributes:
        name: Name in paths and tables.
        title: Short description of the codec.
        on: What it compresses: packed planes of codes, features, or inputs of the backbone.
        parameter: The parameter that controls the rate.
        bits: Meaning of the column `bits`: 8 times the bytes of the bitstream, as stated by the
            codec, or unknown.
    """

    name: str = field(metadata=NAME)
    title: Text
    on: On
    parameter: Parameter
    bits: Bits = "bitstream"

    where_format = "codecs.{0.name}"

    def __post_init__(self) -> None:
        check_name("codec", self.name)
        super().__post_init__()


@dataclass(frozen=True)
class Origin(Checked):
    """How to create a codec again for decoding: its class, options and package.

    Attributes:
        name: Name of the codec among the built-in ones and the installed entry points.
        options: Its keyword arguments, without :data:`PROGRAMS`: a manifest is untrusted, and only
            the environment may name programs to run.
        package: The distribution that provides it.
        version: Version of that distribution.
        sha256: SHA-256 of the codec's source, as hex; empty for built-in codecs.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    package: Text = "cfqa-data"
    version: str = ""
    sha256: str = ""

    where_format = "codec {0.name}"

    def __post_init__(self) -> None:
        check_name("codec", self.name)
        super().__post_init__()
        safe = {key: value for key, value in self.options.items() if key not in PROGRAMS}
        object.__setattr__(self, "options", safe)
        self.require(re.fullmatch("|[0-9a-f]{64}", self.sha256), f".sha256 is {self.sha256!r}")


@dataclass(frozen=True)
class CodecEntry(Checked):
    """One codec on one task.

    Attributes:
        facts: Facts of the codec.
        levels: The parameter of each level, best first.
        stored: Whether the arrays hold codes or values; determined by the quantiser.
        quantizer: Quantiser between features and codes; None if values are stored.
        tables: Files below `tables/` that the decoder needs.
        origin: How to create the codec for decoding.
    """

    facts: CodecFacts = field(metadata=INLINE)
    levels: tuple[float, ...]
    stored: Stored = field(init=False)
    quantizer: Quantizer | None = None
    tables: tuple[str, ...] = ()
    origin: Origin | None = field(default=None, metadata={"key": "codec"})

    where_format = "codecs.{0.name}"

    def __post_init__(self) -> None:
        with prefixed(self.where, FormatError):
            object.__setattr__(self, "levels", self.facts.parameter.check_levels(self.levels))
        super().__post_init__()
        object.__setattr__(self, "stored", "values" if self.quantizer is None else "codes")
        valid = (self.facts.on == "planes") == (self.quantizer is not None)
        self.require(valid, ": a codec on planes, and only such a codec, has a quantiser")
        for name in self.tables:
            self.require(FILE_NAME.fullmatch(name), f": {name!r} is not a file in tables/")

    @property
    def name(self) -> str:
        """Name of the codec."""
        return self.facts.name


@dataclass(frozen=True)
class Layer(Checked):
    """One layer of a feature.

    Attributes:
        name: Name of the layer, such as "block 7".
        norm: Whether its tokens are from before or after the backbone's final norm; None if
            unknown, or if there is no such norm.
    """

    name: Text
    norm: Norm | None = None


@dataclass(frozen=True)
class TaskEntry(Checked):
    """A task in a dataset folder.

    Attributes:
        facts: Facts of the task.
        shape: (N, C, T, D) of its features; T is that of the longest.
        sources: Source ids, in the order of the arrays' source axis.
        codecs: The codecs by name, in the order of tables.
        shard: Sources per shard of originals and bitstreams.
        prefix_tokens: Leading tokens without a position in the input, such as class tokens.
        grid: (rows, columns) of the remaining tokens of a view, or None.
        layers: The layers of the C axis.
        views: Names of the views of the N axis.
        groups: The group of each source; None if each source is a group of its own.
        gallery: File below `truth/` that all sources are scored against, or None.
        terms: Terms of use of inputs and truths; None if unknown.
        tokens: "varying" if features have different numbers of tokens.
    """

    facts: TaskFacts = field(metadata=INLINE)
    shape: tuple[Count, Count, Count, Count]
    sources: Annotated[tuple[Any, ...], 1]
    codecs: Mapping[str, CodecEntry]
    shard: Count
    prefix_tokens: Number = 0
    grid: tuple[Count, Count] | None = None
    layers: tuple[Layer, ...] = ()
    views: tuple[str, ...] = ()
    groups: tuple[str, ...] | None = None
    gallery: Text | None = None
    terms: Terms | None = None
    tokens: Literal["varying"] | None = None

    where_format = "tasks.{0.name}"

    def __post_init__(self) -> None:
        super().__post_init__()
        (n, c, t, d), need = self.shape, self.require
        small = self.points <= LARGEST_FEATURE
        need(small, f".shape {[n, c, t, d]} has more than {LARGEST_FEATURE:,} elements")
        need(self.prefix_tokens <= t, f".prefix_tokens is more than the {t} tokens")
        if self.grid is not None:
            fits = not self.varying_tokens and math.prod(self.grid) == t - self.prefix_tokens
            need(fits, f".grid {self.grid} is not that of the tokens after the prefix")
        for what, names, size in (("layers", self.layers, c), ("views", self.views, n)):
            need(len(names) in (0, size), f".{what} are {len(names)}, the shape has {size}")
        need(len(self.group_of) == len(self.sources), ".groups must be one per source")
        gallery = self.gallery is None or FILE_NAME.fullmatch(self.gallery)
        need(gallery, f".gallery {self.gallery!r} is not a file in truth/")
        need(1 <= len(self.codecs) <= MAX_CODECS, f".codecs must be 1 to {MAX_CODECS}")
        need(self.rows <= MAX_ROWS, f" has {self.rows:,} rows of labels; {MAX_ROWS:,} are read")
        for name, codec in self.codecs.items():
            layers = codec.quantizer.layers if codec.quantizer else c
            detail = f"the quantiser has {layers} layer(s), the shape {c}"
            need(layers == c, f".codecs.{name}: {detail}")

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.facts.name

    @property
    def varying_tokens(self) -> bool:
        """Whether features have different numbers of tokens."""
        return self.tokens is not None

    @property
    def points(self) -> int:
        """Number of elements of the longest feature."""
        return math.prod(self.shape)

    @property
    def shards(self) -> int:
        """Number of shards of originals, and of each codec's bitstreams."""
        return -(-len(self.sources) // self.shard)

    @property
    def group_of(self) -> Sequence[str]:
        """The group of each source; the source's own id if there are no groups."""
        return self.sources if self.groups is None else self.groups

    @property
    def rows(self) -> int:
        """Number of rows of the task's labels."""
        return len(self.sources) * sum(len(codec.levels) for codec in self.codecs.values())
