"""Entry point of the child process in which an isolated codec decodes.

It reads requests from its standard input and answers on its standard output, in the plain frames
that are defined here. What codecs print goes nowhere.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import struct
from typing import Any, BinaryIO

from cfqa_data.codecs.base import Codec
from cfqa_data.codecs.sandbox.confinement import filter_calls, set_limits
from cfqa_data.errors import CfqaError, MissingDependencyError

__all__ = ["main"]

START = struct.Struct("<dQQI")
"""Seconds to start, bytes of memory, seconds of processor time, length of the JSON that follows."""

READY = struct.Struct("<BI")
"""Payload of the first reply: bytes of a sample, and the largest sample."""

REQUEST = struct.Struct("<IIdQ")
"""Before a bitstream: rows, columns, seconds that decoding may take, length."""

REPLY = struct.Struct("<BQ")
"""Before every reply: what became of it, and the length of what follows."""

OK, REFUSED, MISSING, FAILED = range(4)
"""Samples follow; or the words of a CodecError, of a MissingDependencyError, of another error."""

MOST_TEXT = 1000
"""Bytes of words."""


def main() -> None:
    """Serve until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what becomes of this process
    requests, replies = _take_pipes()
    seconds, memory, processor_seconds, length = START.unpack(requests.read(START.size))
    signal.setitimer(signal.ITIMER_REAL, seconds)  # its end is the end of this process
    try:
        set_limits(memory, processor_seconds)
        codec = _make(**json.loads(requests.read(length)))
        filter_calls()
    except Exception as error:
        _answer(replies, *_failure(error))
        return
    _answer(replies, OK, READY.pack(codec.dtype.itemsize, codec.peak))
    while header := requests.read(REQUEST.size):
        rows, cols, seconds, length = REQUEST.unpack(header)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        _answer(replies, *_decode(codec, requests.read(length), (rows, cols)))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Return the pipes, and put nothing in their place."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.close(nothing)
    return requests, replies


def _make(factory: str, name: str, options: dict[str, Any]) -> Codec:
    """Return the codec, with all imported that it imports when it decodes: no file opens later."""
    module, _, function = factory.partition(":")
    codec: Codec = getattr(importlib.import_module(module), function)(name, **options)
    for needed in ("concurrent.futures.thread", "av", "constriction"):
        with contextlib.suppress(ImportError):
            importlib.import_module(needed)
    return codec


def _decode(codec: Codec, bitstream: bytes, shape: tuple[int, int]) -> tuple[int, bytes]:
    try:
        return OK, codec.decode(bitstream, shape).tobytes()
    except Exception as error:
        return _failure(error)


def _failure(error: Exception) -> tuple[int, bytes]:
    if isinstance(error, MissingDependencyError):
        status, text = MISSING, str(error)
    elif isinstance(error, CfqaError):
        status, text = REFUSED, str(error)
    else:
        status, text = FAILED, f"{type(error).__name__}: {error}"
    return status, text.encode(errors="replace")[:MOST_TEXT]


def _answer(replies: BinaryIO, status: int, payload: bytes) -> None:
    replies.write(REPLY.pack(status, len(payload)))
    replies.write(payload)
    replies.flush()


if __name__ == "__main__":
    main()
