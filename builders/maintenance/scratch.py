"""The scratch build of a repair: links intact files, and runs the work items of the rest again.

The stages write files beside and rename them, so a link to a dataset's file is never written
through.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cfqa_data.access.files import LocalFiles
from cfqa_data.access.folder import Folder
from cfqa_data.builders.maintenance.plan import RepairPlan, stages_of
from cfqa_data.builders.pipeline.compress import stream_cache
from cfqa_data.builders.pipeline.context import BuildContext, read_tensors
from cfqa_data.builders.pipeline.pack import label_table, originals_table
from cfqa_data.builders.pipeline.plan import PLAN, Item
from cfqa_data.builders.pipeline.select import BuildStage
from cfqa_data.builders.processes.executor import Executor
from cfqa_data.builders.processes.stage import drive
from cfqa_data.card.write import card_text
from cfqa_data.console.progress import Progress
from cfqa_data.errors import CfqaError, DiskError
from cfqa_data.format.layout import Layout
from cfqa_data.format.manifest import Manifest, hash_file
from cfqa_data.format.storage import make_folder, remove_partials, write_table, write_text

__all__ = ["Scratch", "link"]

INPUTS = ("originals/", "truth/", "bitstreams/", "tables/")
"""Where items find what earlier ones made."""


def link(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it if the file system cannot."""
    make_folder(target.parent)
    target.unlink(missing_ok=True)
    try:
        os.link(os.path.realpath(source), target)  # of a link, what it leads to
    except OSError:
        shutil.copyfile(source, target)


@dataclass(frozen=True)
class Scratch:
    """A build folder inside the dataset's folder, with links to the intact files.

    Attributes:
        files: the dataset's.
        manifest: its manifest.
        repair_plan: what is to be done.
        damaged: the damaged files that the manifest lists.
        layout: of the scratch folder.
        plugins: classes that are not installed.
        reasons: file that cannot be made again -> why.
    """

    files: LocalFiles
    manifest: Manifest
    repair_plan: RepairPlan
    damaged: frozenset[str]
    layout: Layout
    plugins: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)

    def prepare(self) -> None:
        """Make the folder; keep intact files that an interrupted repair left in it."""
        path, text = self.layout.work / PLAN, self.repair_plan.plan.to_json()
        links = any(inside.is_symlink() for inside in self.layout.root.rglob("*"))
        if links or not path.is_file() or path.read_text(encoding="utf-8") != text:
            shutil.rmtree(self.layout.root, ignore_errors=True)
        remove_partials(self.layout.root)
        write_text(path, text)
        for name in self.manifest.files:
            copy = self.layout.root / name
            if name.startswith(INPUTS) and name not in self.damaged:
                link(self.files.root / name, copy)
            elif copy.is_file() and not self.is_intact(name):
                copy.unlink()
        for task in self.manifest.tasks:
            self._write_stage_results(task)

    def _write_stage_results(self, task: str) -> None:
        """Write the result files of earlier stages, from the manifest and the intact tables."""
        entry, layout, plan = self.manifest.tasks[task], self.layout, self.repair_plan.plan
        groups = list(entry.groups) if entry.groups else None
        selection = {"ids": list(entry.sources), "groups": groups}
        write_text(Item("select", task).result_path(layout), json.dumps(selection))
        write_text(Item("prepare", task).result_path(layout), json.dumps(entry.to_dict()))
        known = self._references(task)
        extracted = set(self.repair_plan.items.get("extract", ()))
        for shard in range(plan.shards(task)):
            item = Item("extract", task, shard=shard)
            if known and (item not in extracted or not item.result_path(layout).exists()):
                rows = [known[entry.sources[place]] for place in plan.members(task, shard)]
                columns = {"score": [s for s, _ in rows], "loss": [loss for _, loss in rows]}
                write_text(item.result_path(layout), json.dumps(columns))

    def _references(self, task: str) -> dict[str, tuple[float, float]]:
        """Return score and loss of each original, from a table that is intact; else nothing."""
        folder, names = Folder(self.files), Layout(Path())
        for path, read in (
            (names.originals_table, folder.originals_table),
            (names.labels(task), lambda: folder.label_rows(task).table),
        ):
            if path.as_posix() not in self.damaged:
                return {
                    row["source_id"]: (row["reference_score"], row["reference_loss"])
                    for row in read().to_pylist()
                    if row["task"] == task
                }
        return {}

    def is_intact(self, name: str) -> bool:
        """Return whether a file here has the manifest's bytes."""
        path, entry = self.layout.root / name, self.manifest.files[name]
        return (
            path.is_file()
            and path.stat().st_size == entry["size"]
            and hash_file(path) == entry["sha256"]
        )

    def run(self, workers: int, progress: Progress) -> Iterator[str]:
        """Run the items, join the tables; yield each file that was made again.

        Failures are recorded and do not stop the others, except a full disk.
        """
        context = BuildContext(self.repair_plan.plan, self.layout)
        with Executor(workers) as executor:
            for stage in stages_of(self.repair_plan.plan, self.files, self.plugins, self.layout):
                items = self.repair_plan.items.get(stage.name, ())
                self._begin(stage, items)
                todo = [item for item in items if not self._done(stage, item)]
                for item in items:
                    if item not in todo:
                        yield from self._made(stage, item)
                left = {name for item in todo for name in self._made(stage, item)}
                with self._record_failures(left):
                    for item, _ in drive(stage, executor, progress, items, todo):
                        left.difference_update(self._made(stage, item))
                        yield from self._made(stage, item)
        for task in self.repair_plan.tables:
            path = self.layout.labels(task)
            with self._record_failures({self.layout.relative(path)}):
                table = label_table(context, self.manifest.tasks[task], self.manifest.format)
                write_table(path, table)
                yield self.layout.relative(path)
        if self.repair_plan.originals:
            name = self.layout.relative(self.layout.originals_table)
            with self._record_failures({name}):
                write_table(self.layout.originals_table, originals_table(context, self.manifest))
                yield name

    def _begin(self, stage: BuildStage, items: tuple[Item, ...]) -> None:
        """Provide what a stage needs besides the inputs: array metadata and cached bitstreams."""
        for item in items:
            array = self.layout.compressed(item.task, item.codec) / "zarr.json"
            name = self.layout.relative(array)
            original = self.files.root / name
            if stage.name in ("compress", "decode") and original.is_file() and self._shards(item):
                link(original, array)
            if stage.name == "compress" and not item.result_path(self.layout).exists():
                self._fill_stream_cache(item)

    def _shards(self, item: Item) -> bool:
        """Whether shards of a codec's array are to be made."""
        array = self.layout.relative(self.layout.compressed(item.task, item.codec))
        return any(name.startswith(f"{array}/c/") for name in self.damaged)

    def _made(self, stage: BuildStage, item: Item) -> set[str]:
        """Return the damaged files that an item makes again."""
        return {self.layout.relative(path) for path in stage.outputs(item)} & self.damaged

    def _done(self, stage: BuildStage, item: Item) -> bool:
        files, labels = self._made(stage, item), stage.name == "compress"
        # Result files of other stages exist in any case.
        marked = item.result_path(self.layout).exists() if labels else bool(files)
        return marked and all((self.layout.root / name).is_file() for name in files)

    @contextmanager
    def _record_failures(self, names: Set[str]) -> Iterator[None]:
        """Record why files cannot be made again."""
        try:
            yield
        except DiskError:
            raise
        except CfqaError as error:
            self.reasons.update(dict.fromkeys(names, str(error)))

    def _fill_stream_cache(self, item: Item) -> None:
        """Fill the item's stream cache from the dataset, if its bitstreams are intact."""
        assert item.shard is not None
        plan, task = self.repair_plan.plan, item.task
        path = self.layout.bitstreams(task, item.codec, item.shard, plan.shards(task))
        if self.layout.relative(path) in self.damaged:
            return
        cache, entry = stream_cache(self.layout, item), self.manifest.tasks[task]
        ids = [entry.sources[place] for place in plan.members(task, item.shard)]
        for level in range(len(entry.codecs[item.codec].levels)):
            keys = [f"{source}/{level}" for source in ids]
            found = read_tensors(path, keys)
            cache.write(level, [found[key].tobytes() for key in keys])

    def write_card(self) -> str:
        """Write the card; return its name."""
        folder = Folder(self.files)
        labels = {task: folder.label_rows(task).table for task in self.manifest.tasks}
        sizes = {name: entry["size"] for name, entry in self.manifest.files.items()}
        text = card_text(self.manifest, labels, folder.originals_table(), sizes)
        write_text(self.layout.card, text)
        return self.layout.relative(self.layout.card)
