"""Class separability per level: t-SNE plots of the features of a classification task."""

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

MAX_SOURCES, MAX_LEVELS, MAX_CODECS = 100, 5, 6
"""Maximum numbers of sources and codecs of a task, and of levels of a codec."""

MAX_CLASSES = 12
"""Maximum number of classes that have their own colour and mark."""

SIDE = 400
"""Width and height of the canvas of a plot."""

Floats = NDArray[np.float64]


class ClassMap(NamedTuple):
    """Plots of the originals and of one codec's levels, with common coordinates.

    Attributes:
        title: Title of the task.
        codec: Name of the codec.
        key: Legend: the meaning of each colour and mark.
        pictures: Title of each plot, share of sources without distortion, and, for each colour, its
            index and the SVG path of its points.
    """

    title: str
    codec: str
    key: tuple[str, ...]
    pictures: list[tuple[str, float, list[tuple[int, str]]]]


def class_maps(evaluation: Evaluation, dataset: Dataset) -> list[ClassMap]:
    """Plot the features of all classification tasks that were scored.

    A point is the class token of the last layer, or the mean token if there is none. Its colour is
    the class, if there are at most `MAX_CLASSES` with two sources each on average; otherwise it
    shows whether the feature has a distortion above 0.

    Raises:
        MetricError: If no scored task has classes and four sources or more.
        FormatError: If a feature is missing or damaged.
    """
    rows = evaluation.labels.select(
        ["task", "source_id", "codec", "level", "parameter", "distortion"]
    ).to_pylist()
    maps = []
    for name, entry in dataset.manifest.tasks.items():
        truth, own = entry.facts.truth, [row for row in rows if row["task"] == name]
        if not own or truth is None or truth.axes or np.dtype(truth.dtype).kind not in "iu":
            continue
        sources = list(dict.fromkeys(row["source_id"] for row in own))
        sources = [sources[n] for n in _evenly_spaced(len(sources), MAX_SOURCES)]
        if len(sources) > 3:
            codecs = list(dict.fromkeys(row["codec"] for row in own))[:MAX_CODECS]
            maps += _maps(dataset, entry, sources, codecs, own)
    if not maps:
        raise MetricError("no task with classes and four sources or more was scored")
    return maps


def _maps(
    dataset: Dataset,
    entry: TaskEntry,
    sources: Sequence[str],
    codecs: Sequence[str],
    rows: Sequence[dict[str, Any]],
) -> list[ClassMap]:
    layer, token = entry.shape[1] - 1, 0 if entry.prefix_tokens else None

    def vectors(codec: str = "", level: int = 0) -> Floats:
        features = (
            dataset.compressed(source, codec, level, layers=layer, tokens=token)
            if codec
            else dataset.original(source, layers=layer, tokens=token)
            for source in sources
        )
        return np.stack([feature.astype(np.float64).mean(axis=(0, 1, 2)) for feature in features])

    originals = vectors()
    mean, spread = originals.mean(axis=0), originals.std(axis=0)
    spread[spread < 1e-9 * max(1.0, float(spread.max()))] = 1.0
    classes: list[int] = []
    with suppress(FormatError):  # a copy of a dataset may have no ground truth
        classes = [int(dataset.truth(source)) for source in sources]
    known = sorted(set(classes))
    coloured = 0 < len(known) <= min(MAX_CLASSES, len(sources) // 2)
    key = tuple(f"class {n}" for n in known) if coloured else ("no distortion", "distorted")
    maps = []
    for codec in codecs:
        own = [row for row in rows if row["codec"] == codec]
        is_distorted = {(row["source_id"], row["level"]): row["distortion"] > 0 for row in own}
        ladder = dict(sorted({row["level"]: row["parameter"] for row in own}.items()))
        levels = [list(ladder)[n] for n in _evenly_spaced(len(ladder), MAX_LEVELS)]
        points = np.stack([originals, *(vectors(codec, level) for level in levels)])
        flat = (points.reshape(-1, points.shape[-1]) - mean) / spread
        positions = _on_canvas(embed(flat)).reshape(*points.shape[:2], 2)
        parameter = entry.codecs[codec].facts.parameter.name
        titles = [f"{parameter} {number_text(ladder[level])}" for level in levels]
        pictures = []
        plots = zip([-1, *levels], ["uncompressed", *titles], positions, strict=True)
        for level, title, xy in plots:
            distorted = [is_distorted.get((source, level), False) for source in sources]
            colours = [known.index(label) for label in classes] if coloured else distorted
            outlines: dict[int, str] = {}
            for colour, (x, y) in zip(map(int, colours), xy.tolist(), strict=True):
                mark = MARKS[colour % len(MARKS)]
                outlines[colour] = outlines.get(colour, "") + f"M{x} {y}{mark}"
            pictures.append((title, 1 - float(np.mean(distorted)), sorted(outlines.items())))
        maps.append(ClassMap(entry.facts.title, codec, key, pictures))
    return maps


def embed(points: NDArray[Any], seed: int = 0) -> Floats:
    """Embed points (n, D) in the plane, (n, 2), by t-SNE.

    It runs in one thread, since the result depends on the number of threads.
    """
    points = np.asarray(points, np.float64)
    if not np.ptp(points, axis=0).any():
        return np.zeros((len(points), 2))
    perplexity = min(30.0, (len(points) - 1) / 3)
    with threadpool_limits(1):
        tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1)
        return np.asarray(tsne.fit_transform(points), np.float64)


def _on_canvas(points: Floats) -> NDArray[np.intp]:
    """Scale points to integer coordinates of the canvas, with the same scale on both axes."""
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    reach = float(np.abs(points - middle).max()) or 1.0
    return np.rint(SIDE / 2 + (SIDE / 2 - 16) * (points - middle) / reach).astype(np.intp)


def _evenly_spaced(count: int, most: int) -> list[int]:
    """Return at most ``most`` evenly spaced indices below ``count``, including both ends."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()
