"""Batches that read each shard once: rows of one shape, shard after shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from cfqa_data.errors import CfqaError
from cfqa_data.loaders.torch.pairs import Pair, Pairs

__all__ = ["ShardBatches", "data_loader"]


def data_loader(
    pairs: Pairs,
    batch_size: int = 16,
    *,
    shuffle: bool = False,
    drop_last: bool = False,
    generator: torch.Generator | None = None,
    workers: int = 0,
    prefetch: int = 2,
    pin_memory: bool | None = None,
    **options: Any,
) -> DataLoader[Pair]:
    """Return a `DataLoader` of `Pair`s of tensors with a leading batch axis.

    Args:
        pairs: what to load.
        batch_size: rows per batch, all of one task.
        shuffle: shards in random order, and the rows within each; a new order every epoch.
        drop_last: leave out the last batch of a task if it is not full.
        generator: what the order is drawn from, for runs that can be repeated.
        workers: processes that read; 0 reads in this one.
        prefetch: batches that each worker reads ahead.
        pin_memory: put batches where a GPU fetches them from; by default if there is a GPU.
        options: further arguments of `DataLoader`, such as ``multiprocessing_context``.

    Raises:
        CfqaError: the batch size is not a positive number.
    """
    batches = ShardBatches(
        pairs, batch_size, shuffle=shuffle, drop_last=drop_last, generator=generator
    )
    if workers:
        options = {"prefetch_factor": prefetch, "persistent_workers": True, **options}
    return DataLoader(
        pairs,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        **options,
    )


class ShardBatches(Sampler[list[int]]):
    """Batches of rows that can be stacked, in an order that finishes a shard before the next.

    A shard holds the levels of one source by one codec. Without shuffling, the shards of a source
    follow one another, so its original is read in one go too. Rows of a batch have the same task
    and, where pairs give codes, the same size of table; a batch may span shards.

    Args:
        pairs: whose rows.
        batch_size: rows per batch.
        shuffle: shards in random order, and the rows within each; a new order every time.
        drop_last: leave out batches that are not full.
        generator: what the order is drawn from; torch's own if None.

    Raises:
        CfqaError: the batch size is not a positive number.
    """

    def __init__(
        self,
        pairs: Pairs,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise CfqaError(f"a batch size is a whole number from 1, not {batch_size!r}")
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.generator = generator
        recipe = pairs.dataset.manifest.recipe
        names = ("task", "source_id", "codec")
        columns = [pairs.dataset.labels[name].to_pylist() for name in names]
        self.kinds: list[tuple[str, int]] = []
        sources: dict[str, dict[str, list[int]]] = {}
        for row, (task, source, codec) in enumerate(zip(*columns, strict=True)):
            sources.setdefault(source, {}).setdefault(codec, []).append(row)
            bits = recipe.tasks[task].ladders[codec].quantizer.bits if pairs.codes else 0
            self.kinds.append((task, bits))
        self.shards = [rows for codecs in sources.values() for rows in codecs.values()]

    def __iter__(self) -> Iterator[list[int]]:
        started: dict[tuple[str, int], list[int]] = {}
        for rows in self._shuffled(self.shards):
            for row in self._shuffled(rows):
                batch = started.setdefault(self.kinds[row], [])
                batch.append(row)
                if len(batch) == self.batch_size:
                    yield started.pop(self.kinds[row])
        if not self.drop_last:
            yield from started.values()

    def __len__(self) -> int:
        spare = 0 if self.drop_last else self.batch_size - 1
        return sum((rows + spare) // self.batch_size for rows in Counter(self.kinds).values())

    def _shuffled(self, things: list[Any]) -> list[Any]:
        if not self.shuffle:
            return things
        # On the CPU, or where the generator is, whatever the default device.
        device = "cpu" if self.generator is None else self.generator.device
        order = torch.randperm(len(things), generator=self.generator, device=device).tolist()
        return [things[place] for place in order]
