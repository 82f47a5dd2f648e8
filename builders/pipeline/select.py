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

__all__ = ["BuildStage", "Extract", "Infer", "Select", "accepted_samples", "check_sample"]

PATIENCE = 200
"""Maximum number of candidates per requested sample."""

SHOWN = 5
"""Maximum number of rejected samples that an error message names."""


@dataclass(frozen=True)
class BuildStage(Stage):
    """Base class of the stages of a build.

    Attributes:
        context: Context of the build.
    """

    context: BuildContext

    @property
    def plan(self) -> Plan:
        """Plan of the build."""
        return self.context.plan

    @property
    def layout(self) -> Layout:
        """Layout of the build's folder."""
        return self.context.layout

    def outputs(self, item: Any) -> tuple[Path, ...]:
        return (item.result_path(self.layout),)

    def per_shard(self, task: str, codec: str = "") -> list[Item]:
        """Return an item for each shard of a task."""
        shards = range(self.plan.shards(task))
        return [Item(self.name, task, codec, shard) for shard in shards]

    def scorer(self, item: Item) -> Callable[[int, int, np.ndarray], Scored]:
        """Return the function that scores features of an item's shard.

        Its arguments are the index of the source in the shard, the first level (which is unused
        here) and the features, float32 (B, N, C, T, D).
        """
        return self.scorer_by(item, self.context.truths(item.task, item.shard))

    def scorer_by(
        self, item: Item, truths: Sequence[Any]
    ) -> Callable[[int, int, np.ndarray], Scored]:
        """Return the function of :meth:`scorer` for given truths of the shard."""
        ids = self.context.ids(item.task, item.shard)
        task, by = self.context.models.task(item.task), f" by {item.codec}" if item.codec else ""
        original = "" if item.codec else "the original "
        return lambda index, _, features: score(
            task, features, truths[index], f"{original}{ids[index]}{by}"
        )


class Select(BuildStage):
    """Stage that selects a task's sources, and writes their truths and ids."""

    name, unit = "select", "tasks"

    def items(self) -> list[Item]:
        return [Item(self.name, task) for task in self.plan.recipe.tasks]

    def outputs(self, item: Item) -> tuple[Path, ...]:
        inferred = self.context.models.infers_truth(item.task)
        truth = () if inferred else (self.layout.truth(item.task),)
        return *truth, self.context.gallery_path(item.task), item.result_path(self.layout)

    def run(self, item: Item) -> None:
        task, models = item.task, self.context.models
        samples = accepted_samples(models, task, self.plan.recipe.sources(task))
        if (gallery := models.task(task).gallery()) is not None:
            write_tensors(self.context.gallery_path(task), check_gallery(gallery, task))
        self.write(item, {s.source_id: (s.group, s.truth) for s in samples})

    def write(self, item: Item, samples: dict[str, tuple[str | None, Any]]) -> None:
        """Write the truths of the selected samples, then their ids and groups.

        Args:
            item: Item of the task.
            samples: Source id -> group and truth.

        Raises:
            BuildError: If the id of a source without a group equals the group of other sources.
        """
        truths = {n: np.asarray(truth) for n, (_, truth) in samples.items() if truth is not None}
        if truths:
            write_tensors(self.layout.truth(item.task), truths)
        named, groups = {group for group, _ in samples.values() if group is not None}, None
        if named:
            clashes = [i for i, (group, _) in samples.items() if group is None and i in named]
            if clashes:
                raise BuildError(
                    f"{item.task}: source {min(clashes)!r} has no group, and its id is the group "
                    "of other sources; give it a group or another id"
                )
            groups = [group or source_id for source_id, (group, _) in samples.items()]
        write_json(item.result_path(self.layout), {"ids": list(samples), "groups": groups})


class Extract(BuildStage):
    """Stage that extracts the features of a shard's sources, and scores them."""

    name, unit = "extract", "sources"

    def items(self) -> list[Item]:
        return [item for task in self.plan.recipe.tasks for item in self.per_shard(task)]

    def outputs(self, item: Item) -> tuple[Path, ...]:
        return self.context.originals_path(item.task, item.shard), item.result_path(self.layout)

    def cost(self, item: Item) -> int:
        return len(self.plan.members(item.task, item.shard))

    def check(self, todo: Sequence[Item]) -> None:
        """Check that no two selected sources of any tasks have the same id.

        If two have, and nothing is extracted yet, the selection is removed, so that it is made
        anew once sources are renamed.

        Raises:
            BuildError: If two sources have the same id.
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
        if models.infers_truth(item.task):  # the infer stage writes its truths later
            truths = [models.truth(item.task, None, each) for each in features.values()]
            scorer = self.scorer_by(item, truths)
        else:
            scorer = self.scorer(item)
        write_tensors(self.context.originals_path(item.task, item.shard), features)
        scored = [scorer(index, 0, one[None]) for index, one in enumerate(features.values())]
        result = {
            "score": [float(scores[0]) for scores, _ in scored],
            "loss": [float(losses[0]) if facts.loss else None for _, losses in scored],
            "grids": grids,
        }
        write_json(item.result_path(self.layout), result)

    def features(self, item: Item) -> tuple[dict[str, np.ndarray], list[Any]]:
        """Return the features of a shard's sources by id, and the token grid of each.

        Raises:
            BuildError: If the source returns another sample than it did at selection.
        """
        task, shard, models = item.task, item.shard, self.context.models
        source, facts = models.source(task), models.facts(task)
        selected = self.context.selected(task)
        groups = dict(zip(selected.ids, selected.groups or selected.ids, strict=True))
        truths = self.context.truths(task, shard)
        features: dict[str, np.ndarray] = {}
        grids = []
        for source_id, truth in zip(self.context.ids(task, shard), truths, strict=True):
            sample = check_sample(source.sample(source_id), facts, models.infers_truth(task))
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
    """Stage that writes the truths which a task infers from its originals."""

    name, unit = "infer", "tasks"

    def items(self) -> list[Item]:
        tasks = self.plan.recipe.tasks
        return [Item(self.name, task) for task in tasks if self.context.models.infers_truth(task)]

    def outputs(self, item: Item) -> tuple[Path, ...]:
        return (self.layout.truth(item.task),)

    def run(self, item: Item) -> None:
        task, context = item.task, self.context
        truths = {
            name: context.models.truth(task, None, original)
            for shard in range(self.plan.shards(task))
            for name, original in zip(
                context.ids(task, shard), context.originals(task, shard), strict=True
            )
        }
        write_tensors(self.layout.truth(task), truths)


def _bytes(truth: Any) -> bytes | None:
    return None if truth is None else np.asarray(truth).tobytes()


def check_gallery(gallery: Any, task: str) -> dict[str, np.ndarray]:
    """Validate the gallery that a task returned, and return its arrays by name.

    Raises:
        BuildError: If it is not a mapping of names to non-empty arrays of finite numbers.
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


def check_sample(sample: Any, facts: TaskFacts, infers: bool = False) -> Sample:
    """Validate and return a sample of a task.

    Args:
        sample: The object that the source returned.
        facts: Facts of the task.
        infers: Whether the task infers its truths; the source's truth is then removed.

    Raises:
        CfqaError: If it is not a `Sample`, or its id, group or truth is invalid.
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


def accepted_samples(
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
        count: Number of samples.
        seed: Seed of the source; the recipe's if None.
        candidates: Samples to choose from; those of the source if None.

    Raises:
        BuildError: If too few samples are accepted, or a sample is invalid.
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
        sample = check_sample(candidate, facts, models.infers_truth(task))
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
        accepted.append(replace(sample, inputs=None))  # inputs may be large
        yield sample
        if len(accepted) == count:
            return
    more = [f"and {len(skipped) - SHOWN} more"] if len(skipped) > SHOWN else []
    rejected = f"; rejected: {', '.join(skipped[:SHOWN] + more)}" if skipped else ""
    raise BuildError(
        f"{task}: only {len(accepted)} samples of the source are accepted, {count} are "
        f"needed{rejected}"
    )
