"""Prefetch items with threads, in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from cfqa_data.errors import CfqaError

__all__ = ["read_ahead"]

Item = TypeVar("Item")
Read = TypeVar("Read")

MOST_THREADS = 4


def read_ahead(
    read: Callable[[Item], Read],
    items: Iterable[Item],
    *,
    threads: int | None = None,
    ahead: int = 2,
) -> Iterator[Read]:
    """Yield ``read(item)`` for each item, in order, while threads read the next ones.

    Reading and decompressing features releases the GIL, so threads run in parallel, and nothing is
    pickled or copied as it is between the processes of a `DataLoader`.

    Args:
        read: Function of an item, such as ``dataset.__getitem__``.
        items: Items to read, such as ``range(len(dataset))``.
        threads: Number of threads; by default one per core, at most 4.
        ahead: Number of results per thread to prefetch.

    Yields:
        The result of ``read``. If ``read`` raised an exception, it is raised instead of the result.

    Raises:
        CfqaError: If ``threads`` or ``ahead`` is less than 1.
    """
    threads = min(MOST_THREADS, os.cpu_count() or 1) if threads is None else threads
    if threads < 1 or ahead < 1:
        raise CfqaError(f"reading ahead needs at least 1 thread and 1 item, not {threads}, {ahead}")
    return _prefetch(read, items, threads, threads * ahead)


def _prefetch(
    read: Callable[[Item], Read], items: Iterable[Item], threads: int, limit: int
) -> Iterator[Read]:
    with ThreadPoolExecutor(threads, thread_name_prefix="cfqa-ahead") as pool:
        pending: deque[Future[Read]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(read, item))
                if len(pending) > limit:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # cancel what the caller did not take
            pool.shutdown(wait=True, cancel_futures=True)
