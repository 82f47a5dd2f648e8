"""Read a dataset in memory through the interface of `Folder`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from cfqa_data.access.folder import Folder
from cfqa_data.access.selection import Part, Selection
from cfqa_data.errors import FormatError
from cfqa_data.format.manifest import Manifest
from cfqa_data.torch_inputs import unmasked

__all__ = ["MemoryFolder", "as_numpy"]


def as_numpy(value: Any) -> np.ndarray:
    """Convert an array, tensor or number to a NumPy array; masked values become NaN."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().resolve_neg()
        value = value.float() if value.is_floating_point() else value  # NumPy has no bfloat16
    return np.asarray(unmasked(value))


class MemoryFolder(Folder):
    """A `Folder` whose features are arrays in memory.

    Args:
        manifest: Manifest of the dataset, with one task.
        originals: Source id -> array.
        compressed: (codec, level) -> source id -> array.
        shapes: Source id -> (N, C, T, D).
    """

    def __init__(
        self,
        manifest: Manifest,
        originals: Mapping[str, Any],
        compressed: Mapping[tuple[str, int], Mapping[str, Any]],
        shapes: Mapping[str, tuple[int, int, int, int]],
    ) -> None:
        self.untrusted, self.plugins, self.manifest = False, (), manifest
        self.files: Any = _Memory()
        (entry,) = manifest.tasks.values()
        self._positions = {source: (entry.name, n) for n, source in enumerate(entry.sources)}
        self._arrays, self._compressed_arrays, self._shapes = originals, compressed, shapes

    def shape(self, source_id: str) -> tuple[int, int, int, int]:
        self._place(source_id)
        return self._shapes[source_id]

    def original(self, source_id: str, **part: Unpack[Part]) -> np.ndarray:
        return self._feature(source_id, self._arrays, f"original {source_id!r}", **part)

    def compressed(
        self, source_id: str, codec: str, level: int, **part: Unpack[Part]
    ) -> np.ndarray:
        *_, level = self._check(source_id, codec, level)
        what = f"{source_id!r} by {codec} at level {level}"
        return self._feature(source_id, self._compressed_arrays[codec, level], what, **part)

    def truth(self, source_id: str) -> np.ndarray:
        raise FormatError(f"{self.files.location}: has no ground truth")

    def bitstream(self, source_id: str, codec: str, level: int) -> bytes:
        raise FormatError(f"{self.files.location}: has no bitstreams")

    def _feature(
        self, source_id: str, arrays: Mapping[str, Any], what: str, **part: Unpack[Part]
    ) -> np.ndarray:
        selection = Selection.of(self.shape(source_id), **part)
        try:
            with np.errstate(over="ignore"):  # overflow gives infinity, which is refused below
                array = as_numpy(arrays[source_id]).astype(np.float32, casting="same_kind")
            array = array.reshape(self._shapes[source_id])
        except (TypeError, ValueError):
            raise FormatError(f"{self.files.location}: {what} is not an array of numbers") from None
        if not np.isfinite(array).all():
            raise FormatError(f"{self.files.location}: {what} has values that are not finite")
        return selection.take(array)


@dataclass(frozen=True)
class _Memory:
    """Replaces the `Files` of a folder."""

    location: str = "memory"
    root: Path | None = None
    follow_links: bool = False
