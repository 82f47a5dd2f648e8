"""Streams of HM and VTM, recorded by `benchmarks/reference.py --record` from planes made here."""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["RECORD", "Stream", "feature_like_plane", "recorded_streams", "sha256"]

RECORD = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Stream:
    """A recorded result of a reference encoder and its decoder.

    Attributes:
        codec: Hm or vtm.
        rows: Of the plane.
        cols: Of the plane.
        qp: It was encoded with.
        size: Of the bitstream in bytes.
        sha256: Of the bitstream.
        decoded_sha256: Of what the reference decoder wrote, 16-bit little-endian samples.
        data: The bitstream, where it is small.
    """

    codec: str
    rows: int
    cols: int
    qp: int
    size: int
    sha256: str
    decoded_sha256: str
    data: bytes | None = None


def feature_like_plane(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """Return uint16 (rows, cols): columns of a level and a spread of their own, smooth downwards.

    Integers alone, so that every machine and version makes the same plane.
    """
    raw = np.random.PCG64(seed).random_raw((rows + 2) * cols).view(np.uint16)
    noise = raw.reshape(rows + 2, cols, 4).astype(np.int64).sum(axis=2) - 4 * 32768
    smooth = noise[:-2] + noise[1:-1] + noise[2:]  # standard deviation 65536
    columns = np.random.PCG64(seed + 1).random_raw(cols)
    level = 360 + (columns % 300).astype(np.int64)
    spread = 1 << ((columns >> np.uint64(32)) % 6).astype(np.int64)
    return np.clip(level + smooth * spread // 65536, 0, 1023).astype("<u2")


def recorded_streams() -> list[Stream]:
    """Return all recorded streams."""
    entries = json.loads(RECORD.read_text(encoding="utf-8"))["streams"]
    return [
        Stream(**entry | {"data": b64decode(entry["data"]) if "data" in entry else None})
        for entry in entries
    ]


def sha256(data: bytes) -> str:
    """Return the SHA-256 as hex."""
    return hashlib.sha256(data).hexdigest()
