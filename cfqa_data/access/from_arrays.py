"""Create datasets in memory from existing features and labels, without a model or a codec.

:func:`from_arrays` returns a :class:`cfqa_data.Dataset` that evaluation, reports, curves and
loaders accept. :func:`cfqa_data.save` writes it to a folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from cfqa_data.access.dataset import Dataset
from cfqa_data.access.memory import MemoryFolder, as_numpy
from cfqa_data.arrow import pa
from cfqa_data.errors import CfqaError
from cfqa_data.format.facts import (
    CodecEntry,
    CodecFacts,
    Layer,
    Loss,
    Parameter,
    Score,
    TaskEntry,
    TaskFacts,
)
from cfqa_data.format.invariants import check_source_ids
from cfqa_data.format.layout import NAMES
from cfqa_data.format.manifest import Manifest
from cfqa_data.format.schema import label_rows, label_schema, original_rows
from cfqa_data.scalars import python_value

__all__ = ["from_arrays"]

SHARD = 25
"""Number of sources per shard when a dataset in memory is saved."""

PER_LEVEL = "{codec: {parameter: values}}"


def from_arrays(
    originals: Any,
    compressed: Mapping[str, Mapping[float, Any]],
    *,
    distortion: Mapping[str, Mapping[float, Any]] | None = None,
    score: Mapping[str, Mapping[float, Any]] | None = None,
    reference_score: Any = None,
    loss: Mapping[str, Mapping[float, Any]] | None = None,
    reference_loss: Any = None,
    bits: Mapping[str, Mapping[float, Any]] | None = None,
    groups: Any = None,
    task: str | TaskFacts = "features",
    parameter: str = "level",
    prefix_tokens: int = 0,
    name: str = "arrays",
) -> Dataset:
    """Create a dataset in memory from features and labels that exist already.

    Values per source are given as a mapping of source ids, or as a sequence in the order of the
    originals. Arrays are read on access, so memory-mapped, Zarr and HDF5 arrays are not loaded.

    Args:
        originals: Original features: a mapping of source ids to arrays or tensors, or a sequence of
            features (or one array), whose ids are then "0", "1", ... A feature has shape
            (N, C, T, D), (T, D) for one view and layer, or (D,) for one token. It may have any real
            dtype and is converted to float32.
        compressed: Compressed features: codec -> parameter -> features per source, with the shapes
            of the originals. The parameters of a codec are in order, from the best quality on.
        distortion: Codec -> parameter -> number per source; lower is better. Required without
            `score`.
        score: Task score of the compressed features, in the same form; requires `reference_score`.
            The distortion is then computed from the scores.
        reference_score: Task score of the original features: number per source.
        loss: Continuous loss of the compressed features, in the form of `distortion`; lower is
            better. Optional.
        reference_loss: Loss of the original features: number per source; 0 by default.
        bits: Size of the compressed features in bits, in the form of `distortion`: integers.
            Codecs may be left out, which makes their rates unknown.
        groups: Group of each source, as a string. Sources of one group (such as crops of one
            photograph) are in the same fold, and confidence intervals resample whole groups.
        task: Name of the task, or its facts. With `score` it must be a `TaskFacts`, which states
            whether a higher or lower score is better.
        parameter: Name of the codecs' parameter.
        prefix_tokens: Number of leading tokens without a position in the input, such as a class
            token.
        name: Name of the dataset.

    Returns:
        The dataset. Its baseline columns (`mse`, `cosine`, `cka`) are null until it is saved.

    Raises:
        CfqaError: If a source, codec or parameter is missing or unknown, or a shape or number is
            invalid. Values of arrays are checked when they are read.
    """
    features = _Values("originals", originals, None)
    ids = tuple(features)
    if not ids:
        raise CfqaError("originals must not be empty")
    if not isinstance(compressed, Mapping) or not compressed:
        raise CfqaError(f"compressed must be {PER_LEVEL}, with at least one codec")
    shapes = {source: features.shape(source, f"original {source!r}") for source in ids}
    n, c, _, d = shapes[ids[0]]
    for source, (*rest, _, width) in shapes.items():
        if (*rest, width) != (n, c, d):
            raise CfqaError(
                f"original {source!r} is {shapes[source]}, {ids[0]!r} {shapes[ids[0]]}: only the "
                "number of tokens may differ"
            )
    longest = max(t for _, _, t, _ in shapes.values())
    facts = _facts(task, score is not None, loss is not None)
    check_source_ids({facts.name: list(ids)})
    arrays = {codec: _levels("compressed", compressed, codec, ids) for codec in compressed}
    for levels in arrays.values():
        for values in levels.values():
            for source in ids:
                shape = values.shape(source, f"{values.what}, source {source!r}")
                if shape != shapes[source]:
                    raise CfqaError(
                        f"{values.what}: source {source!r} is {shape}, its original "
                        f"{shapes[source]}"
                    )
    columns = _label_columns(
        ids, compressed, distortion, score, reference_score, loss, reference_loss, bits
    )
    entry = TaskEntry(
        facts=facts,
        shape=(n, c, longest, d),
        sources=ids,
        codecs={
            codec: _codec_entry(codec, tuple(levels), parameter, codec in (bits or ()))
            for codec, levels in arrays.items()
        },
        shard=min(SHARD, len(ids)),
        tokens="varying" if len({t for _, _, t, _ in shapes.values()}) > 1 else None,
        prefix_tokens=prefix_tokens,
        layers=tuple(Layer(f"layer {layer}") for layer in range(c)),
        groups=None if groups is None else _groups(_Values("groups", groups, ids)),
    )
    manifest = Manifest(
        name=name,
        tier="full",
        recipe={"name": name, "summary": "features and labels that were made elsewhere"},
        tasks={facts.name: entry},
        format=2,
    )
    stored = {
        (codec, level): values
        for codec, levels in arrays.items()
        for level, values in enumerate(levels.values())
    }
    folder = MemoryFolder(manifest, features, stored, shapes)
    return Dataset(folder, _label_table(entry, shapes, columns))


class _Values(Mapping[str, Any]):
    """Values by source id, from a mapping or a sequence in the order of the sources.

    Args:
        what: Name of the values in error messages.
        values: Mapping, sequence, array or table column.
        ids: Expected source ids; None to take those of the values.

    Raises:
        CfqaError: If a source is missing or unknown, or the values are neither mapping nor
            sequence.
    """

    def __init__(self, what: str, values: Any, ids: Sequence[str] | None) -> None:
        if hasattr(values, "to_dict") and ids and set(values.keys()) == set(ids):
            values = values.to_dict()  # a pandas series with the source ids as index
        self.what, self._values = what, values
        if isinstance(values, Mapping):
            self._keys = {key: key for key in values}
            if ids is not None and (wrong := self._keys.keys() ^ set(ids)):
                verb = "lacks" if wrong & set(ids) else "has, and originals lack,"
                raise CfqaError(f"{what} {verb} {min(map(str, wrong))!r}")
            self._keys = self._keys if ids is None else {key: key for key in ids}
            return
        for convert in ("to_pylist", "to_numpy"):  # table columns, by position and not by index
            if hasattr(values, convert):
                self._values = values = getattr(values, convert)()
        try:
            count = len(values)
            values[:0]
        except (TypeError, KeyError):
            raise CfqaError(f"{what} must be a mapping of ids or a sequence") from None
        names = [str(n) for n in range(count)] if ids is None else list(ids)
        if count != len(names):
            raise CfqaError(f"{what}: {count} values, and {len(names)} originals")
        self._keys = {name: index for index, name in enumerate(names)}

    def __getitem__(self, source: str) -> Any:
        return self._values[self._keys[source]]

    def shape(self, source: str, what: str) -> tuple[int, int, int, int]:
        """Return the shape (N, C, T, D) of a source's feature, without reading a large array."""
        if len(shape := getattr(self._values, "shape", ())) > 1:
            return _shape(shape[1:], getattr(self._values, "dtype", None), what)
        feature = self[source]
        try:
            return _shape(np.shape(feature), getattr(feature, "dtype", None), what)
        except ValueError:  # lists of different lengths
            raise CfqaError(f"{what} is not an array") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def _shape(shape: tuple[int, ...], dtype: Any, what: str) -> tuple[int, int, int, int]:
    """Return the shape (N, C, T, D) of a feature that may lack leading axes.

    Raises:
        CfqaError: If the shape or dtype is not that of a feature.
    """
    if isinstance(dtype, np.dtype) and dtype.kind not in "fiub":
        raise CfqaError(f"{what} is {dtype}, not of real numbers")
    if len(shape) not in (1, 2, 4) or 0 in shape:
        raise CfqaError(f"{what} is {tuple(shape)}, not (N, C, T, D), (T, D) or (D,)")
    n, c, t, d = (1,) * (4 - len(shape)) + tuple(shape)
    return n, c, t, d


def _facts(task: str | TaskFacts, scored: bool, has_loss: bool) -> TaskFacts:
    """Return the facts of a task.

    Raises:
        CfqaError: If the facts and the given labels do not agree on scores or a loss.
    """
    if isinstance(task, str):
        if scored:
            raise CfqaError(
                "scores need task=TaskFacts(...), with its name and which direction is better"
            )
        score = Score("distortion", lower_better=True)
        task = TaskFacts(task, task, score, Loss("loss") if has_loss else None)
    if has_loss != (task.loss is not None):
        raise CfqaError(
            f"task {task.name}: its facts {'lack' if has_loss else 'have'} a loss, and "
            f"there {'is one' if has_loss else 'is none'} in the numbers"
        )
    return replace(task, truth=None)


def _levels(what: str, values: Any, codec: str, ids: Sequence[str]) -> dict[float, _Values]:
    """Return the values of a codec: parameter -> values per source."""
    if not isinstance(values, Mapping) or not isinstance(values.get(codec), Mapping):
        raise CfqaError(f"{what} must be {PER_LEVEL}, and have codec {codec!r}")
    return {
        python_value(level): _Values(f"{what}, {codec} at {level}", per_source, ids)
        for level, per_source in values[codec].items()
    }


def _codec_entry(codec: str, levels: tuple[Any, ...], parameter: str, rates: bool) -> CodecEntry:
    falling = len(levels) > 1 and all(b < a for a, b in pairwise(levels))
    facts = CodecFacts(
        name=codec,
        title=codec,
        on="features",
        parameter=Parameter(parameter, "higher" if falling else "lower"),
        bits="stated" if rates else "unknown",
    )
    return CodecEntry(facts, levels)


def _label_columns(
    ids: Sequence[str],
    compressed: Mapping[str, Mapping[float, Any]],
    distortion: Any,
    score: Any,
    reference_score: Any,
    loss: Any,
    reference_loss: Any,
    bits: Any,
) -> dict[str, Any]:
    """Return the columns of labels by name.

    A column of originals is an array (S,), one of compressed features is codec -> array (S, L).
    """
    if (score is None) == (distortion is None):
        raise CfqaError("give either distortion, or score with reference_score")
    if (score is None) != (reference_score is None):
        raise CfqaError("score and reference_score must be given together")
    if loss is None and reference_loss is not None:
        raise CfqaError("reference_loss needs a loss")

    def per_source(what: str, values: Any) -> np.ndarray:
        return _column(_Values(what, values, ids))

    def per_level(
        what: str, values: Any, codecs: Iterable[str] = tuple(compressed)
    ) -> dict[str, np.ndarray]:
        arrays = {}
        if not isinstance(values, Mapping):
            raise CfqaError(f"{what} must be {PER_LEVEL}")
        for codec in codecs:
            columns, parameters = _levels(what, values, codec, ids), list(compressed[codec])
            if list(columns) != parameters:
                raise CfqaError(
                    f"{what}: the parameters of {codec} are {list(columns)}, those of its features "
                    f"{parameters}"
                )
            arrays[codec] = np.stack([_column(column) for column in columns.values()], axis=1)
        if unknown := values.keys() - compressed.keys():
            raise CfqaError(f"{what}: no features of codec {min(unknown)!r}")
        return arrays

    zeros = np.zeros(len(ids))
    reference = zeros if score is None else per_source("reference_score", reference_score)
    scores = per_level("distortion", distortion) if score is None else per_level("score", score)
    columns: dict[str, Any] = {"score": scores, "reference_score": reference}
    if loss is not None:
        columns["loss"] = per_level("loss", loss)
        columns["reference_loss"] = (
            zeros if reference_loss is None else per_source("reference_loss", reference_loss)
        )
    if bits is not None:
        columns["bits"] = per_level("bits", bits, (codec for codec in compressed if codec in bits))
        for codec, sizes in columns["bits"].items():
            for source, level in np.argwhere((sizes < 0) | (sizes != np.floor(sizes)))[:1]:
                where = f"bits, {codec} at {list(compressed[codec])[level]}"
                value = f"{sizes[source, level]:g} of {ids[source]!r}"
                raise CfqaError(f"{where}: {value} must be a whole number from 0: round it up")
    return columns


def _groups(values: _Values) -> tuple[str, ...]:
    """Return the group of each source as a string.

    Raises:
        CfqaError: If a group is neither a string nor an integer.
    """
    for source, group in values.items():
        if not isinstance(group, str | int | np.integer):
            raise CfqaError(f"groups: that of {source!r} must be a string, not {group!r:.80}")
    return tuple(map(str, values.values()))


def _column(values: _Values) -> np.ndarray:
    """Return numbers per source, float64 (S,).

    Raises:
        CfqaError: If a value is not a finite number.
    """
    for source, value in values.items():
        array = as_numpy(value)
        if array.size != 1 or array.dtype.kind not in "fiub" or not np.isfinite(array):
            raise CfqaError(f"{values.what}: {value!r:.80} of {source!r} is not a finite number")
    return np.array([as_numpy(value).item() for value in values.values()], np.float64)


def _label_table(
    entry: TaskEntry,
    shapes: Mapping[str, tuple[int, int, int, int]],
    columns: Mapping[str, Any],
) -> Any:
    """Return the label table, with rows by source, codec and level."""
    ids, rows = entry.sources, list[dict[str, Any]]()
    references = (columns.get(f"reference_{name}", [None] * len(ids)) for name in ("score", "loss"))
    tokens = (shapes[source][2] for source in ids)
    for index, row in enumerate(original_rows(entry, range(len(ids)), tokens, *references)):
        for codec in entry.codecs.values():
            array = NAMES.compressed(entry.name, codec.name).as_posix()
            sizes = columns.get("bits", {}).get(codec.name)
            bits = [None] * len(codec.levels) if sizes is None else list(map(int, sizes[index]))
            values = {
                key: columns[key][codec.name][index] for key in ("score", "loss") if key in columns
            }
            rows += label_rows(entry, codec, row | {"array": array, "index": index}, bits, values)
    return pa.Table.from_pylist(rows, schema=label_schema(2))
