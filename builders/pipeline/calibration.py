"""Search for the range of a codec's quantiser and for its levels by measurements on a bench."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

from cfqa_data.builders.pipeline import ladders
from cfqa_data.format.quantizers import Quantizer, UniformQuantizer
from cfqa_data.recipe.load import CodecSpec

__all__ = ["BUDGET", "SCALES", "Cells", "calibrate"]

SCALES = (1.0, 4.0, 8.0, 16.0)
"""Quantiser ranges to try, as multiples of the training features' range."""

BUDGET = 0.45
"""Preferred maximum of the mean bits per feature point of a ladder."""

CENTERS = "package://cfqa_data.codecs/weights/kmeans.safetensors"

Cells: TypeAlias = Sequence[tuple[Quantizer | None, Sequence[float]]]
"""Quantisers, each with the codec parameters to measure."""


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
    """Measure a codec over quantiser ranges and parameters, and propose levels for each range.

    Args:
        curves_of: Function that measures the cells of a grid and returns a curve per quantiser.
        bench: Originals to measure on.
        ladder: The codec, its quantiser and the number of levels wanted. A codec without a uniform
            quantiser keeps its quantiser.
        scales: Ranges to try, as multiples of the training features' range; if empty, the ladder's
            quantiser is kept.
        parameters: Candidates for levels, best first, at least as many as the ladder has levels.
            By default, the codec's grid is refined between harmless and uninformative; a codec
            without a grid uses the ladder's levels.
        budget: Preferred maximum of the mean bits per feature point.
        harmless: Share of an uninformative feature's distortion that the first level may have.

    Returns:
        JSON-safe measurements: the facts of the bench, ``tried`` (an entry per range) and ``best``
        (the index of the best entry).
    """
    coarse = ladder.registered.target.grid()
    grid = tuple(parameters or coarse or ladder.levels)
    parameter, levels = ladder.facts.parameter, len(ladder.levels)
    tried: list[tuple[float | None, Quantizer | None]] = [(None, ladder.quantizer)]
    if scales and isinstance(ladder.quantizer, UniformQuantizer):
        bits = ladder.quantizer.bits
        tried = [(scale, ladders.scaled_quantizer(bench, bits, scale)) for scale in scales]
    curves = curves_of(bench, ladder, [(quantizer, grid) for _, quantizer in tried])
    if coarse and parameters is None:
        limits = harmless, parameter.whole, levels, int(parameter.lowest or 0)
        grids = [ladders.refine_grid(curve, bench.useless, *limits) for curve in curves]
        quantizers = (quantizer for _, quantizer in tried)
        curves = curves_of(bench, ladder, list(zip(quantizers, grids, strict=True)))
    criteria = budget, harmless, levels
    proposals = [ladders.propose(bench, ladder.codec, curve, *criteria) for curve in curves]
    rows = [row for _, row in proposals]

    def merit(index: int) -> tuple[Any, ...]:
        row = rows[index]
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
                "quantizer": _quantizer_table(quantizer),
                "grid": curve.rows(),
                "levels": chosen.rows(),
                "figures": row,
            }
            for (scale, quantizer), curve, (chosen, row) in zip(
                tried, curves, proposals, strict=True
            )
        ],
        "best": max(range(len(rows)), key=merit),
    }


def _quantizer_table(quantizer: Quantizer | None) -> dict[str, Any] | None:
    """Return a quantiser as a recipe states it: k-means centres stay in their file."""
    if quantizer is None:
        return None
    table = {"kind": "kmeans", "bits": 8, "centers": CENTERS}
    return quantizer.to_dict() if isinstance(quantizer, UniformQuantizer) else table
