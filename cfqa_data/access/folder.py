"""Read the tables and arrays of a dataset folder by source, codec and level.

The manifest describes the tasks and codecs. Files are opened on first use and read in parts; for a
repo on the Hub, only the needed parts are requested. Open files are not pickled.
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
        root: Path of the folder, or its files.
        untrusted: Decode bitstreams in sandboxed child processes.
        plugins: Codec classes that are not installed, as classes or `module:Class`.

    Raises:
        FormatError: If the path is not a dataset folder. Methods raise it for files that are
            missing, damaged or inconsistent with the manifest.
    """

    def __init__(self, root: Path | Files, untrusted: bool = False, plugins: Plugins = ()) -> None:
        self.untrusted, self.plugins = untrusted, as_plugins(plugins)
        self.files = root if isinstance(root, Files) else LocalFiles(root)
        self.manifest = self.files.read_manifest()
        self._positions = {
            source: (task, index)
            for task, entry in self.manifest.tasks.items()
            for index, source in enumerate(entry.sources)
        }
        self._open: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def labels(self, task: str, sources: Collection[str] | None = None) -> pa.Table:
        """Return the label rows of a task, one per source, codec and level, in file order.

        Args:
            task: Name of the task.
            sources: Return only the rows of these sources, and read only their row groups. Sources
                of other tasks are ignored.
        """
        entry = self.manifest.tasks[task]
        if sources is not None and not (sources := set(sources) & set(entry.sources)):
            return label_schema(self.manifest.format).empty_table()
        rows = self.label_rows(task, sources)
        for fault in invariants.violations(rows, invariants.POSITION_RULES):
            where = self.files.where(NAMES.labels(task).as_posix())
            raise FormatError(f"{where}: {fault}; build or fetch it again")
        return rows.table

    def label_rows(self, task: str, sources: Collection[str] | None = None) -> invariants.LabelRows:
        """Return the label rows of a task or of some of its sources.

        The rows are checked to be complete and unique; their values are not checked.
        """
        name = NAMES.labels(task).as_posix()
        where, entry = self.files.where(name), self.manifest.tasks[task]
        counts = [len(codec.levels) for codec in entry.codecs.values()]
        indices = [n for n, one in enumerate(entry.sources) if sources is None or one in sources]
        axes = {
            "task": [task],
            "source_id": [entry.sources[index] for index in indices],
            "codec": list(entry.codecs),
            "level": range(max(counts)),
        }
        # Passed as bytes, since pyarrow takes a path such as s3:/x for a URL. A table of more than
        # twice the expected rows is refused without looking for the first surplus row.
        data, version = self.files.read(name), self.manifest.format
        chosen = None if sources is None else indices
        table = read_labels(where, data, max_rows=2 * entry.rows, format=version, sources=chosen)
        if chosen is not None:
            known = pa.array(axes["source_id"], pa.string())
            table = table.filter(pc.is_in(table["source_id"], value_set=known))
        positions = check_rows(where, table, axes, counts)
        source = np.array(indices, np.int64)[positions["source_id"]]
        return invariants.LabelRows(table, entry, source, positions["codec"], positions["level"])

    def originals_table(self) -> pa.Table:
        """Return the table of originals, checked to have exactly one row per source."""
        name = NAMES.originals_table.as_posix()
        where, schema = self.files.where(name), originals_schema(self.manifest.format)
        sources = [source for entry in self.manifest.tasks.values() for source in entry.sources]
        nullable, most = NULLABLE[self.manifest.format], 2 * len(sources)
        data = self.files.read(name)
        table = read_table(where, schema, data, max_rows=most, nullable=nullable)
        check_rows(where, table, {"source_id": sources})
        return table

    def previews(self) -> tuple[list[str], pa.Table] | None:
        """Return the result of :func:`read_previews`; None if the folder has no previews.

        The images are not read.
        """
        name = NAMES.previews.as_posix()
        if name not in self.manifest.files:
            return None
        data = self.files.read(name)
        return read_previews(self.files.where(name), data, self.manifest.tasks)

    def read_pictures(self) -> pa.Table:
        """Return :func:`cfqa_data.format.previews.read_pictures` of the folder's previews."""
        name = NAMES.previews.as_posix()
        return read_pictures(self.files.where(name), self.files.read(name), self.manifest.tasks)

    def shown_columns(self) -> list[str]:
        """Return the names of the preview columns: images and answers."""
        return previews[0] if (previews := self.previews()) else []

    def original_rows(self) -> dict[str, dict[str, Any]]:
        """Return the rows of the table of originals, by source id."""

        def read() -> dict[str, dict[str, Any]]:
            return {row["source_id"]: row for row in self.originals_table().to_pylist()}

        return self._once("originals", read)

    def original(self, source_id: str, **part: Unpack[Part]) -> np.ndarray:
        """Return an original feature, or a part of it, float32 (N, C, T, D)."""
        file = self._originals(source_id)
        return file.read(source_id, Selection.of(self.shape(source_id), **part))

    def task_of(self, source_id: str) -> str:
        """Return the name of the task that a source belongs to."""
        return self._place(source_id)[0].name

    def shape(self, source_id: str) -> tuple[int, int, int, int]:
        """Return the shape (N, C, T, D) of a source's features."""
        entry, _ = self._place(source_id)
        if not entry.varying_tokens:
            return entry.shape
        file = self._originals(source_id)
        shape, (n, c, t, d) = file.tensor(source_id).shape, entry.shape
        if len(shape) != 4 or not 0 < shape[2] <= t or shape != (n, c, shape[2], d):
            raise FormatError(f"{file.where}: {source_id!r} is {shape}, not at most {entry.shape}")
        return n, c, shape[2], d

    def truth(self, source_id: str) -> np.ndarray:
        """Return the ground truth of a source."""
        entry, _ = self._place(source_id)
        name = NAMES.truth(entry.name)
        if name.as_posix() not in self.manifest.files:
            withheld = entry.terms and not entry.terms.truths
            why = ": the terms of its source do not allow redistribution" if withheld else ""
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
        """Return the gallery of a task: name -> array."""
        check_known("task", task, self.manifest.tasks, CfqaError, self.files.location)
        entry = self.manifest.tasks[task]
        if entry.gallery is None:
            raise FormatError(f"{self.files.location}: task {task} has no gallery")
        return self._all_tensors(NAMES.gallery(entry.gallery))

    def bitstream(self, source_id: str, codec: str, level: int) -> bytes:
        """Return the bitstream of a compressed feature."""
        entry, _, level = self._check(source_id, codec, level)
        shard = invariants.shard_of(self._positions[source_id][1], entry.shard)
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
        feature = self._compressed(source_id, codec, level, True, **part)
        return feature.dequantize() if isinstance(feature, Codes) else feature

    def codes(self, source_id: str, codec: str, level: int, **part: Unpack[Part]) -> Codes:
        """Return the integer codes of a compressed feature, read or decoded from its bitstream."""
        entry, codec_entry, level = self._check(source_id, codec, level)
        if codec_entry.quantizer is None:
            raise FormatError(
                f"{self.files.location}: {codec} on {entry.name} has values and no codes"
            )
        codes = self._compressed(source_id, codec, level, False, **part)
        assert isinstance(codes, Codes)
        return codes

    def _compressed(
        self, source_id: str, codec: str, level: int, values: bool, **part: Unpack[Part]
    ) -> Codes | np.ndarray:
        entry, codec_entry, level = self._check(source_id, codec, level)
        selection = Selection.of(self.shape(source_id), **part)
        name = NAMES.compressed(entry.name, codec).as_posix()
        if codec_entry.facts.on != "inputs" and not self._once(
            name, lambda: self.files.exists(name)
        ):
            return self.decoded(source_id, codec, level, selection)
        array, index = self.open_codes(entry.name, codec), self._positions[source_id][1]
        return array.read(index, level, selection, values=values)

    def decoded(
        self, source_id: str, codec: str, level: int, part: Selection | None = None
    ) -> Codes | np.ndarray:
        """Decode the bitstream of a compressed feature, even if the decoded feature is stored.

        Returns:
            Codes; or a float32 feature if the codec has no quantiser.

        Raises:
            FormatError: If the codec encodes inputs of the backbone, or the bitstream is missing or
                cannot be decoded.
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
        """Return the decoder of a codec's bitstreams, with the weights that encoded them.

        Raises:
            FormatError: If the codec is not installed, or differs from the one that encoded them.
            MissingDependencyError: If a package that the codec needs is not installed.
        """
        return self._once((task, codec), lambda: self._make_decoder(task, codec))

    def missing(self) -> dict[str, str]:
        """Return the codecs that decode features and are not installed: name -> package."""
        from cfqa_data.codecs import find_codec

        missing = {}
        for entry in self.manifest.tasks.values():
            for codec in entry.codecs.values():
                if (origin := codec.origin) is None or codec.facts.on == "inputs":
                    continue
                try:
                    find_codec(origin.name, plugins=self.plugins)
                except CodecError:
                    missing[origin.name] = f"{origin.package} {origin.version}".strip()
        return missing

    def find_weights(self, uri: str) -> Path:
        """Return the local path of weights that the manifest names.

        Raises:
            RecipeError: If the weights are not on this machine.
        """
        expected, own = self.manifest.weights.get(uri), not self.untrusted
        # Cached, since hashing large weights is slow.
        return self._once(
            ("weights", uri), lambda: find_weights(uri, expected, self.files, own=own)
        )

    def open_codes(self, task: str, codec: str) -> ArrayReader:
        """Return a reader of a codec's stored array, checked against the manifest."""
        entry = self.manifest.tasks[task]
        name, codec_entry = NAMES.compressed(task, codec), entry.codecs[codec]
        expected = entry.sources, len(codec_entry.levels), entry.shape, codec_entry.quantizer
        return self._once(name, lambda: ArrayReader(self.files, name.as_posix(), *expected))

    def _once(self, key: Any, make: Callable[[], T]) -> T:
        """Return the cached object of a key, created on first use."""
        if key not in self._open:
            self._open[key] = make()
        cached: T = self._open[key]
        return cached

    def _place(self, source_id: str) -> tuple[TaskEntry, int]:
        check_known("source", source_id, self._positions, FormatError, self.files.location)
        task, index = self._positions[source_id]
        return self.manifest.tasks[task], index

    def _check(self, source_id: str, codec: str, level: int) -> tuple[TaskEntry, CodecEntry, int]:
        """Return the task and codec of a compressed feature, and its level as an int."""
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
            registered = find_codec(origin.name, plugins=self.plugins)
        except CodecError as error:
            missing = ", ".join(
                f"{name!r} of {package!r}" for name, package in self.missing().items()
            )
            raise FormatError(
                f"{where}: not installed: codec {missing}; install the package, or name the class: "
                f"plugins=, --plugin ({error})"
            ) from None
        _check_origin(where, origin, registered)
        weights = {key: v for key, v in origin.options.items() if self._is_weights(key, v)}
        others = {k: v for k, v in origin.options.items() if k not in {*weights, "models"}}
        for key, text in named_files(registered.target, others):
            raise FormatError(
                f"{where}.codec: {key} names a file, {text!r}, without a SHA-256 in the manifest"
            )

        with prefixed(where, FormatError, CodecError, RecipeError):
            weight_paths = {key: str(self.find_weights(uri)) for key, uri in weights.items()}
            # These override options of the same names in an untrusted manifest.
            trusted: dict[str, Any] = {
                "untrusted": self.untrusted,
                "plugins": self.plugins,
                "tables": partial(self._tables, codec_entry) if codec_entry.tables else None,
            }
            return get_codec(origin.name, **{**origin.options, **weight_paths, **trusted})

    def _tables(self, codec_entry: CodecEntry) -> dict[str, np.ndarray]:
        tables: dict[str, np.ndarray] = {}
        for name in codec_entry.tables:
            tables |= self._all_tensors(NAMES.tables(name))
        return tables

    def _is_weights(self, key: str, value: object) -> bool:
        """Return whether a codec's option names weights, which are looked up by their hash.

        Weights shipped with this package are found by name if the manifest has no hash of them.
        """
        if not isinstance(value, str):
            return False
        known = value in self.manifest.weights
        return known or (key == "models" and not value.startswith(PACKAGE))


def check_level(level: object, count: int) -> int:
    """Return a level of any integer type as an int.

    Args:
        level: The level.
        count: Number of levels.

    Raises:
        FormatError: If the level is not an integer from 0 to ``count - 1``.
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


def _check_origin(where: str, origin: Origin, codec: RegistryEntry) -> None:
    """Check that a codec is the one that encoded the bitstreams of a dataset.

    A plugin given by the caller is always accepted, with a warning if it is of the same package
    and its source code differs.

    Raises:
        FormatError: If the codec is of another package, or its source code differs.
    """
    recorded = f"{where}: codec {origin.name!r} of the package {origin.package!r}"
    how = "to decode with it anyway, name its class: plugins=, --plugin"
    same = codec.package == origin.package and codec.builtin == (not origin.sha256)
    if not same and not codec.given:
        raise FormatError(f"{recorded} is not installed, only that of {codec.package!r}; {how}")
    if same and codec.sha256 != origin.sha256:
        version = codec.version or "no version"
        differ = f"{recorded} had a different source than the installed one, {version}"
        if not codec.given:
            raise FormatError(f"{differ}; install version {origin.version or '?'}, or {how}")
        warnings.warn(f"{differ}: features may differ", UserWarning, stacklevel=2)


def _as_feature(decoded: object, shape: tuple[int, ...]) -> np.ndarray:
    """Return the output of a codec on features, checked to be float32 of a shape."""
    if not isinstance(decoded, np.ndarray):
        raise CodecError(f"the codec returned {type(decoded)}, not float32 {shape}")
    if (decoded.dtype, decoded.shape) != (np.float32, shape):
        raise CodecError(f"the codec returned {decoded.dtype} {decoded.shape}, not float32 {shape}")
    return decoded
