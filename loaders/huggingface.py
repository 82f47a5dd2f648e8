"""Attach feature arrays to the label rows that Hugging Face `datasets` loads.

`load_dataset` reads only the tables of a folder. `attach` adds columns of a feature type of this
package (`cfqa_data.loaders.array_feature`), whose cells are keys; an array is read on access.
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
    """Add columns of feature arrays to the rows of `load_dataset`; arrays are read on access.

    Most operations of `datasets` work on these columns; docs/loading.md lists those that return
    keys instead of arrays or are not possible.

    Args:
        ds: A `Dataset`, an `IterableDataset`, or a dict of them by split, of any config.
        root: The dataset of the rows: an argument of `cfqa_data.load`, or an open
            `cfqa_data.Dataset`. Without it, an error explains that `datasets` does not record where
            rows come from.
        format: Type of the arrays, "numpy" or "torch". `with_format` of `datasets` works with
            "numpy".
        arrays: Columns to add: ``original`` and ``compressed``, float32 (N, C, T, D), and
            ``bitstream``, bytes. Rows of the config `originals` have only ``original``.
        untrusted: Decode bitstreams in sandboxed child processes.
        follow_links: Follow symbolic links that lead out of the folder.
        plugins: Codec classes that are not installed, as classes or `module:Class`.

    Returns:
        A dataset of the same type with the columns; existing columns of those names are replaced.

    Raises:
        CfqaError: If an array or format is unknown, ``root`` is not given, or ``ds`` has no rows of
            a dataset folder. Reading a row raises `FormatError` if a file is missing or damaged, or
            if the folder has no such feature.
    """
    import datasets

    from cfqa_data.loaders.array_feature import NEEDS, CfqaArray, register

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
        return type(ds)(
            {
                split: attach(part, dataset, format=format, arrays=names)
                for split, part in ds.items()
            }
        )
    if not isinstance(ds, datasets.Dataset | datasets.IterableDataset):
        raise CfqaError(f"attach takes a result of load_dataset, not a {type(ds).__name__}")
    if ds.column_names is not None and "source_id" not in ds.column_names:
        raise CfqaError("attach takes the rows of a dataset folder; these have no source_id")
    name = register(dataset)
    types = {array: CfqaArray(array, format) for array in names}
    if isinstance(ds, datasets.Dataset):
        return _attach_rows(ds, name, types)
    return _attach_stream(ds, name, types)


def _attach_rows(ds: Any, name: str, types: Mapping[str, CfqaArray]) -> Any:
    from cfqa_data.loaders.array_feature import NEEDS, key_of

    ds = ds.remove_columns([array for array in types if array in ds.column_names])
    table = ds.with_format("arrow")[:]
    for array in _identified(types, ds.column_names):
        cells = [key_of(name, array, row) for row in table.select(NEEDS[array]).to_pylist()]
        ds = ds.add_column(array, cells, feature=types[array])
    return ds


def _attach_stream(ds: Any, name: str, types: Mapping[str, CfqaArray]) -> Any:
    import datasets

    formatting = getattr(ds, "_formatting", None)  # removed, since `map` would apply it to rows
    ds = ds.with_format(None)
    if ds.features is None:  # as after `map`: the columns are unknown and cannot get a type
        ds = ds.map(partial(_add_arrays, name=name, types=types))
    else:
        added = {array: types[array] for array in _identified(types, ds.features)}
        features = datasets.Features({**ds.features, **added})
        ds = ds.map(partial(_add_cells, name=name, arrays=tuple(added))).cast(features)
    return ds if formatting is None else ds.with_format(formatting.format_type)


def _identified(types: Mapping[str, CfqaArray], columns: Iterable[str]) -> list[str]:
    """Return the arrays that the columns of a dataset identify; some may have been removed."""
    from cfqa_data.loaders.array_feature import NEEDS

    columns = set(columns)
    return [array for array in types if columns.issuperset(NEEDS[array])]


def _add_cells(row: dict[str, Any], name: str, arrays: Sequence[str]) -> dict[str, str]:
    from cfqa_data.loaders.array_feature import key_of

    return {array: key_of(name, array, row) for array in arrays}


def _add_arrays(row: dict[str, Any], name: str, types: Mapping[str, CfqaArray]) -> dict[str, Any]:
    cells = _add_cells(row, name, _identified(types, row))
    return {array: types[array].decode_example(cell) for array, cell in cells.items()}
