"""The labels in a dataset folder, and its arrays, found by source, codec and level.

Files are opened on first use and mapped, not read; pickling drops what is open.
"""

from __future__ import annotations

import operator
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfqa_data.codes import Codes, CodesReader
from cfqa_data.errors import CodecError, FormatError, RecipeError, unknown_name
from cfqa_data.layout import Layout
from cfqa_data.manifest import hash_file, read_manifest
from cfqa_data.packing import plane_shape, unpack
from cfqa_data.resources import resolve
from cfqa_data.schema import label_schema
from cfqa_data.storage import check_rows, read_table
from cfqa_data.tasks import LEVELS

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Folder", "check_level"]

SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")


class Folder:
    """Reads the labels and arrays of one dataset folder, of either tier.

    Args:
        root: the folder.

    Raises:
        FormatError: it is not a dataset folder. (Its methods raise it for what is missing,
            damaged or not what the manifest says.)
    """

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.manifest = read_manifest(root)
        self._places = {
            source: (task, index)
            for task, entry in self.manifest.tasks.items()
            for index, source in enumerate(entry.sources)
        }
        self._close()

    def _close(self) -> None:
        self._tensors: dict[str, dict[str, Any]] = {}
        self._codes: dict[tuple[str, str], CodesReader | None] = {}
        self._decoders: dict[tuple[str, str], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("layout", "manifest", "_places")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._close()

    def labels(self, task: str) -> pa.Table:
        """Return the label rows of a task, one per source, codec and level, in any order."""
        path = self.layout.labels(task)
        table = read_table(path, label_schema())
        axes = {
            "task": [task],
            "source_id": self.manifest.tasks[task].sources,
            "codec": list(self.manifest.recipe.tasks[task].ladders),
            "level": range(LEVELS),
        }
        check_rows(path, table, axes)
        return table

    def original(self, source_id: str) -> np.ndarray:
        """Return an original feature, float32 (N, C, T, D)."""
        task, _ = self._place(source_id)
        stem = f"originals/{task}"
        feature = self._tensor(stem, source_id, sharded=True)
        expected = self.manifest.tasks[task].shape
        if feature.shape != expected or feature.dtype != np.float32:
            raise FormatError(
                f"{self.layout.root / stem}: {source_id!r} is {feature.dtype} {feature.shape}, "
                f"not float32 {expected}"
            )
        return feature

    def truth(self, source_id: str) -> np.ndarray:
        """Return what the task's head is scored against for a source."""
        task, _ = self._place(source_id)
        return self._tensor(f"truth/{task}", source_id, sharded=False)

    def bitstream(self, source_id: str, codec: str, level: int) -> bytes:
        """Return a compressed feature's whole bitstream."""
        task, level = self._check(source_id, codec, level)
        stream = self._tensor(f"bitstreams/{task}-{codec}", f"{source_id}/{level}", sharded=True)
        return stream.tobytes()

    def compressed(self, source_id: str, codec: str, level: int) -> np.ndarray:
        """Return a compressed feature, float32 (N, C, T, D)."""
        return self.codes(source_id, codec, level).dequantize()

    def codes(self, source_id: str, codec: str, level: int) -> Codes:
        """Return a compressed feature as integers, stored ones or those of its bitstream."""
        task, level = self._check(source_id, codec, level)
        if (task, codec) not in self._codes:
            self._codes[task, codec] = self._open_codes(task, codec)
        codes = self._codes[task, codec]
        if codes is not None:
            return codes.read_codes(self._place(source_id)[1], level)
        stream = self.bitstream(source_id, codec, level)
        if (task, codec) not in self._decoders:
            self._decoders[task, codec] = self._make_decoder(task, codec)
        shape = self.manifest.tasks[task].shape
        quantizer = self.manifest.recipe.tasks[task].ladders[codec].quantizer
        try:
            plane = self._decoders[task, codec].decode(stream, plane_shape(shape))
            if int(plane.max()) >= 1 << quantizer.bits:
                raise CodecError(f"code {int(plane.max())} is not a {quantizer.bits}-bit code")
            return Codes(unpack(plane, shape), quantizer.values())
        except CodecError as error:
            raise FormatError(
                f"{self.layout.root}: bitstream of {source_id!r} by {codec} at level {level} "
                f"cannot be decoded: {error}"
            ) from None

    def _place(self, source_id: str) -> tuple[str, int]:
        try:
            return self._places[source_id]
        except (KeyError, TypeError):
            message = unknown_name("source", source_id, self._places)
            raise FormatError(f"{self.layout.root}: {message}") from None

    def _check(self, source_id: str, codec: str, level: int) -> tuple[str, int]:
        """Return the task of a compressed feature, and its level as a plain int."""
        task, _ = self._place(source_id)
        ladders = self.manifest.recipe.tasks[task].ladders
        if not isinstance(codec, str) or codec not in ladders:
            raise FormatError(f"{self.layout.root}: {unknown_name('codec', codec, ladders)}")
        return task, check_level(level)

    def _tensor(self, stem: str, key: str, *, sharded: bool) -> np.ndarray:
        """Return the tensor ``key`` of the safetensors file (or set of shards) at ``stem``."""
        from safetensors import SafetensorError

        if stem not in self._tensors:
            self._tensors[stem] = self._open_tensors(stem, sharded)
        file = self._tensors[stem].get(key)
        if file is None:
            raise FormatError(f"{self.layout.root / stem}: {key!r} is in none of its files")
        try:
            tensor: np.ndarray = file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{self.layout.root / stem}: {key!r} is damaged: {error}") from None
        except (TypeError, AttributeError):  # what safetensors says to bfloat16, and to float8
            kind = file.get_slice(key).get_dtype()
            raise FormatError(
                f"{self.layout.root / stem}: {key!r} is {kind}, which a dataset does not hold; "
                "build or fetch it again"
            ) from None
        return tensor

    def _open_tensors(self, stem: str, sharded: bool) -> dict[str, Any]:
        """Return the open file that holds it, for each key of a set of safetensors files."""
        from safetensors import SafetensorError, safe_open

        base = self.layout.root / stem
        paths = _all_shards(base) if sharded else [base.with_name(f"{base.name}.safetensors")]
        files: dict[str, Any] = {}
        for path in paths:
            try:
                file = safe_open(path, framework="numpy")
                files.update(dict.fromkeys(file.keys(), file))
            except FileNotFoundError:
                raise FormatError(f"{path}: missing; is this a complete dataset folder?") from None
            except (SafetensorError, OSError) as error:
                raise FormatError(f"{path}: not a safetensors file: {error}") from None
        return files

    def _open_codes(self, task: str, codec: str) -> CodesReader | None:
        path = self.layout.compressed(task, codec)
        if not path.exists():
            return None
        entry = self.manifest.tasks[task]
        sources = len(entry.sources)
        codes = CodesReader(path, sources=sources, levels=LEVELS, shape=entry.shape)
        if codes.source_ids != list(entry.sources):
            raise FormatError(f"{path}: its sources are not the manifest's")
        return codes

    def _make_decoder(self, task: str, codec: str) -> Any:
        """Return the codec of a ladder, with the very weights that made the bitstreams."""
        from cfqa_data.codecs import get_codec

        ladder = self.manifest.recipe.tasks[task].ladders[codec]
        try:
            if ladder.models is not None:
                expected = self.manifest.weights.get(ladder.models)
                if expected not in (None, hash_file(resolve(ladder.models))):
                    raise FormatError(
                        f"{ladder.models}: not the weights that made {self.layout.root}; "
                        "install the cfqa-data version in its manifest"
                    )
            return get_codec(ladder.codec, **ladder.codec_options)
        except (CodecError, RecipeError) as error:
            raise FormatError(
                f"{self.layout.manifest}: tasks.{task}.codecs.{codec}: {error}"
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


def _all_shards(base: Path) -> list[Path]:
    """Return the shards "base-0000I-of-0000K.safetensors", all K of them."""
    shards = {}
    for path in base.parent.glob(f"{base.name}-*"):
        if match := SHARD.fullmatch(path.name[len(base.name) :]):
            shards[int(match[1]), int(match[2])] = path
    if not shards:
        raise FormatError(f"{base}-*.safetensors: missing; is this a complete dataset folder?")
    total = max(count for _, count in shards)
    paths = []
    for number in range(total):
        if (number, total) not in shards:
            raise FormatError(f"{base}-{number:05d}-of-{total:05d}.safetensors: missing shard")
        paths.append(shards[number, total])
    return paths
