"""The stages of an extension: those of a build, which reuse the files of the existing dataset.

Reused files are hard links, or copies if the file system has no links. They are never written to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from cfqa_data.access.files import LocalFiles
from cfqa_data.access.folder import Folder
from cfqa_data.arrow import pa, pc
from cfqa_data.builders.maintenance.scratch import link
from cfqa_data.builders.pipeline.compress import Compress
from cfqa_data.builders.pipeline.context import write_json
from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.prepare import Prepare
from cfqa_data.builders.pipeline.preview import Preview
from cfqa_data.builders.pipeline.select import BuildStage, Extract, Select
from cfqa_data.format.layout import NAMES
from cfqa_data.format.schema import label_schema
from cfqa_data.format.storage import write_table

__all__ = ["STAGES", "ExtendStage"]


@dataclass(frozen=True)
class ExtendStage(BuildStage):
    """Base class of the stages of an extension.

    Attributes:
        dataset: Files of the dataset that is extended.
    """

    dataset: LocalFiles

    @cached_property
    def folder(self) -> Folder:
        """Reader of the dataset that is extended."""
        return Folder(self.dataset)

    def done(self, item: Item) -> bool:
        """Whether an item is done and all its links exist; a power cut may have lost some."""
        names = (self.layout.relative(path) for path in self.outputs(item))
        reused = self.folder.manifest.files.keys()
        return super().done(item) and all(
            (self.layout.root / name).exists() for name in names if name in reused
        )

    def reuse(self, paths: Sequence[Path]) -> None:
        """Link the files of the new folder that exist in the dataset, in their order."""
        for path in paths:
            name = self.layout.relative(path)
            if name in self.folder.manifest.files:
                link(self.dataset.root / name, path)

    def is_new(self, item: Item) -> bool:
        """Whether the dataset lacks the codec of an item."""
        return item.codec not in self.folder.manifest.tasks[item.task].codecs


class _Select(ExtendStage, Select):
    def run(self, item: Item) -> None:
        """Reuse the truths and the gallery, and write the ids of the dataset's sources."""
        entry = self.folder.manifest.tasks[item.task]
        gallery = [self.layout.gallery(entry.gallery)] if entry.gallery else []
        self.reuse([self.layout.truth(item.task), *gallery])
        selection = {"ids": entry.sources, "groups": entry.groups}
        write_json(item.result_path(self.layout), selection)


class _Extract(ExtendStage, Extract):
    def run(self, item: Item) -> None:
        """Reuse a shard's originals, with their scores and losses."""
        self.reuse([self.context.originals_path(item.task, item.shard)])
        by_source = self.folder.original_rows()
        rows = [by_source[source] for source in self.context.ids(item.task, item.shard)]
        losses = [row["reference_loss"] for row in rows]
        losses = [None if loss is None or math.isnan(loss) else loss for loss in losses]
        references = {"score": [row["reference_score"] for row in rows], "loss": losses}
        write_json(item.result_path(self.layout), references)


class _Prepare(ExtendStage, Prepare):
    def run(self, item: Item) -> None:
        """Reuse tables and metadata of arrays, and create those of new codecs."""
        task, old = item.task, self.folder.manifest.tasks[item.task]
        specs = self.plan.recipe.tasks[task].codecs
        self.reuse([self.layout.tables(name) for c in old.codecs.values() for name in c.tables])
        self.reuse([self.layout.compressed(task, codec) / "zarr.json" for codec in old.codecs])
        for codec in specs.keys() - old.codecs.keys():
            spec = specs[codec]
            self.fit(task, spec)
            if spec.stored(self.plan.tier):
                centres = self.centre(task, spec.quantizer) if spec.quantizer else ()
                self.make_array(task, spec, old.shape, centres)
        codecs = {
            codec: old.codecs[codec] if codec in old.codecs else self.codec_entry(task, spec)
            for codec, spec in specs.items()
        }
        write_json(item.result_path(self.layout), replace(old, codecs=codecs).to_dict())


class _Compress(ExtendStage, Compress):
    def check(self, todo: Sequence[Item]) -> None:
        super().check([item for item in todo if self.is_new(item)])

    def run(self, item: Item) -> None:
        """Compress with a new codec; for others reuse bitstreams, codes and label rows."""
        if self.is_new(item):
            super().run(item)
            return
        *files, result = self.outputs(item)
        self.reuse(files)
        write_table(result, self.label_rows(item))

    def label_rows(self, item: Item) -> pa.Table:
        """Return the label rows of a shard, with the columns of format 2."""
        table, members = self.labels[item.task], self.plan.members(item.task, item.shard)
        chosen = pc.and_(
            pc.equal(table["codec"], item.codec),
            pc.is_in(table["index"], pa.array(members, table["index"].type)),
        )
        table, entry = table.filter(chosen), self.folder.manifest.tasks[item.task]
        if "tokens" not in table.column_names:
            tokens = np.full(table.num_rows, entry.shape[2])
            table = table.append_column("tokens", pa.array(tokens))
            table = table.append_column("group", table["source_id"])
        return table.select(label_schema(2).names).cast(label_schema(2))

    @cached_property
    def labels(self) -> dict[str, pa.Table]:
        """Labels of each task, read once."""
        return {task: self.folder.labels(task) for task in self.folder.manifest.tasks}


class _Preview(ExtendStage, Preview):
    def items(self) -> list[Item]:
        return super().items() if NAMES.previews.as_posix() in self.folder.manifest.files else []

    def run(self, item: Item) -> None:
        """Reuse a shard's pictures."""
        ids = pa.array(self.context.ids(item.task, item.shard))
        chosen = self.drawn.take(pc.index_in(ids, value_set=self.drawn["source_id"]))
        write_table(item.result_path(self.layout), chosen)

    @cached_property
    def drawn(self) -> pa.Table:
        """Pictures of all sources, read once."""
        return self.folder.read_pictures()


STAGES: tuple[type[ExtendStage], ...] = (_Select, _Extract, _Prepare, _Compress, _Preview)
"""The stages in order; `cfqa_data.builders.pipeline.pack` follows."""
