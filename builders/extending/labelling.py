"""Labels of any reconstruction of a dataset's originals, as a build computes them."""

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

__all__ = ["Label", "label", "useless_harm"]


class Label(NamedTuple):
    """What a reconstruction costs its task; of a batch, arrays (B,) of float64.

    Attributes:
        score: The task's score.
        distortion: The harm to it against the original; larger is worse.
        loss: The task's continuous loss; None where it has none.
    """

    score: Any
    distortion: Any
    loss: Any


@extras()
def label(dataset: Dataset | str | Path, source_id: str, features: Any) -> Label:
    """Score reconstructions of a source with the task's own head and truth.

    They may come from anywhere: no codec and no folder are needed. The original itself gets its
    score of the dataset, and a distortion of 0.

    Args:
        dataset: An open dataset, or its path; open it once for many calls, so that networks are
            made once. Classes that are not installed are those of `cfqa_data.load(plugins=...)`.
        source_id: Whose original they reconstruct.
        features: One, (N, C, T, D), or a batch (B, N, C, T, D); an array or a tensor of any
            floating dtype, of which float32 is taken.

    Returns:
        Numbers for one feature, arrays for a batch.

    Raises:
        CfqaError: There is no such source, the features have another shape or values that are not
            finite, or what scored the dataset is not here.
    """
    dataset = opened(dataset)
    labeller = _LABELLERS.get(dataset)
    if labeller is None:
        labeller = _LABELLERS.setdefault(dataset, Labeller(dataset))
    return labeller(source_id, features)


@extras("build")
def useless_harm(dataset: Dataset, task: str) -> float | None:
    """Return the mean distortion when every feature is replaced by the mean of the other originals.

    Where features have different numbers of tokens, it is their mean token in every place.

    Args:
        dataset: An open dataset, with what scored it at hand.
        task: One of its tasks.

    Returns:
        None of one source.

    Raises:
        CfqaError: What scored it is not here.
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


class Taken(NamedTuple):
    """A source whose features are scored.

    Attributes:
        source_id: Its id.
        task: That scores them.
        facts: Of the task, as the dataset has them.
        truth: As the task takes it.
        reference: Score of the original.
    """

    source_id: str
    task: Task
    facts: TaskFacts
    truth: Any
    reference: float


class Labeller:
    """Scores reconstructions of a dataset's originals; see :func:`label`."""

    def __init__(self, dataset: Dataset) -> None:
        self._folder = dataset._folder
        self._tasks: dict[str, Task] = {}
        self._taken: Taken | None = None  # kept, for calls with one feature after the other

    def task(self, name: str) -> Task:
        """The task that scores features, made on first use."""
        if name not in self._tasks:
            self._tasks[name] = scoring_models(self._folder, name).task(name)
        return self._tasks[name]

    def __call__(self, source_id: str, features: Any) -> Label:
        """Return the label of one reconstruction, or of a batch."""
        try:
            shape, what = self._folder.shape(source_id), f"{source_id!r}"
        except FormatError as error:
            raise CfqaError(str(error)) from None  # as of features that do not fit
        batch, one = as_features(features, shape, what)
        taken = self._taken
        if taken is None or taken.source_id != source_id:
            self._taken = taken = self.take(source_id)
        step, facts = batch_of_levels(batch[0].size, len(batch)), taken.facts
        with one_thread():  # as a build does: the stored labels come out again
            parts = [
                score(taken.task, batch[first : first + step], taken.truth, what)
                for first in range(0, len(batch), step)
            ]
        columns = zip(*parts, strict=True)
        scores, losses = parts[0] if len(parts) == 1 else map(np.concatenate, columns)
        harm = facts.distortion(scores, taken.reference)
        if one:
            return Label(float(scores[0]), float(harm[0]), float(losses[0]) if facts.loss else None)
        return Label(scores, harm, losses if facts.loss else None)

    def take(self, source_id: str) -> Taken:
        """Return what a source's features are scored by, and against."""
        name = self._folder.task_of(source_id)
        task, facts = self.task(name), self._folder.manifest.tasks[name].facts
        truth = task.prepare(self._folder.truth(source_id)) if facts.truth else None
        reference = self._folder.original_rows()[source_id]["reference_score"]
        return Taken(source_id, task, facts, truth, reference)


def as_features(features: Any, shape: tuple[int, ...], what: str) -> tuple[np.ndarray, bool]:
    """Return one feature or a batch as float32 (B, N, C, T, D), and whether it was one.

    Raises:
        CfqaError: They are none of that shape, or not finite.
    """
    try:
        array = as_numpy(features)
    except ValueError:  # lists of different lengths
        raise CfqaError(f"a reconstruction of {what} is not an array of shape {shape}") from None
    check_shape(array, shape, what)
    if array.dtype.kind not in "fiub":
        raise CfqaError(f"a reconstruction of {what} is {array.dtype}, not of real numbers")
    one, batch = array.ndim == 4, array.reshape(-1, *shape)
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold is not finite
        if batch.dtype != np.float32 or not (batch.flags.c_contiguous and batch.flags.writeable):
            batch = np.require(batch, np.float32, ["C", "W"])
        total = batch.sum()  # not finite where a value is not, and of too large ones
    if not np.isfinite(total):
        for index, feature in enumerate(batch):
            if not np.isfinite(feature).all():
                raise CfqaError(f"reconstruction {index} of {what} has values that are not finite")
    return batch, one


def check_shape(found: Any, shape: tuple[int, ...], what: str) -> None:
    """Check that an array is a reconstruction of a feature (N, C, T, D), or a batch of some.

    Raises:
        CfqaError: It is not.
    """
    if len(found.shape) not in (4, 5) or tuple(found.shape[-4:]) != shape or 0 in found.shape:
        raise CfqaError(
            f"a reconstruction of {what} is {found.dtype} {tuple(found.shape)}, not {shape} or a "
            "batch of them"
        )


_LABELLERS: WeakKeyDictionary[Dataset, Labeller] = WeakKeyDictionary()
"""By open dataset, so that its networks are made once."""
