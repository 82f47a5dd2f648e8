"""Batch samplers that group rows by shape and read each shard once."""

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
    """Return a `DataLoader` of batches, tensors with a leading batch axis.

    Where features of a task that is loaded have different numbers of tokens, `original` and
    `compressed` are lists of tensors, one per row; a ``collate_fn`` of one's own may pad them.

    Args:
        pairs: What to load: `Pairs`, or a `Subset` (as `random_split` gives) or `ConcatDataset` of
            them, which give each `Pair` of one task, shard after shard; or any other map-style
            dataset, which gives plain batches.
        batch_size: Rows per batch.
        shuffle: Shards in random order, and the rows within each; a new order every epoch.
        drop_last: Leave out the last batch of a task if it is not full.
        generator: What the order, and the seeds of workers, are drawn from, for runs that can be
            repeated.
        workers: Processes that read; 0 reads in this one.
        prefetch: Batches that each worker reads ahead.
        pin_memory: Put batches where a GPU fetches them from; by default if there is a GPU.
        sampler: Rows in an order of one's own, in place of shards; still of one task a batch.
        options: Further arguments of `DataLoader`, such as ``collate_fn``, ``worker_init_fn``,
            ``persistent_workers``, ``multiprocessing_context`` or ``batch_sampler``; its names
            ``num_workers`` and ``prefetch_factor`` are taken too.

    Raises:
        CfqaError: The batch size is not a positive number, arguments contradict each other, or
            ``pairs`` is no map-style dataset.
    """
    if isinstance(pairs, IterableDataset) or not (
        hasattr(pairs, "__getitem__") and hasattr(pairs, "__len__")
    ):
        raise CfqaError("data_loader takes a map-style dataset, not a {type(pairs).__name__}")
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
    """Stack the labels of a batch; leave its features, which may differ in tokens, apart."""
    originals: Any = [row.original for row in rows]
    compressed: Any = [row.compressed for row in rows]
    return Pair(originals, compressed, default_collate([row.label for row in rows]))


class _Loader(DataLoader[Any]):
    """One that says so where its workers would import a script without a guard."""

    def __iter__(self) -> Any:
        if self.num_workers:
            check_guard()
        return super().__iter__()


class ShardBatches(Sampler[list[int]]):
    """Batches of rows that can be stacked, in an order that finishes a shard before the next.

    A shard holds the levels of one source by one codec. Without shuffling, the shards of a source
    follow one another, so its original is read in one go too. Rows of a batch have the same task
    and, where pairs give codes, the same size of table; a batch may span shards.

    For a dataset of one's own that gives what it makes of `Pairs`, place by place: take the
    batches of those, ``data_loader(own, batch_sampler=ShardBatches(pairs, 8))``.

    Args:
        pairs: Whose rows: `Pairs`, or a `Subset` or `ConcatDataset` of them.
        batch_size: Rows per batch.
        shuffle: Shards in random order, and the rows within each; a new order every time.
        drop_last: Leave out batches that are not full.
        generator: What the order is drawn from; torch's own if None.
        sampler: Rows to take instead, in its order.

    Raises:
        CfqaError: The batch size is not a positive number, or ``pairs`` does not say where its
            rows come from.
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

    def _shuffled(self, things: list[Any]) -> list[Any]:
        if not self.shuffle:
            return things
        # On the CPU, or where the generator is, whatever the default device.
        device = "cpu" if self.generator is None else self.generator.device
        order = torch.randperm(len(things), generator=self.generator, device=device).tolist()
        return [things[place] for place in order]


def _shards(rows: list[Row]) -> list[list[int]]:
    """Return the numbers of the rows of each shard, the shards of a source beside each other."""
    sources: dict[tuple[str, str], dict[str, list[int]]] = {}
    for number, row in enumerate(rows):
        sources.setdefault(row.source, {}).setdefault(row.codec, []).append(number)
    return [shard for codecs in sources.values() for shard in codecs.values()]


def _whole_batch_size(batch_size: object) -> int:
    size = python_value(batch_size)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise CfqaError(f"a batch size must be a whole number from 1, not {batch_size!r}")
    return size
