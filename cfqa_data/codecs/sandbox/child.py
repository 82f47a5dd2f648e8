"""Entry point of the child process in which an isolated codec decodes.

It reads requests from its standard input and answers on its standard output, in the plain frames
that are defined here. What codecs print goes nowhere.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import signal
import struct
from collections.abc import Callable
from typing import BinaryIO

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
    codec: Codec

    def start() -> bytes:
        nonlocal codec
        set_limits(memory, processor_seconds)
        codec = _make(**json.loads(requests.read(length)))
        filter_calls()
        return READY.pack(codec.dtype.itemsize, codec.peak)

    def decode(rows: int, cols: int, length: int) -> bytes:
        return codec.decode(requests.read(length), (rows, cols)).tobytes()

    served = _answer(replies, seconds, start)
    while served and (header := requests.read(REQUEST.size)):
        rows, cols, seconds, length = REQUEST.unpack(header)
        _answer(replies, seconds, decode, rows, cols, length)


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Return the pipes, and put nothing in their place."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.close(nothing)
    return requests, replies


def _make(factory: str, name: str, options: dict[str, object]) -> Codec:
    """Return the codec, with all imported that it imports when it decodes: no file opens later."""
    codec: Codec = pkgutil.resolve_name(factory)(name, **options)
    for needed in ("concurrent.futures.thread", "av", "constriction"):
        with contextlib.suppress(ImportError):
            importlib.import_module(needed)
    return codec


def _answer(replies: BinaryIO, seconds: float, work: Callable[..., bytes], *arguments: int) -> bool:
    """Send what some work gives, or what goes wrong in it; return whether nothing did.

    The end of the time is the end of this process.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)
    status, text = OK, ""
    try:
        payload = work(*arguments)
    except MissingDependencyError as error:
        status, text = MISSING, str(error)
    except CfqaError as error:
        status, text = REFUSED, str(error)
    except Exception as error:
        status, text = FAILED, f"{type(error).__name__}: {error}"
    if status != OK:
        payload = text.encode(errors="replace")[:MOST_TEXT]
    replies.write(REPLY.pack(status, len(payload)))
    replies.write(payload)
    replies.flush()
    signal.setitimer(signal.ITIMER_REAL, 0)
    return status == OK


if __name__ == "__main__":
    main()
