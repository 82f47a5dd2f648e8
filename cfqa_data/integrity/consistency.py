"""Check that the files of a dataset folder are consistent with each other.

Hashes only show that a file is the one in the manifest. The checks here show that the manifest
lists exactly the files of the format, that labels refer to existing arrays and bitstreams, that
derived values are correct, and that redundant information is equal.
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
"""Relative tolerance for sums, which differ between versions of NumPy."""


def inconsistencies(root: Path | Files, manifest: Manifest, damaged: set[str]) -> list[Fault]:
    """Return the inconsistencies of a folder, by file.

    Args:
        root: Path of the folder, or its files.
        manifest: Manifest of the folder.
        damaged: Files that are known to be damaged; checks that read them are skipped.
    """
    checks = _Checks(Folder(root), manifest, frozenset(damaged))
    checks.run(NAMES.manifest, (), checks.list_of_files)
    tables: dict[str, invariants.LabelRows] = {}
    for task, entry in manifest.tasks.items():
        name = NAMES.labels(task)
        checks.run(name, (), partial(checks.read_labels, task, tables))
        if task in tables:
            streams = [checks.shards(NAMES.bitstreams, task, codec) for codec in entry.codecs]
            checks.run(name, (*chain(*streams),), partial(checks.labels, task, tables[task]))
        for codec in entry.codecs:
            metadata = NAMES.compressed(task, codec) / "zarr.json"
            if metadata.as_posix() in manifest.files:
                checks.run(metadata, (), partial(checks.codes, task, codec))
        truth = NAMES.truth(task)
        if truth.as_posix() in manifest.files:
            checks.run(truth, (), partial(checks.truths, task))
        for extra in _extras(entry):
            if extra.as_posix() in manifest.files:
                checks.run(extra, (), partial(checks.tensors, extra))
    table = NAMES.originals_table
    originals = [checks.shards(NAMES.originals, task) for task in manifest.tasks]
    checks.run(table, (*chain(*originals),), partial(checks.originals, tables))
    checks.run(NAMES.previews, (table,), checks.previews)
    if len(tables) == len(manifest.tasks):
        checks.run(NAMES.manifest, (), partial(checks.health, tables))
    checks.run(NAMES.card, (), checks.card)
    return checks.faults


@dataclass
class _Checks:
    """The checks of a folder. Each yields its faults, which :meth:`run` collects."""

    folder: Folder
    manifest: Manifest
    damaged: frozenset[str]
    faults: list[Fault] = field(default_factory=list)
    _headers: dict[str, dict[str, tuple[str, list[int]]]] = field(default_factory=dict)

    def run(
        self, name: Path, others: tuple[Path | str, ...], check: Callable[[], Iterator[str] | None]
    ) -> None:
        """Run a check of a file and record its faults.

        Args:
            name: Name of the file.
            others: Further files that the check reads. It is skipped if one of them is damaged.
            check: The check, which yields faults or raises `FormatError`.
        """
        if any(Path(path).as_posix() in self.damaged for path in (name, *others)):
            return
        try:
            self.faults += [Fault(name.as_posix(), fault) for fault in check() or ()]
        except FormatError as error:
            message = str(error).removeprefix(f"{self.folder.files.where(name.as_posix())}: ")
            self.faults.append(Fault(name.as_posix(), message))

    def list_of_files(self) -> Iterator[str]:
        """Check the manifest against its recipe, and its list of files against the format."""
        recipe = self.manifest.recipe.get("name", self.manifest.name)
        if self.manifest.name != recipe:
            yield f"its name is {self.manifest.name!r}, its recipe's {recipe!r}"
        listed = set(self.manifest.files)
        tables = (NAMES.originals_table, *map(NAMES.labels, self.manifest.tasks))
        expected = {path.as_posix() for path in (NAMES.card, *tables)}
        expected |= {NAMES.previews.as_posix(), NAMES.hero.as_posix()} & listed
        for task, entry in self.manifest.tasks.items():
            expected |= self.shards(NAMES.originals, task).keys()
            expected |= {path.as_posix() for path in _extras(entry)}
            if entry.facts.truth:
                expected |= {NAMES.truth(task).as_posix()} & listed
            for codec in entry.codecs.values():
                streams = self.shards(NAMES.bitstreams, task, codec.name).keys()
                required = self.manifest.tier == "light" and codec.facts.bits != "unknown"
                if required or streams & listed:
                    expected |= streams
                array = NAMES.compressed(task, codec.name).as_posix()
                stored = self.manifest.tier == "full" or codec.facts.on == "inputs"
                builtin = codec.origin is not None and not codec.origin.sha256
                # The bitstreams of a built-in codec on features suffice, so its array is optional.
                if builtin and codec.facts.on == "features" and streams <= listed:
                    stored &= f"{array}/zarr.json" in listed
                if stored:
                    expected.add(f"{array}/zarr.json")
                    expected |= {f"{array}/{shard_name(n)}" for n in range(len(entry.sources))}
        for name in sorted(expected - listed):
            yield f"does not list {name}"
        for name in sorted(listed - expected):
            yield f"lists {name}, which is not part of the format"

    def shards(self, path: Callable[..., Path], task: str, *codec: str) -> dict[str, list[str]]:
        """Return the shards of a task's originals or bitstreams: name -> sources."""
        entry = self.manifest.tasks[task]
        return {
            name: list(entry.sources[number * entry.shard : (number + 1) * entry.shard])
            for number, name in enumerate(NAMES.shards(entry.shards, path, task, *codec))
        }

    def read_labels(self, task: str, tables: dict[str, invariants.LabelRows]) -> None:
        """Read the labels of a task, which must have one row per compressed feature."""
        tables[task] = self.folder.label_rows(task)

    def labels(self, task: str, rows: invariants.LabelRows) -> Iterator[str]:
        """Check the order of the rows, their references to data, and their derived values."""
        if (row := invariants.first_unordered(rows)) is not None:
            yield f"rows are not in the format's order, first row {row}"
        streams = {codec: self._streams(task, codec) for codec in rows.entry.codecs}
        columns = (rows.table[name].to_pylist() for name in ("source_id", "codec", "level"))
        sizes = [streams[c].get(f"{s}/{n}", np.nan) for s, c, n in zip(*columns, strict=True)]
        measured = invariants.measured_bits(np.array(sizes, np.float64))
        rules = (
            *invariants.POSITION_RULES,
            measured,
            *invariants.VALUE_RULES,
            *invariants.RANGE_RULES,
        )
        yield from invariants.violations(rows, rules)

    def _streams(self, task: str, codec: str) -> dict[str, int]:
        """Return the size of each bitstream in bytes; empty for a codec without bitstreams."""
        sizes: dict[str, int] = {}
        for name, sources in self.shards(NAMES.bitstreams, task, codec).items():
            if name not in self.manifest.files:
                continue  # reported by `list_of_files`
            levels = range(len(self.manifest.tasks[task].codecs[codec].levels))
            expected = {f"{source}/{level}" for source in sources for level in levels}
            streams = self._header(name)
            for fault in _key_faults(streams, expected):
                raise FormatError(f"{name} {fault}")
            for key, (dtype, shape) in streams.items():
                invariants.check_bitstream(dtype, len(shape), f"{name}: {key!r}")
                sizes[key] = shape[0]
        return sizes

    def codes(self, task: str, codec: str) -> None:
        """Check the sources and the quantiser of an array."""
        self.folder.open_codes(task, codec)

    def tensors(self, name: Path) -> None:
        """Check that a file is a safetensors file."""
        self._header(name.as_posix())

    def truths(self, task: str) -> Iterator[str]:
        """Check that every source, and no other, has a ground truth of the task's kind."""
        truths = self._header(NAMES.truth(task).as_posix())
        yield from _key_faults(truths, self.manifest.tasks[task].sources)
        for key, (dtype, shape) in truths.items():
            invariants.check_truth(self.manifest.tasks[task].facts, dtype, len(shape), repr(key))

    def originals(self, tables: Mapping[str, invariants.LabelRows]) -> Iterator[str]:
        """Check the table of originals against their files and the labels."""
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
                yield from (f"{name} {fault}" for fault in _key_faults(features, ids) if features)
                for key, kind in features.items():
                    tokens = known[key].get("tokens", t) if key in known else t
                    if kind != ("float32", [n, c, tokens, d]):
                        yield f"{name}: {key!r} is {kind}, not a feature of {task}"
            shard_of = {source: name for name, ids in shards.items() for source in ids}
            folds = invariants.folds_of(entry).tolist()
            for source, fold, group in zip(entry.sources, folds, entry.group_of, strict=True):
                row = known[source]
                expected = {"fold": fold, "array": shard_of[source], "key": source, "group": group}
                for column, value in expected.items():
                    if column in row and row[column] != value:
                        yield f"{column} of {source} is {row[column]!r}, not {value!r}"
                if not math.isfinite(row["reference_score"]):
                    yield f"reference_score of {source} is {row['reference_score']}"
            if task in tables:
                yield from _reference_faults(tables[task].table, known)

    def previews(self) -> Iterator[str]:
        """Check that the previews, without their images and answers, equal the originals."""
        previews = self.folder.previews()
        if previews and not previews[1].equals(self.folder.originals_table()):
            yield "its columns beside pictures are not those of labels/originals.parquet"

    def health(self, tables: Mapping[str, invariants.LabelRows]) -> Iterator[str]:
        """Check the label sanity checks in the manifest against the labels."""
        expected = health(pa.concat_tables([rows.table for rows in tables.values()]))
        recorded = [dict(row) for row in self.manifest.health]
        if len(expected) != len(recorded) or not all(map(_same_health, expected, recorded)):
            yield "its label sanity checks differ from the labels"

    def card(self) -> Iterator[str]:
        """Check the row counts in the YAML head of the card.

        Cards of version 0.1 have the config "default" for all tasks.
        """
        counts = {task: entry.rows for task, entry in self.manifest.tasks.items()}
        originals = sum(len(entry.sources) for entry in self.manifest.tasks.values())
        expected = {**counts, "originals": originals}
        card = self.folder.files.read(NAMES.card.as_posix())
        recorded = _recorded_rows(card.decode("utf-8", "replace"))
        every = next((name for name in ("default", ALL) if name in recorded), "")
        if every not in counts and (every or len(counts) > 1):
            expected[every or ALL] = sum(counts.values())
        for name in expected:
            if recorded.get(name) != expected[name]:
                yield f"states {recorded.get(name)} rows of {name!r}, there are {expected[name]}"

    def _header(self, name: str) -> dict[str, tuple[str, list[int]]]:
        """Return the dtype and shape of each tensor in a safetensors file, cached."""
        if name not in self._headers:
            tensors = TensorFile(self.folder.files, name).tensors
            self._headers[name] = {k: (str(t.dtype), list(t.shape)) for k, t in tensors.items()}
        return self._headers[name]


def _extras(entry: TaskEntry) -> list[Path]:
    """Return the optional files of a task: tables of its codecs, and its gallery."""
    tables = [NAMES.tables(name) for codec in entry.codecs.values() for name in codec.tables]
    return [*tables, *([NAMES.gallery(entry.gallery)] if entry.gallery else [])]


def _key_faults(keys: Iterable[str], expected: Iterable[str]) -> Iterator[str]:
    """Yield a fault for each unexpected key, and one for missing keys."""
    present, required = set(keys), set(expected)
    for key in sorted(present - required):
        yield f"contains {key!r}, which does not belong there"
    if missing := sorted(required - present):
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        yield f"lacks {missing[0]!r}{more}"


def _recorded_rows(card: str) -> dict[str, int]:
    """Return the number of rows of each config, according to the YAML head of a card."""
    recorded, config = {}, ""
    head = card.partition("\n---\n")[0].partition("\ndataset_info:\n")[2]
    for line in head.splitlines():
        key, _, value = line.strip(" -").partition(": ")
        if key == "config_name":
            config = value.strip("\"'")
        elif key == "num_examples" and value.isdecimal() and len(value) < 19:
            recorded[config] = int(value)
    return recorded


def _reference_faults(table: pa.Table, originals: Mapping[str, Any]) -> Iterator[str]:
    """Yield a fault for each column that differs between labels and originals."""
    sources = table["source_id"].to_pylist()
    for column in ("reference_score", "reference_loss", "tokens"):
        if column not in table.column_names:
            continue
        expected = np.array([originals[source][column] for source in sources], np.float64)
        values = table[column].to_numpy()
        differ = (values != expected) & ~(np.isnan(values) & np.isnan(expected))
        if differ.any():
            row = int(differ.argmax())
            yield (
                f"{column} of {sources[row]} is {expected[row]}, the labels have {values[row]} at "
                f"level {table['level'][row].as_py()} of {table['codec'][row].as_py()}"
            )


def _same_health(expected: Mapping[str, Any], recorded: Mapping[str, Any]) -> bool:
    """Return whether recorded figures agree with those of the labels.

    Earlier versions recorded unknown rates as not falling, which is accepted.
    """
    if expected["rate_falls"] is None and recorded.get("rate_falls") is not None:
        expected = {**expected, "rate_falls": 0.0, "ok": False}
    if expected.keys() != recorded.keys():
        return False
    return all(
        math.isclose(value, recorded[key], rel_tol=NEAR, abs_tol=NEAR)
        if isinstance(value, float) and isinstance(recorded[key], int | float)
        else value == recorded[key]
        for key, value in expected.items()
    )
