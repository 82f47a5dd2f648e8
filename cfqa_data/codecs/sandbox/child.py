"""Entry point of the child process in which a sandboxed codec decodes.

The child reads requests from its standard input and writes replies to its standard output, in the
binary frames that this module defines. It discards what codecs print.
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
"""First request: seconds to start, bytes of memory, seconds of processor time, length of the JSON
that follows."""

READY = struct.Struct("<BI")
"""Payload of the first reply: bytes per sample, and the largest sample."""

REQUEST = struct.Struct("<IIdQ")
"""Header of each later request: rows, columns, time limit in seconds, length of the bitstream that
follows."""

REPLY = struct.Struct("<BQ")
"""Header of each reply: its status, and the length of the payload that follows."""

OK, REFUSED, MISSING, FAILED = range(4)
"""The payload holds samples, or the message of a CodecError, a MissingDependencyError, another
error."""

MAX_MESSAGE_BYTES = 1000
"""Length to which error messages are truncated."""


def main() -> None:
    """Serve requests until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when this process ends
    requests, replies = _take_pipes()
    seconds, memory, processor_seconds, length = START.unpack(requests.read(START.size))
    codec: Codec

    def start() -> bytes:
        nonlocal codec
        set_limits(memory, processor_seconds)
        codec = _make_codec(**json.loads(requests.read(length)))
        filter_calls()
        return READY.pack(codec.dtype.itemsize, codec.peak)

    def decode(rows: int, cols: int, length: int) -> bytes:
        return codec.decode(requests.read(length), (rows, cols)).tobytes()

    started = _reply(replies, seconds, start)
    while started and (header := requests.read(REQUEST.size)):
        rows, cols, seconds, length = REQUEST.unpack(header)
        _reply(replies, seconds, decode, rows, cols, length)


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Return duplicates of standard input and output; redirect the originals to the null device."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    return requests, replies


def _make_codec(factory: str, name: str, options: dict[str, object]) -> Codec:
    """Return the codec, after importing all that decoding needs: later, no file can be opened."""
    codec: Codec = pkgutil.resolve_name(factory)(name, **options)
    for module in ("concurrent.futures.thread", "av", "constriction"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    return codec


def _reply(
    replies: BinaryIO, seconds: float, function: Callable[..., bytes], *arguments: int
) -> bool:
    """Send the result of a function, or its error; return whether it succeeded.

    This process is killed if the function takes longer than ``seconds``.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)
    status, text = OK, ""
    try:
        payload = function(*arguments)
    except MissingDependencyError as error:
        status, text = MISSING, str(error)
    except CfqaError as error:
        status, text = REFUSED, str(error)
    except Exception as error:
        status, text = FAILED, f"{type(error).__name__}: {error}"
    if status != OK:
        payload = text.encode(errors="replace")[:MAX_MESSAGE_BYTES]
    replies.write(REPLY.pack(status, len(payload)))
    replies.write(payload)
    replies.flush()
    signal.setitimer(signal.ITIMER_REAL, 0)
    return status == OK


if __name__ == "__main__":
    main()
