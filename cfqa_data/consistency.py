"""Whether the parts of a dataset folder agree with each other, whatever their hashes say.

Hashes tell that a file is the one of the manifest. Here: that the manifest lists the files that the
format has and no other, that labels point to arrays and bitstreams that are there, that what is
counted from others is counted right, and that what stands in two places is the same in both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfqa_data.codes import CodesReader
from cfqa_data.errors import FormatError
from cfqa_data.files import Files
from cfqa_data.folder import Folder
from cfqa_data.health import health
from cfqa_data.layout import Layout
from cfqa_data.limits import parse_json
from cfqa_data.manifest import Manifest
from cfqa_data.schema import originals_schema
from cfqa_data.storage import check_rows, read_table
from cfqa_data.tasks import FOLDS, LEVELS, get_task
from cfqa_data.verify import Fault

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["inconsistencies"]

NAMES = Layout(Path())
"""Names in a folder, relative to it."""

SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors")

NEAR = 1e-9
"""Relative difference of what is summed, which differs between versions of NumPy."""


def inconsistencies(root: Path | Files, manifest: Manifest, damaged: set[str]) -> list[Fault]:
    """Return where the parts of a folder do not agree, by file.

    Args:
        root: the folder, or its files.
        manifest: its manifest.
        damaged: files that are known to be damaged; what they are needed for is not looked at.
    """
    job = _Job(Folder(root), manifest, frozenset(damaged))
    job.run(NAMES.manifest, (), job.list_of_files)
    tables: dict[str, pa.Table] = {}
    for task in manifest.tasks:
        name = NAMES.labels(task)
        job.run(name, (name,), partial(job.read_labels, task, tables))
        if task in tables:
            streams = job.shards(f"bitstreams/{task}-")
            job.run(name, (name, *streams), partial(job.labels, task, tables[task]))
        for codec in manifest.recipe.tasks[task].ladders:
            head = NAMES.compressed(task, codec) / "zarr.json"
            if head.as_posix() in manifest.files:
                job.run(head, (head,), partial(job.codes, task, codec))
        truth = NAMES.truth(task)
        if truth.as_posix() in manifest.files:
            job.run(truth, (truth,), partial(job.truths, task))
    table = NAMES.originals_table
    job.run(table, (table, *job.shards("originals/")), partial(job.originals, tables))
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
        self, name: Path, needed: tuple[Path | str, ...], check: Callable[[], Iterator[str]]
    ) -> None:
        """Note what a check of a file finds, if what it needs is not damaged."""
        if any(str(Path(path).as_posix()) in self.damaged for path in (name, *needed)):
            return
        try:
            self.faults += [Fault(name.as_posix(), what) for what in check()]
        except FormatError as error:
            told = str(error).removeprefix(f"{self.folder.files.where(name.as_posix())}: ")
            self.faults.append(Fault(name.as_posix(), told))

    def shards(self, start: str) -> list[str]:
        """Return the files that the manifest lists below some start of their names."""
        return sorted(name for name in self.manifest.files if name.startswith(start))

    def list_of_files(self) -> Iterator[str]:
        """The manifest lists what the format has, and nothing else."""
        listed = set(self.manifest.files)
        tables = (NAMES.originals_table, *map(NAMES.labels, self.manifest.tasks))
        known = {path.as_posix() for path in (NAMES.card, *tables)}
        for task, entry in self.manifest.tasks.items():
            known |= self._all_shards(f"originals/{task}") or {f"originals/{task}-*.safetensors"}
            known |= {NAMES.truth(task).as_posix()} & listed
            for codec in self.manifest.recipe.tasks[task].ladders:
                stem = f"bitstreams/{task}-{codec}"
                streams = self._all_shards(stem)
                if self.manifest.tier == "light" and not streams:
                    streams = {f"{stem}-*.safetensors"}
                known |= streams
                if self.manifest.tier == "full":
                    array = NAMES.compressed(task, codec).as_posix()
                    known.add(f"{array}/zarr.json")
                    known |= {f"{array}/c/{n}/0/0/0/0/0" for n in range(len(entry.sources))}
        for name in sorted(known - listed):
            yield f"does not list {name}"
        for name in sorted(listed - known):
            yield f"lists {name}, which the format does not have"

    def _all_shards(self, stem: str) -> set[str]:
        """Return the names of all shards of a stem, judged by those that are listed."""
        found = [SHARD.fullmatch(name[len(stem) :]) for name in self.shards(f"{stem}-")]
        total = max((int(match[2]) for match in found if match), default=0)
        return {f"{stem}-{n:05d}-of-{total:05d}.safetensors" for n in range(total)}

    def read_labels(self, task: str, tables: dict[str, pa.Table]) -> Iterator[str]:
        """The labels can be read, and have a row for each compressed feature."""
        tables[task] = self.folder.labels(task)
        return iter(())

    def labels(self, task: str, table: pa.Table) -> Iterator[str]:
        """Every row is at its place, points to what is there, and is counted right."""
        entry, spec = self.manifest.tasks[task], self.manifest.recipe.tasks[task]
        data = {name: table[name].to_numpy() for name in table.column_names}
        codecs, place = list(spec.ladders), {s: n for n, s in enumerate(entry.sources)}
        index = np.array([place[source] for source in data["source_id"]], np.int64)
        rank = np.array([codecs.index(codec) for codec in data["codec"]], np.int64)
        level = data["level"].astype(np.int64)
        cell = (index * len(codecs) + rank) * LEVELS + level
        streams = {codec: self._streams(task, codec) for codec in codecs}
        keys = zip(data["source_id"], data["codec"], level, strict=True)
        bits = np.array([8 * streams[c].get(f"{s}/{n}", 0) for s, c, n in keys], np.int64)
        points = math.prod(entry.shape)
        score, reference = data["score"], data["reference_score"]
        parameters = np.array([ladder.levels for ladder in spec.ladders.values()], np.float64)
        names = np.array([ladder.parameter_name for ladder in spec.ladders.values()], object)
        arrays = np.array([NAMES.compressed(task, c).as_posix() for c in codecs], object)
        sign = 1.0 if get_task(task).score_lower_better else -1.0
        unscored = bool(np.isnan(data["loss"]).all() and np.isnan(data["reference_loss"]).all())
        right = {
            "fold": (data["fold"] == index % FOLDS, "its source's position modulo 5"),
            "index": (data["index"] == index, "its source's position"),
            "array": (data["array"] == arrays[rank], "the array of its codec"),
            "parameter_name": (data["parameter_name"] == names[rank], "the recipe's"),
            "parameter": (data["parameter"] == parameters[rank, level], "the recipe's"),
            "bits": (data["bits"] == bits, "8 times the bytes of its bitstream"),
            "bpfp": (
                (data["bpfp"] == data["bits"] / points) | (np.isnan(data["bpfp"]) & (bits == 0)),
                "bits per feature point",
            ),
            "distortion": (
                data["distortion"] == sign * (score - reference),
                "the harm to the score",
            ),
        }
        for name in ("score", "reference_score", "mse", "cosine", "cka"):
            right[f"{name} "] = (np.isfinite(data[name]), "a finite number")
        for name in ("loss", "reference_loss"):
            finite = np.isfinite(data[name]) | unscored
            right[f"{name} "] = (finite, "a finite number")
        if (cell[1:] <= cell[:-1]).any():
            row = int((np.diff(cell) <= 0).argmax()) + 1
            yield f"rows are not in the format's order, first row {row}"
        for column, (holds, what) in right.items():
            if not holds.all():
                row = int((~holds).argmax())
                name = column.strip()
                more = f" (and {(~holds).sum() - 1} more)" if (~holds).sum() > 1 else ""
                yield (
                    f"{name} of {data['source_id'][row]} by {data['codec'][row]} at level "
                    f"{level[row]} is {data[name][row]}, not {what}{more}"
                )

    def _streams(self, task: str, codec: str) -> dict[str, int]:
        """Return the bytes of each bitstream; those of a ladder that has none are none."""
        found: dict[str, int] = {}
        wanted = {f"{s}/{n}" for s in self.manifest.tasks[task].sources for n in range(LEVELS)}
        for name in self.shards(f"bitstreams/{task}-{codec}-"):
            for key, (kind, shape) in self._header(name).items():
                if key not in wanted or key in found:
                    raise FormatError(f"{name} holds {key!r}, which is not for it")
                if kind != "U8" or len(shape) != 1:
                    raise FormatError(f"{name}: {key!r} is not a row of bytes")
                found[key] = shape[0]
        if found and len(found) < len(wanted):
            raise FormatError(f"bitstreams of {codec} lack {sorted(wanted - found.keys())[0]!r}")
        return found

    def codes(self, task: str, codec: str) -> Iterator[str]:
        """The array is of the manifest's sources and of the recipe's quantiser."""
        files = self.folder.files.below(NAMES.compressed(task, codec).as_posix())
        entry = self.manifest.tasks[task]
        reader = CodesReader(files, sources=len(entry.sources), levels=LEVELS, shape=entry.shape)
        if reader.source_ids != list(entry.sources):
            yield "its sources are not the manifest's"
        quantizer = self.manifest.recipe.tasks[task].ladders[codec].quantizer
        if parse_json(files.read("zarr.json"))["attributes"]["quantizer"] != quantizer.to_dict():
            yield "its quantiser is not the recipe's"

    def truths(self, task: str) -> Iterator[str]:
        """There is a truth for every source that has one, and for no other."""
        found = set(self._header(NAMES.truth(task).as_posix()))
        wanted = set(self.manifest.tasks[task].sources)
        for key in sorted(found - wanted):
            yield f"holds {key!r}, which is no source"
        if missing := sorted(wanted - found):
            yield f"lacks {missing[0]!r} (and {len(missing) - 1} more)"

    def originals(self, tables: Mapping[str, pa.Table]) -> Iterator[str]:
        """Each original is where its row says; the row says what the labels say."""
        name = NAMES.originals_table.as_posix()
        sources = [(t, s) for t, e in self.manifest.tasks.items() for s in e.sources]
        table = read_table(
            self.folder.files.where(name),
            originals_schema(),
            self.folder.files.read(name),
            most_rows=2 * len(sources),
        )
        check_rows(name, table, {"source_id": [source for _, source in sources]})
        rows = table.to_pylist()
        if [(row["task"], row["source_id"]) for row in rows] != sources:
            yield "rows are not in the manifest's order"
        known = {row["source_id"]: row for row in rows}
        shards = set(self.shards("originals/"))
        for task, entry in self.manifest.tasks.items():
            for position, source in enumerate(entry.sources):
                row = known[source]
                if row["fold"] != position % FOLDS:
                    yield f"fold of {source} is {row['fold']}, not {position % FOLDS}"
                if row["array"] not in shards:
                    yield f"array of {source} is {row['array']!r}, which is not listed"
                elif (found := self._header(row["array"]).get(row["key"])) is None:
                    yield f"{row['array']} has no {row['key']!r}"
                elif row["key"] != source or found != ("F32", list(entry.shape)):
                    yield f"{row['array']}: {row['key']!r} is {found}, not {source}'s feature"
                if not math.isfinite(row["reference_score"]):
                    yield f"reference_score of {source} is {row['reference_score']}"
            if task in tables:
                yield from _same_references(tables[task], known)

    def health(self, tables: Mapping[str, pa.Table]) -> Iterator[str]:
        """The manifest's figures of health are those of the labels."""
        import pyarrow as pa

        found = health(pa.concat_tables(list(tables.values())))
        told = [dict(row) for row in self.manifest.health]
        if len(found) != len(told) or not all(map(_alike, found, told)):
            yield "its figures of health are not those of the labels"

    def card(self) -> Iterator[str]:
        """The card's head counts the rows that there are."""
        counts = {
            task: len(entry.sources) * len(self.manifest.recipe.tasks[task].ladders) * LEVELS
            for task, entry in self.manifest.tasks.items()
        }
        originals = sum(len(entry.sources) for entry in self.manifest.tasks.values())
        wanted = {"default": sum(counts.values()), **counts, "originals": originals}
        found = _head_rows(self.folder.files.read(NAMES.card.as_posix()))
        for name in wanted:
            if found.get(name) != wanted[name]:
                yield f"says {found.get(name)} rows of {name!r}, there are {wanted[name]}"

    def _header(self, name: str) -> dict[str, tuple[str, list[int]]]:
        """Return dtype and shape of the tensors in a safetensors file."""
        if name not in self._headers:
            self._headers[name] = _read_header(self.folder.files, name)
        return self._headers[name]


def _read_header(files: Any, name: str) -> dict[str, tuple[str, list[int]]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(files.path(name), framework="numpy") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            return {key: (s.get_dtype(), list(s.get_shape())) for key, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{name}: not a safetensors file: {error}") from None


def _head_rows(card: bytes) -> dict[str, int]:
    """Return the number of rows of each config in a card's head."""
    head = card.decode("utf-8", "replace").partition("\n---\n")[0].partition("dataset_info:")[2]
    found, config = {}, ""
    for line in head.splitlines():
        if match := re.match(r"\W*config_name: \W*(\w+)", line):
            config = match[1]
        elif match := re.match(r"\W*num_examples: (\d{1,18})\s*$", line):
            found[config] = int(match[1])
    return found


def _same_references(table: pa.Table, known: Mapping[str, Any]) -> Iterator[str]:
    sources = table["source_id"].to_pylist()
    for column in ("reference_score", "reference_loss"):
        expected = np.array([known[source][column] for source in sources], np.float64)
        found = table[column].to_numpy()
        if (wrong := ~((found == expected) | (np.isnan(found) & np.isnan(expected)))).any():
            row = int(wrong.argmax())
            yield (
                f"{column} of {sources[row]} is {expected[row]}, the labels say {found[row]} at "
                f"level {table['level'][row].as_py()} of {table['codec'][row].as_py()}"
            )


def _alike(found: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    """Whether two rows of figures say the same."""
    if found.keys() != told.keys():
        return False
    return all(
        math.isclose(value, told[key], rel_tol=NEAR, abs_tol=NEAR)
        if isinstance(value, float) and isinstance(told[key], int | float)
        else value == told[key]
        for key, value in found.items()
    )
