"""Write the YAML head of a card: metadata for the Hub's search, and the configs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cfqa_data.arrow import pa
from cfqa_data.card.wording import hub_facts
from cfqa_data.format.layout import ALL, NAMES
from cfqa_data.format.manifest import Manifest
from cfqa_data.format.previews import ANSWERS

__all__ = ["head_text"]

COUNTS = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
"""Upper limit of the number of rows -> size category on the Hub."""


def head_text(
    manifest: Manifest,
    labels: Mapping[str, pa.Table],
    originals: pa.Table,
    sizes: Mapping[str, int],
    shown: Sequence[str],
    licence: Mapping[str, str],
) -> str:
    """Return the YAML head of a card.

    Args:
        manifest: Manifest of the dataset.
        labels: Label tables by task.
        originals: Table of originals.
        sizes: Path of a file -> size in bytes.
        shown: Image columns of the table of previews; empty if there is none.
        licence: The key `license`; for "other" also `license_name` and `license_link`.
    """
    rows = sum(table.num_rows for table in labels.values())
    facts = hub_facts(manifest)
    known = {"size_categories": [next((n for m, n in COUNTS.items() if rows < m), "1M<n<10M")]}
    head = {**licence, **facts, **known, **_configs(labels, originals, sizes, shown)}
    return "\n".join(_yaml(head))


def _configs(
    labels: Mapping[str, pa.Table],
    originals: pa.Table,
    sizes: Mapping[str, int],
    shown: Sequence[str],
) -> dict[str, Any]:
    """Return the configs, with their exact columns and row counts.

    The first task is the default config, so that the default table has scores of one task only.
    """
    configs = {task: {NAMES.labels(task).as_posix(): table} for task, table in labels.items()}
    everything = {path: table for files in configs.values() for path, table in files.items()}
    first = next(iter(configs))
    configs["originals"] = {
        (NAMES.previews if shown else NAMES.originals_table).as_posix(): originals
    }
    if len(labels) > 1:
        configs.setdefault(ALL, everything)
    return {
        "configs": [
            {"config_name": name}
            | ({"default": True} if name == first else {})
            | {"data_files": [{"split": "test", "path": list(files)}]}
            for name, files in configs.items()
        ],
        "dataset_info": [
            {"config_name": name}
            | _dataset_info(files, sizes, shown if name == "originals" else ())
            for name, files in configs.items()
        ],
    }


def _dataset_info(
    files: Mapping[str, pa.Table], sizes: Mapping[str, int], shown: Sequence[str]
) -> dict[str, Any]:
    """Return the columns and sizes of one config; `datasets` verifies the number of rows."""
    tables = list(files.values())
    size = sum(sizes[path] if shown else table.nbytes for path, table in files.items())
    rows = sum(table.num_rows for table in tables)
    return {
        "features": [
            *({"name": n, "dtype": "string" if n == ANSWERS else "image"} for n in shown),
            *({"name": f.name, "dtype": _dtype(f)} for f in tables[0].schema),
        ],
        "splits": [{"name": "test", "num_bytes": size, "num_examples": rows}],
        "download_size": sum(sizes[path] for path in files),
        "dataset_size": size,
    }


def _dtype(column: pa.Field) -> str:
    return {"double": "float64"}.get(str(column.type), str(column.type))


def _yaml(value: Any, indent: str = "") -> list[str]:
    """Return mappings and lists as lines of block YAML; scalars are written as JSON."""
    lines = []
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(item, Mapping | list):
                lines += [f"{indent}{key}:", *_yaml(item, indent)]
            else:
                lines.append(f"{indent}{key}: {json.dumps(item)}")
        return lines
    for item in value:
        if isinstance(item, Mapping):
            first, *rest = _yaml(item, indent + "  ")
            lines += [f"{indent}- {first.lstrip()}", *rest]
        else:
            lines.append(f"{indent}- {json.dumps(item)}")
    return lines
