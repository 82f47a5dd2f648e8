"""Class separability per level: features of a classification task in the plane, by level."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cfqa_data.errors import FormatError, MetricError
from cfqa_data.eval.report.axes import number_text
from cfqa_data.eval.report.drawing import MARKS
from cfqa_data.extras import extras

with extras():
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from cfqa_data.access.dataset import Dataset
    from cfqa_data.eval import Evaluation
    from cfqa_data.format.facts import TaskEntry

__all__ = ["ClassMap", "class_maps", "embed"]

SOURCES, LEVELS, CODECS = 100, 5, 6
"""At most so many sources of a task are drawn, levels of a codec, and codecs of a task."""

CLASSES = 12
"""At most so many classes have a colour and a mark of their own."""

SIDE = 400
"""Of the canvas of a picture, whose points keep a distance to its edge."""

Floats = NDArray[np.float64]


class ClassMap(NamedTuple):
    """Pictures of one codec's levels; places are comparable among them.

    Attributes:
        title: The task in words.
        codec: Its name.
        key: What each colour and mark stands for.
        pictures: Of the originals and of each level: title, share of sources that are not harmed,
            and for each kind of point its number and outline.
    """

    title: str
    codec: str
    key: tuple[str, ...]
    pictures: list[tuple[str, float, list[tuple[int, str]]]]


def class_maps(evaluation: Evaluation, dataset: Dataset) -> list[ClassMap]:
    """Return the pictures of all classification tasks that were scored.

    A point is a feature by the token that is nearest to a class: the class token of the last
    layer, or the mean token where there is none. Its colour is its class, if there are at most 12
    with two sources or more on average; else it tells whether the label says that it was harmed.

    Raises:
        MetricError: If no task that was scored has classes.
        FormatError: If a feature is missing or damaged.
    """
    rows = evaluation.labels.select(
        ["task", "source_id", "codec", "level", "parameter", "distortion"]
    ).to_pylist()
    found = []
    for name, entry in dataset.manifest.tasks.items():
        truth, of = entry.facts.truth, [row for row in rows if row["task"] == name]
        if not of or truth is None or truth.axes or np.dtype(truth.dtype).kind not in "iu":
            continue
        sources = list(dict.fromkeys(row["source_id"] for row in of))
        sources = [sources[place] for place in _spread(len(sources), SOURCES)]
        if len(sources) > 3:
            codecs = list(dict.fromkeys(row["codec"] for row in of))[:CODECS]
            found += _maps(dataset, entry, sources, codecs, of)
    if not found:
        raise MetricError("no task with classes and four sources or more was scored")
    return found


def _maps(
    dataset: Dataset,
    entry: TaskEntry,
    sources: Sequence[str],
    codecs: Sequence[str],
    rows: Sequence[dict[str, Any]],
) -> list[ClassMap]:
    layer, token = entry.shape[1] - 1, 0 if entry.prefix_tokens else None

    def vectors(codec: str = "", level: int = 0) -> Floats:
        of = (
            dataset.compressed(source, codec, level, layers=layer, tokens=token)
            if codec
            else dataset.original(source, layers=layer, tokens=token)
            for source in sources
        )
        return np.stack([feature.astype(np.float64).mean(axis=(0, 1, 2)) for feature in of])

    originals = vectors()
    mean, spread = originals.mean(axis=0), originals.std(axis=0)
    spread[spread < 1e-9 * max(1.0, float(spread.max()))] = 1.0
    classes: list[int] = []
    with suppress(FormatError):  # a copy may be without truths
        classes = [int(dataset.truth(source)) for source in sources]
    known = sorted(set(classes))
    coloured = 0 < len(known) <= min(CLASSES, len(sources) // 2)
    key = tuple(f"class {n}" for n in known) if coloured else ("no distortion", "distorted")
    found = []
    for codec in codecs:
        of = [row for row in rows if row["codec"] == codec]
        harm = {(row["source_id"], row["level"]): row["distortion"] > 0 for row in of}
        ladder = dict(sorted({row["level"]: row["parameter"] for row in of}.items()))
        levels = [list(ladder)[place] for place in _spread(len(ladder), LEVELS)]
        points = np.stack([originals, *(vectors(codec, level) for level in levels)])
        flat = (points.reshape(-1, points.shape[-1]) - mean) / spread
        at = _on_canvas(embed(flat)).reshape(*points.shape[:2], 2)
        parameter = entry.codecs[codec].facts.parameter.name
        titles = [f"{parameter} {number_text(ladder[level])}" for level in levels]
        pictures = []
        for level, title, places in zip([-1, *levels], ["uncompressed", *titles], at, strict=True):
            harmed = [harm.get((source, level), False) for source in sources]
            kinds = (
                [known.index(label) for label in classes] if coloured else list(map(int, harmed))
            )
            outlines: dict[int, str] = {}
            for kind, (x, y) in zip(kinds, places.tolist(), strict=True):
                outlines[kind] = outlines.get(kind, "") + f"M{x} {y}{MARKS[kind % len(MARKS)]}"
            pictures.append((title, 1 - float(np.mean(harmed)), sorted(outlines.items())))
        found.append(ClassMap(entry.facts.title, codec, key, pictures))
    return found


def embed(points: NDArray[Any], seed: int = 0) -> Floats:
    """Return points (n, D) in the plane, (n, 2), by t-SNE; the same on a machine each time.

    On one thread, as another number may give another picture.
    """
    points = np.asarray(points, np.float64)
    if not np.ptp(points, axis=0).any():
        return np.zeros((len(points), 2))
    perplexity = min(30.0, (len(points) - 1) / 3)
    with threadpool_limits(1):
        tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1)
        return np.asarray(tsne.fit_transform(points), np.float64)


def _on_canvas(places: Floats) -> NDArray[np.intp]:
    """Return places as whole numbers of a canvas, of one scale along both axes."""
    middle = (places.max(axis=0) + places.min(axis=0)) / 2
    reach = float(np.abs(places - middle).max()) or 1.0
    return np.rint(SIDE / 2 + (SIDE / 2 - 16) * (places - middle) / reach).astype(np.intp)


def _spread(count: int, most: int) -> list[int]:
    """Return at most so many places of a list, at even distances, both ends with them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()
