"""Datasets in memory: arrays and numbers of one's own, without a model, a codec or a folder.

:func:`from_arrays` makes a :class:`cfqa_data.Dataset` that evaluations, reports, curves and loaders
take like that of a folder, and :func:`cfqa_data.save` makes a folder of it.
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
"""Sources of a shard, where a dataset in memory becomes a folder."""

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
    """Make a dataset of features and numbers that are there already.

    Values per source are a mapping of ids, or a sequence in the order of the originals. Arrays are
    read when they are used: a memory map, an array of Zarr or of HDF5 stays where it is.

    Args:
        originals: the original features: a mapping of ids to arrays or tensors, or a sequence of
            them (or one array), whose ids are then "0", "1", ... A feature is (N, C, T, D), (T, D)
            for one view and layer, or (D,) for one token, of any real dtype; it is given as
            float32.
        compressed: the compressed features: codec -> parameter -> features per source, of the
            originals' shapes. The parameters of a codec rise or fall from the best on.
        distortion: codec -> parameter -> numbers per source: the harm done, of which less is
            better. Needed where there is no `score`.
        score: likewise, the score of the compressed features, with `reference_score`; `distortion`
            follows from it and the direction that the task's facts state.
        reference_score: numbers per source: the score of the originals.
        loss: likewise, a continuous loss of which less is better; optional.
        reference_loss: numbers per source: the loss of the originals; 0 if there is none.
        bits: likewise, the bits of the compressed features, whole numbers; unknown of codecs that
            are not in it.
        groups: a text per source: sources of one group (crops of one photograph) share a fold, and
            intervals resample whole groups.
        task: name of the task, or its facts.
        parameter: what the keys of the mappings are called.
        prefix_tokens: leading tokens that stand for no place of the input, as a class token.
        name: of the dataset.

    Returns:
        The dataset. Its baseline columns (`mse`, `cosine`, `cka`) are null until it is saved.

    Raises:
        CfqaError: a source, codec or parameter is missing or unknown somewhere, or a shape or
            number is impossible; it is named. Values of arrays are checked when they are read.
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
                found = values.shape(source, f"{values.what}, source {source!r}")
                if found != shapes[source]:
                    raise CfqaError(
                        f"{values.what}: source {source!r} is {found}, its original "
                        f"{shapes[source]}"
                    )
    numbers = _numbers(
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
    return Dataset(folder, _labels(entry, shapes, numbers))


class _Values(Mapping[str, Any]):
    """Values per source: a mapping, or a sequence in the order of the sources."""

    def __init__(self, what: str, values: Any, ids: Sequence[str] | None) -> None:
        if hasattr(values, "to_dict") and ids and set(values.keys()) == set(ids):
            values = values.to_dict()  # a column of a table, by its index
        self.what, self._values = what, values
        if isinstance(values, Mapping):
            self._keys = {key: key for key in values}
            if ids is not None and (wrong := self._keys.keys() ^ set(ids)):
                verb = "lacks" if wrong & set(ids) else "has, and originals lack,"
                raise CfqaError(f"{what} {verb} {min(map(str, wrong))!r}")
            self._keys = self._keys if ids is None else {key: key for key in ids}
            return
        for convert in ("to_pylist", "to_numpy"):  # of tables, whose index is no place
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
        self._keys = {name: place for place, name in enumerate(names)}

    def __getitem__(self, source: str) -> Any:
        return self._values[self._keys[source]]

    def shape(self, source: str, what: str) -> tuple[int, int, int, int]:
        """Return (N, C, T, D) of a source's feature; of one in a large array, it is not read."""
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
    """Return (N, C, T, D) of an array that may lack leading axes.

    Raises:
        CfqaError: it is no feature.
    """
    if isinstance(dtype, np.dtype) and dtype.kind not in "fiub":
        raise CfqaError(f"{what} is {dtype}, not of real numbers")
    if len(shape) not in (1, 2, 4) or 0 in shape:
        raise CfqaError(f"{what} is {tuple(shape)}, not (N, C, T, D), (T, D) or (D,)")
    n, c, t, d = (1,) * (4 - len(shape)) + tuple(shape)
    return n, c, t, d


def _facts(task: str | TaskFacts, scored: bool, has_loss: bool) -> TaskFacts:
    """Return the facts of a task, with a loss where there is one."""
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
    """Return parameter -> values per source of a codec."""
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


def _numbers(
    ids: Sequence[str],
    compressed: Mapping[str, Mapping[float, Any]],
    distortion: Any,
    score: Any,
    reference_score: Any,
    loss: Any,
    reference_loss: Any,
    bits: Any,
) -> dict[str, Any]:
    """Return each column of numbers: of originals (S,), of compressed features {codec: (S, L)}."""
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
        found = {}
        if not isinstance(values, Mapping):
            raise CfqaError(f"{what} must be {PER_LEVEL}")
        for codec in codecs:
            columns, parameters = _levels(what, values, codec, ids), list(compressed[codec])
            if list(columns) != parameters:
                raise CfqaError(
                    f"{what}: the parameters of {codec} are {list(columns)}, those of its features "
                    f"{parameters}"
                )
            found[codec] = np.stack([_column(column) for column in columns.values()], axis=1)
        if unknown := values.keys() - compressed.keys():
            raise CfqaError(f"{what}: no features of codec {min(unknown)!r}")
        return found

    zeros = np.zeros(len(ids))
    reference = zeros if score is None else per_source("reference_score", reference_score)
    scores = per_level("distortion", distortion) if score is None else per_level("score", score)
    found: dict[str, Any] = {"score": scores, "reference_score": reference}
    if loss is not None:
        found["loss"] = per_level("loss", loss)
        found["reference_loss"] = (
            zeros if reference_loss is None else per_source("reference_loss", reference_loss)
        )
    if bits is not None:
        found["bits"] = per_level("bits", bits, (codec for codec in compressed if codec in bits))
        for codec, sizes in found["bits"].items():
            for source, level in np.argwhere((sizes < 0) | (sizes != np.floor(sizes)))[:1]:
                where = f"bits, {codec} at {list(compressed[codec])[level]}"
                value = f"{sizes[source, level]:g} of {ids[source]!r}"
                raise CfqaError(f"{where}: {value} must be a whole number from 0: round it up")
    return found


def _groups(values: _Values) -> tuple[str, ...]:
    """Return the group of each source.

    Raises:
        CfqaError: one has none.
    """
    for source, group in values.items():
        if not isinstance(group, str | int | np.integer):
            raise CfqaError(f"groups: that of {source!r} must be a string, not {group!r:.80}")
    return tuple(map(str, values.values()))


def _column(values: _Values) -> np.ndarray:
    """Return numbers per source, float64 (S,).

    Raises:
        CfqaError: one is none, or not finite.
    """
    for source, value in values.items():
        array = as_numpy(value)
        if array.size != 1 or array.dtype.kind not in "fiub" or not np.isfinite(array):
            raise CfqaError(f"{values.what}: {value!r:.80} of {source!r} is not a finite number")
    return np.array([as_numpy(value).item() for value in values.values()], np.float64)


def _labels(
    entry: TaskEntry,
    shapes: Mapping[str, tuple[int, int, int, int]],
    numbers: Mapping[str, Any],
) -> Any:
    """Return the label rows by source, codec and level."""
    ids, rows = entry.sources, list[dict[str, Any]]()
    references = (numbers.get(f"reference_{name}", [None] * len(ids)) for name in ("score", "loss"))
    tokens = (shapes[source][2] for source in ids)
    for place, about in enumerate(original_rows(entry, range(len(ids)), tokens, *references)):
        for codec in entry.codecs.values():
            array = NAMES.compressed(entry.name, codec.name).as_posix()
            columns = about | {"array": array, "index": place}
            sizes = numbers.get("bits", {}).get(codec.name)
            bits = [None] * len(codec.levels) if sizes is None else list(map(int, sizes[place]))
            of = {
                key: numbers[key][codec.name][place] for key in ("score", "loss") if key in numbers
            }
            rows += label_rows(entry, codec, columns, bits, of)
    return pa.Table.from_pylist(rows, schema=label_schema(2))
