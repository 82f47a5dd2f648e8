"""The stage that determines quantiser ranges and levels which a recipe leaves open.

It uses training inputs only, so that nothing is fitted to the samples of the dataset.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.builders.pipeline import ladders
from cfqa_data.builders.pipeline.calibration import SCALES, calibrate
from cfqa_data.builders.pipeline.context import (
    BuildContext,
    Models,
    codec_for,
    read_json,
    write_json,
)
from cfqa_data.builders.pipeline.plan import PLAN, Item, Plan
from cfqa_data.builders.pipeline.select import BuildStage, accepted_samples, check_sample
from cfqa_data.builders.sources.base import Sample
from cfqa_data.console.progress import Progress
from cfqa_data.errors import BuildError, prefixed
from cfqa_data.format.quantizers import Quantizer, UniformQuantizer
from cfqa_data.format.storage import write_text
from cfqa_data.processes.executor import Executor
from cfqa_data.processes.stage import drive
from cfqa_data.recipe.fitted import AutoLevels, FittedRange
from cfqa_data.recipe.load import CodecSpec, Recipe

__all__ = [
    "Fit",
    "candidate_levels",
    "check_fit",
    "fit_range",
    "fit_recipe",
    "measurements",
    "training_samples",
]

CALIBRATED_ON = 24
"""Maximum number of training samples on which levels are calibrated."""

DIGITS = 4
"""Significant digits of the limits of a fitted range, which are rounded outwards."""


class Fit(BuildStage):
    """Stage that determines the range of a codec's quantiser, and its levels."""

    name, unit = "fit", "codecs"

    def items(self) -> list[Item]:
        tasks = self.plan.recipe.tasks.values()
        specs = [(spec.name, c) for spec in tasks for c in spec.codecs.values() if c.to_fit]
        return [Item(self.name, task, codec_spec.codec) for task, codec_spec in specs]

    def run(self, item: Item) -> None:
        """Write the fitted values, as keys of the codec's table in a recipe."""
        task, spec, models = item.task, self.context.codec_spec(item), self.context.models
        with prefixed(f"tasks.{task}.{spec.where}", BuildError):
            inputs = list(_training_inputs(models, task))
            training = [models.features(task, each, "a training feature") for each in inputs]
            scales: tuple[float, ...] = ()
            if isinstance(request := spec.quantizer, FittedRange):
                quantizer = fit_range(training, request.bits, request.percentile)
                spec, scales = replace(spec, quantizer=quantizer), SCALES
            if isinstance(spec.levels, AutoLevels):
                samples = training_samples(models, task)
                bench = ladders.make_bench(models, task, samples, training, inputs)
                spec = self.calibrated(item, bench, spec, scales)
        before = self.context.codec_spec(item).to_dict()
        changes = {key: value for key, value in spec.to_dict().items() if value != before[key]}
        write_json(item.result_path(self.layout), changes)
        shutil.rmtree(self.measurements(item), ignore_errors=True)

    def measurements(self, item: Item) -> Path:
        """Return the folder of an item's measurements, which exist until the item is done."""
        return item.result_path(self.layout).with_suffix("")

    def calibrated(
        self, item: Item, bench: ladders.Bench, spec: CodecSpec, scales: Sequence[float]
    ) -> CodecSpec:
        """Return a codec with the levels, and the matching range, that calibration proposes.

        Raises:
            BuildError: If no ladder of levels spans the distortion.
        """
        if not bench.useless > 0:
            raise BuildError(
                "the mean of the training features scores as well as they do: no levels to choose"
            )
        if isinstance(spec.quantizer, UniformQuantizer):
            bench = replace(bench, lo=spec.quantizer.lo, hi=spec.quantizer.hi)
        models, count = self.context.models, itertools.count()

        def curve(quantizer: Quantizer | None, parameter: float) -> ladders.Curve:
            path = self.measurements(item) / f"{next(count)}.json"
            if path.exists():  # cells are measured in a fixed order, so numbers identify them
                return ladders.Curve((parameter,), *(np.array(v) for v in read_json(path).values()))
            measured = ladders.measure(models, bench, spec, quantizer, (parameter,))
            write_json(path, {name: values.tolist() for name, values in measured.measured.items()})
            return measured

        result = calibrate(
            lambda _, __, cells: [
                ladders.join([curve(quantizer, value) for value in values])
                for quantizer, values in cells
            ],
            bench,
            spec,
            scales=scales,
            parameters=_trained_lambdas(spec, len(spec.levels)),
        )
        best = result["tried"][result["best"]]
        chosen, reach = best["levels"], best["figures"]["reach"]
        if not reach > ladders.NO_HARM:
            raise BuildError(
                f"no ladder: {spec.parameter_name} {chosen[-1]['parameter']:g} does only "
                f"{reach:.1%} of the distortion of an uninformative feature; give levels"
            )
        whole = spec.facts.parameter.whole
        levels = [int(row["parameter"]) if whole else row["parameter"] for row in chosen]
        quantizer = best["quantizer"] if scales else spec.quantizer
        return replace(spec, levels=tuple(levels), quantizer=quantizer)


def fit_recipe(context: BuildContext, executor: Executor, progress: Progress) -> BuildContext:
    """Fit the values that the recipe leaves open, and return the context of the completed recipe.

    The completed recipe also replaces the one in the recorded plan.
    """
    stage = Fit(context)
    items = stage.items()
    if not items:
        return context
    deque(drive(stage, executor, progress), maxlen=0)
    data = context.plan.recipe.to_dict()
    for item in items:
        values = read_json(item.result_path(context.layout))
        data["tasks"][item.task]["codecs"][item.codec] |= values
    plan = replace(context.plan, recipe=Recipe.from_dict(data))
    write_text(context.layout.work / PLAN, plan.to_json())
    return BuildContext(plan, context.layout)


def check_fit(models: Models, task: str) -> None:
    """Check, before a build starts, that the values which a task leaves open can be fitted.

    Raises:
        BuildError: If they cannot.
    """
    for spec in models.recipe.tasks[task].codecs.values():
        if spec.to_fit:
            with prefixed(f"tasks.{task}.{spec.where}", BuildError):
                next(_training_inputs(models, task))
                if isinstance(spec.levels, AutoLevels):
                    candidate_levels(spec)
                    first, infers = next(_candidates(models, task)), models.infers_truth(task)
                    check_sample(first, models.facts(task), infers)


def candidate_levels(spec: CodecSpec) -> Sequence[float]:
    """Return the levels of a codec, or the coarse grid in which the build searches for them.

    Returns:
        Parameters, best first.

    Raises:
        BuildError: If levels cannot be searched for this codec.
    """
    if not isinstance(spec.levels, AutoLevels):
        return tuple(spec.levels)
    parameter, count = spec.facts.parameter, len(spec.levels)
    if spec.facts.bits == "unknown":
        raise BuildError("its rate is unknown, so levels cannot be chosen; give levels")
    grid = _trained_lambdas(spec, count) or spec.registered.target.grid()
    if grid is None:
        raise BuildError(
            f"{parameter.name} needs two limits, or the class a grid(), to search for levels; "
            "give levels"
        )
    low, high = parameter.lowest, parameter.highest
    if parameter.whole and low is not None and high is not None and high - low + 1 < count:
        raise BuildError(
            f"{count} levels are requested, and {parameter.name} has only {high - low + 1:g} "
            "values; ask for fewer, as in levels = { auto = 4 }"
        )
    return tuple(grid)


def measurements(plan: Plan, task: str, codec: str) -> int:
    """Return about how many features the calibration of a codec compresses; 0 without one."""
    spec = plan.recipe.tasks[task].codecs[codec]
    if not isinstance(spec.levels, AutoLevels):
        return 0
    ranges = len(SCALES) if isinstance(spec.quantizer, FittedRange) else 1
    tried = len(candidate_levels(spec)) + ladders.FINE * len(spec.levels)
    return min(CALIBRATED_ON, plan.recipe.sources(task)) * ranges * tried


def _trained_lambdas(spec: CodecSpec, count: int) -> tuple[float, ...] | None:
    """Return the parameters for which a learned codec has models, best first; None for others."""
    lambdas = getattr(codec_for(spec), "lambdas", None)
    if lambdas is None:
        return None
    if len(lambdas) < count:
        raise BuildError(
            f"{count} levels are requested, and there are only models of {len(lambdas)}"
        )
    return tuple(sorted(lambdas, reverse=spec.facts.parameter.better == "higher"))


def _training_inputs(models: Models, task: str) -> Iterator[Any]:
    """Yield the training inputs of a task, to which codecs are fitted too."""
    recipe = models.recipe
    count, seed = recipe.fitted_on(task), recipe.tasks[task].source.seed
    return iter(models.source(task).training_inputs(count, seed))


def training_samples(models: Models, task: str) -> Iterator[Sample]:
    """Yield the training samples on which levels are calibrated.

    There are as many as the task has sources, but at most `CALIBRATED_ON`.

    Raises:
        BuildError: If there are too few, or they have no truth.
    """
    count = min(CALIBRATED_ON, models.recipe.sources(task))
    return accepted_samples(models, task, count, candidates=_candidates(models, task))


def _candidates(models: Models, task: str) -> Iterator[Sample]:
    source, seed = models.source(task), models.recipe.tasks[task].source.seed + 1
    if models.facts(task).truth is not None and not models.infers_truth(task):
        return source.training_samples(seed)
    inputs = source.training_inputs(CALIBRATED_ON, seed)
    return (Sample(f"training-{n}", each) for n, each in enumerate(inputs))


def fit_range(features: Iterable[np.ndarray], bits: int, percentile: float) -> UniformQuantizer:
    """Return the uniform quantiser whose range covers a percentile of each feature, per layer.

    A layer's range goes from the lowest to the highest of the features' own percentiles. All
    channels share it: the strongest channel decides a limit, unless it has so few of the values
    that the percentile excludes it.

    Args:
        features: Training features, float32 (N, C, T, D) each.
        bits: Bits of a code.
        percentile: Percentile of the values of each feature and layer, at either end.

    Raises:
        BuildError: If a layer has one value only.
    """
    ends = []
    for feature in features:
        layers = np.moveaxis(feature, 1, 0).reshape(feature.shape[1], -1)
        both = np.stack([-layers, layers])  # inverted_cdf returns an existing value
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
    """Round down to `DIGITS` significant digits."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - DIGITS + 1)
    return float(f"{math.floor(value / unit) * unit:.{DIGITS}g}")
