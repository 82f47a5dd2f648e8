"""The stages that select a task's samples and extract their features."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.builders.pipeline.context import BuildContext, Models, write_json
from cfqa_data.builders.pipeline.label import Scored, score
from cfqa_data.builders.pipeline.plan import Item, Plan
from cfqa_data.builders.sources.base import Sample
from cfqa_data.errors import BuildError, FormatError, prefixed
from cfqa_data.format.facts import TaskFacts
from cfqa_data.format.invariants import check_source_ids, check_truth
from cfqa_data.format.layout import Layout
from cfqa_data.format.storage import write_tensors
from cfqa_data.processes.stage import Stage

__all__ = ["PATIENCE", "BuildStage", "Extract", "Infer", "Select", "checked_sample", "fitting"]

PATIENCE = 200
"""Samples looked at per source wanted, before giving up."""

SHOWN = 5
"""Samples that the error names when too few fit."""


@dataclass(frozen=True)
class BuildStage(Stage):
    """A stage of a build.

    Attributes:
        context: Of the build.
    """

    context: BuildContext

    @property
    def plan(self) -> Plan:
        """What is built."""
        return self.context.plan

    @property
    def layout(self) -> Layout:
        """Where it is built."""
        return self.context.layout

    def per_shard(self, task: str, codec: str = "") -> list[Item]:
        """Return an item for each shard of a task."""
        shards = range(self.plan.shards(task))
        return [Item(self.name, task, codec, shard) for shard in shards]

    def scorer(self, item: Item) -> Callable[[int, int, np.ndarray], Scored]:
        """Return what scores features of an item's shard: index, first level, (B, N, C, T, D)."""
        return self.scorer_by(item, self.context.truths(item.task, item.shard))

    def scorer_by(
        self, item: Item, truths: Sequence[Any]
    ) -> Callable[[int, int, np.ndarray], Scored]:
        """Return what :meth:`scorer` does, by these truths of the shard."""
        ids = self.context.ids(item.task, item.shard)
        task, by = self.context.models.task(item.task), f" by {item.codec}" if item.codec else ""
        original = "" if item.codec else "the original "
        return lambda index, _, features: score(
            task, features, truths[index], f"{original}{ids[index]}{by}"
        )


class Select(BuildStage):
    """Chooses a task's sources, and writes their truths and ids."""

    name, unit = "select", "tasks"

    def items(self) -> list[Item]:
        return [Item(self.name, task) for task in self.plan.recipe.tasks]

    def outputs(self, item: Item) -> tuple[Path, ...]:
        inferred = self.context.models.infers_truth(item.task)
        truth = () if inferred else (self.layout.truth(item.task),)
        return *truth, self.context.gallery_path(item.task), item.result_path(self.layout)

    def run(self, item: Item) -> None:
        task, models = item.task, self.context.models
        samples = fitting(models, task, self.plan.recipe.sources(task))
        if (gallery := models.task(task).gallery()) is not None:
            write_tensors(self.context.gallery_path(task), checked_gallery(gallery, task))
        self.write(item, {s.source_id: (s.group, s.truth) for s in samples})

    def write(self, item: Item, found: dict[str, tuple[str | None, Any]]) -> None:
        """Write truths, then ids and groups, of sources with their group and truth.

        Raises:
            BuildError: The id of one without group is the group of others.
        """
        truths = {n: np.asarray(truth) for n, (_, truth) in found.items() if truth is not None}
        if truths:
            write_tensors(self.layout.truth(item.task), truths)
        given, groups = {group for group, _ in found.values() if group is not None}, None
        if given:
            if both := sorted(i for i, (group, _) in found.items() if group is None and i in given):
                message = (
                    f"source {both[0]!r} has no group, and its id is the group of other sources"
                )
                raise BuildError(f"{item.task}: {message}; give it a group or another id")
            groups = [group or source_id for source_id, (group, _) in found.items()]
        write_json(item.result_path(self.layout), {"ids": list(found), "groups": groups})


class Extract(BuildStage):
    """Extracts the features of a shard's sources, and scores them."""

    name, unit = "extract", "sources"

    def items(self) -> list[Item]:
        return [item for task in self.plan.recipe.tasks for item in self.per_shard(task)]

    def outputs(self, item: Item) -> tuple[Path, ...]:
        return self.context.originals_path(item.task, item.shard), item.result_path(self.layout)

    def cost(self, item: Item) -> int:
        return len(self.plan.members(item.task, item.shard))

    def check(self, todo: Sequence[Item]) -> None:
        """Check that no two selected sources have the same id, of whichever tasks they are.

        Where they have, and nothing was extracted yet, the selection is removed: it is to be made
        anew once sources are renamed.
        """
        tasks = self.plan.recipe.tasks
        try:
            check_source_ids({task: self.context.selected(task).ids for task in tasks})
        except FormatError as error:
            if len(todo) == len(self.items()):
                selection = Item("select", todo[0].task).result_path(self.layout).parent
                for folder in (selection, self.layout.truth("").parent):
                    shutil.rmtree(folder, ignore_errors=True)
            raise BuildError(f"{self.layout.root}: {error}") from None

    def run(self, item: Item) -> None:
        """Write a shard's original features, then their scores and losses."""
        models, facts = self.context.models, self.context.models.facts(item.task)
        features, grids = self.features(item)
        if models.infers_truth(item.task):  # whose truths are not in the folder yet
            truths = [models.truth(item.task, None, each) for each in features.values()]
            scorer = self.scorer_by(item, truths)
        else:
            scorer = self.scorer(item)
        write_tensors(self.context.originals_path(item.task, item.shard), features)
        found = [scorer(index, 0, one[None]) for index, one in enumerate(features.values())]
        result = {
            "score": [float(scores[0]) for scores, _ in found],
            "loss": [float(losses[0]) if facts.loss else None for _, losses in found],
            "grids": grids,
        }
        write_json(item.result_path(self.layout), result)

    def features(self, item: Item) -> tuple[dict[str, np.ndarray], list[Any]]:
        """Return the features of a shard's sources by id, and the grid of each."""
        task, shard, models = item.task, item.shard, self.context.models
        source, facts = models.source(task), models.facts(task)
        selected = self.context.selected(task)
        groups = dict(zip(selected.ids, selected.groups or selected.ids, strict=True))
        truths = self.context.truths(task, shard)
        features: dict[str, np.ndarray] = {}
        grids = []
        for source_id, truth in zip(self.context.ids(task, shard), truths, strict=True):
            sample = checked_sample(source.sample(source_id), facts, models.infers_truth(task))
            for what, first, second in (
                ("id", source_id, sample.source_id),
                ("group", groups[source_id], sample.group or sample.source_id),
                ("truth", _bytes(truth), _bytes(sample.truth)),
            ):
                if first != second:
                    raise BuildError(
                        f"{source_id}: {type(source).__name__}.sample is not deterministic: its "
                        f"{what} differs from that of samples()"
                    )
            inputs = sample.inputs
            features[source_id] = models.features(task, inputs, f"the feature of {source_id}")
            grids.append(models.grid(task, inputs))
        return features, grids


class Infer(BuildStage):
    """Writes the truths that a task infers from its originals."""

    name, unit = "infer", "tasks"

    def items(self) -> list[Item]:
        tasks = self.plan.recipe.tasks
        return [Item(self.name, task) for task in tasks if self.context.models.infers_truth(task)]

    def outputs(self, item: Item) -> tuple[Path, ...]:
        return (self.layout.truth(item.task),)

    def run(self, item: Item) -> None:
        task, context = item.task, self.context
        found = {
            name: context.models.truth(task, None, original)
            for shard in range(self.plan.shards(task))
            for name, original in zip(
                context.ids(task, shard), context.originals(task, shard), strict=True
            )
        }
        write_tensors(self.layout.truth(task), found)


def _bytes(truth: Any) -> bytes | None:
    return None if truth is None else np.asarray(truth).tobytes()


def checked_gallery(gallery: Any, task: str) -> dict[str, np.ndarray]:
    """Return what a task gave as its gallery.

    Raises:
        BuildError: It is none, or holds anything but finite numbers.
    """
    named = isinstance(gallery, Mapping) and all(isinstance(name, str) for name in gallery)
    if not named or not gallery:
        raise BuildError(
            f"{task}: a gallery must be a mapping of names to arrays, got {gallery!r:.200}"
        )
    arrays = {name: np.asarray(array) for name, array in gallery.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" or not array.size or not np.isfinite(array).all():
            kind = f"{array.dtype} {array.shape}"
            raise BuildError(f"{task}: {name!r} of the gallery is {kind}, not finite numbers")
    return arrays


def checked_sample(sample: Any, facts: TaskFacts, infers: bool = False) -> Sample:
    """Return what a source gave as a sample of a task.

    Args:
        sample: What the source gave.
        facts: Of the task.
        infers: Whether the task infers its truths, so that the source's is left out.

    Raises:
        CfqaError: It is none, or its id, group or truth is not what it has to be.
    """
    if not isinstance(sample, Sample):
        raise BuildError(
            f"{facts.name}: the source returned a {type(sample).__name__}, not a Sample"
        )
    check_source_ids({facts.name: [sample.source_id]})
    what = f"the truth of {sample.source_id}"
    if not isinstance(sample.group, str | None):
        raise BuildError(
            f"{facts.name}: the group of {sample.source_id} must be a text or None, got "
            f"{sample.group!r}"
        )
    if infers:
        return replace(sample, truth=None)
    if sample.truth is not None:
        truth = np.asarray(sample.truth)
        check_truth(facts, truth.dtype.name, truth.ndim, what)
    elif facts.truth is not None:
        raise BuildError(
            f"{what} is None; a truth of {facts.name} is {facts.truth.dtype} of {facts.truth.axes} "
            "axes"
        )
    return sample


def fitting(
    models: Models,
    task: str,
    count: int,
    seed: int | None = None,
    candidates: Iterable[Sample] | None = None,
) -> Iterator[Sample]:
    """Yield the first `count` samples that the task accepts and that score well enough.

    Args:
        models: The recipe's networks.
        task: Name of the task.
        count: Samples wanted.
        seed: Seed of the source; the recipe's if None.
        candidates: To choose from; the samples of the source if None.

    Raises:
        BuildError: Too few of the samples are accepted, or one is damaged.
    """
    accepted: list[Sample] = []
    skipped: list[str] = []
    facts = models.facts(task)
    ids: set[str] = set()
    source = models.source(task, seed)
    if candidates is None:
        candidates = source.samples()
    for seen, candidate in enumerate(candidates):
        if seen == PATIENCE * count:
            raise BuildError(
                f"{task}: only {len(accepted)} of {seen} candidates are accepted, {count} are "
                "needed: was the head trained on this source?"
            )
        sample = checked_sample(candidate, facts, models.infers_truth(task))
        what = f"the feature of {sample.source_id}"
        feature = partial(models.features, task, sample.inputs, what)
        with prefixed(sample.source_id, BuildError, BuildError):
            why = models.task(task).accepts(feature, sample, accepted)
        if not isinstance(why, str | None):
            raise BuildError(
                f"{sample.source_id}: {type(models.task(task)).__name__}.accepts must return None "
                f"or, to reject it, a text with the reason; got {why!r:.200}"
            )
        if not why and source.worst_score is not None:
            original = feature()
            truth = models.truth(task, sample.truth, original)
            scores, _ = score(models.task(task), original[None], truth, sample.source_id)
            if facts.score.distortion(scores[0], source.worst_score) > 0:
                why = f"of {facts.score.name} {scores[0]:.3g}"
        if why:
            skipped.append(f"{sample.source_id} ({why})")
            continue
        if sample.source_id in ids:
            raise BuildError(
                f"{task}: the source gave {sample.source_id!r} twice: ids must be unique"
            )
        ids.add(sample.source_id)
        accepted.append(replace(sample, inputs=None))  # which may be large
        yield sample
        if len(accepted) == count:
            return
    more = [f"and {len(skipped) - SHOWN} more"] if len(skipped) > SHOWN else []
    rejected = f"; rejected: {', '.join(skipped[:SHOWN] + more)}" if skipped else ""
    raise BuildError(
        f"{task}: only {len(accepted)} samples of the source are accepted, {count} are "
        f"needed{rejected}"
    )
