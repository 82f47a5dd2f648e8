"""The labels in a dataset folder, and its arrays, found by source, codec and level.

Files are opened on first use and mapped, not read; of a folder on the Hub, only the parts that are
needed are fetched. Pickling drops what is open.
"""

from __future__ import annotations

import math
import operator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfqa_data.access.files import Files, LocalFiles
from cfqa_data.access.selection import Part, Selection
from cfqa_data.access.weights import find_weights
from cfqa_data.errors import CodecError, FormatError, RecipeError, unknown_name
from cfqa_data.format.codes import Codes, CodesReader
from cfqa_data.format.first import LEVELS
from cfqa_data.format.invariants import (
    PLACES,
    LabelRows,
    broken,
    check_bitstream,
    check_codes,
    check_truth,
    shard_of,
)
from cfqa_data.format.layout import Layout
from cfqa_data.format.packing import plane_shape, unpack
from cfqa_data.format.resources import PACKAGE
from cfqa_data.format.schema import originals_schema
from cfqa_data.format.storage import check_rows, read_labels, read_table
from cfqa_data.format.tensors import TensorSet

if TYPE_CHECKING:
    import pyarrow as pa

    from cfqa_data.format.quantizers import Quantizer

__all__ = ["Folder", "check_level"]

LAYOUT = Layout(Path())
"""Names in a folder, relative to it."""

KEPT = ("files", "manifest", "untrusted", "_places")
"""What goes into a pickle."""


class Folder:
    """Reads the labels and arrays of one dataset folder, of either tier.

    Args:
        root: the folder, or its files wherever they lie.
        untrusted: decode bitstreams in child processes that can do nothing else.

    Raises:
        FormatError: it is not a dataset folder. (Its methods raise it for what is missing,
            damaged or not what the manifest says.)
    """

    def __init__(self, root: Path | Files, untrusted: bool = False) -> None:
        self.untrusted = untrusted
        self.files = root if isinstance(root, Files) else LocalFiles(root)
        self.manifest = self.files.read_manifest()
        self._places = {
            source: (task, index)
            for task, entry in self.manifest.tasks.items()
            for index, source in enumerate(entry.sources)
        }
        self._close()

    def _close(self) -> None:
        self._tensors: dict[str, TensorSet] = {}
        self._codes: dict[tuple[str, str], CodesReader | None] = {}
        self._decoders: dict[tuple[str, str], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in KEPT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._close()

    def labels(self, task: str) -> pa.Table:
        """Return the label rows of a task, one per source, codec and level, in any order."""
        rows = self.label_rows(task)
        for what in broken(rows, PLACES):
            where = self.files.where(LAYOUT.labels(task).as_posix())
            raise FormatError(f"{where}: {what}; build or fetch it again")
        return rows.table

    def label_rows(self, task: str) -> LabelRows:
        """Return the label rows of a task, of which nothing but their number has been checked."""
        name = LAYOUT.labels(task).as_posix()
        where = self.files.where(name)
        # As bytes: pyarrow takes a path that looks like an address, as s3:/x, for one.
        entry = self.manifest.tasks[task]
        axes = {
            "task": [task],
            "source_id": entry.sources,
            "codec": list(entry.codecs),
            "level": range(LEVELS),
        }
        most = 2 * math.prod(map(len, axes.values()))  # more are not looked at, to name the first
        table = read_labels(where, self.files.read(name), most_rows=most)
        found = check_rows(where, table, axes)
        places = (found[column] for column in ("source_id", "codec", "level"))
        return LabelRows(table, entry, *places)

    def originals_table(self) -> pa.Table:
        """Return the row of each original, of which nothing but their number has been checked."""
        name = LAYOUT.originals_table.as_posix()
        where = self.files.where(name)
        sources = [source for entry in self.manifest.tasks.values() for source in entry.sources]
        most = 2 * len(sources)
        table = read_table(where, originals_schema(), self.files.read(name), most_rows=most)
        check_rows(where, table, {"source_id": sources})
        return table

    def original(
        self, source_id: str, views: Part = None, layers: Part = None, tokens: Part = None
    ) -> np.ndarray:
        """Return an original feature, or a part of it, float32 (N, C, T, D)."""
        task, _ = self._place(source_id)
        part = Selection.of(self.manifest.tasks[task].shape, views, layers, tokens)
        return self._tensor(f"originals/{task}", source_id, source_id, part)

    def truth(self, source_id: str) -> np.ndarray:
        """Return what the task's head is scored against for a source."""
        task, _ = self._place(source_id)
        truth = self._tensor(f"truth/{task}", source_id, source_id, sharded=False)
        what = f"{self.files.where(f'truth/{task}')}: {source_id!r}"
        check_truth(self.manifest.tasks[task].facts, truth.dtype.name, truth.ndim, what)
        return truth

    def bitstream(self, source_id: str, codec: str, level: int) -> bytes:
        """Return a compressed feature's whole bitstream."""
        task, level = self._check(source_id, codec, level)
        key = f"{source_id}/{level}"
        stem = f"bitstreams/{task}-{codec}"
        stream = self._tensor(stem, key, source_id)
        check_bitstream(stream.dtype.name, stream.ndim, f"{self.files.where(stem)}: {key!r}")
        return stream.tobytes()

    def has_codes(self, task: str, codec: str) -> bool:
        """Return whether the codes of a ladder are stored; their array's head is read."""
        return self._array(task, codec) is not None

    def compressed(
        self,
        source_id: str,
        codec: str,
        level: int,
        views: Part = None,
        layers: Part = None,
        tokens: Part = None,
    ) -> np.ndarray:
        """Return a compressed feature, or a part of it, float32 (N, C, T, D)."""
        return self.codes(source_id, codec, level, views, layers, tokens).dequantize()

    def codes(
        self,
        source_id: str,
        codec: str,
        level: int,
        views: Part = None,
        layers: Part = None,
        tokens: Part = None,
    ) -> Codes:
        """Return a compressed feature as integers, stored ones or those of its bitstream."""
        task, level = self._check(source_id, codec, level)
        shape = self.manifest.tasks[task].shape
        part = Selection.of(shape, views, layers, tokens)
        codes = self._array(task, codec)
        if codes is not None:
            return codes.read_codes(self._place(source_id)[1], level, part)
        return self.decoded(source_id, codec, level, part)

    def decoded(
        self, source_id: str, codec: str, level: int, part: Selection | None = None
    ) -> Codes:
        """Return what a compressed feature's bitstream decodes to, also where codes are stored."""
        task, level = self._check(source_id, codec, level)
        shape = self.manifest.tasks[task].shape
        part = part or Selection.of(shape)
        stream = self.bitstream(source_id, codec, level)
        self.check_decoder(task, codec)
        quantizer = self._quantizer(task, codec)
        try:
            plane = self._decoders[task, codec].decode(stream, plane_shape(shape))
            if int(plane.max()) >= 1 << quantizer.bits:
                raise CodecError(f"code {int(plane.max())} is not a {quantizer.bits}-bit code")
            indices = part.take(unpack(plane, shape))
            return Codes(indices, quantizer.values()[list(part.layers)])
        except CodecError as error:
            raise FormatError(
                f"{self.files.location}: bitstream of {source_id!r} by {codec} at level {level} "
                f"cannot be decoded: {error}"
            ) from None

    def check_decoder(self, task: str, codec: str) -> None:
        """See that a ladder's decoder is here, with the very weights that made its bitstreams.

        Raises:
            FormatError: it is not.
            MissingDependencyError: what it needs is not installed.
        """
        if (task, codec) not in self._decoders:
            self._decoders[task, codec] = self._make_decoder(task, codec)

    def find_weights(self, uri: str) -> Path:
        """Return where the very weights that the manifest names lie on this machine.

        Raises:
            RecipeError: they are not here.
        """
        expected = self.manifest.weights.get(uri)
        return find_weights(uri, expected, self.files, own=not self.untrusted)

    def _place(self, source_id: str) -> tuple[str, int]:
        try:
            return self._places[source_id]
        except (KeyError, TypeError):
            message = unknown_name("source", source_id, self._places)
            raise FormatError(f"{self.files.location}: {message}") from None

    def _check(self, source_id: str, codec: str, level: int) -> tuple[str, int]:
        """Return the task of a compressed feature, and its level as a plain int."""
        task, _ = self._place(source_id)
        codecs = self.manifest.tasks[task].codecs
        if not isinstance(codec, str) or codec not in codecs:
            raise FormatError(f"{self.files.location}: {unknown_name('codec', codec, codecs)}")
        return task, check_level(level)

    def _tensor(
        self,
        stem: str,
        key: str,
        source_id: str,
        part: Selection | None = None,
        *,
        sharded: bool = True,
    ) -> np.ndarray:
        """Return the tensor ``key`` of a source from the safetensors file or shards at ``stem``."""
        if stem not in self._tensors:
            self._tensors[stem] = TensorSet(self.files, stem, sharded=sharded)
        task, position = self._place(source_id)
        likely = shard_of(position, self.manifest.tasks[task].shard)
        return self._tensors[stem].read(key, part, likely=likely)

    def _array(self, task: str, codec: str) -> CodesReader | None:
        if (task, codec) not in self._codes:
            there = self.files.exists(LAYOUT.compressed(task, codec).as_posix())
            self._codes[task, codec] = self.open_codes(task, codec) if there else None
        return self._codes[task, codec]

    def open_codes(self, task: str, codec: str) -> CodesReader:
        """Return what reads a ladder's stored codes, which are those of the manifest."""
        files = self.files.below(LAYOUT.compressed(task, codec).as_posix())
        entry = self.manifest.tasks[task]
        codes = CodesReader(files, sources=len(entry.sources), levels=LEVELS, shape=entry.shape)
        quantizer = self._quantizer(task, codec)
        where = files.where("zarr.json")
        check_codes(codes.source_ids, codes.quantizer, entry.sources, quantizer, where)
        return codes

    def _quantizer(self, task: str, codec: str) -> Quantizer:
        quantizer = self.manifest.tasks[task].codecs[codec].quantizer
        assert quantizer is not None
        return quantizer

    def _make_decoder(self, task: str, codec: str) -> Any:
        """Return the codec of a ladder, with the very weights that made the bitstreams."""
        from cfqa_data.codecs import get_codec

        origin = self.manifest.tasks[task].codecs[codec].origin
        assert origin is not None
        try:
            options = dict(origin.options) | ({"untrusted": True} if self.untrusted else {})
            uri = options.get("models")
            if uri is not None and (
                not str(uri).startswith(PACKAGE) or uri in self.manifest.weights
            ):
                options["models"] = str(self.find_weights(uri))
            return get_codec(origin.name, **options)
        except (CodecError, RecipeError) as error:
            name = LAYOUT.manifest.as_posix()
            raise FormatError(
                f"{self.files.where(name)}: tasks.{task}.codecs.{codec}: {error}"
            ) from None


def check_level(level: object) -> int:
    """Return a level, of any whole type, as a plain int.

    Raises:
        FormatError: it is not a whole number, or there is no such level.
    """
    try:
        number = operator.index(level)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(level, bool):
        raise FormatError(f"a level is a whole number from 0 to {LEVELS - 1}, not {level!r}")
    if number not in range(LEVELS):
        raise FormatError(f"there is no level {number}: levels are 0 to {LEVELS - 1}")
    return number
