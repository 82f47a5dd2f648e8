"""The scratch build of a repair: intact files linked, markers from intact tables, items run again.

The pipeline writes files beside and renames them, so a link to a dataset's file is never written
through.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from cfqa_data.access.files import Files, LocalFiles
from cfqa_data.access.folder import Folder
from cfqa_data.builders.maintenance.plan import Steps, made_by
from cfqa_data.builders.pipeline.compress import kept_streams
from cfqa_data.builders.pipeline.pack import label_table, originals_table
from cfqa_data.builders.pipeline.plan import STAGES, Item
from cfqa_data.builders.pipeline.run import make_runner
from cfqa_data.builders.pipeline.tools import Tools, read_json, read_tensors
from cfqa_data.builders.pipeline.workspace import PLAN
from cfqa_data.builders.processes.parallel import each
from cfqa_data.card.write import card_text
from cfqa_data.console.progress import Progress
from cfqa_data.errors import CfqaError, DiskError, FormatError
from cfqa_data.format.codes import create_codes_array, find_centres, write_codes
from cfqa_data.format.layout import Layout
from cfqa_data.format.manifest import Manifest, hash_file
from cfqa_data.format.schema import originals_schema
from cfqa_data.format.storage import (
    make_folder,
    read_labels,
    read_table,
    remove_partials,
    write_table,
    write_text,
)
from cfqa_data.format.tasks import LEVELS

__all__ = ["Scratch", "link"]

INPUTS = ("originals/", "truth/", "bitstreams/")
"""Where items find what earlier ones made."""


def link(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system cannot, copy it."""
    target.unlink(missing_ok=True)
    try:
        os.link(os.path.realpath(source), target)  # of a link, what it leads to
    except OSError:
        shutil.copyfile(source, target)


@dataclass(frozen=True)
class Scratch:
    """A build folder inside the dataset's, with what is intact.

    Attributes:
        files: the dataset's.
        manifest: its manifest.
        steps: what is to be done.
        damaged: the damaged files that the manifest lists.
        layout: of the scratch folder.
        reasons: file that cannot be made again -> why.
    """

    files: LocalFiles
    manifest: Manifest
    steps: Steps
    damaged: frozenset[str]
    layout: Layout
    reasons: dict[str, str] = field(default_factory=dict)

    def prepare(self) -> None:
        """Make the folder, or see that what a repair that was killed left is still right."""
        path, text = self.layout.work / PLAN, self.steps.plan.to_json()
        links = any(inside.is_symlink() for inside in self.layout.root.rglob("*"))
        if links or not path.is_file() or path.read_text(encoding="utf-8") != text:
            shutil.rmtree(self.layout.root, ignore_errors=True)
        remove_partials(self.layout.root)
        write_text(path, text)
        for name in self.manifest.files:
            if not name.startswith(INPUTS):
                continue
            here = self.layout.root / name
            if name not in self.damaged:
                make_folder(here.parent)
                link(self.files.root / name, here)
            elif here.is_file() and not self.right(name):
                here.unlink()
        for task in self.steps.plan.recipe.tasks:
            self._mark(task)

    def _mark(self, task: str) -> None:
        """Note what select and extract would find, from the tables that are intact."""
        sources = list(self.manifest.tasks[task].sources)
        write_text(Item("select", task).marker(self.layout), json.dumps(sources))
        known = self._references(task)
        extracted = set(self.steps.items["extract"])
        for group in range(self.steps.plan.groups):
            item = Item("extract", task, "", group)
            if known and (item not in extracted or not item.marker(self.layout).exists()):
                rows = [known[sources[place]] for place in self.steps.plan.members(group)]
                told = {"score": [s for s, _ in rows], "loss": [loss for _, loss in rows]}
                write_text(item.marker(self.layout), json.dumps(told))

    def _references(self, task: str) -> dict[str, tuple[float, float]]:
        """Return score and loss of each original, from a table that is intact; else nothing."""
        theirs = Layout(self.files.root)
        for path, read in (
            (theirs.originals_table, partial(read_table, schema=originals_schema())),
            (theirs.labels(task), read_labels),
        ):
            if theirs.relative(path) not in self.damaged:
                rows = read(path).to_pylist()
                return {
                    row["source_id"]: (row["reference_score"], row["reference_loss"])
                    for row in rows
                    if row["task"] == task
                }
        return {}

    def right(self, name: str) -> bool:
        """Return whether a file here has the manifest's bytes."""
        path, entry = self.layout.root / name, self.manifest.files[name]
        return (
            path.is_file()
            and path.stat().st_size == entry["size"]
            and hash_file(path) == entry["sha256"]
        )

    def run(self, workers: int, progress: Progress) -> Iterator[str]:
        """Run the items, join the tables; yield each file that was made again.

        What cannot be made is noted, and does not keep the rest from it; but for a full disk.
        """
        plan, tools = self.steps.plan, Tools(self.steps.plan, self.layout)
        every = [item for stage in STAGES for item in self.steps.items[stage]]
        with make_runner(workers if not all(map(self._done, every)) else 0, None) as runner:
            for stage in STAGES:
                items = self.steps.items[stage]
                todo = [item for item in items if not self._done(item)]
                if not items:
                    continue
                for item in todo:
                    if stage == "compress":
                        self._keep_streams(item)
                progress.start(stage, sum(map(plan.size, items)), plan.unit(stage))
                progress.advance(sum(plan.size(item) for item in items if item not in todo))
                for item in items:
                    if item not in todo:
                        yield from made_by(plan, item)
                left = {name for item in todo for name in made_by(plan, item)}
                with self._noting(left):
                    for item in runner.run(self.layout.root, plan.digest(), todo):
                        left.difference_update(made_by(plan, item))
                        yield from made_by(plan, item)
                        progress.advance(plan.size(item))
                    progress.finish()
        for task in self.steps.tables:
            path = self.layout.labels(task)
            with self._noting({self.layout.relative(path)}):
                write_table(path, label_table(tools, self.manifest.tasks[task]))
                yield self.layout.relative(path)
        if self.steps.originals:
            name = self.layout.relative(self.layout.originals_table)
            with self._noting({name}):
                write_table(self.layout.originals_table, originals_table(tools))
                yield name

    @contextmanager
    def _noting(self, names: Set[str]) -> Iterator[None]:
        """Note why files cannot be made again."""
        try:
            yield
        except DiskError:
            raise
        except CfqaError as error:
            self.reasons.update(dict.fromkeys(names, str(error)))

    def _done(self, item: Item) -> bool:
        files = self.damaged & set(made_by(self.steps.plan, item))
        if item.stage in ("select", "extract"):  # their markers are here in any case
            return bool(files) and all((self.layout.root / name).is_file() for name in files)
        return item.marker(self.layout).exists() and all(
            (self.layout.root / name).is_file() for name in files
        )

    def _keep_streams(self, item: Item) -> None:
        """Let the item find its bitstreams already encoded, where they are intact."""
        plan = self.steps.plan
        path = self.layout.bitstreams(item.task, item.codec, item.group, plan.groups)
        if self.layout.relative(path) in self.damaged:
            return
        kept = kept_streams(self.layout, item)
        sources = self.manifest.tasks[item.task].sources
        ids = [sources[place] for place in plan.members(item.group)]
        for level in range(LEVELS):
            keys = [f"{source}/{level}" for source in ids]
            found = read_tensors(path, keys)
            kept.write(level, [found[key].tobytes() for key in keys])

    def write_heads(self) -> Iterator[str]:
        """Write the metadata of arrays of codes; yield the files."""
        for task, codec in self.steps.heads:
            entry = self.manifest.tasks[task]
            item = Item("centre", task)
            if item in self.steps.items["centre"]:
                centres = read_json(item.marker(self.layout))[codec]
            else:  # of a release: by its first feature
                first = Folder(self.files).decoded(entry.sources[0], codec, 0)
                centres = list(find_centres(first.indices))
            path, quantizer = self.layout.compressed(task, codec), entry.codecs[codec].quantizer
            assert quantizer is not None
            (path / "zarr.json").unlink(missing_ok=True)
            create_codes_array(
                path,
                sources=len(entry.sources),
                levels=LEVELS,
                shape=entry.shape,
                quantizer=quantizer,
                centres=centres,
                source_ids=entry.sources,
            )
            yield self.layout.relative(path / "zarr.json")

    def write_shards(self, workers: int, progress: Progress) -> Iterator[str]:
        """Decode bitstreams, which are intact by now, to shards of codes; yield the files."""
        jobs = self.steps.codes
        if not jobs:
            return
        for task, codec in {(task, codec) for task, codec, _ in jobs}:
            path = self.layout.compressed(task, codec)
            make_folder(path)
            link(Layout(self.files.root).compressed(task, codec) / "zarr.json", path / "zarr.json")
        progress.start("decode", len(jobs), "sources")
        for name, why in each(_decoder, (self.files, self.layout), jobs, workers):
            if why:
                self.reasons[name] = why
            yield name
            progress.advance()
        progress.finish()

    def write_card(self) -> str:
        """Write the card; return its name."""
        folder = Folder(self.files)
        labels = {task: folder.label_rows(task).table for task in self.manifest.tasks}
        sizes = {name: entry["size"] for name, entry in self.manifest.files.items()}
        text = card_text(self.manifest, labels, folder.originals_table(), sizes)
        write_text(self.layout.card, text)
        return self.layout.relative(self.layout.card)


def _decoder(files: Files, layout: Layout) -> Callable[[tuple[str, str, int]], tuple[str, str]]:
    folder = Folder(files)

    def decode(job: tuple[str, str, int]) -> tuple[str, str]:
        """Write a source's shard; return its name, and why it could not be written."""
        task, codec, position = job
        source = folder.manifest.tasks[task].sources[position]
        path = layout.compressed(task, codec)
        shard = path / f"c/{position}/0/0/0/0/0"
        try:
            levels = [folder.decoded(source, codec, level).indices for level in range(LEVELS)]
            write_codes(path, position, np.stack(levels))
        except FormatError as error:
            shard.unlink(missing_ok=True)
            return layout.relative(shard), str(error)
        return layout.relative(shard), ""

    return decode
