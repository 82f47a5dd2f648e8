"""The stages of a repair: those of a build, and stages that read the dataset's own folder.

They write to a scratch build, a separate folder to which the intact files are linked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cfqa_data.access.files import LocalFiles
from cfqa_data.access.folder import Folder
from cfqa_data.builders.pipeline.compress import Compress
from cfqa_data.builders.pipeline.context import BuildContext
from cfqa_data.builders.pipeline.pack import label_table, originals_table
from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.prepare import Prepare
from cfqa_data.builders.pipeline.preview import Preview, write_previews
from cfqa_data.builders.pipeline.select import BuildStage, Extract, Infer, Select
from cfqa_data.card.write import card_text
from cfqa_data.format.codes import Codes, find_centres, shard_name, write_codes
from cfqa_data.format.manifest import Manifest
from cfqa_data.format.storage import write_table, write_text

__all__ = ["CARD", "ORIGINALS", "SourceItem", "repair_stages", "was_built"]

CARD, ORIGINALS, PREVIEWS = "card", "originals", "default"
"""Names, in place of a task's, of items that belong to no task; no task can have them."""


@dataclass(frozen=True)
class SourceItem(Item):
    """An item for one source.

    Attributes:
        position: Position of the source in the task; `shard` is the one with its bitstreams.
    """

    position: int = -1

    def __str__(self) -> str:
        return f"{self.stage} {self.task} {self.codec} source {self.position}"


@dataclass(frozen=True)
class RepairStage(BuildStage):
    """Base class of stages that read the dataset's folder in its current state.

    Attributes:
        files: Files of the dataset.
        plugins: Classes that are not installed, as `module:Class`.
    """

    files: LocalFiles
    plugins: tuple[str, ...] = ()

    @cached_property
    def folder(self) -> Folder:
        """Reader of the dataset's folder."""
        return Folder(self.files, plugins=self.plugins)


class Arrays(RepairStage, Prepare):
    """Stage that recreates the tables of a codec and the metadata of its array."""

    name, unit = "arrays", "codecs"

    def items(self) -> list[Item]:
        tasks = self.plan.recipe.tasks
        return [Item(self.name, task, codec, 0) for task in tasks for codec in tasks[task].codecs]

    def outputs(self, item: Item) -> tuple[Path, ...]:
        array = self.layout.compressed(item.task, item.codec)
        return self.context.tables_path(item.task, item.codec), array / "zarr.json"

    def run(self, item: Item) -> None:
        folder, codec_spec = self.folder, self.context.codec_spec(item)
        entry, centres = folder.manifest.tasks[item.task], list[int]()
        if entry.codecs[item.codec].tables:
            self.fit(item.task, codec_spec)
        if codec_spec.quantizer is not None and was_built(folder.manifest):
            centres = self.centre(item.task, codec_spec.quantizer)
        elif codec_spec.quantizer is not None:  # an import finds centres in its first feature
            first = folder.decoded(entry.sources[0], item.codec, 0)
            assert isinstance(first, Codes)
            centres = list(find_centres(first.indices))
        self.make_array(item.task, codec_spec, entry.shape, centres)


class Decode(RepairStage):
    """Stage that decodes a source's bitstreams to its shard of an array, without an encoder."""

    name, unit = "decode", "sources"

    def items(self) -> list[SourceItem]:
        recipe = self.plan.recipe
        return [
            SourceItem(self.name, task, codec, position // recipe.group_size, position)
            for task, spec in recipe.tasks.items()
            for codec, codec_spec in spec.codecs.items()
            if codec_spec.facts.on != "inputs"
            for position in range(recipe.sources(task))
        ]

    def outputs(self, item: SourceItem) -> tuple[Path, ...]:
        return (self.layout.compressed(item.task, item.codec) / shard_name(item.position),)

    def run(self, item: SourceItem) -> None:
        folder = self.folder
        entry = folder.manifest.tasks[item.task]
        source, levels = entry.sources[item.position], range(len(entry.codecs[item.codec].levels))
        decoded = [folder.decoded(source, item.codec, level) for level in levels]
        stored = [each.indices if isinstance(each, Codes) else each for each in decoded]
        write_codes(self.layout.compressed(item.task, item.codec), item.position, np.stack(stored))


class Tables(RepairStage):
    """Stage that joins rows into the tables of labels, originals and previews."""

    name, unit = "tables", "files"

    def items(self) -> list[Item]:
        names = (*self.plan.recipe.tasks, ORIGINALS, PREVIEWS)
        return [Item(self.name, name) for name in names]

    def outputs(self, item: Item) -> tuple[Path, ...]:
        layout = self.layout
        if item.task == PREVIEWS:
            return layout.previews, layout.hero
        return (layout.originals_table if item.task == ORIGINALS else layout.labels(item.task),)

    def run(self, item: Item) -> None:
        manifest = self.folder.manifest
        if item.task == PREVIEWS:
            write_previews(self.context, originals_table(self.context, manifest))
            return
        if item.task == ORIGINALS:
            table = originals_table(self.context, manifest)
        else:
            table = label_table(self.context, manifest.tasks[item.task], manifest.format)
        write_table(self.outputs(item)[0], table)


class Card(RepairStage):
    """Stage that writes the card from the tables of the dataset."""

    name, unit = CARD, "files"

    def items(self) -> list[Item]:
        return [Item(self.name, CARD)]

    def outputs(self, item: Item) -> tuple[Path, ...]:
        return (self.layout.card,)

    def run(self, item: Item) -> None:
        folder, manifest = self.folder, self.folder.manifest
        labels = {task: folder.label_rows(task).table for task in manifest.tasks}
        sizes = {name: entry["size"] for name, entry in manifest.files.items()}
        shown, originals = folder.shown_columns(), folder.originals_table()
        write_text(self.layout.card, card_text(manifest, labels, originals, sizes, shown))


def repair_stages(
    context: BuildContext, files: LocalFiles, plugins: tuple[str, ...]
) -> Sequence[BuildStage]:
    """Return the stages of a repair in order; a file is recreated by the first that outputs it."""
    arrays, decode, tables, card = (
        kind(context, files, plugins) for kind in (Arrays, Decode, Tables, Card)
    )
    built = Select(context), Extract(context), Infer(context)
    return *built, arrays, decode, Compress(context), Preview(context), tables, card


def was_built(manifest: Manifest) -> bool:
    """Whether `cfqa build` created a dataset, so that its recipe can recreate it."""
    codecs = {codec for task in manifest.tasks.values() for codec in task.codecs}
    names = (name for name in manifest.versions if not name.startswith("scores "))
    return codecs <= {name.partition(" ")[0] for name in names}
