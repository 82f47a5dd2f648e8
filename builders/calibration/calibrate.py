"""Find each codec's quantiser range and levels, task by task, and write a report.

    python -m cfqa_data.builders.calibration.calibrate --recipe mini --out docs/calibration

For every task and codec, quantiser ranges (multiples of the training features' range) are tried on
sources of another seed than the recipe's: first on a coarse grid of parameters, then on a fine one
between harmless and uninformative. The best ladder with even steps is proposed. The measurements
are written to a JSON file per task and codec. The report (Markdown, CSV, TOML for the recipe,
figure) is written from all files in the folder, so that tasks and codecs can be calibrated in
several runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.builders.calibration.report import write_report
from cfqa_data.builders.pipeline.calibration import BUDGET, SCALES, Cells, calibrate
from cfqa_data.builders.pipeline.context import Models
from cfqa_data.builders.pipeline.ladders import NO_HARM, Bench, Curve, join, make_bench, measure
from cfqa_data.builders.pipeline.select import accepted_samples
from cfqa_data.builders.training.planes import training_features
from cfqa_data.errors import BuildError, check_known
from cfqa_data.format.storage import write_text
from cfqa_data.guard import check_guard
from cfqa_data.paths import expanded
from cfqa_data.processes.executor import Executor
from cfqa_data.processes.stage import Stage
from cfqa_data.recipe.load import CodecSpec, Recipe, load_recipe
from cfqa_data.scripts import run_script

__all__ = ["calibrate", "main"]

SEED = 4_000_000
TRAINING_SEED = 950


@dataclass(frozen=True)
class _Measure(Stage):
    """Stage that measures parameters of quantisers; an item is a cell's index and a parameter."""

    recipe: Recipe
    bench: Bench
    ladder: CodecSpec
    cells: Cells

    name, unit = "measure", "parameters"

    @cached_property
    def models(self) -> Models:
        """Backbone and tasks of the recipe."""
        return Models(self.recipe)

    def items(self) -> list[tuple[int, float]]:
        return [(n, value) for n, (_, values) in enumerate(self.cells) for value in values]

    def run(self, item: tuple[int, float]) -> Curve:
        cell, parameter = item
        quantizer = self.cells[cell][0]
        return measure(self.models, self.bench, self.ladder, quantizer, (parameter,))


def measured(
    executor: Executor, recipe: Recipe, bench: Bench, ladder: CodecSpec, cells: Cells
) -> list[Curve]:
    """Measure cells of a grid on an executor; return a curve for each."""
    stage = _Measure(recipe, bench, ladder, cells)
    curves = dict(executor.run(stage, stage.items()))
    return [join([curves[n, value] for value in values]) for n, (_, values) in enumerate(cells)]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--recipe", default="mini", help="recipe to calibrate")
    parser.add_argument("--task", action="append", help="only this task; may be repeated")
    parser.add_argument("--codec", action="append", help="only this codec; may be repeated")
    parser.add_argument("--out", type=expanded, default=Path("docs/calibration"))
    parser.add_argument("--sources", type=int, default=24, help="sources per task")
    parser.add_argument("--training", type=int, default=50, help="features that set the range")
    parser.add_argument("--scales", type=float, nargs="+", help="ranges to try")
    parser.add_argument("--parameters", type=float, nargs="+", help="candidates, best first")
    parser.add_argument("--budget", type=float, default=BUDGET, help="bits per feature point")
    parser.add_argument(
        "--harmless",
        type=float,
        default=NO_HARM,
        help="largest distortion of the first level, "
        "as a share of that of an uninformative feature",
    )
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the calibration sources")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    return run_script(parser, arguments, _run)


def _run(options: argparse.Namespace) -> None:
    """Calibrate tasks and codecs of a recipe and write the report."""
    check_guard()
    recipe = load_recipe(options.recipe).check_numbers()
    tasks = options.task or list(recipe.tasks)
    for task in tasks:
        check_known("task", task, recipe.tasks, BuildError)
    codecs = dict.fromkeys(codec for task in tasks for codec in recipe.tasks[task].codecs)
    for codec in options.codec or ():
        check_known("codec", codec, codecs, BuildError)
    models = Models(recipe)
    with Executor(options.workers) as executor:
        for task in tasks:
            training = list(training_features(models, task, options.training, TRAINING_SEED))
            samples = accepted_samples(models, task, options.sources, options.seed)
            bench = make_bench(models, task, samples, training)
            scales = options.scales
            for codec, ladder in recipe.tasks[task].codecs.items():
                if options.codec and codec not in options.codec:
                    continue
                result = calibrate(
                    partial(measured, executor, recipe),
                    bench,
                    ladder,
                    scales=scales or SCALES,
                    parameters=options.parameters,
                    budget=options.budget,
                    harmless=options.harmless,
                )
                best = result["tried"][result["best"]]
                if best["scale"] is not None and not scales:
                    # The range of HEVC also suits VVC, which is ten times slower.
                    scales = [best["scale"]]
                write_text(options.out / f"{task}-{codec}.json", json.dumps(result, indent=1))
                levels = [row["parameter"] for row in best["levels"]]
                print(f"{task} {codec}: scale {best['scale']}, levels {levels}", flush=True)
                print("   " + ", ".join(f"{k} {_short(v)}" for k, v in best["figures"].items()))
    for path in write_report(options.out):
        print(path)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float | np.floating) else str(value)


if __name__ == "__main__":
    sys.exit(main())
