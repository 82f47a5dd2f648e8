"""Check that the parts of a dataset folder agree with each other, whatever their hashes are.

Hashes only show that a file is the one in the manifest. Checked here: the manifest lists exactly
the files of the format, labels point to existing arrays and bitstreams, derived values are
correct, and information that is stored twice is equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.access.files import Files
from cfqa_data.access.folder import Folder
from cfqa_data.access.tensors import TensorFile
from cfqa_data.arrow import pa
from cfqa_data.errors import FormatError
from cfqa_data.format import invariants
from cfqa_data.format.codes import shard_name
from cfqa_data.format.facts import TaskEntry
from cfqa_data.format.layout import ALL, NAMES
from cfqa_data.format.manifest import Manifest
from cfqa_data.integrity.health import health
from cfqa_data.integrity.verify import Fault

__all__ = ["inconsistencies"]

NEAR = 1e-9
"""Relative difference of what is summed, which differs between versions of NumPy."""


def inconsistencies(root: Path | Files, manifest: Manifest, damaged: set[str]) -> list[Fault]:
    """Return where the parts of a folder do not agree, by file.

    Args:
        root: The folder, or its files.
        manifest: Its manifest.
        damaged: Files that are known to be damaged; checks that need them are skipped.
    """
    job = _Job(Folder(root), manifest, frozenset(damaged))
    job.run(NAMES.manifest, (), job.list_of_files)
    tables: dict[str, invariants.LabelRows] = {}
    for task in manifest.tasks:
        name = NAMES.labels(task)
        job.run(name, (name,), partial(job.read_labels, task, tables))
        if task in tables:
            codecs = manifest.tasks[task].codecs
            streams = [job.shards(NAMES.bitstreams, task, codec) for codec in codecs]
            job.run(name, (name, *chain(*streams)), partial(job.labels, task, tables[task]))
        for codec in manifest.tasks[task].codecs:
            head = NAMES.compressed(task, codec) / "zarr.json"
            if head.as_posix() in manifest.files:
                job.run(head, (head,), partial(job.codes, task, codec))
        truth = NAMES.truth(task)
        if truth.as_posix() in manifest.files:
            job.run(truth, (truth,), partial(job.truths, task))
        for extra in _extras(manifest.tasks[task]):
            if extra.as_posix() in manifest.files:
                job.run(extra, (extra,), partial(job.tensors, extra))
    table = NAMES.originals_table
    originals = [job.shards(NAMES.originals, task) for task in manifest.tasks]
    job.run(table, (table, *chain(*originals)), partial(job.originals, tables))
    job.run(NAMES.previews, (NAMES.previews, table), job.previews)
    if len(tables) == len(manifest.tasks):
        job.run(NAMES.manifest, (), partial(job.health, tables))
    job.run(NAMES.card, (NAMES.card,), job.card)
    return job.faults


@dataclass
class _Job:
    folder: Folder
    manifest: Manifest
    damaged: frozenset[str]
    faults: list[Fault] = field(default_factory=list)
    _headers: dict[str, dict[str, tuple[str, list[int]]]] = field(default_factory=dict)

    def run(
        self, name: Path, needed: tuple[Path | str, ...], check: Callable[[], Iterator[str] | None]
    ) -> None:
        """Run a check of a file and record its faults, unless files that it needs are damaged."""
        if any(str(Path(path).as_posix()) in self.damaged for path in (name, *needed)):
            return
        try:
            self.faults += [Fault(name.as_posix(), what) for what in check() or ()]
        except FormatError as error:
            message = str(error).removeprefix(f"{self.folder.files.where(name.as_posix())}: ")
            self.faults.append(Fault(name.as_posix(), message))

    def list_of_files(self) -> Iterator[str]:
        """The manifest agrees with its recipe, and lists exactly the files of the format."""
        recipe = self.manifest.recipe.get("name", self.manifest.name)
        if self.manifest.name != recipe:
            yield f"its name is {self.manifest.name!r}, its recipe's {recipe!r}"
        listed = set(self.manifest.files)
        tables = (NAMES.originals_table, *map(NAMES.labels, self.manifest.tasks))
        known = {path.as_posix() for path in (NAMES.card, *tables)}
        known |= {NAMES.previews.as_posix(), NAMES.hero.as_posix()} & listed
        for task, entry in self.manifest.tasks.items():
            known |= self.shards(NAMES.originals, task).keys()
            known |= {path.as_posix() for path in _extras(entry)}
            if entry.facts.truth:
                known |= {NAMES.truth(task).as_posix()} & listed
            for codec in entry.codecs.values():
                streams = self.shards(NAMES.bitstreams, task, codec.name).keys()
                needed = self.manifest.tier == "light" and codec.facts.bits != "unknown"
                if needed or streams & listed:
                    known |= streams
                array = NAMES.compressed(task, codec.name).as_posix()
                stored = self.manifest.tier == "full" or codec.facts.on == "inputs"
                own = codec.origin is not None and not codec.origin.sha256
                if own and codec.facts.on == "features" and streams <= listed:  # which are enough
                    stored &= f"{array}/zarr.json" in listed
                if stored:
                    known.add(f"{array}/zarr.json")
                    known |= {f"{array}/{shard_name(n)}" for n in range(len(entry.sources))}
        for name in sorted(known - listed):
            yield f"does not list {name}"
        for name in sorted(listed - known):
            yield f"lists {name}, which is not part of the format"

    def shards(self, path: Callable[..., Path], task: str, *codec: str) -> dict[str, list[str]]:
        """Return the names of all shards of a task's originals or bitstreams, and their sources."""
        entry = self.manifest.tasks[task]
        return {
            name: list(entry.sources[number * entry.shard : (number + 1) * entry.shard])
            for number, name in enumerate(NAMES.shards(entry.shards, path, task, *codec))
        }

    def read_labels(self, task: str, tables: dict[str, invariants.LabelRows]) -> None:
        """The labels can be read, and have a row for each compressed feature."""
        tables[task] = self.folder.label_rows(task)

    def labels(self, task: str, rows: invariants.LabelRows) -> Iterator[str]:
        """Rows are in order, refer to existing data, and have correct derived values."""
        if (row := invariants.out_of_order(rows)) is not None:
            yield f"rows are not in the format's order, first row {row}"
        streams = {codec: self._streams(task, codec) for codec in rows.entry.codecs}
        named = (rows.table[name].to_pylist() for name in ("source_id", "codec", "level"))
        sizes = [streams[c].get(f"{s}/{n}", np.nan) for s, c, n in zip(*named, strict=True)]
        measured = invariants.measured_bits(np.array(sizes, np.float64))
        rules = (*invariants.PLACES, measured, *invariants.VALUES, *invariants.RANGES)
        yield from invariants.broken(rows, rules)

    def _streams(self, task: str, codec: str) -> dict[str, int]:
        """Return the size of each bitstream; empty for a codec without bitstreams."""
        found: dict[str, int] = {}
        for name, sources in self.shards(NAMES.bitstreams, task, codec).items():
            if name not in self.manifest.files:
                continue  # reported by the check of the list of files
            levels = range(len(self.manifest.tasks[task].codecs[codec].levels))
            expected = {f"{source}/{level}" for source in sources for level in levels}
            streams = self._header(name)
            for what in _others(streams, expected):
                raise FormatError(f"{name} {what}")
            for key, (dtype, shape) in streams.items():
                invariants.check_bitstream(dtype, len(shape), f"{name}: {key!r}")
                found[key] = shape[0]
        return found

    def codes(self, task: str, codec: str) -> None:
        """The array has the manifest's sources and quantiser."""
        self.folder.open_codes(task, codec)

    def tensors(self, name: Path) -> None:
        """It is a safetensors file."""
        self._header(name.as_posix())

    def truths(self, task: str) -> Iterator[str]:
        """There is a truth of the task's kind for every source, and for no other."""
        found = self._header(NAMES.truth(task).as_posix())
        yield from _others(found, self.manifest.tasks[task].sources)
        for key, (dtype, shape) in found.items():
            invariants.check_truth(self.manifest.tasks[task].facts, dtype, len(shape), repr(key))

    def originals(self, tables: Mapping[str, invariants.LabelRows]) -> Iterator[str]:
        """Each original is where its row says, and the row agrees with the labels."""
        sources = [(t, s) for t, e in self.manifest.tasks.items() for s in e.sources]
        rows = self.folder.originals_table().to_pylist()
        if [(row["task"], row["source_id"]) for row in rows] != sources:
            yield "rows are not in the manifest's order"
        known = {row["source_id"]: row for row in rows}
        for task, entry in self.manifest.tasks.items():
            shards = self.shards(NAMES.originals, task)
            n, c, t, d = entry.shape
            for name, ids in shards.items():
                features = self._header(name) if name in self.manifest.files else {}
                yield from (f"{name} {what}" for what in _others(features, ids) if features)
                for key, kind in features.items():
                    tokens = known[key].get("tokens", t) if key in known else t
                    if kind != ("float32", [n, c, tokens, d]):
                        yield f"{name}: {key!r} is {kind}, not a feature of {task}"
            place = {source: name for name, ids in shards.items() for source in ids}
            folds = invariants.folds_of(entry).tolist()
            for source, fold, group in zip(entry.sources, folds, entry.group_of, strict=True):
                row = known[source]
                recorded = {"fold": fold, "array": place[source], "key": source, "group": group}
                for column, value in recorded.items():
                    if column in row and row[column] != value:
                        yield f"{column} of {source} is {row[column]!r}, not {value!r}"
                if not math.isfinite(row["reference_score"]):
                    yield f"reference_score of {source} is {row['reference_score']}"
            if task in tables:
                yield from _same_references(tables[task].table, known)

    def previews(self) -> Iterator[str]:
        """Beside pictures and answers, it is the table of originals."""
        found = self.folder.previews()
        if found and not found[1].equals(self.folder.originals_table()):
            yield "its columns beside pictures are not those of labels/originals.parquet"

    def health(self, tables: Mapping[str, invariants.LabelRows]) -> Iterator[str]:
        """The manifest's health figures agree with the labels."""
        found = health(pa.concat_tables([rows.table for rows in tables.values()]))
        recorded = [dict(row) for row in self.manifest.health]
        if len(found) != len(recorded) or not all(map(_same_health, found, recorded)):
            yield "its label sanity checks differ from the labels"

    def card(self) -> Iterator[str]:
        """The row counts in the card's YAML head are correct; version 0.1 has all as "default"."""
        counts = {task: entry.rows for task, entry in self.manifest.tasks.items()}
        originals = sum(len(entry.sources) for entry in self.manifest.tasks.values())
        expected = {**counts, "originals": originals}
        card = self.folder.files.read(NAMES.card.as_posix())
        found = _recorded_rows(card.decode("utf-8", "replace"))
        every = next((name for name in ("default", ALL) if name in found), "")
        if every not in counts and (every or len(counts) > 1):
            expected[every or ALL] = sum(counts.values())
        for name in expected:
            if found.get(name) != expected[name]:
                yield f"states {found.get(name)} rows of {name!r}, there are {expected[name]}"

    def _header(self, name: str) -> dict[str, tuple[str, list[int]]]:
        """Return dtype and shape of the tensors in a safetensors file."""
        if name not in self._headers:
            tensors = TensorFile(self.folder.files, name).tensors
            self._headers[name] = {k: (str(t.dtype), list(t.shape)) for k, t in tensors.items()}
        return self._headers[name]


def _extras(entry: TaskEntry) -> list[Path]:
    """Return the files that a task has beside what every task has."""
    tables = [NAMES.tables(name) for codec in entry.codecs.values() for name in codec.tables]
    return [*tables, *([NAMES.gallery(entry.gallery)] if entry.gallery else [])]


def _others(found: Iterable[str], expected: Iterable[str]) -> Iterator[str]:
    """Yield a line for unexpected keys and one for missing keys."""
    keys, known = set(found), set(expected)
    for key in sorted(keys - known):
        yield f"contains {key!r}, which does not belong there"
    if missing := sorted(known - keys):
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        yield f"lacks {missing[0]!r}{more}"


def _recorded_rows(card: str) -> dict[str, int]:
    """Return how many rows each config has by the head of a card."""
    recorded, config = {}, ""
    head = card.partition("\n---\n")[0].partition("\ndataset_info:\n")[2]
    for line in head.splitlines():
        key, _, value = line.strip(" -").partition(": ")
        if key == "config_name":
            config = value.strip("\"'")
        elif key == "num_examples" and value.isdecimal() and len(value) < 19:
            recorded[config] = int(value)
    return recorded


def _same_references(table: pa.Table, known: Mapping[str, Any]) -> Iterator[str]:
    sources = table["source_id"].to_pylist()
    for column in ("reference_score", "reference_loss", "tokens"):
        if column not in table.column_names:
            continue
        expected = np.array([known[source][column] for source in sources], np.float64)
        found = table[column].to_numpy()
        if (wrong := ~_same(found, expected)).any():
            row = int(wrong.argmax())
            yield (
                f"{column} of {sources[row]} is {expected[row]}, the labels have {found[row]} at "
                f"level {table['level'][row].as_py()} of {table['codec'][row].as_py()}"
            )


def _same(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return where two arrays are equal; NaN equals NaN."""
    return np.asarray((found == expected) | (np.isnan(found) & np.isnan(expected)))


def _same_health(found: Mapping[str, Any], recorded: Mapping[str, Any]) -> bool:
    """Whether figures of health are the labels', or what earlier versions made of unknown rates."""
    if found["rate_falls"] is None and recorded.get("rate_falls") is not None:
        found = {**found, "rate_falls": 0.0, "ok": False}
    if found.keys() != recorded.keys():
        return False
    return all(
        math.isclose(value, recorded[key], rel_tol=NEAR, abs_tol=NEAR)
        if isinstance(value, float) and isinstance(recorded[key], int | float)
        else value == recorded[key]
        for key, value in found.items()
    )
