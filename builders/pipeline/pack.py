"""Finish a build: join the label tables, write the card, and last the manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cfqa_data.access.weights import remember
from cfqa_data.arrow import pa
from cfqa_data.builders.pipeline.context import BuildContext
from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.preview import write_previews
from cfqa_data.card.write import write_card
from cfqa_data.errors import BuildError
from cfqa_data.format.facts import TaskEntry
from cfqa_data.format.invariants import POSITION_RULES, VALUE_RULES, LabelRows, violations
from cfqa_data.format.manifest import Manifest, write_manifest
from cfqa_data.format.resources import locate
from cfqa_data.format.schema import label_schema, originals_schema
from cfqa_data.format.storage import read_labels, remove_partials, write_table
from cfqa_data.integrity.health import health
from cfqa_data.recipe.portable import portable_names, recorded_recipe, replace_path

__all__ = ["label_table", "originals_table", "pack"]


def pack(context: BuildContext, advance: Callable[[], None]) -> None:
    """Write the files that complete a dataset.

    Args:
        context: Context of a build whose items are all done.
        advance: Function called after each task, the originals, the card and the manifest.
    """
    layout, plan = context.layout, context.plan
    remove_partials(layout.root)
    names = portable_names(plan.recipe)
    manifest = Manifest(
        name=plan.recipe.name,
        tier=plan.tier,
        recipe=recorded_recipe(plan.recipe),
        tasks={task: context.entry(task) for task in plan.recipe.tasks},
        versions=plan.versions,
        weights={replace_path(name, names): digest for name, digest in plan.weights.items()},
        packages=plan.packages,
    )
    tables = []
    for task, entry in manifest.tasks.items():
        tables.append(label_table(context, entry, manifest.format))
        write_table(layout.labels(task), tables[-1])
        advance()
    originals = originals_table(context, manifest)
    write_table(layout.originals_table, originals)
    write_previews(context, originals)
    advance()
    manifest = replace(manifest, health=tuple(health(pa.concat_tables(tables))))
    write_card(layout.root, manifest)
    advance()
    write_manifest(layout.root, manifest)
    for uri in names:
        if uri in plan.weights:
            remember(plan.weights[uri], locate(uri))
    advance()


def label_table(context: BuildContext, entry: TaskEntry, version: int) -> pa.Table:
    """Return the label table of a task, sorted by source, codec and level.

    Raises:
        BuildError: If a row violates the format.
    """
    task, codecs = entry.name, list(entry.codecs)
    items = [
        Item("compress", task, codec, shard) for codec in codecs for shard in range(entry.shards)
    ]
    table = pa.concat_tables(
        [read_labels(item.result_path(context.layout), format=2) for item in items]
    )
    rank = np.array([codecs.index(name) for name in table["codec"].to_pylist()])
    level, index = table["level"].to_numpy().astype(np.int64), table["index"].to_numpy()
    order = np.lexsort((level, rank, index))
    rows = LabelRows(
        table.take(order).combine_chunks().select(label_schema(version).names),
        entry,
        *(column[order] for column in (index, rank, level)),
    )
    for problem in violations(rows, (*POSITION_RULES, *VALUE_RULES)):
        raise BuildError(f"labels of {task}: {problem}")
    return rows.table


def originals_table(context: BuildContext, manifest: Manifest) -> pa.Table:
    """Return the table of originals, one row per original."""
    rows = []
    for task, entry in manifest.tasks.items():
        for shard in range(entry.shards):
            path = context.layout.relative(context.originals_path(task, shard))
            rows += [
                columns | {"array": path, "key": columns["source_id"]}
                for columns in context.columns(task, shard)
            ]
    return pa.Table.from_pylist(rows, schema=originals_schema(manifest.format))
