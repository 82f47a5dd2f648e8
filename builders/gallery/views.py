"""Collect what can be shown of a source: its input, truth, and all versions of its feature."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cfqa_data.arrow import pc
from cfqa_data.builders.gallery.source import source_input, source_of
from cfqa_data.builders.gallery.tokens import Tokens
from cfqa_data.builders.pipeline.label import scoring_models
from cfqa_data.builders.sources.base import picture_of
from cfqa_data.builders.tasks.base import Task
from cfqa_data.builders.tasks.drawing import Drawing, check_drawing
from cfqa_data.errors import CfqaError, FormatError, MetricError, unknown_name
from cfqa_data.format.facts import TaskEntry
from cfqa_data.format.layout import Layout
from cfqa_data.registry import naming_user_code

if TYPE_CHECKING:
    from cfqa_data.access.dataset import Dataset
    from cfqa_data.eval import Evaluation
    from cfqa_data.eval.metrics.base import Metric
    from cfqa_data.eval.metrics.registry import MetricLike

__all__ = ["Version", "View", "Viewer"]

STORED = ("mse", "cosine", "cka")
"""Metrics whose scores are columns of the labels."""


class Version(NamedTuple):
    """One version of a feature, or the original.

    Attributes:
        codec: Name of the codec; empty for the original.
        level: Level, from 0, the best.
        parameter: Parameter of the codec at this level.
        bpfp: Bits per feature point; None if unknown.
        score: The task's score.
        distortion: Degradation of the score.
        metrics: Metric -> its score; None if it is undefined or missing.
        drawing: Drawing of the task's prediction.
        errors: Errors of tokens, see :meth:`Tokens.errors`.
        colours: Colours of tokens, see :meth:`Tokens.colours`.
        input: For a codec on inputs, the decoded input, like :attr:`View.input`.
    """

    codec: str
    level: int
    parameter: float
    bpfp: float | None
    score: float
    distortion: float
    metrics: dict[str, float | None]
    drawing: Drawing | None = None
    errors: np.ndarray | None = None
    colours: np.ndarray | None = None
    input: np.ndarray | str | None = None

    @property
    def answer(self) -> str | None:
        """The task's top answer; None if it gives none."""
        return self.drawing.bars[0].label if self.drawing and self.drawing.bars else None


@dataclass(frozen=True)
class View:
    """Everything that can be shown of a source.

    Attributes:
        source_id: Id of the source.
        entry: Manifest's entry of its task.
        input: Image, uint8 RGB (H, W, 3), or a text; None if not available.
        truth: Drawing of the truth.
        original: The original.
        versions: Compressed versions by codec, best level first.
        notes: Reasons for missing parts.
    """

    source_id: str
    entry: TaskEntry
    input: np.ndarray | str | None
    truth: Drawing | None
    original: Version
    versions: tuple[Version, ...]
    notes: tuple[str, ...]

    @property
    def codecs(self) -> dict[str, list[Version]]:
        """Codec -> its versions."""
        by_codec: dict[str, list[Version]] = {}
        for version in self.versions:
            by_codec.setdefault(version.codec, []).append(version)
        return by_codec


class Viewer:
    """Creates views of a dataset's sources, with the versions that have a row in it.

    Args:
        dataset: An open dataset.
        metrics: Metrics whose scores are shown; the baselines in the labels if None.
        evaluation: Evaluation that has the scores; `metrics` selects from its metrics, all if None.

    Raises:
        MetricError: If there is no such metric, or the evaluation has none of that name.
    """

    def __init__(
        self,
        dataset: Dataset,
        metrics: Iterable[MetricLike] | None = None,
        evaluation: Evaluation | None = None,
    ) -> None:
        from cfqa_data.eval.metrics.registry import as_metrics

        self._dataset, self._evaluation = dataset, evaluation
        self._metrics: tuple[Metric, ...] | None = None
        if evaluation is not None:
            known = [metric.name for metric in evaluation.metrics]
            self._names = known if metrics is None else list(map(str, metrics))
            for name in self._names:
                if name not in known:
                    raise MetricError(unknown_name("metric of the scores", name, known))
        elif metrics is not None:
            self._metrics = as_metrics(metrics)
        self._tasks: dict[str, Task | str] = {}  # task, or the reason why it is not available
        self._notes: dict[str, None] = {}

    def view(self, source_id: str) -> View:
        """Return the view of a source; its features are read one at a time.

        Raises:
            CfqaError: If the source has no row in the dataset, or a task returns an invalid
                drawing.
            FormatError: If a file is missing or damaged.
        """
        dataset, self._notes = self._dataset, {}
        entry = dataset.manifest.tasks[dataset._folder.task_of(source_id)]
        table = dataset.labels.filter(pc.equal(dataset.labels["source_id"], source_id))
        order = {codec: index for index, codec in enumerate(entry.codecs)}
        rows = sorted(table.to_pylist(), key=lambda row: (order[row["codec"]], row["level"]))
        for row in rows:  # unknown rates are NaN in datasets from arrays
            row["bpfp"] = None if math.isnan(row["bpfp"] or 0.0) else row["bpfp"]
        if not rows:
            raise CfqaError(f"{dataset.location}: no row of {source_id!r} was selected")
        original, truth = dataset.original(source_id), self._truth(source_id, entry)
        tokens = Tokens(original, entry.prefix_tokens, dataset.grid(entry.name))
        evaluated = self._evaluated(source_id)
        classes = self._classes(entry.name)

        def draw(feature: np.ndarray | None) -> Drawing | None:
            task = self._task(entry.name)
            if task is None:
                return None
            with naming_user_code(CfqaError):
                return check_drawing(
                    task.draw(feature, truth, classes), f"{type(task).__name__}.draw"
                )

        def version(row: dict[str, Any]) -> Version:
            feature = dataset.compressed(source_id, row["codec"], row["level"])
            return Version(
                metrics=self._scores(original, feature, row, evaluated),
                drawing=draw(feature),
                errors=tokens.errors(feature) if tokens.drawn else None,
                colours=tokens.colours(feature) if tokens.drawn else None,
                input=self._decoded(source_id, row["codec"], row["level"]),
                **{name: row[name] for name in Version._fields[:6]},
            )

        return View(
            source_id=source_id,
            entry=entry,
            input=self._input(source_id, entry),
            truth=draw(None),
            original=Version(
                *("", -1, math.nan, None, rows[0]["reference_score"], 0.0, {}),
                drawing=draw(original),
                colours=tokens.colours(original) if tokens.drawn else None,
            ),
            versions=tuple(map(version, rows)),
            notes=tuple(self._notes),
        )

    def _input(self, source_id: str, entry: TaskEntry) -> np.ndarray | str | None:
        try:
            content = source_input(self._dataset, source_id)
        except CfqaError as error:
            self._notes[str(error)] = None
            return None
        if content is not None and entry.terms and not entry.terms.inputs:
            link = f": {entry.terms.link}" * bool(entry.terms.link)
            self._notes[
                f"The terms of the source do not allow the input to be redistributed{link}"
            ] = None
        return content

    def _decoded(self, source_id: str, codec: str, level: int) -> np.ndarray | str | None:
        """Return a decoded input; None for other codecs, and for untrusted datasets."""
        folder = self._dataset._folder
        task = folder.task_of(source_id)
        if folder.manifest.tasks[task].codecs[codec].facts.on != "inputs" or folder.untrusted:
            return None
        with suppress(CfqaError):  # the bitstreams or their decoder may be missing
            decoded = folder.decoder(task, codec).decode(folder.bitstream(source_id, codec, level))
            return decoded if isinstance(decoded, str) else picture_of(decoded)
        return None

    def _classes(self, task: str) -> Sequence[str]:
        with suppress(CfqaError):  # _input notes the reason
            return tuple(map(str, source_of(self._dataset._folder, task).classes))
        return ()

    def _truth(self, source_id: str, entry: TaskEntry) -> np.ndarray | None:
        if entry.facts.truth is None:
            return None
        try:
            return self._dataset.truth(source_id)
        except FormatError as error:
            name = Layout(Path()).truth(entry.name).as_posix()
            if name in self._dataset.manifest.files:
                raise
            self._notes[str(error)] = None
            return None

    def _task(self, name: str) -> Task | None:
        """Return the task that draws, created once; None, with a note, if not available."""
        if name not in self._tasks:
            try:
                self._tasks[name] = scoring_models(self._dataset._folder, name).task(name)
            except CfqaError as error:
                self._tasks[name] = str(error)
        task = self._tasks[name]
        if isinstance(task, str):
            self._notes[task] = None
            return None
        return task

    def _evaluated(self, source_id: str) -> dict[tuple[str, int], dict[str, float]]:
        """Return the evaluation's scores of a source: (codec, level) -> metric -> score."""
        result: dict[tuple[str, int], dict[str, float]] = {}
        if self._evaluation is not None:
            scores = self._evaluation.scores
            for row in scores.filter(pc.equal(scores["source_id"], source_id)).to_pylist():
                result.setdefault((row["codec"], row["level"]), {})[row["metric"]] = row["value"]
        return result

    def _scores(
        self,
        original: np.ndarray,
        feature: np.ndarray,
        row: dict[str, Any],
        evaluated: dict[tuple[str, int], dict[str, float]],
    ) -> dict[str, float | None]:
        if self._evaluation is not None:
            own = evaluated.get((row["codec"], row["level"]), {})
            return {name: own.get(name) for name in self._names}
        if self._metrics is None:
            return {name: row[name] for name in STORED if row[name] is not None}
        scores = {m.name: float(m(original[None], feature[None])[0]) for m in self._metrics}
        return {name: value if math.isfinite(value) else None for name, value in scores.items()}
