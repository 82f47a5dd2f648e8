"""Measure a codec over a grid of parameters and choose its levels.

A quantiser's range decides how many of its steps a feature's values span, and hence at which
parameters a codec begins to reduce the score. A ladder should begin where the score is unchanged
and end where the feature is nearly uninformative.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cfqa_data.builders.pipeline.coding import code
from cfqa_data.builders.pipeline.context import Models, codec_for
from cfqa_data.builders.pipeline.label import score
from cfqa_data.builders.sources.base import Sample
from cfqa_data.codecs.base import AnyCodec
from cfqa_data.errors import BuildError
from cfqa_data.format.facts import TaskFacts
from cfqa_data.format.packing import pack
from cfqa_data.format.quantizers import Quantizer, UniformQuantizer
from cfqa_data.integrity.health import figures_of
from cfqa_data.recipe.load import CodecSpec

__all__ = [
    "NO_HARM",
    "Bench",
    "Curve",
    "figures",
    "join",
    "make_bench",
    "measure",
    "propose",
    "refine_grid",
    "scaled_quantizer",
    "spaced_indices",
]

SEED = 0
"""Random seed with which a codec is fitted to training features."""

NO_HARM = 0.03
"""Default share of an uninformative feature's mean distortion up to which a level is harmless.
A rank among 960 classes needs a smaller share; a depth in metres tolerates a larger one."""

USELESS = 0.8
"""Share of an uninformative feature's mean distortion that the last level should reach."""

LEVELS = 10
"""Default number of levels of a ladder."""

FINE = 4
"""Number of parameters tried per level, where they are not whole numbers."""

STEADY = 0.96
"""Share of pairs of neighbouring levels between which rate and error should be monotone."""


@dataclass(frozen=True)
class Bench:
    """Originals of one task on which codecs are measured.

    Attributes:
        task: Name of the task.
        features: Originals of the S sources, float32 (N, C, T, D) each.
        truths: Truth of each source.
        scores: Scores of the originals, float64 (S,).
        losses: Losses of the originals, float64 (S,).
        lo, hi: Smallest and largest value of training features, per layer.
        useless: Mean distortion when every feature is replaced by the mean training feature.
        inputs: Inputs that the features were extracted from.
        training: Training features, to which a codec is fitted.
        training_inputs: Inputs of the training features, for codecs on inputs.
        facts: Facts of the task.
    """

    task: str
    features: Sequence[np.ndarray]
    truths: tuple[Any, ...]
    scores: np.ndarray
    losses: np.ndarray
    lo: tuple[float, ...]
    hi: tuple[float, ...]
    useless: float
    inputs: Sequence[Any] = ()
    training: Sequence[np.ndarray] = ()
    training_inputs: Sequence[Any] = ()
    facts: TaskFacts | None = None


@dataclass(frozen=True)
class Curve:
    """Measurements of a codec on S sources at P parameters; arrays are float64 (S, P).

    Attributes:
        parameters: Parameters, best first.
        bpfp: Bits per feature point.
        mse: Mean squared error.
        distortion: Degradation of the task's score, larger is worse.
        loss: Task loss minus the original's.
    """

    parameters: tuple[float, ...]
    bpfp: np.ndarray
    mse: np.ndarray
    distortion: np.ndarray
    loss: np.ndarray

    @property
    def measured(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        return {name: getattr(self, name) for name in ("bpfp", "mse", "distortion", "loss")}

    def at(self, columns: list[int]) -> Curve:
        """Return the curve at some of its parameters, by index."""
        arrays = {name: array[:, columns] for name, array in self.measured.items()}
        return Curve(tuple(self.parameters[column] for column in columns), **arrays)

    def rows(self) -> list[dict[str, float]]:
        """Return the means over the sources, one row per parameter."""
        harmed = self.distortion != self.distortion[:, :1]
        means = {n: array.mean(axis=0) for n, array in (self.measured | {"harmed": harmed}).items()}
        return [
            {"parameter": parameter, **{name: float(mean[i]) for name, mean in means.items()}}
            for i, parameter in enumerate(self.parameters)
        ]


def scaled_quantizer(bench: Bench, bits: int, scale: float) -> UniformQuantizer:
    """Return the uniform quantiser whose range is `scale` times that of the training features."""
    lo, hi = np.array(bench.lo), np.array(bench.hi)
    middle, half = (lo + hi) / 2, (hi - lo) / 2 * scale
    ends = [
        tuple(float(f"{end:.4g}") for end in values) for values in (middle - half, middle + half)
    ]
    return UniformQuantizer(bits, *ends)


def make_bench(
    models: Models,
    task: str,
    samples: Iterable[Sample],
    training: Sequence[np.ndarray],
    training_inputs: Sequence[Any] = (),
) -> Bench:
    """Extract features of samples, and measure the distortion of an uninformative feature.

    Args:
        models: The recipe's networks.
        task: Name of the task.
        samples: Samples that are not part of the recipe's dataset.
        training: Training features (N, C, T, D), for the range and the mean feature.
        training_inputs: Inputs of the training features, for a codec that is fitted to inputs.
    """
    scorer, samples = models.task(task), list(samples)
    features = [models.features(task, sample.inputs) for sample in samples]
    truths = [
        models.truth(task, sample.truth, feature)
        for feature, sample in zip(features, samples, strict=True)
    ]
    scored = [
        score(scorer, np.stack([feature, _mean(training, feature)]), truth, sample.source_id)
        for feature, truth, sample in zip(features, truths, samples, strict=True)
    ]
    distortion = [scorer.facts.distortion(scores[1], scores[0]) for scores, _ in scored]
    return Bench(
        task=task,
        features=features,
        truths=tuple(truths),
        scores=np.array([scores[0] for scores, _ in scored]),
        losses=np.array([losses[0] for _, losses in scored]),
        lo=tuple(np.min([f.min(axis=(0, 2, 3)) for f in training], axis=0).tolist()),
        hi=tuple(np.max([f.max(axis=(0, 2, 3)) for f in training], axis=0).tolist()),
        useless=float(np.mean(distortion)),
        inputs=[sample.inputs for sample in samples],
        training=training,
        training_inputs=training_inputs,
        facts=models.facts(task),
    )


def _mean(training: Sequence[np.ndarray], feature: np.ndarray) -> np.ndarray:
    """Return the mean training feature; if shapes vary, the mean training token, repeated."""
    if len({other.shape for other in (*training, feature)}) == 1:
        return np.asarray(np.mean(training, axis=0, dtype=np.float64), np.float32)
    tokens = [other.mean(axis=2, keepdims=True, dtype=np.float64) for other in training]
    mean = np.broadcast_to(np.mean(tokens, axis=0), feature.shape)
    return np.ascontiguousarray(mean, np.float32)


def measure(
    models: Models,
    bench: Bench,
    ladder: CodecSpec,
    quantizer: Quantizer | None,
    parameters: Sequence[float],
) -> Curve:
    """Run a codec on the bench with a quantiser, at parameters from best to worst.

    Raises:
        BuildError: If the codec's rate is unknown.
    """
    scorer = models.task(bench.task)
    tried = replace(ladder, quantizer=quantizer, levels=tuple(parameters))
    codec = _fitted(bench, tried)
    names = [f"{bench.task} {index}" for index in range(len(bench.features))]
    extract = partial(models.features, bench.task)
    coded = code(tried, codec, names, bench.features, bench.inputs, extract)
    if any(size is None for sizes in coded.bits for size in sizes):
        raise BuildError(f"{ladder.codec}: its rate is unknown, so levels cannot be chosen")
    rows = []
    for index, feature in enumerate(bench.features):
        decoded = np.stack(coded.stored[index])
        decoded = quantizer.dequantize(decoded) if quantizer else decoded
        mse = ((decoded.astype(np.float64) - feature) ** 2).mean(axis=(1, 2, 3, 4))
        scores, losses = score(scorer, decoded, bench.truths[index], names[index])
        distortion = scorer.facts.distortion(scores, bench.scores[index])
        bpfp = np.array(coded.bits[index], np.float64) / feature.size
        rows.append((bpfp, mse, distortion, losses - bench.losses[index]))
    return Curve(tuple(parameters), *map(np.stack, zip(*rows, strict=True)))


def _fitted(bench: Bench, ladder: CodecSpec) -> Any:
    """Return a codec with the tables that it fits to the bench's training data, if it does."""
    codec, quantizer = codec_for(ladder), ladder.quantizer
    if type(codec).fit is AnyCodec.fit:
        return codec
    items: Sequence[Any] = bench.training
    if ladder.facts.on == "inputs":
        items = bench.training_inputs
    elif quantizer is not None:
        items = [pack(quantizer.quantize(feature)) for feature in bench.training]
    codec.fit(items, SEED)
    tables = codec.tables()
    return codec_for(ladder, tables) if tables else codec


def join(curves: Sequence[Curve]) -> Curve:
    """Concatenate curves of the same sources into one."""
    parts = zip(*(curve.measured.values() for curve in curves), strict=True)
    parameters = tuple(parameter for curve in curves for parameter in curve.parameters)
    return Curve(parameters, *(np.concatenate(part, axis=1) for part in parts))


def figures(bench: Bench, codec: str, curve: Curve) -> dict[str, Any]:
    """Return the label sanity checks of a curve's levels, and three more figures.

    These are `bpfp` (mean over sources and levels), `reach` (distortion of the last level, as a
    share of an uninformative feature's) and `distinct` (mean number of distinct distortions of a
    source).
    """
    bits = (curve.bpfp * bench.features[0].size).round()
    row = {"task": bench.task, "codec": codec}
    row |= figures_of(curve.distortion, bits, curve.mse)
    return row | {
        "bpfp": float(curve.bpfp.mean()),
        "reach": float(curve.distortion[:, -1].mean() / bench.useless),
        "distinct": float(np.mean([len(np.unique(series)) for series in curve.distortion])),
    }


def propose(
    bench: Bench,
    codec: str,
    curve: Curve,
    budget: float,
    harmless: float = NO_HARM,
    levels: int = LEVELS,
) -> tuple[Curve, dict[str, Any]]:
    """Return the best levels among the parameters of a curve, and their figures.

    Between any first and last parameter, levels are spaced as equally as the parameters allow in
    the sum of the log rate and the distortion, each scaled to a total change of 1.

    Of these ladders, the best is chosen by the following criteria, in this order: it passes the
    sanity checks; rate and error are monotone, with a margin for other sources; the first level is
    harmless; the distortion of the last one is close to `USELESS`; the mean rate is within the
    budget; the distortions of a source are distinct; the rate is low.

    Args:
        bench: Bench on which the curve was measured.
        codec: Name of the codec.
        curve: Curve of at least `levels` parameters.
        budget: Preferred maximum of the mean bits per feature point.
        harmless: Share of an uninformative feature's mean distortion that counts as harmless.
        levels: Number of levels of the ladder.

    Raises:
        ValueError: If the curve has too few parameters.
    """

    def merit(row: dict[str, Any], ladder: Curve) -> tuple[float, ...]:
        start = ladder.distortion[:, 0].mean() / bench.useless
        return (
            float(row["ok"]),
            min(row["rate_falls"], row["mse_rises"], STEADY),
            -float(max(start, harmless)),
            -abs(round(row["reach"] - USELESS, 1)),
            float(row["bpfp"] <= budget),
            min(round(row["distinct"]), 7),
            -row["bpfp"],
        )

    count = len(curve.parameters)
    rate, harm = -np.log(curve.bpfp.mean(axis=0)), curve.distortion.mean(axis=0)
    candidates = []
    for first in range(count - levels + 1):
        for last in range(first + levels - 1, count):
            span = slice(first, last + 1)
            progress = _normalised(rate[span]) + _normalised(harm[span])
            ladder = curve.at([first + index for index in spaced_indices(progress, levels)])
            row = figures(bench, codec, ladder)
            candidates.append((merit(row, ladder), first, last, ladder, row))
    if not candidates:
        raise ValueError(f"{codec}: {levels} levels need as many parameters, got {count}")
    *_, ladder, row = max(candidates, key=lambda candidate: candidate[:3])
    return ladder, row


def _normalised(values: np.ndarray) -> np.ndarray:
    """Scale values so that the first is 0 and the last is 1; return zeros if these are equal."""
    rise = values[-1] - values[0]
    return (values - values[0]) / rise if rise else np.zeros(len(values))


def spaced_indices(values: np.ndarray, count: int) -> list[int]:
    """Return increasing indices, from first to last, whose values are closest to equally spaced.

    The squared distances to equally spaced targets are minimised by dynamic programming.

    Args:
        values: Values (P,), P >= count.
        count: Number of indices to choose, 2 or more.
    """
    targets = np.linspace(values[0], values[-1], count)
    cost = (values[None, :] - targets[:, None]) ** 2
    cost[0, 1:] = cost[-1, :-1] = np.inf
    total, predecessors = cost[0], []
    for row in cost[1:]:
        # Least cost of all earlier choices whose last index is strictly smaller.
        earlier = np.concatenate([[np.inf], np.minimum.accumulate(total)[:-1]])
        predecessors.append([-1, *(int(np.argmin(total[:end])) for end in range(1, len(values)))])
        total = row + earlier
    indices = [len(values) - 1]
    for predecessor in reversed(predecessors):
        indices.append(predecessor[indices[-1]])
    return indices[::-1]


def refine_grid(
    curve: Curve,
    useless: float,
    harmless: float = NO_HARM,
    whole: bool = True,
    levels: int = LEVELS,
    lowest: int = 0,
) -> tuple[float, ...]:
    """Refine a coarse grid between its last harmless and its first uninformative parameter.

    The range is extended by one step of the coarse grid at the harmless end, where rate and error
    change though the score does not.

    Args:
        curve: Measurements at the coarse grid.
        useless: Mean distortion of an uninformative feature.
        harmless: Share of it up to which a parameter counts as harmless.
        whole: Return every whole number of the range, at least `levels` of them; otherwise
            `FINE` values per level, interpolated between those of the grid.
        levels: Number of levels of the ladder.
        lowest: Lower limit of whole parameters.

    Returns:
        Parameters, best first.
    """
    harm = curve.distortion.mean(axis=0) / useless
    last = int(np.argmax(harm >= 1.0)) if (harm >= 1.0).any() else len(harm) - 1
    unharmed = np.flatnonzero(harm[: last + 1] <= harmless)
    first = max(0, int(unharmed[-1]) - 1) if len(unharmed) else 0
    if not whole:
        indices = np.linspace(first, last, FINE * levels)
        return tuple(np.interp(indices, np.arange(len(harm)), curve.parameters).tolist())
    start, stop = curve.parameters[first], curve.parameters[last]
    sign = 1 if curve.parameters[-1] >= curve.parameters[0] else -1
    lowest = lowest if sign > 0 else int(curve.parameters[0])
    start, stop = int(start) * sign, int(stop) * sign  # ascending, from best to worst
    start = max(lowest * sign, min(start, stop - levels + 1))
    values = range(start, max(stop, start + levels - 1) + 1)
    return tuple(float(value * sign) for value in values)
