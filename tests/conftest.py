"""What makes the suite quick: threads, temporary folders and garbage collection."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
MEMORY, ROOM = Path("/dev/shm"), 4 << 30


def pytest_collection_finish() -> None:
    """Collections need not look again at all that the libraries made when they were imported."""
    gc.collect()
    gc.freeze()


# xdist's workers share the processors, so that each has one thread of the libraries that read this
# when they are loaded; what a test starts has it from there.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in THREADS:
        os.environ.setdefault(name, "1")

# A sync costs nothing in memory. What `tmp_path` and the like give is there, if there is room.
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
