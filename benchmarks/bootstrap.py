"""The statistics of a full evaluation against a loop over scipy.stats.

    python benchmarks/bootstrap.py [--dataset cfqa] [--metrics 25] [--draws 1000] [--loop-draws 2]

Labels are those of a dataset folder, or made up at the size of `mini` (3 tasks, 100 sources, 4
codecs, 10 levels); scores are made up. The loop does the bootstrap's coefficients only, which are
most of the work, on a sample: one metric, every cell, a few resamples, each materialised and given
to scipy.stats. Its time for all metrics and draws is extrapolated. A last part simulates how often
the intervals of a pooled correlation hold the true value. Exits with 1 when a limit is not met.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from measuring import peak, seconds
from results import Result, figure, run
from scipy import stats

from cfqa_data.access.dataset import load
from cfqa_data.eval.metrics import Metric, as_metrics, create_metric
from cfqa_data.eval.statistics import statistics
from cfqa_data.eval.statistics.bootstrap import interval, source_counts
from cfqa_data.eval.statistics.grids import Grid, read_grids
from cfqa_data.eval.statistics.pooled import pooled_coefficients
from cfqa_data.format.format_1 import CODECS, TASKS

COEFFICIENTS = (stats.pearsonr, stats.spearmanr, stats.kendalltau)


def made_up_labels(sources: int = 100, levels: int = 10) -> pa.Table:
    """Return labels of the size of `mini`: harm grows with the level; ranks for cls."""
    rng = np.random.default_rng(0)
    rows = []
    for task in TASKS:
        for codec in list(CODECS)[:4]:
            for source in range(sources):
                harm = np.sort(rng.exponential(size=levels)) + 0.2 * rng.normal(size=levels)
                harm = np.floor(20 * harm**2) if task == "cls" else harm
                rows += [
                    {"task": task, "source_id": f"{task}-{source:03}", "codec": codec}
                    | {"level": level, "distortion": float(value)}
                    for level, value in enumerate(harm)
                ]
    return pa.Table.from_pylist(rows)


def made_up_metrics(count: int) -> tuple[Metric, ...]:
    """Return so many metrics that differ in name only."""

    def named(name: str) -> Any:
        def function(x: Any, y: Any) -> Any:
            return y

        function.__name__, function.lower_better = name, True  # type: ignore[attr-defined]
        return function

    first = create_metric("mse")
    return (first, *as_metrics([named(f"metric_{i}") for i in range(1, count)], "cpu"))


def made_up_scores(labels: pa.Table, count: int) -> np.ndarray:
    """Return (rows, count) scores that follow the labels' ranks with more and more noise."""
    rng = np.random.default_rng(1)
    ranks = stats.rankdata(labels["distortion"].to_numpy()) / labels.num_rows
    noise = np.linspace(0.1, 1, count) * rng.normal(size=(labels.num_rows, count))
    return np.exp(ranks[:, None] + noise)


def cells_of(grid: Grid) -> list[np.ndarray]:
    """Return the (sources, points) row numbers of each cell of a task."""
    return [*(grid.rows[:, versions] for versions in grid.codecs.values()), grid.rows]


def loop_seconds(labels: pa.Table, scores: np.ndarray, draws: int) -> float:
    """Return the time per metric and draw of every cell's coefficients by scipy.stats."""
    truth = labels["distortion"].to_numpy()
    cells = [cell for grid in read_grids(labels) for cell in cells_of(grid)]
    cells.append(np.concatenate([cells[place] for place in (4, 9, 14)]))  # the tasks together
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for cell in cells:
        for _ in range(draws):
            drawn = cell[rng.integers(len(cell), size=len(cell))]
            for function in COEFFICIENTS:
                function(scores[drawn].ravel(), truth[drawn].ravel())
                for rows in drawn:
                    if np.ptp(truth[rows]) > 0:
                        function(scores[rows], truth[rows])
    return (time.perf_counter() - start) / draws


def coverage(experiments: int = 500, sources: int = 100, levels: int = 10) -> list[float]:
    """Return how often the intervals of pooled PLCC and SROCC hold the population's value.

    Sources differ: half of the variance of scores and labels belongs to the source.
    """
    rng = np.random.default_rng(3)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        of_source = rng.multivariate_normal([0, 0], [[1, 0.3], [0.3, 1]], count)
        points = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], (count, levels))
        both = of_source[:, None] + points
        return both[..., 0].ravel(), both[..., 1].ravel()

    truth = [function(*draw(20000)).statistic for function in COEFFICIENTS[:2]]
    held = np.zeros((experiments, 2), bool)
    for row in held:
        x, y = draw(sources)
        counts = source_counts(sources, 400, int(rng.integers(2**31)))
        found = pooled_coefficients(x[None], y, np.arange(sources) * levels, counts)
        low, high = interval(found[:2, 0])
        row[:] = (low <= truth) & (truth <= high)
    return [float(value) for value in held.mean(axis=0)]


def measure(given: argparse.Namespace) -> Iterator[Result]:
    """Yield time and memory of all tables, and how often the intervals hold."""
    count, draws = (3, 100) if given.quick else (given.metrics, given.draws)
    labels = load(given.dataset).labels if given.dataset else made_up_labels()
    scores = made_up_scores(labels, count)
    metrics = made_up_metrics(count)
    taken = seconds(lambda: statistics(labels, metrics, scores, draws=draws))
    memory = peak() / 1e9
    loop = loop_seconds(labels, scores[:, 0], 1 if given.quick else given.loop_draws)
    yield figure("tables of 25 metrics, 1000 resamples", taken, loop * count * draws)
    yield figure("their memory", memory)
    yield Result("a metric and a resample by the loop over scipy", loop, "s")
    held = coverage(20 if given.quick else 500)
    for name, share in zip(("PLCC", "SROCC"), held, strict=True):
        yield Result(f"95% intervals of pooled {name} that hold", 100 * share, "%")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", type=Path, help="folder to take labels from")
    parser.add_argument("--metrics", type=int, default=25, help="number of metrics (default 25)")
    parser.add_argument("--draws", type=int, default=1000, help="resamples (default 1000)")
    parser.add_argument("--loop-draws", type=int, default=2, help="of the loop (default 2)")


if __name__ == "__main__":
    sys.exit(run(__doc__, measure, options))
