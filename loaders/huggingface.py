"""Attach feature arrays to the label rows that Hugging Face `datasets` loads.

`load_dataset` reads the tables of a folder and nothing else. `attach` adds columns of a feature
type of this package (`cfqa_data.loaders.array_feature`): their cells are keys, and an array is read
when its cell is taken. A `Dataset` or `IterableDataset` stays what it is, with further columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfqa_data.access.dataset import Dataset, opened
from cfqa_data.errors import CfqaError, unknown_name
from cfqa_data.extras import extras
from cfqa_data.registry import Plugins

if TYPE_CHECKING:
    from cfqa_data.loaders.array_feature import CfqaArray

__all__ = ["attach"]

FORMATS = ("numpy", "torch")


@extras()
def attach(
    ds: Any,
    root: str | Path | Dataset | None = None,
    *,
    format: str = "numpy",
    arrays: Sequence[str] = ("original", "compressed"),
    untrusted: bool = False,
    follow_links: bool = False,
    plugins: Plugins | None = None,
) -> Any:
    """Give rows of `load_dataset` columns of the arrays that they are about, read when taken.

    The columns go through all operations of `datasets` as its own do; docs/loading.md lists those
    that give keys instead of arrays.

    Args:
        ds: A `Dataset`, an `IterableDataset`, or a dict of them by split, of any config.
        root: Where the rows come from: what `cfqa_data.load` takes, or an open
            `cfqa_data.Dataset`. `datasets` keeps only its own cache of the rows, not where they
            were, so this cannot be left out.
        format: "numpy" or "torch". (`with_format` of `datasets` works with the first.)
        arrays: Which to give, of ``original`` and ``compressed``, float32 (N, C, T, D), and
            ``bitstream``, bytes. Rows of the config `originals` have only the first.
        untrusted: Decode bitstreams in child processes that can do nothing else.
        follow_links: Read what links in a folder lead to, wherever that is.
        plugins: Classes of codecs that are not installed, or `module:Class` of some.

    Returns:
        The same kind of dataset with the arrays as columns, in place of columns of those names.

    Raises:
        CfqaError: There is no such array or format, ``root`` is not given, or ``ds`` is not a
            dataset of such rows. (Taking a row raises `FormatError` if a file is missing or
            damaged, or if the folder does not have what the row names.)
    """
    import datasets

    from cfqa_data.loaders.array_feature import NEEDS, CfqaArray, hold

    if root is None:
        raise CfqaError(
            "attach needs the dataset folder, as in attach(ds, 'cfqa'): the rows do not record it"
        )
    if format not in FORMATS:
        raise CfqaError(unknown_name("format", format, FORMATS))
    names = (arrays,) if isinstance(arrays, str) else tuple(arrays)
    for name in names:
        if name not in NEEDS:
            raise CfqaError(unknown_name("array", name, NEEDS))
    dataset = opened(root, untrusted=untrusted, follow_links=follow_links, plugins=plugins)
    if isinstance(ds, dict):
        how: dict[str, Any] = {"format": format, "arrays": names}
        return type(ds)({split: attach(part, dataset, **how) for split, part in ds.items()})
    if not isinstance(ds, datasets.Dataset | datasets.IterableDataset):
        raise CfqaError(f"attach takes a result of load_dataset, not a {type(ds).__name__}")
    if ds.column_names is not None and "source_id" not in ds.column_names:
        raise CfqaError("attach takes the rows of a dataset folder; these have no source_id")
    name = hold(dataset)
    types = {array: CfqaArray(array, format) for array in names}
    if isinstance(ds, datasets.Dataset):
        return _attach_rows(ds, name, types)
    return _attach_stream(ds, name, types)


def _attach_rows(ds: Any, name: str, types: Mapping[str, CfqaArray]) -> Any:
    from cfqa_data.loaders.array_feature import NEEDS, key_of

    ds = ds.remove_columns([array for array in types if array in ds.column_names])
    table = ds.with_format("arrow")[:]
    for array in _possible(types, ds.column_names):
        cells = [key_of(name, array, row) for row in table.select(NEEDS[array]).to_pylist()]
        ds = ds.add_column(array, cells, feature=types[array])
    return ds


def _attach_stream(ds: Any, name: str, types: Mapping[str, CfqaArray]) -> Any:
    import datasets

    formatting = getattr(ds, "_formatting", None)  # a map would be handed rows in this format
    ds = ds.with_format(None)
    if ds.features is None:  # as after a map: columns that are not known cannot have a type
        ds = ds.map(partial(_add_arrays, name=name, types=types))
    else:
        given = {array: types[array] for array in _possible(types, ds.features)}
        features = datasets.Features({**ds.features, **given})
        ds = ds.map(partial(_add_cells, name=name, arrays=tuple(given))).cast(features)
    return ds if formatting is None else ds.with_format(formatting.format_type)


def _possible(types: Mapping[str, CfqaArray], columns: Iterable[str]) -> list[str]:
    """Return the arrays that these columns say enough for: some may have been taken out."""
    from cfqa_data.loaders.array_feature import NEEDS

    columns = set(columns)
    return [array for array in types if columns.issuperset(NEEDS[array])]


def _add_cells(row: dict[str, Any], name: str, arrays: Sequence[str]) -> dict[str, str]:
    from cfqa_data.loaders.array_feature import key_of

    return {array: key_of(name, array, row) for array in arrays}


def _add_arrays(row: dict[str, Any], name: str, types: Mapping[str, CfqaArray]) -> dict[str, Any]:
    cells = _add_cells(row, name, _possible(types, row))
    return {array: types[array].decode_example(cell) for array, cell in cells.items()}
