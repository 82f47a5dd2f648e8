"""Label any reconstruction of a dataset's originals, as a build does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from cfqa_data.access.dataset import Dataset, opened
from cfqa_data.access.memory import as_numpy
from cfqa_data.builders.pipeline.label import batch_of_levels, score, scoring_models
from cfqa_data.builders.tasks.base import Task
from cfqa_data.errors import CfqaError, FormatError
from cfqa_data.extras import extras
from cfqa_data.format.facts import TaskFacts
from cfqa_data.processes.executor import one_thread

__all__ = ["Label", "label", "uninformative_distortion"]


class Label(NamedTuple):
    """Label of a reconstruction; for a batch, the fields are float64 arrays (B,).

    Attributes:
        score: The task's score.
        distortion: Degradation of the score relative to the original's; larger is worse.
        loss: The task's continuous loss; None if it has none.
    """

    score: Any
    distortion: Any
    loss: Any


@extras()
def label(dataset: Dataset | str | Path, source_id: str, features: Any) -> Label:
    """Score reconstructions of a source with the task's own head and truth.

    Reconstructions may come from any method; neither a codec nor files are needed. The original
    itself gets the score in the dataset and a distortion of 0.

    Args:
        dataset: An open dataset, or its path. For many calls, open it once, so that its networks
            are created once; name classes that are not installed in `cfqa_data.load(plugins=...)`.
        source_id: Id of the source whose original is reconstructed.
        features: A feature (N, C, T, D) or a batch (B, N, C, T, D): an array or tensor of any
            real dtype, which is converted to float32.

    Returns:
        A label of numbers for one feature, of arrays for a batch.

    Raises:
        CfqaError: If there is no such source, the features have another shape or values that are
            not finite, or a class or weights that scored the dataset are missing.
    """
    dataset = opened(dataset)
    labeller = _LABELLERS.get(dataset)
    if labeller is None:
        labeller = _LABELLERS.setdefault(dataset, Labeller(dataset))
    return labeller(source_id, features)


@extras("build")
def uninformative_distortion(dataset: Dataset, task: str) -> float | None:
    """Return the mean distortion when every feature is replaced by the mean of the other originals.

    If features differ in their number of tokens, the mean token is repeated at every position.

    Args:
        dataset: An open dataset whose scoring classes and weights are available.
        task: One of its tasks.

    Returns:
        The mean distortion; None if there is only one source.

    Raises:
        CfqaError: If a class or weights that scored the dataset are missing.
    """
    entry = dataset.manifest.tasks[task]
    others = len(entry.sources) - 1
    if not others:
        return None

    def part(original: np.ndarray) -> np.ndarray:
        own = original.astype(np.float64)
        return own.mean(axis=2, keepdims=True) if entry.varying_tokens else own

    total = np.zeros(())
    for source in entry.sources:
        total = total + part(dataset.original(source))
    harms = []
    for source in entry.sources:
        original = dataset.original(source)
        useless = np.broadcast_to((total - part(original)) / others, original.shape)
        harms.append(label(dataset, source, useless.astype(np.float32)).distortion)
    return float(np.mean(harms))


class ScoredSource(NamedTuple):
    """A source, with everything that its features are scored with.

    Attributes:
        source_id: Id of the source.
        task: Task that scores features.
        facts: Facts of the task in the dataset.
        truth: Truth, as returned by the task's `prepare`.
        reference: Score of the original.
    """

    source_id: str
    task: Task
    facts: TaskFacts
    truth: Any
    reference: float


class Labeller:
    """Function object that scores reconstructions of a dataset's originals; see :func:`label`."""

    def __init__(self, dataset: Dataset) -> None:
        self._folder = dataset._folder
        self._tasks: dict[str, Task] = {}
        self._last: ScoredSource | None = None  # cached for successive calls with one feature

    def task(self, name: str) -> Task:
        """Return the task that scores features, created on first use."""
        if name not in self._tasks:
            self._tasks[name] = scoring_models(self._folder, name).task(name)
        return self._tasks[name]

    def __call__(self, source_id: str, features: Any) -> Label:
        """Return the label of one reconstruction, or of a batch."""
        try:
            shape, what = self._folder.shape(source_id), f"{source_id!r}"
        except FormatError as error:
            raise CfqaError(str(error)) from None  # the kind of error of invalid features
        batch, one = as_features(features, shape, what)
        source = self._last
        if source is None or source.source_id != source_id:
            self._last = source = self.source(source_id)
        step, facts = batch_of_levels(batch[0].size, len(batch)), source.facts
        with one_thread():  # a build also uses one thread, so that its labels are reproduced
            parts = [
                score(source.task, batch[first : first + step], source.truth, what)
                for first in range(0, len(batch), step)
            ]
        columns = zip(*parts, strict=True)
        scores, losses = parts[0] if len(parts) == 1 else map(np.concatenate, columns)
        harm = facts.distortion(scores, source.reference)
        if one:
            return Label(float(scores[0]), float(harm[0]), float(losses[0]) if facts.loss else None)
        return Label(scores, harm, losses if facts.loss else None)

    def source(self, source_id: str) -> ScoredSource:
        """Return the task, truth and reference score of a source."""
        name = self._folder.task_of(source_id)
        task, facts = self.task(name), self._folder.manifest.tasks[name].facts
        truth = task.prepare(self._folder.truth(source_id)) if facts.truth else None
        reference = self._folder.original_rows()[source_id]["reference_score"]
        return ScoredSource(source_id, task, facts, truth, reference)


def as_features(features: Any, shape: tuple[int, ...], what: str) -> tuple[np.ndarray, bool]:
    """Return features as a batch, float32 (B, N, C, T, D), and whether it was a single feature.

    Raises:
        CfqaError: If they have another shape, are not real numbers, or are not finite.
    """
    try:
        array = as_numpy(features)
    except ValueError:  # lists of different lengths
        raise CfqaError(f"a reconstruction of {what} is not an array of shape {shape}") from None
    check_shape(array, shape, what)
    if array.dtype.kind not in "fiub":
        raise CfqaError(f"a reconstruction of {what} is {array.dtype}, not of real numbers")
    one, batch = array.ndim == 4, array.reshape(-1, *shape)
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 become infinite
        if batch.dtype != np.float32 or not (batch.flags.c_contiguous and batch.flags.writeable):
            batch = np.require(batch, np.float32, ["C", "W"])
        total = batch.sum()  # fast test: it is finite only if all values are
    if not np.isfinite(total):
        for index, feature in enumerate(batch):
            if not np.isfinite(feature).all():
                raise CfqaError(f"reconstruction {index} of {what} has values that are not finite")
    return batch, one


def check_shape(array: Any, shape: tuple[int, ...], what: str) -> None:
    """Check that an array has the shape of a feature (N, C, T, D), or of a batch of features.

    Raises:
        CfqaError: If it has another shape.
    """
    if len(array.shape) not in (4, 5) or tuple(array.shape[-4:]) != shape or 0 in array.shape:
        raise CfqaError(
            f"a reconstruction of {what} is {array.dtype} {tuple(array.shape)}, not {shape} or a "
            "batch of them"
        )


_LABELLERS: WeakKeyDictionary[Dataset, Labeller] = WeakKeyDictionary()
"""Open dataset -> labeller, so that its networks are created once."""
