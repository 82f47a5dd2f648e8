"""The stage that finds what a recipe leaves to the build: ranges of quantisers, and levels.

Only training inputs are looked at, so that nothing is fitted to what the dataset holds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.builders.pipeline.context import BuildContext, Models, read_json, write_json
from cfqa_data.builders.pipeline.plan import PLAN, Item
from cfqa_data.builders.pipeline.prepare import FITTED_ON
from cfqa_data.builders.pipeline.select import BuildStage
from cfqa_data.builders.processes.executor import Executor
from cfqa_data.builders.processes.stage import drive
from cfqa_data.console.progress import Progress
from cfqa_data.errors import BuildError
from cfqa_data.format.fields import prefixed
from cfqa_data.format.quantizers import UniformQuantizer
from cfqa_data.format.storage import write_text
from cfqa_data.recipe.fitted import FittedRange
from cfqa_data.recipe.load import Recipe

__all__ = ["Fit", "check_fit", "fit_range", "fitted"]

DIGITS = 4
"""Of the ends of a fitted range, which is rounded outwards."""


class Fit(BuildStage):
    """Finds the range of a codec's quantiser, and its levels."""

    name, unit = "fit", "codecs"

    def items(self) -> list[Item]:
        tasks = self.plan.recipe.tasks.values()
        specs = [(spec.name, c) for spec in tasks for c in spec.codecs.values() if c.to_fit]
        return [Item(self.name, task, codec_spec.codec) for task, codec_spec in specs]

    def outputs(self, item: Item) -> tuple[Path, ...]:
        return (item.result_path(self.layout),)

    def run(self, item: Item) -> None:
        """Write the numbers, as keys of the codec's table in a recipe."""
        task, spec, models = item.task, self.context.codec_spec(item), self.context.models
        with prefixed(f"tasks.{task}.{spec.where}", BuildError):
            found: dict[str, Any] = {}
            if isinstance(wanted := spec.quantizer, FittedRange):
                features = list(_training(models, task, FITTED_ON))
                quantizer = fit_range(features, wanted.bits, wanted.percentile)
                found["quantizer"] = quantizer.to_dict()
        write_json(item.result_path(self.layout), found)


def fitted(context: BuildContext, executor: Executor, progress: Progress) -> BuildContext:
    """Fit what the recipe leaves to the build; return the context of the recipe with numbers.

    The recorded plan has them from then on, too.
    """
    stage = Fit(context)
    items = stage.items()
    if not items:
        return context
    deque(drive(stage, executor, progress), maxlen=0)
    data = context.plan.recipe.to_dict()
    for item in items:
        found = read_json(item.result_path(context.layout))
        data["tasks"][item.task]["codecs"][item.codec] |= found
    plan = replace(context.plan, recipe=Recipe.from_dict(data))
    write_text(context.layout.work / PLAN, plan.to_json())
    return BuildContext(plan, context.layout)


def check_fit(models: Models, task: str) -> None:
    """Check that what a task leaves to the build can be fitted, before anything is.

    Raises:
        BuildError: it cannot.
    """
    for spec in models.recipe.tasks[task].codecs.values():
        if spec.to_fit:
            with prefixed(f"tasks.{task}.{spec.where}", BuildError):
                next(_training(models, task, FITTED_ON))


def _training(models: Models, task: str, count: int) -> Iterator[np.ndarray]:
    """Yield training features, those that codecs are fitted to, too."""
    source = models.recipe.tasks[task].source
    for inputs in models.source(task).training_inputs(count, source.seed):
        yield models.features(task, inputs, "a training feature")


def fit_range(features: Iterable[np.ndarray], bits: int, percentile: float) -> UniformQuantizer:
    """Return the uniform quantiser whose range holds so much of each feature, layer by layer.

    A layer's range goes from the lowest to the highest of the features' own percentiles. Its
    channels share it: the strongest of them decides an end, unless it is so few of the values that
    the percentile leaves it out.

    Args:
        features: float32 (N, C, T, D) each.
        bits: bits of a code.
        percentile: of the values of each feature and layer, at either end.

    Raises:
        BuildError: a layer has one value only.
    """
    ends = []
    for feature in features:
        layers = np.moveaxis(feature, 1, 0).reshape(feature.shape[1], -1)
        both = np.stack([-layers, layers])  # inverted_cdf gives one of the values
        ends.append(np.percentile(both, percentile, axis=2, method="inverted_cdf"))
    low, hi = np.max(ends, axis=0).astype(np.float64)
    lo = -low
    if (flat := np.flatnonzero(lo == hi)).size:
        raise BuildError(
            f"layer {flat[0]} of the training features has no range: it is {lo[flat[0]]:g} "
            "everywhere; give lo and hi"
        )
    return UniformQuantizer(bits, tuple(map(_below, lo)), tuple(-_below(-end) for end in hi))


def _below(value: float) -> float:
    """Round down to so many digits."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - DIGITS + 1)
    return float(f"{math.floor(value / unit) * unit:.{DIGITS}g}")
