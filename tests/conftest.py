"""What makes the suite quick: threads, temporary folders and garbage collection."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
MEMORY, ROOM = Path("/dev/shm"), 4 << 30


def one_thread() -> None:
    """Give this worker's libraries one thread, as xdist's workers share the processors.

    They read their environment once, when they are loaded; what tests start has it as it was.
    """
    given = dict(os.environ)
    os.environ.update(ONE_THREAD)
    import torch

    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(given)


def temporary_folders_in_memory() -> None:
    """Let `tmp_path` be where a sync costs nothing, if there is room."""
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_finish() -> None:
    """Collections need not look again at all that the libraries made when they were imported."""
    gc.collect()
    gc.freeze()


temporary_folders_in_memory()
if "PYTEST_XDIST_WORKER" in os.environ:
    one_thread()
