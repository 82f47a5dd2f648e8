"""What `extend` and `label` cost over a loop that encodes, decodes and scores.

    python benchmarks/extending.py [--sources 20]

Of `mini`'s three tasks, by a codec that costs nothing. In seconds of processor time on one thread,
the median of ratios in turns: an extension also writes and syncs files, which waits for the disk.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from results import Result, figure, run

import cfqa_data
from cfqa_data.builders.pipeline import build
from cfqa_data.builders.pipeline.label import baseline_values, scoring_models
from cfqa_data.recipe.load import Recipe, load_recipe
from cfqa_data.testing.mock import Rounded

CODEC, LEVELS = "cfqa_data.testing.mock:Rounded", (8, 7, 6, 5, 4, 3, 2, 1, 0)


def spent(call: Callable[[], object]) -> float:
    """Return the processor time of a call."""
    began = sum(os.times()[:2])
    call()
    return sum(os.times()[:2]) - began


def base(folder: Path, sources: int) -> Path:
    """Build `mini` with one codec of two levels."""
    data = load_recipe("mini").to_dict() | {"sources_per_task": sources}
    for task in data["tasks"].values():
        codec = task["codecs"]["x265"]
        task["codecs"] = {"x265": codec | {"levels": codec["levels"][:2]}}
    return build(Recipe.from_dict(data), folder / "base", workers=1)


def measure(given: argparse.Namespace) -> Iterator[Result]:
    """Yield both figures."""
    torch.set_num_threads(1)
    repeats = 1 if given.quick else 5
    with TemporaryDirectory() as name:
        root = base(Path(name), 3 if given.quick else given.sources)
        dataset, codec = cfqa_data.load(root), Rounded()
        tasks = {t: scoring_models(dataset._folder, t).task(t) for t in dataset.manifest.tasks}
        made: dict[str, np.ndarray] = {}

        def plain() -> None:
            for task, entry in dataset.manifest.tasks.items():
                for source in entry.sources:
                    x, truth = dataset.original(source), dataset.truth(source)
                    decoded = [codec.decode(codec.encode(x, level), x.shape) for level in LEVELS]
                    made[source] = np.stack(decoded)
                    tasks[task].scores(made[source], truth)
                    baseline_values(x, made[source])

        def extension(number: int) -> None:
            out = Path(name) / str(number)
            cfqa_data.extend(root, CODEC, LEVELS, out=out, workers=0)

        def heads() -> None:
            for task, entry in dataset.manifest.tasks.items():
                for source in entry.sources:
                    truth = dataset.truth(source)
                    for feature in made[source]:
                        tasks[task].score(feature, truth)

        def labels() -> None:
            for source, features in made.items():
                for feature in features:
                    cfqa_data.label(dataset, source, feature)

        plain()
        labels()
        for what, call, peer in (
            ("extend: by nine levels", extension, plain),
            ("label: one by one", lambda _: labels(), heads),
        ):
            pairs = [(spent(lambda: call(n)), spent(peer)) for n in range(repeats)]  # noqa: B023
            ours, other = min(pairs, key=lambda pair: abs(pair[0] / pair[1] - middle(pairs)))
            yield figure(what, ours, other)


def middle(pairs: list[tuple[float, float]]) -> float:
    """Return the median ratio."""
    return median(one / other for one, other in pairs)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sources", type=int, default=20, help="per task (default 20)")


if __name__ == "__main__":
    sys.exit(run(__doc__, measure, options))
