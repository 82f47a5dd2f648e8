"""Bitstreams of an item that is not done yet, kept level by level for encoders that take hours."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfqa_data.format.storage import write_tensors

__all__ = ["KeptStreams"]


@dataclass(frozen=True)
class KeptStreams:
    """The levels of one item that a worker had encoded before it was lost.

    Attributes:
        folder: theirs alone; one safetensors file per level.
    """

    folder: Path

    def read(self, level: int) -> list[bytes] | None:
        """Return a level's bitstreams in the order of the planes, or None where it has none."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            found = load_file(self._path(level))
        except (OSError, SafetensorError):
            return None
        return [found[str(index)].tobytes() for index in range(len(found))]

    def write(self, level: int, streams: Sequence[bytes]) -> None:
        """Keep a level's bitstreams."""
        arrays = {str(i): np.frombuffer(stream, np.uint8) for i, stream in enumerate(streams)}
        write_tensors(self._path(level), arrays)

    def remove(self) -> None:
        """Remove all levels: the item is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, level: int) -> Path:
        return self.folder / f"{level}.safetensors"
