"""What a worker process loads once and uses for every item: backbone, heads, codecs, sources."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.access.weights import resolve_weights
from cfqa_data.builders.backbones.base import BACKBONES, Backbone
from cfqa_data.builders.pipeline.plan import Item, Plan
from cfqa_data.builders.sources.base import SOURCES, Source
from cfqa_data.builders.tasks.base import TASKS, Task
from cfqa_data.errors import BuildError
from cfqa_data.format.layout import Layout
from cfqa_data.recipe.load import Ladder, Recipe, TaskSpec
from cfqa_data.registry import Registry, bind_options

__all__ = ["BASELINES", "Models", "Tools", "codec_for"]

BASELINES: tuple[str, ...] = ("mse", "cosine", "cka")
"""Metrics whose values against the original every label row carries."""


def codec_for(ladder: Ladder) -> Any:
    """Make the codec of a ladder."""
    from cfqa_data.codecs import get_codec

    return get_codec(ladder.codec, **ladder.codec_options)


def _make(
    registry: Registry,
    kind: str,
    options: Mapping[str, Any],
    where: str,
    weights: str | None = None,
    **given: Any,
) -> Any:
    """Make an object of the class that a recipe names, with its options bound by signature."""
    target = registry.find(kind, classes=True).target
    if weights is not None:
        given["weights"] = resolve_weights(weights)
    return target(**bind_options(target, options, where, BuildError, **given))


@dataclass(frozen=True)
class Models:
    """The backbone, tasks and sources of a recipe, made when first asked for."""

    recipe: Recipe
    _tasks: dict[str, Task] = field(default_factory=dict, repr=False)

    @cached_property
    def backbone(self) -> Backbone:
        """What makes the features.

        Raises:
            CfqaError: there is no such backbone, or its weights are not there or do not fit.
        """
        spec = self.recipe.backbone
        options = dict(spec.options)
        if spec.kind is None:
            options["num_heads"] = spec.num_heads
        kind = spec.kind or "dinov2"
        made: Backbone = _make(BACKBONES, kind, options, "backbone", spec.weights)
        return made

    def task(self, name: str) -> Task:
        """What scores the features of a task.

        Raises:
            CfqaError: there is no such task, or its head is not there or does not fit.
        """
        if name not in self._tasks:
            spec, where = self.recipe.tasks[name], f"tasks.{name}"
            kind, options = spec.task_class, spec.options
            made: Task = _make(TASKS, kind, options, where, spec.head, backbone=self.backbone)
            if made.layers not in (None, len(spec.blocks)):
                raise BuildError(
                    f"{where}: the task takes {made.layers} block(s), not {len(spec.blocks)}"
                )
            self._tasks[name] = made
        return self._tasks[name]

    def features(self, task: str, inputs: Any) -> np.ndarray:
        """Return the float32 (N, C, T, D) feature of a sample's inputs.

        One sample at a time: a feature's bytes then depend on nothing but its own inputs.

        Raises:
            BuildError: the backbone does not take them, or gives something else.
        """
        blocks = self.recipe.tasks[task].blocks
        feature = np.ascontiguousarray(self.backbone.extract(inputs, blocks))
        if feature.ndim != 4 or feature.shape[1] != len(blocks) or feature.dtype != np.float32:
            raise BuildError(
                f"{task}: the backbone gives {feature.dtype} {feature.shape}, not float32 "
                f"(N, {len(blocks)}, T, D)"
            )
        return feature

    def source(self, task: str, seed: int | None = None) -> Source:
        """A fresh source of the task's samples, of the recipe's seed or another.

        Raises:
            BuildError: there is no such source, it lacks its data, or it has no such option.
        """
        spec = self.recipe.tasks[task].source
        chosen = spec.seed if seed is None else seed
        where = f"tasks.{task}.source: {spec.kind}"
        made: Source = _make(SOURCES, spec.kind, spec.options, where, task=task, seed=chosen)
        return made


@dataclass(frozen=True)
class Tools:
    """Everything a work item may use: the plan, the folder, and what is loaded from them."""

    plan: Plan
    layout: Layout
    _codecs: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)

    @cached_property
    def models(self) -> Models:
        """The recipe's networks."""
        return Models(self.plan.recipe)

    def spec(self, task: str) -> TaskSpec:
        """The recipe's entry of a task."""
        return self.plan.recipe.tasks[task]

    def ladder(self, item: Item) -> Ladder:
        """The ladder of a compress item."""
        return self.spec(item.task).ladders[item.codec]

    def codec(self, task: str, name: str) -> Any:
        """The codec of a task's ladder."""
        if (task, name) not in self._codecs:
            self._codecs[task, name] = codec_for(self.spec(task).ladders[name])
        return self._codecs[task, name]

    @cached_property
    def baselines(self) -> dict[str, Any]:
        """The baseline metrics by name."""
        from cfqa_data.eval.metrics import create_metric

        return {name: create_metric(name) for name in BASELINES}

    def source_ids(self, task: str) -> list[str]:
        """Ids of the selected sources, in order."""
        return list(read_json(Item("select", task).marker(self.layout)))

    def references(self, task: str, group: int) -> dict[str, Any]:
        """What the extract stage noted of a group: "score" and "loss" per source."""
        return dict(read_json(Item("extract", task, "", group).marker(self.layout)))

    def centres(self, task: str, codec: str) -> list[int]:
        """The code per layer that a ladder's stored codes are counted from."""
        return list(read_json(Item("centre", task).marker(self.layout))[codec])

    def originals(self, task: str, group: int) -> np.ndarray:
        """Originals of a group, float32 (S, N, C, T, D) in the order of its members."""
        path = self.layout.originals(task, group, self.plan.groups)
        return np.stack(list(read_tensors(path, self.group_ids(task, group)).values()))

    def group_ids(self, task: str, group: int) -> list[str]:
        """Source ids of a group."""
        ids = self.source_ids(task)
        return [ids[index] for index in self.plan.members(group)]

    def truths(self, task: str, group: int) -> list[np.ndarray]:
        """Truths of a group, in the order of its members."""
        return list(read_tensors(self.layout.truth(task), self.group_ids(task, group)).values())


def read_json(path: Path) -> Any:
    """Return what a marker file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_tensors(path: Path, keys: list[str]) -> dict[str, np.ndarray]:
    """Return the named tensors of a safetensors file, in the order of the names."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return {key: file.get_tensor(key) for key in keys}
