"""Search the range of a codec's quantiser and its levels over what is measured on a bench."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

from cfqa_data.builders.pipeline import ladders
from cfqa_data.format.quantizers import Quantizer, UniformQuantizer
from cfqa_data.recipe.load import CodecSpec

__all__ = ["BUDGET", "SCALES", "Cells", "calibrate"]

SCALES = (1.0, 4.0, 8.0, 16.0)
"""Ranges to try, in multiples of the training features'."""

BUDGET = 0.45
"""Mean bits per feature point to stay within, if the rest allows."""

CENTERS = "package://cfqa_data.codecs/weights/kmeans.safetensors"

Cells: TypeAlias = Sequence[tuple[Quantizer | None, Sequence[float]]]
"""Quantisers, and the parameters to measure with each."""


def calibrate(
    curves_of: Callable[[ladders.Bench, CodecSpec, Cells], list[ladders.Curve]],
    bench: ladders.Bench,
    ladder: CodecSpec,
    *,
    scales: Sequence[float] = SCALES,
    parameters: Sequence[float] | None = None,
    budget: float = BUDGET,
    harmless: float = ladders.NO_HARM,
) -> dict[str, Any]:
    """Try a codec over ranges and parameters; return the measurements and the proposal, JSON-safe.

    Args:
        curves_of: Measures cells of a grid.
        bench: Originals to try on.
        ladder: Names the codec; a learned codec keeps the ladder's quantiser.
        scales: Ranges to try, in multiples of the training features' range; none keep the ladder's
            quantiser.
        parameters: To choose from, best first, as many as the ladder has levels or more; by
            default those between no harm and useless on the codec's grid, or, where it has none,
            the ladder's levels.
        budget: Mean bits per feature point to stay within.
        harmless: Share of a useless feature's distortion that the first level may do.
    """
    coarse = ladder.registered.target.grid()
    grid = tuple(parameters or coarse or ladder.levels)
    parameter, levels = ladder.facts.parameter, len(ladder.levels)
    tried: list[tuple[float | None, Quantizer | None]] = [(None, ladder.quantizer)]
    if scales and isinstance(ladder.quantizer, UniformQuantizer):
        tried = [(scale, ladders.widened(bench, ladder.quantizer.bits, scale)) for scale in scales]
    curves = curves_of(bench, ladder, [(quantizer, grid) for _, quantizer in tried])
    if coarse and parameters is None:
        how = harmless, parameter.whole, levels, int(parameter.lowest or 0)
        grids = [ladders.refined(curve, bench.useless, *how) for curve in curves]
        quantizers = (quantizer for _, quantizer in tried)
        curves = curves_of(bench, ladder, list(zip(quantizers, grids, strict=True)))
    wanted = budget, harmless, levels
    found = [ladders.propose(bench, ladder.codec, curve, *wanted) for curve in curves]
    rows = [row for _, row in found]

    def merit(n: int) -> tuple[Any, ...]:
        row = rows[n]
        return row["ok"], row["bpfp"] <= budget, round(row["distinct"], 1), -row["bpfp"]

    return {
        "task": bench.task,
        "codec": ladder.codec,
        "class": ladder.kind,
        "facts": asdict(bench.facts) if bench.facts else None,
        "parameter_name": ladder.parameter_name,
        "models": ladder.models,
        "sources": len(bench.features),
        "range": [list(bench.lo), list(bench.hi)],
        "useless": bench.useless,
        "tried": [
            {
                "scale": scale,
                "quantizer": _described(quantizer),
                "grid": curve.rows(),
                "levels": chosen.rows(),
                "figures": row,
            }
            for (scale, quantizer), curve, (chosen, row) in zip(tried, curves, found, strict=True)
        ],
        "best": max(range(len(rows)), key=merit),
    }


def _described(quantizer: Quantizer | None) -> dict[str, Any] | None:
    """A quantiser as a recipe has it: k-means tables stay in their file."""
    if quantizer is None:
        return None
    table = {"kind": "kmeans", "bits": 8, "centers": CENTERS}
    return quantizer.to_dict() if isinstance(quantizer, UniformQuantizer) else table
