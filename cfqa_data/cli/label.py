"""`cfqa label`: label reconstructions of a dataset's originals with its task heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cfqa_data.cli.command import command
from cfqa_data.cli.shared import answer, check_new_file, working

__all__ = ["label"]


@command("label", "build")
def label(
    folder: str,
    features: Path,
    *,
    out: Path | None = None,
    force: bool = False,
    plugin: list[str] | None = None,
    follow_links: bool = False,
    as_json: bool = False,
) -> None:
    """Label reconstructions of a dataset's originals with its task heads: score, distortion, loss.

    Args:
        features (FEATURES): A folder of SOURCE.npy files, each with a feature (N, C, T, D) or a
            batch of them; or .safetensors, a file or a folder of files, with a tensor per source.
        out (FILE): Write one row per feature to this .csv or .parquet file.
    """
    from cfqa_data.access.dataset import load
    from cfqa_data.builders.extending.files import label_files
    from cfqa_data.format.storage import write_csv, write_table

    check_new_file(out, (".csv", ".parquet"), force)
    dataset = load(folder, plugins=plugin, follow_links=follow_links)
    with working("") as progress:
        table = label_files(dataset, features, progress=progress)
    if out is not None:
        (write_csv if out.suffix == ".csv" else write_table)(out, table)
    rows = table.to_pylist()
    answer(as_json, lambda: {"labels": rows}, lambda: _text(rows))
    if out is not None and not as_json:
        print(f"Labels: {out}")


def _text(rows: list[dict[str, Any]]) -> str:
    from cfqa_data.console.text import table_text

    heads = list(rows[0])
    cells = [
        [
            value if isinstance(value, str) else "-" if value is None else f"{value:.6g}"
            for value in r
        ]
        for r in (row.values() for row in rows)
    ]
    return table_text([heads, *cells], left=2)
