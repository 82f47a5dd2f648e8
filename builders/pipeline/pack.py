"""The end of a build: one table of labels per task, the card, and last the manifest."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.tools import Tools
from cfqa_data.card.write import write_card
from cfqa_data.errors import BuildError
from cfqa_data.format.facts import TaskEntry
from cfqa_data.format.first import read_tasks
from cfqa_data.format.invariants import PLACES, VALUES, LabelRows, broken, fold_of
from cfqa_data.format.manifest import Manifest, write_manifest
from cfqa_data.format.resources import locate
from cfqa_data.format.schema import originals_schema
from cfqa_data.format.storage import read_labels, remove_partials, write_table
from cfqa_data.integrity.health import health
from cfqa_data.recipe.portable import portable, portable_names, rename
from cfqa_data.recipe.remembered import remember

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["label_table", "originals_table", "pack"]


def pack(tools: Tools, advance: Callable[[], None]) -> None:
    """Write what makes a folder of finished items a dataset.

    Args:
        tools: of the build, all of whose items are done.
        advance: called after each of the tasks, then for the originals, the card, the manifest.
    """
    import pyarrow as pa

    layout, plan = tools.layout, tools.plan
    remove_partials(layout.root)
    recipe = portable(plan.recipe).to_dict()
    entries = read_tasks(recipe, {task: _entry(tools, task) for task in plan.recipe.tasks})
    tables = []
    for task, entry in entries.items():
        tables.append(label_table(tools, entry))
        write_table(layout.labels(task), tables[-1])
        advance()
    write_table(layout.originals_table, originals_table(tools))
    advance()
    names = portable_names(plan.recipe)
    manifest = Manifest(
        name=plan.recipe.name,
        tier=plan.tier,
        recipe=recipe,
        tasks=entries,
        versions=plan.versions,
        weights={rename(name, names): digest for name, digest in plan.weights.items()},
        health=tuple(health(pa.concat_tables(tables))),
    )
    write_card(layout.root, manifest)
    advance()
    write_manifest(layout.root, manifest)
    for uri in names:
        if uri in plan.weights:
            remember(plan.weights[uri], locate(uri))
    advance()


def _entry(tools: Tools, task: str) -> dict[str, Any]:
    shape = tools.originals(task, 0).shape[1:]
    return {"shape": list(shape), "sources": list(tools.source_ids(task))}


def label_table(tools: Tools, entry: TaskEntry) -> pa.Table:
    """Return all rows of a task by source, codec and level.

    Raises:
        BuildError: a row does not hold what the format says.
    """
    import pyarrow as pa

    task, codecs = entry.name, list(entry.codecs)
    items = [
        Item("compress", task, codec, group)
        for codec in codecs
        for group in range(tools.plan.groups)
    ]
    table = pa.concat_tables([read_labels(item.marker(tools.layout)) for item in items])
    rank = np.array([codecs.index(name) for name in table["codec"].to_pylist()])
    level, index = table["level"].to_numpy().astype(np.int64), table["index"].to_numpy()
    order = np.lexsort((level, rank, index))
    rows = LabelRows(
        table.take(order).combine_chunks(),
        entry,
        *(places[order] for places in (index, rank, level)),
    )
    for what in broken(rows, (*PLACES, *VALUES)):
        raise BuildError(f"labels of {task}: {what}")
    return rows.table


def originals_table(tools: Tools) -> pa.Table:
    """Return one row per original."""
    import pyarrow as pa

    layout, plan = tools.layout, tools.plan
    rows = []
    for task in plan.recipe.tasks:
        ids = tools.source_ids(task)
        for group in range(plan.groups):
            references = tools.references(task, group)
            for index, position in enumerate(plan.members(group)):
                rows.append(
                    {
                        "task": task,
                        "source_id": ids[position],
                        "fold": fold_of(position),
                        "reference_score": references["score"][index],
                        "reference_loss": references["loss"][index],
                        "array": layout.relative(layout.originals(task, group, plan.groups)),
                        "key": ids[position],
                    }
                )
    return pa.Table.from_pylist(rows, schema=originals_schema())
