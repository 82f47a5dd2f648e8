<<<<<<< HEAD
"""Fixtures and settings of all tests: no files in the home folder, and a fast suite."""
=======
"""Settings for all tests: a temporary user cache, and options that make the suite fast."""
>>>>>>> main

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
MEMORY_FOLDER, MIN_FREE = Path("/dev/shm"), 4 << 30

<<<<<<< HEAD
# xdist's workers share the processors, so each uses one thread. Libraries read these variables when
# they are loaded; processes that tests start inherit them.
=======
# Workers of xdist share the cores, so each uses one thread in libraries that read these variables
# when they are loaded. Child processes inherit the variables.
>>>>>>> main
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in THREADS:
        os.environ.setdefault(name, "1")

<<<<<<< HEAD
# Processes that tests start should use compiled modules instead of compiling the package each time.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Put temporary folders into memory, where a sync costs nothing, if there is enough space.
if os.access(MEMORY_FOLDER, os.W_OK) and shutil.disk_usage(MEMORY_FOLDER).free >= MIN_FREE:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY_FOLDER))


# As cfqa_data/processes/executor.py does for its workers: otherwise the kernel clears the same
# pages again and again. Processes read these variables at their start, so xdist's workers use them.
=======
# Child processes of tests import compiled modules instead of compiling the source each time.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Put temporary folders such as `tmp_path` into memory, where a sync is free, if there is space.
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


# As in cfqa_data/processes/executor.py: keep freed memory, so that the kernel does not clear the
# same pages repeatedly. Only processes started later, such as xdist's workers, read them.
>>>>>>> main
for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
    os.environ.setdefault(name, str(64 << 20))


<<<<<<< HEAD
# The suite draws few Hypothesis examples, `.ci/release` many. There is no deadline, because a busy
# machine would exceed it.
=======
# Hypothesis draws few examples in the suite and many in `.ci/release`; without a deadline, which a
# busy machine would exceed.
>>>>>>> main
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.register_profile("quick", max_examples=40, deadline=None)
settings.load_profile("quick")


def pytest_collection_finish() -> None:
<<<<<<< HEAD
    """Run the garbage collector less often, and exclude objects of imported libraries."""
=======
    """Collect garbage less often, and exclude the objects created by imports."""
>>>>>>> main
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def short_collections() -> Iterator[None]:
<<<<<<< HEAD
    """Exclude objects of other files' tests from garbage collections that tests request."""
=======
    """Exclude objects left by the tests of a file from later garbage collections."""
>>>>>>> main
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
<<<<<<< HEAD
    """Keep the record of where datasets were built from in a folder of this run."""
=======
    """Use a temporary folder as the user's cache."""
>>>>>>> main
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def quick_statistics() -> Iterator[None]:
<<<<<<< HEAD
    """Speed up evaluations: fit no curve for PLCC, and draw few bootstrap resamples."""
=======
    """Make evaluations fast: fit no curve for PLCC, and draw few bootstrap resamples."""
>>>>>>> main
    from cfqa_data.eval import results
    from cfqa_data.eval.statistics import mapping

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping, "_fit", lambda *_: None)
        patch.setattr(results.Evaluation.cells, "__defaults__", (50, 0))
        patch.setattr(results.Evaluation.statistics, "__kwdefaults__", {"draws": 50, "seed": 0})
        yield
