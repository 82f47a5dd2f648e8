"""Invariants of a dataset folder: one function for each statement of docs/format.md.

Writers and readers use the same functions, so that each rule is defined once.

Ids are checked whenever a manifest is written or read. Of the rules for label rows,
:data:`POSITION_RULES`, which reading relies on, are checked whenever a table is opened.
:data:`VALUE_RULES`, most of which follow from other columns, are checked when a table is written
and by `cfqa verify`, which also checks :data:`RANGE_RULES` and rules that need other files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfqa_data.arrow import pa
from cfqa_data.errors import FormatError
from cfqa_data.format.facts import CodecEntry, TaskEntry, TaskFacts
from cfqa_data.format.layout import NAMES
from cfqa_data.format.limits import LONGEST_ID

__all__ = [
    "ANSWERS",
    "FOLDS",
    "POSITION_RULES",
    "RANGE_RULES",
    "VALUE_RULES",
    "LabelRows",
    "bits_of",
    "check_bitstream",
    "check_source_ids",
    "check_task_names",
    "check_truth",
    "first_unordered",
    "fold_of",
    "folds_of",
    "measured_bits",
    "picture_type",
    "preview_columns",
    "rate_of",
    "shard_of",
    "violations",
]

FOLDS = 5
"""Number of folds per task; all rows of a source share its fold."""

RESERVED = ("default", "originals")
"""Names of the tables of all tasks and of originals, in `load_dataset` and among the labels."""

ANSWERS = "answers"
"""The text column of the table of previews."""

TOLERANCE = 1e-9
"""Tolerance of ranges for rounding errors in means of cosines and alignments."""


# Sources.


def check_source_ids(tasks: Mapping[str, Sequence[object]]) -> None:
    """Check that ids are valid and unique over the sources of all tasks.

    Args:
        tasks: Task -> the ids of its sources.

    Raises:
        FormatError: If an id is invalid or duplicate; the message names it and its tasks.
    """
    tasks_of: dict[str, str] = {}
    for task, sources in tasks.items():
        for source in sources:
            if not isinstance(source, str) or not 0 < len(source) <= LONGEST_ID:
                raise FormatError(
                    f"{task}: {source!r} is not a valid id: a text of 1 to {LONGEST_ID} characters"
                )
            if not source.isprintable():
                raise FormatError(
                    f"{task}: {source!r} is not a valid id: it has unprintable characters"
                )
            if source in tasks_of:
                both = f"a source of {tasks_of[source]} and of one of {task}"
                where = both if tasks_of[source] != task else f"two sources of {task}"
                raise FormatError(
                    f"{source!r} is the id of {where}: ids are unique over all tasks; rename one "
                    "of the two and build the dataset again"
                )
            tasks_of[source] = task


def check_task_names(codecs: Mapping[str, Iterable[str]]) -> None:
    """Check that the names of tasks and codecs give each file of a folder a path of its own.

    Args:
        codecs: Task -> the names of its codecs.

    Raises:
        FormatError: If two files have the same path, or a task has a reserved name.
    """
    stems: dict[str, str] = {}
    for task, names in codecs.items():
        if task in RESERVED:
            raise FormatError(f"{task!r} is reserved for tables of all tasks; rename the task")
        if (gallery := f"{task}-gallery") in codecs:
            raise FormatError(f"no task is called {gallery!r} beside {task!r}: rename one of them")
        for codec in names:
            both = f"codec {codec} of task {task}"
            if (other := stems.setdefault(f"{task}-{codec}", both)) != both:
                raise FormatError(f"{other} and {both} would share file names: rename one of them")


def fold_of(position: Any) -> Any:
    """Return the fold of the group at a position in its task, or of several positions.

    Without groups, each source is a group of its own.
    """
    return position % FOLDS


def folds_of(entry: TaskEntry) -> np.ndarray:
    """Return the fold of each source; groups are numbered in the order of their first sources."""
    groups = {group: position for position, group in enumerate(dict.fromkeys(entry.group_of))}
    return np.array([fold_of(groups[group]) for group in entry.group_of], np.int64)


def shard_of(position: Any, group_size: int) -> Any:
    """Return the shard of originals and bitstreams with a source, or of several sources."""
    return position // group_size


def check_truth(task: TaskFacts, dtype: str, axes: int, what: str) -> None:
    """Check the dtype and the number of axes of a ground truth.

    Args:
        task: The task.
        dtype: NumPy's name of the truth's dtype.
        axes: Number of its axes.
        what: Name of the truth in messages.

    Raises:
        FormatError: If they are not those of the task, or the task has no ground truth.
    """
    if task.truth is None:
        raise FormatError(f"{what}: features of {task.name} are scored without ground truth")
    if (dtype, axes) != (task.truth.dtype, task.truth.axes):
        raise FormatError(
            f"{what} is {dtype} of {axes} axes; a truth of {task.name} is {task.truth.dtype} of "
            f"{task.truth.axes}"
        )


# Pictures.


def picture_type() -> pa.DataType:
    """Return the type of a picture column in `datasets`: the bytes of a file, with a null path."""
    return pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def preview_columns(tasks: Mapping[str, TaskEntry]) -> dict[str, pa.DataType]:
    """Return the columns that the table of previews may have in addition to those of originals.

    Args:
        tasks: Tasks of the manifest.
    """
    codecs = [codec for entry in tasks.values() for codec in entry.codecs.values()]
    outputs = [f"output_{c.name}_{level}" for c in codecs for level in range(len(c.levels))]
    names = ("image", "truth", "output_original", *outputs)
    return dict.fromkeys(names, picture_type()) | {ANSWERS: pa.string()}


# Rates.


def bits_of(size: Any) -> Any:
    """Return the number of bits of ``size`` bytes."""
    return 8 * size


def rate_of(bits: Any, points: Any) -> Any:
    """Return the bits per point of a feature."""
    return bits / points


def check_bitstream(dtype: str, axes: int, what: str) -> None:
    """Check that a bitstream is stored as a one-dimensional array of bytes.

    Raises:
        FormatError: If it is not.
    """
    if (dtype, axes) != ("uint8", 1):
        raise FormatError(f"{what} is {dtype} of {axes} axes, not a one-dimensional array of bytes")


# Label rows.


@dataclass(frozen=True)
class LabelRows:
    """The label rows of one task, with the source, codec and level of each row.

    Attributes:
        table: The rows.
        entry: The task's entry in the manifest.
        source: Position of each row's source, int64 (rows,).
        codec: Position of each row's codec in the entry.
        level: Level of each row.
    """

    table: pa.Table
    entry: TaskEntry
    source: np.ndarray
    codec: np.ndarray
    level: np.ndarray

    def __getitem__(self, column: str) -> np.ndarray:
        values: np.ndarray = self.table[column].to_numpy()
        return values

    def nulls(self, column: str) -> np.ndarray:
        """Return a mask of the null rows of a column."""
        return self.table[column].is_null().to_numpy()

    def of_codec(self, value: Callable[[CodecEntry], object]) -> np.ndarray:
        """Return a property of each row's codec."""
        return np.array([value(codec) for codec in self.entry.codecs.values()], object)[self.codec]


@dataclass(frozen=True)
class Rule:
    """A rule for the values of a column.

    Attributes:
        column: Name of the column.
        what: Description of valid values, to continue "is 3, not".
        holds: Function that returns for each row whether the rule holds.
    """

    column: str
    what: str
    holds: Callable[[LabelRows], np.ndarray]


def first_unordered(rows: LabelRows) -> int | None:
    """Return the first row that is out of order by source, codec and level, or None."""
    keys = (rows.level, rows.codec, rows.source)
    cell = np.ravel_multi_index(keys[::-1], [int(key.max(initial=0)) + 1 for key in keys[::-1]])
    wrong = np.flatnonzero(np.diff(cell) <= 0)
    return int(wrong[0]) + 1 if wrong.size else None


def _fold(rows: LabelRows) -> np.ndarray:
    return np.asarray(rows["fold"] == folds_of(rows.entry)[rows.source])


def _index(rows: LabelRows) -> np.ndarray:
    return np.asarray(rows["index"] == rows.source)


def _array(rows: LabelRows) -> np.ndarray:
    task = rows.entry.name
    arrays = rows.of_codec(lambda codec: NAMES.compressed(task, codec.name).as_posix())
    return np.asarray(rows["array"] == arrays) | rows.nulls("array")


def _parameter_name(rows: LabelRows) -> np.ndarray:
    names = rows.of_codec(lambda codec: codec.facts.parameter.name)
    return np.asarray(rows["parameter_name"] == names)


def _parameter(rows: LabelRows) -> np.ndarray:
    codecs = rows.entry.codecs.values()
    starts = np.cumsum([0, *(len(codec.levels) for codec in codecs)])[:-1]
    levels = np.array([level for codec in codecs for level in codec.levels], np.float64)
    return np.asarray(rows["parameter"] == levels[starts[rows.codec] + rows.level])


def _tokens(rows: LabelRows) -> np.ndarray:
    least, most = 1 if rows.entry.varying_tokens else rows.entry.shape[2], rows.entry.shape[2]
    return (rows["tokens"] >= least) & (rows["tokens"] <= most)


def _group(rows: LabelRows) -> np.ndarray:
    return np.asarray(rows["group"] == np.array(rows.entry.group_of, object)[rows.source])


def _bits(rows: LabelRows) -> np.ndarray:
    known = rows.of_codec(lambda codec: codec.facts.bits) != "unknown"
    return np.isnan(rows["bits"]) | (known & (rows["bits"] >= 0))


def _bpfp(rows: LabelRows) -> np.ndarray:
    n, c, t, d = rows.entry.shape
    tokens = rows["tokens"].astype(np.int64) if "tokens" in rows.table.column_names else t
    rate = rate_of(rows["bits"], n * c * tokens * d)
    return (rows["bpfp"] == rate) | (np.isnan(rate) & np.isnan(rows["bpfp"]))


def _distortion(rows: LabelRows) -> np.ndarray:
    return np.asarray(
        rows["distortion"] == rows.entry.facts.distortion(rows["score"], rows["reference_score"])
    )


def _finite(column: str) -> Callable[[LabelRows], np.ndarray]:
    """Return a check for finite numbers or, where the format allows them, nulls."""
    return lambda rows: np.isfinite(rows[column]) | rows.nulls(column)


def _loss(column: str) -> Callable[[LabelRows], np.ndarray]:
    def holds(rows: LabelRows) -> np.ndarray:
        # Published logs have no losses, so all rows may lack them.
        unscored = np.isnan(rows["loss"]).all() and np.isnan(rows["reference_loss"]).all()
        has_loss = np.isfinite(rows[column]) & (rows.entry.facts.loss is not None)
        return has_loss | bool(unscored)

    return holds


def _in_range(column: str, least: float, most: float) -> Callable[[LabelRows], np.ndarray]:
    def holds(rows: LabelRows) -> np.ndarray:
        inside = (rows[column] >= least - TOLERANCE) & (rows[column] <= most + TOLERANCE)
        return inside | rows.nulls(column)

    return holds


def measured_bits(sizes: np.ndarray) -> Rule:
    """Return the rule for `bits`, given the bytes of each row's bitstream, NaN without one."""

    def holds(rows: LabelRows) -> np.ndarray:
        bits = rows["bits"]
        counted = rows.of_codec(lambda codec: codec.facts.bits) == "bitstream"
        return ~counted | (bits == bits_of(sizes)) | (np.isnan(sizes) & np.isnan(bits))

    return Rule("bits", "8 times the bytes of its bitstream", holds)


NUMBER = "a finite number"

POSITION_RULES: tuple[Rule, ...] = (
    Rule("fold", f"its source's position modulo {FOLDS}", _fold),
    Rule("index", "its source's position", _index),
    Rule("array", "the array of its codec", _array),
)
"""Rules for columns that locate a row in the dataset."""

VALUE_RULES: tuple[Rule, ...] = (
    Rule("parameter_name", "the recipe's", _parameter_name),
    Rule("parameter", "the recipe's", _parameter),
    Rule("tokens", "that of its task", _tokens),
    Rule("group", "its source's", _group),
    Rule("bits", "that of its codec", _bits),
    Rule("bpfp", "bits per feature point", _bpfp),
    Rule("distortion", "the degradation of the score", _distortion),
    Rule("score", NUMBER, _finite("score")),
    Rule("reference_score", NUMBER, _finite("reference_score")),
    *(Rule(metric, NUMBER, _finite(metric)) for metric in ("mse", "cosine", "cka")),
    Rule("loss", NUMBER, _loss("loss")),
    Rule("reference_loss", NUMBER, _loss("reference_loss")),
)
"""Rules for the other columns; those of format 2 are checked only if they exist."""

RANGE_RULES: tuple[Rule, ...] = (
    Rule("mse", "a number from 0", _in_range("mse", 0, np.inf)),
    Rule("cosine", "a number from -1 to 1", _in_range("cosine", -1, 1)),
    Rule("cka", "a number from 0 to 1", _in_range("cka", 0, 1)),
)
"""Rules for the ranges of the metrics."""


def violations(rows: LabelRows, rules: Iterable[Rule]) -> Iterator[str]:
    """Yield a line for each violated rule: its first row and the number of further rows."""
    for rule in (rule for rule in rules if rule.column in rows.table.column_names):
        if (wrong := ~rule.holds(rows)).any():
            row = int(wrong.argmax())
            codec = list(rows.entry.codecs)[rows.codec[row]]
            more = f" (and {wrong.sum() - 1} more)" if wrong.sum() > 1 else ""
            yield (
                f"{rule.column} of {rows.table['source_id'][row]} by {codec} at level "
                f"{rows.level[row]} is {rows.table[rule.column][row]}, not {rule.what}{more}"
            )
