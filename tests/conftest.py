"""Settings for all tests: a temporary user cache, and options that make the suite fast."""

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

# Workers of xdist share the cores, so each uses one thread in libraries that read these variables
# when they are loaded. Child processes inherit the variables.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in THREADS:
        os.environ.setdefault(name, "1")

# Child processes of tests import compiled modules instead of compiling the source each time.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Put temporary folders such as `tmp_path` into memory, where a sync is free, if there is space.
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


# As in cfqa_data/processes/executor.py: keep freed memory, so that the kernel does not clear the
# same pages repeatedly. Only processes started later, such as xdist's workers, read them.
for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
    os.environ.setdefault(name, str(64 << 20))


# Hypothesis draws few examples in the suite and many in `.ci/release`; without a deadline, which a
# busy machine would exceed.
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.register_profile("quick", max_examples=40, deadline=None)
settings.load_profile("quick")


def pytest_collection_finish() -> None:
    """Collect garbage less often, and exclude the objects created by imports."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def short_collections() -> Iterator[None]:
    """Exclude objects left by the tests of a file from later garbage collections."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use a temporary folder as the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def quick_statistics() -> Iterator[None]:
    """Make evaluations fast: fit no curve for PLCC, and draw few bootstrap resamples."""
    from cfqa_data.eval import results
    from cfqa_data.eval.statistics import mapping

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping, "_fit", lambda *_: None)
        patch.setattr(results.Evaluation.cells, "__defaults__", (50, 0))
        patch.setattr(results.Evaluation.statistics, "__kwdefaults__", {"draws": 50, "seed": 0})
        yield
