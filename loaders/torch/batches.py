"""Data loaders and batch samplers that group rows by shape and read each shard once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate

from cfqa_data.errors import CfqaError
from cfqa_data.guard import check_guard
from cfqa_data.loaders.torch.pairs import Pair
from cfqa_data.loaders.torch.rows import Row, find_rows
from cfqa_data.scalars import python_value

__all__ = ["ShardBatches", "data_loader"]

BATCH_SIZE = 16


def data_loader(
    pairs: Dataset[Any],
    batch_size: int = BATCH_SIZE,
    *,
    shuffle: bool = False,
    drop_last: bool = False,
    generator: torch.Generator | None = None,
    workers: int = 0,
    prefetch: int = 2,
    pin_memory: bool | None = None,
    sampler: Iterable[int] | None = None,
    **options: Any,
) -> DataLoader[Any]:
    """Return a `DataLoader` of batches: tensors with a leading batch axis.

    Each batch has rows of one task. If features have different numbers of tokens, `original` and
    `compressed` of a batch are lists of tensors, one per row; pass a ``collate_fn`` to pad them.

    Args:
        pairs: `Pairs`, or a `Subset` (as from `random_split`) or `ConcatDataset` of them, which is
            read shard by shard; or any other map-style dataset, which is batched as usual.
        batch_size: Number of rows per batch.
        shuffle: Shuffle the shards, and the rows within each, anew in every epoch.
        drop_last: Drop the last batch of a task if it is not full.
        generator: Random generator for the order and the seeds of workers, for reproducible runs.
        workers: Number of worker processes; 0 reads in this process.
        prefetch: Number of batches that each worker prefetches.
        pin_memory: Copy batches into pinned memory; by default if a GPU is available.
        sampler: Row indices to read in this order, instead of shard by shard. Batches still have
            rows of one task.
        options: Further arguments of `DataLoader`, such as ``collate_fn``, ``worker_init_fn``,
            ``persistent_workers``, ``multiprocessing_context`` or ``batch_sampler``. Its names
            ``num_workers`` and ``prefetch_factor`` are accepted too.

    Raises:
        CfqaError: If the batch size is not a positive integer, arguments contradict each other, or
            ``pairs`` is not a map-style dataset.
    """
    if isinstance(pairs, IterableDataset) or not (
        hasattr(pairs, "__getitem__") and hasattr(pairs, "__len__")
    ):
        raise CfqaError(f"data_loader takes a map-style dataset, not a {type(pairs).__name__}")
    if workers and "num_workers" in options:
        raise CfqaError("data_loader: workers= and num_workers= are the same; give one")
    workers = options.pop("num_workers", workers)
    if sampler is not None and shuffle:
        raise CfqaError(
            "data_loader takes sampler= or shuffle=True, not both: a sampler sets the order"
        )
    if options.get("batch_sampler") is not None:
        if shuffle or drop_last or sampler is not None or batch_size != BATCH_SIZE:
            raise CfqaError(
                "data_loader: batch_sampler= sets the content of each batch; leave out batch_size, "
                "shuffle, drop_last and sampler"
            )
    elif (rows := find_rows(pairs)) is not None:
        if any(row.varies for row in rows):
            options.setdefault("collate_fn", _collate)
        options["batch_sampler"] = ShardBatches(
            pairs,
            batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            generator=generator,
            sampler=sampler,
        )
    else:
        batch_size = _whole_batch_size(batch_size)
        options |= {"batch_size": batch_size, "drop_last": drop_last}
        options |= {"shuffle": shuffle} if sampler is None else {"sampler": sampler}
    if workers:
        options = {"prefetch_factor": prefetch, "persistent_workers": True, **options}
    try:
        return _Loader(
            pairs,
            num_workers=workers,
            generator=generator,
            pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
            **options,
        )
    except ValueError as error:  # such as options of workers where there are none
        raise CfqaError(f"data_loader: {' '.join(str(error).split())}") from None


def _collate(rows: list[Any]) -> Any:
    """Stack the labels of a batch, and list its features, whose numbers of tokens may differ."""
    originals: Any = [row.original for row in rows]
    compressed: Any = [row.compressed for row in rows]
    return Pair(originals, compressed, default_collate([row.label for row in rows]))


class _Loader(DataLoader[Any]):
    """A `DataLoader` that reports a script without a `__main__` guard before workers start."""

    def __iter__(self) -> Any:
        if self.num_workers:
            check_guard()
        return super().__iter__()


class ShardBatches(Sampler[list[int]]):
    """Batches of rows that can be stacked, in an order that reads one shard after another.

    A shard has the levels of one source by one codec. Without shuffling, the shards of a source
    follow one another, so that its original is read once. The rows of a batch have the same task
    and, if `Pairs` returns codes, tables of the same size. A batch may span shards.

    A map-style dataset that wraps `Pairs` with the same indices can use the batches of the pairs:
    ``data_loader(wrapper, batch_sampler=ShardBatches(pairs, 8))``.

    Args:
        pairs: `Pairs`, or a `Subset` or `ConcatDataset` of them.
        batch_size: Number of rows per batch.
        shuffle: Shuffle the shards, and the rows within each, anew in every iteration.
        drop_last: Drop batches that are not full.
        generator: Random generator for the order; torch's default generator if None.
        sampler: Row indices to read in this order, instead of shard by shard.

    Raises:
        CfqaError: If the batch size is not a positive integer, or ``pairs`` is another dataset.
    """

    def __init__(
        self,
        pairs: Dataset[Any],
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
        sampler: Iterable[int] | None = None,
    ) -> None:
        batch_size = _whole_batch_size(batch_size)
        rows = find_rows(pairs)
        if rows is None:
            raise CfqaError(
                "ShardBatches takes Pairs, or a Subset or ConcatDataset of them, "
                f"not a {type(pairs).__name__}"
            )
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.generator = generator
        self.sampler = sampler
        self.kinds = [row.kind for row in rows]
        self.shards = _shards(rows)

    def __iter__(self) -> Iterator[list[int]]:
        started: dict[tuple[Any, ...], list[int]] = {}
        for row in self._order():
            batch = started.setdefault(self.kinds[row], [])
            batch.append(row)
            if len(batch) == self.batch_size:
                yield started.pop(self.kinds[row])
        if not self.drop_last:
            yield from started.values()

    def __len__(self) -> int:
        counts = list(Counter(self.kinds).values())
        if self.sampler is not None:
            if len(counts) > 1:
                raise TypeError(
                    "the number of batches per task of a sampler is not known in advance"
                )
            counts = [len(self.sampler)]  # type: ignore[arg-type]
        spare = 0 if self.drop_last else self.batch_size - 1
        return sum((rows + spare) // self.batch_size for rows in counts)

    def _order(self) -> Iterator[int]:
        if self.sampler is not None:
            yield from self.sampler
            return
        for rows in self._shuffled(self.shards):
            yield from self._shuffled(rows)

    def _shuffled(self, values: list[Any]) -> list[Any]:
        if not self.shuffle:
            return values
        # Not on torch's default device, where a generator of the CPU would fail.
        device = "cpu" if self.generator is None else self.generator.device
        order = torch.randperm(len(values), generator=self.generator, device=device).tolist()
        return [values[index] for index in order]


def _shards(rows: list[Row]) -> list[list[int]]:
    """Return the row indices of each shard; the shards of a source follow one another."""
    sources: dict[tuple[str, str], dict[str, list[int]]] = {}
    for index, row in enumerate(rows):
        sources.setdefault(row.source, {}).setdefault(row.codec, []).append(index)
    return [shard for codecs in sources.values() for shard in codecs.values()]


def _whole_batch_size(batch_size: object) -> int:
    size = python_value(batch_size)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise CfqaError(f"a batch size must be a whole number from 1, not {batch_size!r}")
    return size
