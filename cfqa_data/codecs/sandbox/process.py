"""The parent's side of a decoding child process: framing, limits and validation of replies.

Frames are fixed structures and bytes; nothing is unpickled. A reply is either exactly as many bytes
as the plane has, or a short text, which an error shows as it shows every text: in printable
characters.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import IO

from cfqa_data.codecs.sandbox import child as wire
from cfqa_data.errors import CodecError, MissingDependencyError

__all__ = ["DecoderProcess"]

START_SECONDS = 60.0
"""Time to start an interpreter, import a decoder and read its weights."""

LINGER_SECONDS = 1.0  # a child that closed its pipe has to end
PASSED_ON = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL")

# More threads, or a heap for each, would need more memory than a plane's size tells.
ALONE = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


class DecoderProcess:
    """One child and its pipes; used by one thread at a time.

    Args:
        name: Of the codec, for messages.
        start: JSON that tells the child its codec.
        samples: Of the largest plane that it is to decode.
        memory: Bytes of address space that it has.
        life: Seconds that it may decode for in all.

    Attributes:
        samples: As given.
        itemsize: Bytes of a sample, 1 or 2.
        peak: The largest sample.
        spent: Seconds that it has decoded for.
        sound: Whether it gave a proper answer to the last request, and can be asked again.

    Raises:
        CodecError: If it did not start, or cannot make the codec.
        MissingDependencyError: If something is not installed.
    """

    def __init__(self, name: str, start: str, samples: int, memory: int, life: float) -> None:
        self.name = name
        self.samples = samples
        self.spent = 0.0
        self._memory = memory
        self._owner = os.getpid()
        text = start.encode()
        processor = int(2 * life + START_SECONDS)  # no decoder takes more than two threads
        first = wire.START.pack(START_SECONDS, memory, processor, len(text)) + text
        try:
            # Gone when the child is in it: there it cannot make anything either.
            with tempfile.TemporaryDirectory(prefix="cfqa-decode-") as nowhere:
                self._spawn(nowhere)
                try:
                    ready = self._ask(first, wire.READY.size, START_SECONDS)
                    self.itemsize, self.peak = wire.READY.unpack(ready)
                    if self.itemsize not in (1, 2) or self.peak >= 1 << 8 * self.itemsize:
                        raise self._nonsense()
                except BaseException:
                    self.close()
                    raise
        except OSError as error:
            raise CodecError(
                f"{name}: cannot start a process to decode in ({error.strerror})"
            ) from None

    def _spawn(self, folder: str) -> None:
        paths = os.pathsep.join(map(os.path.abspath, sys.path))
        passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-m", wire.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd=folder,
            env=passed_on | ALONE | {"PYTHONPATH": paths},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._pipes = self._process.stdin, self._process.stdout
        os.set_blocking(self._pipes[0].fileno(), False)

    def decode(
        self, bitstream: bytes, shape: tuple[int, int], size: int, seconds: float
    ) -> bytearray:
        """Return the ``size`` bytes of the plane that a bitstream holds.

        Raises:
            CodecError: If the bitstream is damaged, or the child did not answer, or not with that.
        """
        started = time.monotonic()
        request = wire.REQUEST.pack(*shape, seconds, len(bitstream)) + bitstream
        try:
            return self._ask(request, size, seconds)
        finally:
            self.spent += time.monotonic() - started

    def is_quiet(self) -> bool:
        """Return whether the child is alive and has sent nothing that was not requested."""
        return self._process.poll() is None and not _ready(self._pipes[1], select.POLLIN, 0.0)

    def close(self) -> None:
        """Kill the child, with all that it may have started, and wait for its end.

        That of another process, which this one was forked from, is only forgotten.
        """
        if self._owner != os.getpid():
            self._process.returncode = 0  # so that `subprocess` does not wait for it
        elif self._process.returncode is None:  # or else its number may be another's already
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()
        for pipe in self._pipes:
            pipe.close()

    def _ask(self, request: bytes, size: int, seconds: float) -> bytearray:
        """Send a request and return its answer of ``size`` bytes."""
        deadline, self.sound = time.monotonic() + seconds, False
        try:
            self._send(request, deadline)
            status, length = wire.REPLY.unpack(self._receive(wire.REPLY.size, deadline))
            if (status, length) != (wire.OK, size) and (
                status not in (wire.REFUSED, wire.MISSING, wire.FAILED) or length > wire.MOST_TEXT
            ):
                raise self._nonsense()
            answer = self._receive(length, deadline)
        except TimeoutError:
            raise CodecError(f"{self.name}: decoding took more than {seconds:.0f} s") from None
        except (EOFError, BrokenPipeError):
            raise self._ended(seconds) from None
        self.sound = status != wire.FAILED
        if status == wire.OK:
            return answer
        text = answer.decode(errors="replace")
        if self.sound:
            raise MissingDependencyError(text) if status == wire.MISSING else CodecError(text)
        hint = f" with {self._memory >> 20} MiB of memory" if "Memory" in text else ""
        raise CodecError(f"{self.name}: the decoder failed{hint} ({text})")

    def _send(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            _wait(self._pipes[0], select.POLLOUT, deadline)
            with suppress(BlockingIOError):
                rest = rest[os.write(self._pipes[0].fileno(), rest) :]

    def _receive(self, size: int, deadline: float) -> bytearray:
        received = bytearray(size)
        rest = memoryview(received)
        while rest:
            _wait(self._pipes[1], select.POLLIN, deadline)
            count = self._pipes[1].readinto(rest)  # type: ignore[attr-defined]
            if not count:
                raise EOFError
            rest = rest[count:]
        return received

    def _nonsense(self) -> CodecError:
        return CodecError(f"{self.name}: the decoder gave an invalid answer")

    def _ended(self, seconds: float) -> CodecError:
        """Return the error for a child that closed its pipe."""
        try:
            status = self._process.wait(LINGER_SECONDS)
        except subprocess.TimeoutExpired:
            return self._nonsense()
        if -status in (signal.SIGALRM, signal.SIGXCPU):
            return CodecError(f"{self.name}: decoding took more than {seconds:.0f} s")
        how = f"status {status}"
        with suppress(ValueError):
            how = signal.Signals(-status).name
        return CodecError(f"{self.name}: the decoder crashed ({how})")


def _ready(pipe: IO[bytes], event: int, seconds: float) -> bool:
    """Return whether a pipe is ready to be read or written, or closed, within some time."""
    poll = select.poll()
    poll.register(pipe, event)
    return bool(poll.poll(seconds * 1000))


def _wait(pipe: IO[bytes], event: int, deadline: float) -> None:
    if not _ready(pipe, event, max(0.0, deadline - time.monotonic())):
        raise TimeoutError
