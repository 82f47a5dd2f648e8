"""Finding each codec's quantiser range and ten levels, task by task, and showing how.

    python -m cfqa_data.builders.calibrate --recipe mini --out docs/calibration

For every task and codec: a grid of ranges (multiples of the training features' own) and parameters
is tried on sources of another seed than the recipe's; a ladder is proposed for each range; the best
proposal is measured level by level. One JSON file per task and codec holds what was found, and the
report (Markdown, CSV, TOML for the recipe, figure) is written anew from all of them, so that the
work can be done in pieces.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.builders.calibration_report import write_report
from cfqa_data.builders.ladders import (
    Bench,
    Curve,
    figures,
    gather,
    join,
    measure,
    propose,
    widened,
)
from cfqa_data.builders.pipeline.tools import Models
from cfqa_data.builders.training.planes import training_features
from cfqa_data.quantizers import Quantizer, UniformQuantizer
from cfqa_data.recipe import Ladder, Recipe, load_recipe
from cfqa_data.storage import write_text

__all__ = ["calibrate", "main"]

GRIDS: dict[str, tuple[float, ...]] = {
    "x265": (2, 8, 14, 20, 26, 32, 38, 44, 51),
    "vvenc": (4, 12, 20, 27, 34, 41, 48, 55, 63),
}
SCALES = (1.0, 2.0, 4.0, 8.0, 16.0)
SEED = 4_000_000
TRAINING_SEED = 950


class Pool:
    """Measures cells of a grid on processes of one thread each, or in this one."""

    def __init__(self, recipe: Recipe, workers: int) -> None:
        self._recipe = recipe
        self._pool = (
            ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers > 1 else None
        )

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def curves(
        self, bench: Bench, ladder: Ladder, cells: Sequence[tuple[Quantizer, Sequence[float]]]
    ) -> list[Curve]:
        """One curve per cell (quantiser, parameters)."""
        text = json.dumps(self._recipe.to_dict())
        jobs = [(text, bench, ladder, quantizer, (p,)) for quantizer, ps in cells for p in ps]
        run = self._pool.map if self._pool else map
        points = iter(list(run(_measure, *zip(*jobs, strict=True))))
        return [join([next(points) for _ in parameters]) for _, parameters in cells]


@lru_cache(maxsize=1)
def _models(text: str) -> Models:
    return Models(Recipe.from_dict(json.loads(text)))


def _measure(
    text: str, bench: Bench, ladder: Ladder, quantizer: Quantizer, parameters: Sequence[float]
) -> Curve:
    import torch

    torch.set_num_threads(1)
    return measure(_models(text), bench, ladder, quantizer, parameters)


def calibrate(
    pool: Pool,
    bench: Bench,
    ladder: Ladder,
    *,
    scales: Sequence[float] = SCALES,
    parameters: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Try a codec over ranges and parameters, and return what was found as JSON-safe data.

    Args:
        pool: where to run.
        bench: originals to try on.
        ladder: names the codec; a learned codec keeps the ladder's quantiser.
        scales: ranges to try, in multiples of the training features' range.
        parameters: grid, best first; by default the codec's, or the ladder's levels.
    """
    grid = tuple(parameters or GRIDS.get(ladder.codec, ladder.levels))
    whole = ladder.parameter_name == "qp"
    tried: list[tuple[float | None, Quantizer]] = [(None, ladder.quantizer)]
    if isinstance(ladder.quantizer, UniformQuantizer) and whole:
        tried = [(scale, widened(bench, ladder.quantizer.bits, scale)) for scale in scales]
    curves = pool.curves(bench, ladder, [(quantizer, grid) for _, quantizer in tried])
    proposals = [propose(curve, bench.useless, whole=whole) for curve in curves]
    measured = pool.curves(
        bench,
        ladder,
        [(quantizer, levels) for (_, quantizer), levels in zip(tried, proposals, strict=True)],
    )
    found = [figures(bench, ladder.codec, curve) for curve in measured]
    best = max(range(len(tried)), key=lambda index: _merit(found[index]))
    return {
        "task": bench.task,
        "codec": ladder.codec,
        "parameter_name": ladder.parameter_name,
        "models": ladder.models,
        "sources": len(bench.features),
        "range": [list(bench.lo), list(bench.hi)],
        "useless": bench.useless,
        "tried": [
            {
                "scale": scale,
                "quantizer": quantizer.to_dict() if whole else {"kind": "kmeans"},
                "grid": curve.rows(),
                "levels": ladder_curve.rows(),
                "figures": row,
            }
            for (scale, quantizer), curve, ladder_curve, row in zip(
                tried, curves, measured, found, strict=True
            )
        ],
        "best": best,
    }


def _merit(row: dict[str, Any]) -> tuple[float, ...]:
    """Order of proposals: healthy; reaching the useless end; moving every series; then cheap."""
    return (
        float(row["ok"]),
        min(round(row["changing"], 1), 0.9),
        min(round(row["reach"], 1), 0.7),
        min(round(row["distinct"]), 7),
        -row["bpfp"],
    )


def main(arguments: list[str] | None = None) -> None:
    """Calibrate tasks and codecs of a recipe and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--recipe", default="mini", help="recipe to calibrate")
    parser.add_argument("--task", action="append", help="only this task; may be repeated")
    parser.add_argument("--codec", action="append", help="only this codec; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("docs/calibration"))
    parser.add_argument("--sources", type=int, default=24, help="sources per task")
    parser.add_argument("--training", type=int, default=50, help="features that set the range")
    parser.add_argument("--scales", type=float, nargs="+", help="ranges to try")
    parser.add_argument("--parameters", type=float, nargs="+", help="grid, best first")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the calibration sources")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    chosen = parser.parse_args(arguments)
    recipe = load_recipe(chosen.recipe)
    with Pool(recipe, chosen.workers) as pool:
        for task in chosen.task or recipe.tasks:
            models = Models(recipe)
            training = list(training_features(models, task, chosen.training, TRAINING_SEED))
            bench = gather(models, task, chosen.sources, chosen.seed, training)
            scales = chosen.scales
            for codec, ladder in recipe.tasks[task].ladders.items():
                if chosen.codec and codec not in chosen.codec:
                    continue
                found = calibrate(
                    pool,
                    bench,
                    ladder,
                    scales=scales or SCALES,
                    parameters=chosen.parameters,
                )
                best = found["tried"][found["best"]]
                if codec == "x265" and not scales:
                    scales = [best["scale"]]  # what suits HEVC suits VVC, ten times slower to try
                write_text(chosen.out / f"{task}-{codec}.json", json.dumps(found, indent=1))
                levels = [row["parameter"] for row in best["levels"]]
                print(f"{task} {codec}: scale {best['scale']}, levels {levels}", flush=True)
                print("   " + ", ".join(f"{k} {_short(v)}" for k, v in best["figures"].items()))
    for path in write_report(chosen.out):
        print(path)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float | np.floating) else str(value)


if __name__ == "__main__":
    main()
