"""The labels in a dataset folder, and its arrays, found by source, codec and level.

The manifest describes tasks and codecs. Files are opened on first use and read in parts; from a
folder on the Hub, only the needed parts are fetched. Open files are not pickled.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, Unpack

import numpy as np

from cfqa_data.access.arrays import ArrayReader
from cfqa_data.access.files import Files, LocalFiles
from cfqa_data.access.selection import Part, Selection
from cfqa_data.access.tensors import TensorFile
from cfqa_data.access.weights import find_weights
from cfqa_data.arrow import pa, pc
from cfqa_data.errors import CfqaError, CodecError, FormatError, RecipeError, check_known, prefixed
from cfqa_data.format import invariants
from cfqa_data.format.codes import Codes
from cfqa_data.format.facts import CodecEntry, Origin, TaskEntry
from cfqa_data.format.layout import NAMES
from cfqa_data.format.packing import plane_shape, unpack
from cfqa_data.format.previews import read_pictures, read_previews
from cfqa_data.format.resources import PACKAGE
from cfqa_data.format.schema import NULLABLE, label_schema, originals_schema
from cfqa_data.format.storage import check_rows, read_labels, read_table
from cfqa_data.registry import Plugins, RegistryEntry, as_plugins

__all__ = ["Folder", "check_level"]

T = TypeVar("T")


class Folder:
    """Reads the labels and arrays of one dataset folder, of either tier.

    Args:
        root: the folder, or its files.
        untrusted: decode bitstreams in child processes that can do nothing else.
        plugins: classes of codecs that are not installed, or `module:Class` of some.

    Raises:
        FormatError: it is not a dataset folder. (Its methods raise it for files that are
            missing, damaged or not as the manifest describes.)
    """

    def __init__(self, root: Path | Files, untrusted: bool = False, plugins: Plugins = ()) -> None:
        self.untrusted, self.plugins = untrusted, as_plugins(plugins)
        self.files = root if isinstance(root, Files) else LocalFiles(root)
        self.manifest = self.files.read_manifest()
        self._places = {
            source: (task, index)
            for task, entry in self.manifest.tasks.items()
            for index, source in enumerate(entry.sources)
        }
        self._open: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def labels(self, task: str, sources: Collection[str] | None = None) -> pa.Table:
        """Return the label rows of a task, one per source, codec and level, in any order.

        Args:
            task: the task.
            sources: only the rows of those of these that it has; no row group without them is read.
        """
        entry = self.manifest.tasks[task]
        if sources is not None and not (sources := set(sources) & set(entry.sources)):
            return label_schema(self.manifest.format).empty_table()
        rows = self.label_rows(task, sources)
        for what in invariants.violations(rows, invariants.POSITION_RULES):
            where = self.files.where(NAMES.labels(task).as_posix())
            raise FormatError(f"{where}: {what}; build or fetch it again")
        return rows.table

    def label_rows(self, task: str, sources: Collection[str] | None = None) -> invariants.LabelRows:
        """Return the label rows of a task, or of sources, after checking only their number."""
        name = NAMES.labels(task).as_posix()
        where, entry = self.files.where(name), self.manifest.tasks[task]
        counts = [len(codec.levels) for codec in entry.codecs.values()]
        places = [n for n, one in enumerate(entry.sources) if sources is None or one in sources]
        axes = {
            "task": [task],
            "source_id": [entry.sources[place] for place in places],
            "codec": list(entry.codecs),
            "level": range(max(counts)),
        }
        # As bytes: pyarrow takes a path that looks like an address, as s3:/x, for one. Of more rows
        # than twice those that there should be, the first is not looked for.
        data, version = self.files.read(name), self.manifest.format
        within = None if sources is None else places
        table = read_labels(where, data, max_rows=2 * entry.rows, format=version, sources=within)
        if within is not None:
            known = pa.array(axes["source_id"], pa.string())
            table = table.filter(pc.is_in(table["source_id"], value_set=known))
        found = check_rows(where, table, axes, counts)
        source = np.array(places, np.int64)[found["source_id"]]
        return invariants.LabelRows(table, entry, source, found["codec"], found["level"])

    def originals_table(self) -> pa.Table:
        """Return the row of each original, after checking only their number."""
        name = NAMES.originals_table.as_posix()
        where, schema = self.files.where(name), originals_schema(self.manifest.format)
        sources = [source for entry in self.manifest.tasks.values() for source in entry.sources]
        nullable, most = NULLABLE[self.manifest.format], 2 * len(sources)
        data = self.files.read(name)
        table = read_table(where, schema, data, max_rows=most, nullable=nullable)
        check_rows(where, table, {"source_id": sources})
        return table

    def previews(self) -> tuple[list[str], pa.Table] | None:
        """Return what :func:`read_previews` does, with a row per original; None without pictures.

        Pictures themselves are not read.
        """
        name = NAMES.previews.as_posix()
        if name not in self.manifest.files:
            return None
        data = self.files.read(name)
        return read_previews(self.files.where(name), data, self.manifest.tasks)

    def read_pictures(self) -> pa.Table:
        """Return what :func:`cfqa_data.format.previews.read_pictures` does, of its pictures."""
        name = NAMES.previews.as_posix()
        return read_pictures(self.files.where(name), self.files.read(name), self.manifest.tasks)

    def shown_columns(self) -> list[str]:
        """Return the columns of originals that hold pictures and answers."""
        return found[0] if (found := self.previews()) else []

    def original_rows(self) -> dict[str, dict[str, Any]]:
        """Return the row of each original, by its id."""

        def read() -> dict[str, dict[str, Any]]:
            return {row["source_id"]: row for row in self.originals_table().to_pylist()}

        return self._once("originals", read)

    def original(self, source_id: str, **part: Unpack[Part]) -> np.ndarray:
        """Return an original feature, or a part of it, float32 (N, C, T, D)."""
        file = self._originals(source_id)
        return file.read(source_id, Selection.of(self.shape(source_id), **part))

    def task_of(self, source_id: str) -> str:
        """Return the task that a source is of."""
        return self._place(source_id)[0].name

    def shape(self, source_id: str) -> tuple[int, int, int, int]:
        """Return the shape (N, C, T, D) of a source's features."""
        entry, _ = self._place(source_id)
        if not entry.varying_tokens:
            return entry.shape
        file = self._originals(source_id)
        found, (n, c, t, d) = file.tensor(source_id).shape, entry.shape
        if len(found) != 4 or not 0 < found[2] <= t or found != (n, c, found[2], d):
            raise FormatError(f"{file.where}: {source_id!r} is {found}, not at most {entry.shape}")
        return n, c, found[2], d

    def truth(self, source_id: str) -> np.ndarray:
        """Return what the features of a source are scored against."""
        entry, _ = self._place(source_id)
        name = NAMES.truth(entry.name)
        if name.as_posix() not in self.manifest.files:
            kept = entry.terms and not entry.terms.truths
            why = ": the terms of its source do not allow redistribution" if kept else ""
            raise FormatError(
                f"{self.files.location}: contains no ground truth of {entry.name}{why}"
            )
        file = self._tensors(name)
        truth = file.read(source_id)
        invariants.check_truth(
            entry.facts, truth.dtype.name, truth.ndim, f"{file.where}: {source_id!r}"
        )
        return truth

    def gallery(self, task: str) -> dict[str, np.ndarray]:
        """Return what the features of all sources of a task are scored against, by name."""
        check_known("task", task, self.manifest.tasks, CfqaError, self.files.location)
        entry = self.manifest.tasks[task]
        if entry.gallery is None:
            raise FormatError(f"{self.files.location}: task {task} has no gallery")
        return self._all_tensors(NAMES.gallery(entry.gallery))

    def bitstream(self, source_id: str, codec: str, level: int) -> bytes:
        """Return a compressed feature's whole bitstream."""
        entry, _, level = self._check(source_id, codec, level)
        shard = invariants.shard_of(self._places[source_id][1], entry.shard)
        name = NAMES.bitstreams(entry.name, codec, shard, entry.shards)
        if name.as_posix() not in self.manifest.files:
            where = self.files.location
            raise FormatError(f"{where}: contains no bitstreams of {codec} on {entry.name}")
        file = self._tensors(name)
        key = f"{source_id}/{level}"
        stream = file.read(key)
        invariants.check_bitstream(stream.dtype.name, stream.ndim, f"{file.where}: {key!r}")
        return stream.tobytes()

    def compressed(
        self, source_id: str, codec: str, level: int, **part: Unpack[Part]
    ) -> np.ndarray:
        """Return a compressed feature, or a part of it, float32 (N, C, T, D)."""
        found = self._compressed(source_id, codec, level, True, **part)
        return found.dequantize() if isinstance(found, Codes) else found

    def codes(self, source_id: str, codec: str, level: int, **part: Unpack[Part]) -> Codes:
        """Return a compressed feature as integers, stored ones or those of its bitstream."""
        entry, codec_entry, level = self._check(source_id, codec, level)
        if codec_entry.quantizer is None:
            raise FormatError(
                f"{self.files.location}: {codec} on {entry.name} has values and no codes"
            )
        found = self._compressed(source_id, codec, level, False, **part)
        assert isinstance(found, Codes)
        return found

    def _compressed(
        self, source_id: str, codec: str, level: int, values: bool, **part: Unpack[Part]
    ) -> Codes | np.ndarray:
        entry, codec_entry, level = self._check(source_id, codec, level)
        chosen = Selection.of(self.shape(source_id), **part)
        name = NAMES.compressed(entry.name, codec).as_posix()
        if codec_entry.facts.on != "inputs" and not self._once(
            name, lambda: self.files.exists(name)
        ):
            return self.decoded(source_id, codec, level, chosen)
        array, index = self.open_codes(entry.name, codec), self._places[source_id][1]
        return array.read(index, level, chosen, values=values)

    def decoded(
        self, source_id: str, codec: str, level: int, part: Selection | None = None
    ) -> Codes | np.ndarray:
        """Decode a compressed feature's bitstream, even if the decoded feature is stored.

        Returns codes, or a float32 feature if the codec has no codes, or inputs of the backbone
        for a codec on inputs.
        """
        entry, codec_entry, level = self._check(source_id, codec, level)
        if codec_entry.facts.on == "inputs":
            where = f"{self.files.location}: bitstreams of {codec} on {entry.name}"
            raise FormatError(
                f"{where} encode inputs, and the backbone extracts the features from them"
            )
        shape = self.shape(source_id)
        part = part or Selection.of(shape)
        stream = self.bitstream(source_id, codec, level)
        decoder = self.decoder(entry.name, codec)
        what = f"bitstream of {source_id!r} by {codec} at level {level} cannot be decoded"
        with prefixed(f"{self.files.location}: {what}", FormatError, CodecError):
            if codec_entry.quantizer is None:
                return part.take(_as_feature(decoder.decode(stream, shape), shape))
            plane, bits = decoder.decode(stream, plane_shape(shape)), codec_entry.quantizer.bits
            if int(plane.max()) >= 1 << bits:
                raise CodecError(f"code {int(plane.max())} is not a {bits}-bit code")
            indices = part.take(unpack(plane, shape))
            return Codes(indices, codec_entry.quantizer.values()[list(part.layers)])

    def decoder(self, task: str, codec: str) -> Any:
        """Return a decoder for a task's bitstreams, with the weights that encoded them.

        Raises:
            FormatError: it is not here.
            MissingDependencyError: what it needs is not installed.
        """
        return self._once((task, codec), lambda: self._make_decoder(task, codec))

    def missing(self) -> dict[str, str]:
        """Return the codecs that decode features and are not here, and the package of each."""
        from cfqa_data.codecs import find_codec

        found = {}
        for entry in self.manifest.tasks.values():
            for codec in entry.codecs.values():
                if (origin := codec.origin) is None or codec.facts.on == "inputs":
                    continue
                try:
                    find_codec(origin.name, plugins=self.plugins)
                except CodecError:
                    found[origin.name] = f"{origin.package} {origin.version}".strip()
        return found

    def find_weights(self, uri: str) -> Path:
        """Return the local path of the weights that the manifest names.

        Raises:
            RecipeError: they are not here.
        """
        expected, own = self.manifest.weights.get(uri), not self.untrusted
        # Once: large weights take long to hash.
        return self._once(
            ("weights", uri), lambda: find_weights(uri, expected, self.files, own=own)
        )

    def open_codes(self, task: str, codec: str) -> ArrayReader:
        """Return what reads a codec's stored codes or values, which are those of the manifest."""
        entry = self.manifest.tasks[task]
        name, of = NAMES.compressed(task, codec), entry.codecs[codec]
        what = entry.sources, len(of.levels), entry.shape, of.quantizer
        return self._once(name, lambda: ArrayReader(self.files, name.as_posix(), *what))

    def _once(self, key: Any, make: Callable[[], T]) -> T:
        """Return the cached object of a key, made on first use."""
        if key not in self._open:
            self._open[key] = make()
        found: T = self._open[key]
        return found

    def _place(self, source_id: str) -> tuple[TaskEntry, int]:
        check_known("source", source_id, self._places, FormatError, self.files.location)
        task, index = self._places[source_id]
        return self.manifest.tasks[task], index

    def _check(self, source_id: str, codec: str, level: int) -> tuple[TaskEntry, CodecEntry, int]:
        """Return what a compressed feature's task and codec are, and its level as a plain int."""
        entry, _ = self._place(source_id)
        check_known("codec", codec, entry.codecs, FormatError, self.files.location)
        codec_entry = entry.codecs[codec]
        return entry, codec_entry, check_level(level, len(codec_entry.levels))

    def _originals(self, source_id: str) -> TensorFile:
        entry, index = self._place(source_id)
        shard = invariants.shard_of(index, entry.shard)
        return self._tensors(NAMES.originals(entry.name, shard, entry.shards))

    def _tensors(self, name: Path) -> TensorFile:
        return self._once(name, lambda: TensorFile(self.files, name.as_posix()))

    def _all_tensors(self, name: Path) -> dict[str, np.ndarray]:
        file = self._tensors(name)
        return {key: file.read(key) for key in file.tensors}

    def _make_decoder(self, task: str, codec: str) -> Any:
        from cfqa_data.codecs import find_codec, get_codec
        from cfqa_data.codecs.options import named_files

        codec_entry = self.manifest.tasks[task].codecs[codec]
        where = f"{self.files.where(NAMES.manifest.as_posix())}: tasks.{task}.codecs.{codec}"
        if (origin := codec_entry.origin) is None:
            raise FormatError(f"{where}: the manifest names no codec that decodes its bitstreams")
        try:
            found = find_codec(origin.name, plugins=self.plugins)
        except CodecError as error:
            missing = ", ".join(
                f"{name!r} of {package!r}" for name, package in self.missing().items()
            )
            raise FormatError(
                f"{where}: not installed: codec {missing}; install the package, or name the class: "
                f"plugins=, --plugin ({error})"
            ) from None
        _check_origin(where, origin, found)
        weights = {key: v for key, v in origin.options.items() if self._is_weights(key, v)}
        others = {k: v for k, v in origin.options.items() if k not in {*weights, "models"}}
        for key, text in named_files(found.target, others):
            named = f"{where}.codec: {key} names a file, {text!r}"
            raise FormatError(f"{named}, without a SHA-256 in the manifest")

        with prefixed(where, FormatError, CodecError, RecipeError):
            found_weights = {key: str(self.find_weights(uri)) for key, uri in weights.items()}
            # Overrides what an untrusted manifest says.
            trusted: dict[str, Any] = {
                "untrusted": self.untrusted,
                "plugins": self.plugins,
                "tables": partial(self._tables, codec_entry) if codec_entry.tables else None,
            }
            return get_codec(origin.name, **{**origin.options, **found_weights, **trusted})

    def _tables(self, codec_entry: CodecEntry) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for name in codec_entry.tables:
            found |= self._all_tensors(NAMES.tables(name))
        return found

    def _is_weights(self, key: str, value: object) -> bool:
        """Whether an option of a codec names weights, which are found by their hash.

        Weights that this package ships are found by name if the manifest has no hash of them.
        """
        if not isinstance(value, str):
            return False
        known = value in self.manifest.weights
        return known or (key == "models" and not value.startswith(PACKAGE))


def check_level(level: object, count: int) -> int:
    """Return one of a number of levels, of any whole type, as a plain int.

    Raises:
        FormatError: it is not a whole number, or there is no such level.
    """
    try:
        number = operator.index(level)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(level, bool):
        raise FormatError(f"a level must be a whole number from 0 to {count - 1}, not {level!r}")
    if number not in range(count):
        raise FormatError(f"there is no level {number}: levels are 0 to {count - 1}")
    return number


def _check_origin(where: str, origin: Origin, found: RegistryEntry) -> None:
    """Check that a codec is the one that made a dataset's bitstreams.

    What the caller gives as a plugin is the caller's to choose; other source of the same package
    is warned of.

    Raises:
        FormatError: it is of another package, or of other source.
    """
    made = f"{where}: codec {origin.name!r} of the package {origin.package!r}"
    how = "to decode with it anyway, name its class: plugins=, --plugin"
    same = found.package == origin.package and found.builtin == (not origin.sha256)
    if not same and not found.given:
        raise FormatError(f"{made} is not installed, only that of {found.package!r}; {how}")
    if same and found.sha256 != origin.sha256:
        differ = (
            f"{made} had a different source than the installed one, {found.version or 'no version'}"
        )
        if not found.given:
            raise FormatError(f"{differ}; install version {origin.version or '?'}, or {how}")
        warnings.warn(f"{differ}: features may differ", UserWarning, stacklevel=2)


def _as_feature(found: object, shape: tuple[int, ...]) -> np.ndarray:
    """Return what a codec on features gives, if it is a feature."""
    if not isinstance(found, np.ndarray) or (found.dtype, found.shape) != (np.float32, shape):
        kind = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found)
        raise CodecError(f"the codec returned {kind}, not float32 {shape}")
    return found
