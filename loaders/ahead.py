"""Prefetch items in order with threads."""

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

    Reading and decompressing features leaves Python free, so threads do: nothing is pickled or
    copied, as between the processes of a `DataLoader`.

    Args:
        read: Such as ``pairs.__getitem__`` of a `cfqa_data.Dataset`.
        items: What to read, such as ``range(len(pairs))``.
        threads: How many; by default one per core, at most 4.
        ahead: Results per thread that may wait to be taken.

    Yields:
        What was read. An exception of ``read`` is raised in its item's place.

    Raises:
        CfqaError: There is not at least one thread, or nothing may wait.
    """
    threads = min(MOST_THREADS, os.cpu_count() or 1) if threads is None else threads
    if threads < 1 or ahead < 1:
        raise CfqaError(f"reading ahead needs at least 1 thread and 1 item, not {threads}, {ahead}")
    return _reading(read, items, threads, threads * ahead)


def _reading(
    read: Callable[[Item], Read], items: Iterable[Item], threads: int, room: int
) -> Iterator[Read]:
    with ThreadPoolExecutor(threads, thread_name_prefix="cfqa-ahead") as pool:
        waiting: deque[Future[Read]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > room:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # no longer needed: not read
            pool.shutdown(wait=True, cancel_futures=True)
