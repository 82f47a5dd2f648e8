"""What `mini` takes: building it, its bytes, scoring, verifying, and its first pair from a Hub.

    python benchmarks/mini.py [--dataset cfqa]

Without --dataset the recipe is built first (minutes), and its time and memory measured. The Hub is
one on 127.0.0.1, the tests', which counts what it is asked and what it sends. With --quick and no
dataset, a folder with made-up features stands for `mini`.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from measuring import Clock, seconds
from results import FIGURES, Result, figure, not_here, run

import cfqa_data
from cfqa_data.eval import evaluate
from cfqa_data.eval.evaluator import DEFAULT_METRICS
from cfqa_data.eval.metrics import METRICS
from cfqa_data.integrity.summary import summarise
from cfqa_data.integrity.verify import verify

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

HASHED = 256 << 20
"""Bytes of the yardstick for hashing."""


def built(out: Path, workers: int) -> Iterator[Result]:
    """Build `mini` and yield what that took."""
    from build import timed_build, told

    from cfqa_data.recipe.load import load_recipe

    yield from told("mini", timed_build(load_recipe("mini"), out, workers, "full"))


def sizes(root: Path) -> Iterator[Result]:
    """Yield the bytes of both tiers beside those of the same features as float32."""
    known = summarise(root)["sizes"]
    for tier in ("full", "light"):
        if known[tier] is None:
            yield not_here(f"mini: {tier} tier", "not here: a light folder")
        else:
            yield figure(f"mini: {tier} tier", known[tier] / 1e6, known["float32"] / 1e6)


def scoring(root: Path, limit: int | None) -> Iterator[Result]:
    """Yield what scoring costs, statistics not counted: ours, NumPy's, and cheap metrics' cost."""
    from evaluator import numpy_cka, numpy_cosine, numpy_mse

    dataset = cfqa_data.load(root)

    def scored(metrics: Sequence[Any]) -> float:
        clock = Clock()
        evaluate(dataset, metrics, limit=limit, progress=clock)
        return clock.seconds["evaluate"]

    def plain() -> None:
        seen: dict[str, set[str]] = {}
        for index in range(len(dataset)):
            row = dataset.labels.slice(index, 1).to_pylist()[0]
            sources = seen.setdefault(row["task"], set())
            if limit is None or row["source_id"] in sources or len(sources) < limit:
                sources.add(row["source_id"])
                x = dataset.original(row["source_id"])  # again for each, as published
                y = dataset.compressed(row["source_id"], row["codec"], row["level"])
                for function in (numpy_mse, numpy_cosine, numpy_cka):
                    function(x, y)

    cheap = [metric.name for metric in METRICS if metric.cost == "TD"]
    three = scored(DEFAULT_METRICS)
    yield figure("mini: scores of mse, cosine and cka", three, seconds(plain))
    yield figure("mini: scores of all metrics of cost TD", scored(cheap), scored(DEFAULT_METRICS))


def gallery(root: Path) -> Result:
    """Return the size of a gallery."""
    from cfqa_data.builders.gallery.page import write_gallery

    with tempfile.TemporaryDirectory() as folder:
        page = write_gallery(root, Path(folder) / "gallery.html")
        return figure("mini: gallery page", page.stat().st_size / 1e6)


def verifying(root: Path) -> Result:
    """Return the rate at which a folder is verified, beside one thread that only hashes."""
    data = bytes(HASHED)
    size = verify(root).size
    ours = size / seconds(lambda: verify(root))
    return figure("mini: verify", ours / 1e9, HASHED / seconds(lambda: hashlib.sha256(data)) / 1e9)


def from_a_hub(root: Path) -> Iterator[Result]:
    """Yield what the first pair takes from a Hub."""
    names = [name for name, known in FIGURES.items() if known.benchmark == "mini"]
    names = names[names.index("mini: requests until the first pair") :]
    try:
        import pytest
        from loopback_hub import loopback_hub, point_clients_at
    except ImportError as error:
        yield from (not_here(name, f"not here: {error.name}") for name in names)
        return
    with (
        tempfile.TemporaryDirectory() as cache,
        loopback_hub() as hub,
        pytest.MonkeyPatch.context() as patch,
    ):
        hub.put("org/mini", root)
        point_clients_at(hub, patch, Path(cache), token=None)

        def counted(call: Callable[[], Any]) -> tuple[int, float]:
            """Return the requests and the bytes of a call."""
            hub.reset()
            call()
            return len(hub.requests), hub.sent()

        of_all = counted(lambda: cfqa_data.load("org/mini")[0])
        pairs = cfqa_data.load("org/mini", "dpt", codec="x265")
        source = pairs.source_ids[0]
        first = counted(lambda: cfqa_data.load("org/mini", "dpt", codec="x265")[0])
        pairs[0]
        further = counted(lambda: pairs.compressed(source, "x265", 9))
        layer = counted(lambda: pairs.compressed(source, "x265", 9, layers=3))
        original = counted(lambda: pairs.original(source))
        whole = sum(entry["size"] for entry in pairs.manifest.files.values())
        plain = pairs.original(source).nbytes / 1e3
    yield figure(names[0], first[0])
    yield figure(names[1], of_all[0])
    yield figure(names[2], first[1] / 1e6, whole / 1e6)
    yield figure(names[3], further[1] / 1e3, plain)
    yield figure(names[4], layer[1] / 1e3, plain / 4)
    yield figure(names[5], original[1] / 1e3, plain)


def measure(given: argparse.Namespace) -> Iterator[Result]:
    """Yield all figures of a folder that is there, or of one that is made first."""
    with tempfile.TemporaryDirectory() as folder:
        root = given.dataset
        if root is None:
            root = Path(folder) / "mini"
            if given.quick:
                from mock_dataset import write_mock_dataset

                write_mock_dataset(root)
            else:
                yield from built(root, given.workers)
        yield from sizes(root)
        yield from scoring(root, 2 if given.quick else None)
        yield gallery(root)
        yield verifying(root)
        yield from from_a_hub(root)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", type=Path, help="a folder that is `mini`, built before")
    parser.add_argument("--workers", type=int, default=2, help="of the build (default 2)")


if __name__ == "__main__":
    sys.exit(run(__doc__, measure, options))
