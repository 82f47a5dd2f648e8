"""A codec that does what its bitstream says, as a compromised decoder would."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.codecs.base import Codec
from cfqa_data.errors import CodecError, MissingDependencyError

__all__ = ["ACTIONS", "FACTORY", "HostileCodec", "make", "ramp"]

FACTORY = f"{__name__}:make"


def ramp(shape: tuple[int, int]) -> np.ndarray:
    """Return the result of an honest decoder."""
    return (np.arange(shape[0] * shape[1]) % 1000).astype(np.uint16).reshape(shape)


def make(name: str, **options: Any) -> HostileCodec:
    """Return the codec; a replacement of `get_codec`."""
    if options.get("start") == "hang":
        time.sleep(1000)
    if options.get("start") == "abort":
        os.abort()
    return HostileCodec(name, **options)


class HostileCodec(Codec):
    """A codec whose bitstreams name the action that decoding performs."""

    dtype = np.dtype("<u2")
    peak = 1023

    def __init__(self, name: str, start: str = "", models: str = "", peak: int = 1023) -> None:
        self.name = name
        self.models = models
        self.peak = peak

    def encode(self, plane: np.ndarray, parameter: float) -> bytes:
        return b"decode"

    def version(self) -> dict[str, str]:
        return {"encoder": self.models}

    def decode(self, bitstream: bytes, shape: tuple[int, int]) -> np.ndarray:
        action = ACTIONS.get(bitstream.decode(), ramp)
        plane = action(shape)
        return ramp(shape) if plane is None else plane


def _write_everywhere(data: bytes) -> None:
    """Write to every open file except the standard streams."""
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, data)
        except OSError:
            continue


def _refuse(text: str) -> None:
    raise CodecError(text)


def _late(_: object) -> None:
    threading.Timer(0.05, _write_everywhere, [b"\0" * 100]).start()


def _print(_: object) -> None:
    print("x" * 100_000, flush=True)
    sys.stderr.write("x" * 100_000)
    os.write(1, b"x" * 100_000)
    os.write(2, b"x" * 100_000)


def _missing(_: object) -> None:
    raise MissingDependencyError("needs what is not there")


ACTIONS: dict[str, Callable[[Any], Any]] = {
    # Failures that must not affect the parent.
    "abort": lambda _: os.abort(),
    "segfault": lambda _: ctypes.string_at(0),
    "exit": lambda _: os._exit(0),
    "stop": lambda _: time.sleep(1000),
    "spin": lambda _: [None for _ in iter(int, 1)],
    "eat": lambda _: np.ones(1 << 31, np.uint8),
    "raise": lambda _: {}["key"],
    # Invalid replies.
    "smaller": lambda shape: ramp(shape)[1:],
    "wider": lambda shape: np.zeros(shape, np.uint32),
    "text": lambda _: "no plane",
    "beyond": lambda shape: np.full(shape, 1024, np.uint16),
    "noise": lambda _: _write_everywhere(b"noise" * 100),
    "huge": lambda _: _write_everywhere(b"\0" + b"\xff" * 8 + b"x" * 100),
    "long words": lambda _: _write_everywhere(b"\1" + (1 << 40).to_bytes(8, "little") + b"x" * 100),
    "half": lambda _: (_write_everywhere(b"\0"), os._exit(0)),
    # Valid error replies.
    "refuse": lambda _: _refuse("hostile: damaged"),
    "escape": lambda _: _refuse("hostile: \x1b[2J\n\0\u202e" + "x" * 10_000),
    "raw": lambda _: _write_everywhere(b"\1" + (9).to_bytes(8, "little") + b"\x1b[2J\n\xff\0ab"),
    "missing": _missing,
    "environment": lambda _: _refuse(" ".join(sorted(os.environ))),
    # Harmless actions.
    "print": _print,
    "late": _late,
    "thread": lambda _: threading.Thread(target=int).start(),
    # Actions that the system call filter blocks.
    "fork": lambda _: os.fork() or os._exit(0),
    "run": lambda _: subprocess.run([sys.executable, "-c", ""]),
    "system": lambda _: ctypes.CDLL(None).system(b"true") == 0 or {}["not run"],
    "read": lambda _: Path(__file__).read_bytes(),
    "list": lambda _: os.listdir("/"),
    "write": lambda _: Path("/tmp/cfqa-hostile").write_bytes(b"x"),
    "remove": lambda _: os.rmdir("/tmp/cfqa-hostile"),
    "connect": lambda _: socket.socket(),
    "kill": lambda _: os.kill(os.getppid(), signal.SIGTERM),
    "unlimit": lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
}
