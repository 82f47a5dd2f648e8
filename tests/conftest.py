"""What holds for every test: nothing is noted in anybody's home, and what makes the suite quick."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
MEMORY, ROOM = Path("/dev/shm"), 4 << 30

# xdist's workers share the processors, so that each has one thread of the libraries that read this
# when they are loaded; what a test starts has it from there.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in THREADS:
        os.environ.setdefault(name, "1")

# What a test starts imports the package once it is compiled, and not from its source each time.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A sync costs nothing in memory. What `tmp_path` and the like give is there, if there is room.
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


# As cfqa_data/processes/executor.py does for its workers: else the kernel clears the same pages
# again and again. Read when a process starts, which xdist's workers do after this.
for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
    os.environ.setdefault(name, str(64 << 20))


# Fewer examples of what Hypothesis draws, and no limit of time, which a busy machine exceeds;
# `.ci/release` has many.
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.register_profile("quick", max_examples=40, deadline=None)
settings.load_profile("quick")


def pytest_collection_finish() -> None:
    """Collections come less often, and leave out what the libraries made when imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def short_collections() -> Iterator[None]:
    """Let collections, which some tests ask for, pass over what the tests of other files left."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep where a test's datasets were built from in a folder of the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def quick_statistics() -> Iterator[None]:
    """Fit no curve for PLCC, and draw few resamples: evaluations take much less without."""
    from cfqa_data.eval import results
    from cfqa_data.eval.statistics import mapping

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping, "_fit", lambda *_: None)
        patch.setattr(results.Evaluation.cells, "__defaults__", (50, 0))
        patch.setattr(results.Evaluation.statistics, "__kwdefaults__", {"draws": 50, "seed": 0})
        yield
