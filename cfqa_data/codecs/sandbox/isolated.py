"""Decode untrusted bitstreams in a child process that can do nothing but decode.

The child is a fresh interpreter with limits on memory and time, one codec and two pipes, but
without files, network or environment (:mod:`cfqa_data.codecs.sandbox.confinement`). The parent
treats it as compromised once it has read untrusted bytes; :mod:`cfqa_data.codecs.sandbox.process`
validates its replies. A child that exits, hangs or sends an invalid reply is killed, and the next
call starts another.
"""

from __future__ import annotations

import json
import os
import pkgutil
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.codecs.base import Bitstream, Codec, check_bitstream, check_shape
from cfqa_data.codecs.sandbox.process import DecoderProcess
from cfqa_data.errors import CodecError, prefixed
from cfqa_data.format.resources import PACKAGE, locate
from cfqa_data.paths import absolute_path, absolute_program

__all__ = ["IsolatedCodec", "memory_limit", "time_limit"]

POSIX = os.name == "posix"
MIN_SAMPLES = 1 << 20
"""Planes of fewer samples get the limits of a plane of this size."""

MAX_CHILDREN = min(8, os.cpu_count() or 1)
"""Children per codec; further threads wait for a free one."""

ABSOLUTE: Mapping[str, Callable[[str], str | Path]] = {
    "models": locate,
    "encoder": absolute_program,
    "config": absolute_path,
}
"""Options that are paths -> functions that make their values absolute."""

MAX_CHILD_SECONDS = 1800.0
"""Decoding time after which a child is replaced, since its processor time must have a limit."""


def memory_limit(samples: int) -> int:
    """Return the address space, in bytes, of a child that decodes planes of ``samples`` samples."""
    return (1 << 30) + 256 * max(samples, MIN_SAMPLES)


def time_limit(samples: int) -> float:
    """Return the time limit, in seconds, for decoding a plane of ``samples`` samples."""
    return 10.0 + 100e-6 * samples


class IsolatedCodec(Codec):
    """A codec that decodes in child processes and encodes in this one.

    Each decoding thread uses a child of its own, up to the number of processors and at most eight.
    The children end with this object. A forked process, or one that unpickles this object, starts
    its own children.

    Args:
        name: The codec's name.
        options: The codec's options.
        factory: ``module:function`` that makes the codec from its name and options.

    Raises:
        CodecError: If there is no such codec or option, or this system cannot isolate processes.
        MissingDependencyError: If a dependency of the codec is not installed.
    """

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any] | None = None,
        factory: str = "cfqa_data.codecs:get_codec",
    ) -> None:
        if not POSIX:
            raise CodecError(
                f"{name}: untrusted=True needs Linux or macOS, which can sandbox processes"
            )
        self.name = name
        self._options = {
            option: _absolute(option, value) for option, value in (options or {}).items()
        }
        self._factory = factory
        start = {"name": name, "options": self._options, "factory": factory}
        with prefixed(
            f"{name}: its options cannot be passed to another process",
            CodecError,
            TypeError,
            ValueError,
        ):
            self._start = json.dumps(start, default=os.fspath)
        self._open()
        child = self._new_child(MIN_SAMPLES)
        self.dtype = np.dtype(f"<u{child.itemsize}")
        self.peak = child.peak
        self._idle.append(child)

    def _open(self) -> None:
        self._idle: list[DecoderProcess] = []
        self._slots = threading.Semaphore(MAX_CHILDREN)
        self._owner = os.getpid()
        weakref.finalize(self, _close_all, self._idle)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_idle", "_slots", "_owner", "_direct")
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def close(self) -> None:
        """End the children now; a later call starts new ones."""
        _close_all(self._idle)

    def decode(self, bitstream: Bitstream, shape: tuple[int, int]) -> np.ndarray:
        """See :meth:`Codec.decode`.

        Raises:
            CodecError: Also if the decoder crashed, took too long or needed too much memory.
        """
        rows, cols = check_shape(self.name, shape)
        stream = check_bitstream(self.name, bitstream)
        if self._owner != os.getpid():  # after a fork, the children belong to the other process
            self.close()
            self._open()
        with self._slots:
            samples = self._decode(stream, (rows, cols))
        plane = np.frombuffer(samples, self.dtype)
        if int(plane.max()) > self.peak:
            raise CodecError(f"{self.name}: the decoder returned {plane.max()}, above {self.peak}")
        return plane.reshape(rows, cols)

    def encode(self, plane: np.ndarray, parameter: float) -> bytes:
        return self._direct.encode(plane, parameter)

    def encode_many(self, planes: Sequence[np.ndarray], parameter: float) -> list[bytes]:
        return self._direct.encode_many(planes, parameter)

    def version(self) -> dict[str, str]:
        return self._direct.version()

    @cached_property
    def _direct(self) -> Codec:
        """The codec in this process, which must not decode untrusted bitstreams."""
        codec: Codec = pkgutil.resolve_name(self._factory)(self.name, **self._options)
        return codec

    def _decode(self, bitstream: bytes, shape: tuple[int, int]) -> bytearray:
        samples = shape[0] * shape[1]
        child = self._take(samples)
        try:
            size = self.dtype.itemsize * samples
            return child.decode(bitstream, shape, size, time_limit(samples))
        finally:
            if child.sound and child.spent < MAX_CHILD_SECONDS:
                self._idle.append(child)
            else:
                child.close()

    def _take(self, samples: int) -> DecoderProcess:
        """Return a child that is large enough and has sent nothing since its last reply."""
        while self._idle:
            try:
                child = self._idle.pop()
            except IndexError:  # another thread took the last one
                break
            if child.samples >= samples and child.is_quiet():
                return child
            child.close()
        return self._new_child(max(samples, MIN_SAMPLES))

    def _new_child(self, samples: int) -> DecoderProcess:
        life = MAX_CHILD_SECONDS + time_limit(samples)
        return DecoderProcess(self.name, self._start, samples, memory_limit(samples), life)


def _absolute(option: str, value: Any) -> Any:
    """Return an option's value, with a path made absolute, independent of the working directory."""
    if option not in ABSOLUTE or not isinstance(value, str | Path) or not str(value):
        return value
    text = str(value)
    return text if text.startswith(PACKAGE) else str(ABSOLUTE[option](text))


def _close_all(children: list[DecoderProcess]) -> None:
    while children:
        children.pop().close()
