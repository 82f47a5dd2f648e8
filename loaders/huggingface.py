"""Arrays for the rows that Hugging Face `datasets` loads from a dataset folder.

`load_dataset` reads the tables of a folder and nothing else. `attach` leaves those rows as they are
and reads the arrays that a row names when the row is taken:

* A map-style `Dataset` gets a transform (`Dataset.with_transform`). It stays a `Dataset`, so
  `select`, `shuffle`, `filter`, `map` and a torch `DataLoader` work on it as on any other.
* An `IterableDataset` gets a `map`, which runs as rows stream by.

Neither goes through Arrow or a format of `datasets`, so an array keeps its dtype and its bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from cfqa_data.dataset import Dataset, load
from cfqa_data.errors import CfqaError, unknown_name
from cfqa_data.extras import extras

__all__ = ["attach"]

NEEDS = {
    "original": ("source_id",),
    "compressed": ("source_id", "codec", "level"),
    "bitstream": ("source_id", "codec", "level"),
}
"""What can be read for a row -> the columns that say which one it is."""

FORMATS = ("numpy", "torch")


@extras()
def attach(
    ds: Any,
    root: str | Path | Dataset | None = None,
    *,
    format: str = "numpy",
    arrays: Sequence[str] = ("original", "compressed"),
    untrusted: bool = False,
) -> Any:
    """Give rows of `load_dataset` the arrays that they are about, read when a row is taken.

    Args:
        ds: a `Dataset`, an `IterableDataset`, or a dict of them by split, of any config.
        root: where the rows come from: what `cfqa_data.load` takes, or an open
            `cfqa_data.Dataset`. `datasets` keeps only its own cache of the rows, not where they
            were, so this cannot be left out.
        format: "numpy" or "torch".
        arrays: which to give, of ``original`` and ``compressed``, float32 (N, C, T, D), and
            ``bitstream``, bytes. Rows of the config `originals` have only the first.
        untrusted: decode bitstreams in child processes that can do nothing else.

    Returns:
        The same kind of dataset.

    Raises:
        CfqaError: there is no such array or format, ``root`` is not given, or ``ds`` is not a
            dataset of such rows. (Taking a row raises `FormatError` if a file is missing or
            damaged, or if the folder does not have what the row names.)
    """
    import datasets

    if root is None:
        raise CfqaError(
            "attach needs the folder that the rows come from, as in attach(ds, 'cfqa'): "
            "a loaded dataset does not say where that is"
        )
    if format not in FORMATS:
        raise CfqaError(unknown_name("format", format, FORMATS))
    names = (arrays,) if isinstance(arrays, str) else tuple(arrays)
    for name in names:
        if name not in NEEDS:
            raise CfqaError(unknown_name("array", name, NEEDS))
    if untrusted and isinstance(root, Dataset):
        raise CfqaError("untrusted says how to open a path; give it to load()")
    if isinstance(ds, dict):
        root = root if isinstance(root, Dataset) else load(root, untrusted=untrusted)
        splits = {
            split: attach(part, root, format=format, arrays=names) for split, part in ds.items()
        }
        return type(ds)(splits)
    if not isinstance(ds, datasets.Dataset | datasets.IterableDataset):
        raise CfqaError(f"attach takes what load_dataset returns, not a {type(ds).__name__}")
    if ds.column_names is not None and "source_id" not in ds.column_names:
        raise CfqaError("attach takes the rows of a dataset folder; these have no source_id")
    dataset = root if isinstance(root, Dataset) else load(root, untrusted=untrusted)
    reader = _RowReader(dataset[:0], names, format)
    if isinstance(ds, datasets.Dataset):
        return ds.with_transform(reader.add_columns)
    return ds.map(reader.add_arrays)


class _RowReader:
    """Reads the arrays that a row names; goes to other processes as the dataset does."""

    def __init__(self, dataset: Dataset, names: tuple[str, ...], format: str) -> None:
        self.dataset = dataset
        self.names = names
        self.format = format

    def given(self, columns: Mapping[str, Any]) -> list[str]:
        """Return the arrays whose columns are there: some of them may have been taken out."""
        return [name for name in self.names if all(need in columns for need in NEEDS[name])]

    def read(self, name: str, *key: Any) -> Any:
        """Read one array, or the bitstream."""
        value = getattr(self.dataset, name)(*key)
        if self.format == "numpy" or name == "bitstream":
            return value
        import torch

        return torch.from_numpy(value)

    def add_arrays(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row with its arrays."""
        found = {
            name: self.read(name, *(row[need] for need in NEEDS[name])) for name in self.given(row)
        }
        return {**row, **found}

    def add_columns(self, rows: dict[str, list[Any]]) -> dict[str, Any]:
        """Return rows, as columns, with columns of arrays."""
        found: dict[str, Sequence[Any]] = {}
        for name in self.given(rows):
            keys = list(zip(*(rows[need] for need in NEEDS[name]), strict=True))
            # `datasets` would hide an error of reading a single row later behind one of its own.
            column = _Column(self, name, keys)
            found[name] = column if len(keys) != 1 else list(column)
        return {**rows, **found}


class _Column(Sequence[Any]):
    """A column of arrays, each read when it is asked for.

    `datasets` hands a transform up to a thousand rows at once, and most often wants the labels of
    all or the arrays of one.
    """

    def __init__(self, reader: _RowReader, name: str, keys: list[tuple[Any, ...]]) -> None:
        self.reader = reader
        self.name = name
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> _Column: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return _Column(self.reader, self.name, self.keys[index])
        return self.reader.read(self.name, *self.keys[index])

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"<{len(self)} arrays {self.name!r}, read one by one>"
