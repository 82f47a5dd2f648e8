"""Parent side of a decoding child process: framing, limits and validation of replies.

Frames are fixed structures and bytes; nothing is unpickled. A reply has either exactly as many
bytes as the plane or a short message, of which errors show only printable characters.
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

from cfqa_data.codecs.sandbox import child as protocol
from cfqa_data.errors import CodecError, MissingDependencyError

__all__ = ["DecoderProcess"]

START_SECONDS = 60.0
"""Time limit for starting an interpreter, importing a decoder and reading its weights."""

EXIT_SECONDS = 1.0
"""Time for a child to exit after it closed its pipe."""

INHERITED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL")

# More threads, or a heap per thread, would need more memory than memory_limit() allows.
SINGLE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


class DecoderProcess:
    """A child process and its pipes; only one thread may use it at a time.

    Args:
        name: The codec's name, for messages.
        start: JSON that tells the child which codec to make.
        samples: Samples of the largest plane that it can decode.
        memory: Bytes of address space that it may use.
        life: Seconds of decoding that it may use in total.

    Attributes:
        samples: As passed to the constructor.
        itemsize: Bytes per sample, 1 or 2.
        peak: The largest sample.
        spent: Seconds of decoding so far.
        sound: Whether the last reply was valid, so that the child can be used again.

    Raises:
        CodecError: If the child does not start, or cannot make the codec.
        MissingDependencyError: If a dependency of the codec is not installed.
    """

    def __init__(self, name: str, start: str, samples: int, memory: int, life: float) -> None:
        self.name = name
        self.samples = samples
        self.spent = 0.0
        self._memory = memory
        self._owner = os.getpid()
        text = start.encode()
        processor = int(2 * life + START_SECONDS)  # no decoder uses more than two threads
        first = protocol.START.pack(START_SECONDS, memory, processor, len(text)) + text
        try:
            # The child's working directory is deleted, so it cannot create files there.
            with tempfile.TemporaryDirectory(prefix="cfqa-decode-") as folder:
                self._spawn(folder)
                try:
                    ready = self._request(first, protocol.READY.size, START_SECONDS)
                    self.itemsize, self.peak = protocol.READY.unpack(ready)
                    if self.itemsize not in (1, 2) or self.peak >= 1 << 8 * self.itemsize:
                        raise self._invalid_reply()
                except BaseException:
                    self.close()
                    raise
        except OSError as error:
            raise CodecError(
                f"{name}: cannot start a process to decode in ({error.strerror})"
            ) from None

    def _spawn(self, folder: str) -> None:
        paths = os.pathsep.join(map(os.path.abspath, sys.path))
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-m", protocol.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd=folder,
            env=inherited | SINGLE_THREAD | {"PYTHONPATH": paths},
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
            CodecError: If the bitstream is damaged, or the child sends no reply or an invalid one.
        """
        started = time.monotonic()
        request = protocol.REQUEST.pack(*shape, seconds, len(bitstream)) + bitstream
        try:
            return self._request(request, size, seconds)
        finally:
            self.spent += time.monotonic() - started

    def is_quiet(self) -> bool:
        """Return whether the child is alive and has sent nothing that was not requested."""
        return self._process.poll() is None and not _ready(self._pipes[1], select.POLLIN, 0.0)

    def close(self) -> None:
        """Kill the child and all processes that it may have started, and wait for its end.

        In a forked process, only the reference to the parent's child is dropped.
        """
        if self._owner != os.getpid():
            self._process.returncode = 0  # so that `subprocess` does not wait for it
        elif self._process.returncode is None:  # otherwise its number may have been reused
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()
        for pipe in self._pipes:
            pipe.close()

    def _request(self, request: bytes, size: int, seconds: float) -> bytearray:
        """Send a request and return the payload of its reply, which must have ``size`` bytes."""
        deadline, self.sound = time.monotonic() + seconds, False
        try:
            self._send(request, deadline)
            status, length = protocol.REPLY.unpack(self._receive(protocol.REPLY.size, deadline))
            if (status, length) != (protocol.OK, size) and (
                status not in (protocol.REFUSED, protocol.MISSING, protocol.FAILED)
                or length > protocol.MAX_MESSAGE_BYTES
            ):
                raise self._invalid_reply()
            answer = self._receive(length, deadline)
        except TimeoutError:
            raise CodecError(f"{self.name}: decoding took more than {seconds:.0f} s") from None
        except (EOFError, BrokenPipeError):
            raise self._exit_error(seconds) from None
        self.sound = status != protocol.FAILED
        if status == protocol.OK:
            return answer
        text = answer.decode(errors="replace")
        if self.sound:
            raise MissingDependencyError(text) if status == protocol.MISSING else CodecError(text)
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

    def _invalid_reply(self) -> CodecError:
        return CodecError(f"{self.name}: the decoder gave an invalid answer")

    def _exit_error(self, seconds: float) -> CodecError:
        """Return the error for a child that closed its pipe."""
        try:
            status = self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return self._invalid_reply()
        if -status in (signal.SIGALRM, signal.SIGXCPU):
            return CodecError(f"{self.name}: decoding took more than {seconds:.0f} s")
        how = f"status {status}"
        with suppress(ValueError):
            how = signal.Signals(-status).name
        return CodecError(f"{self.name}: the decoder crashed ({how})")


def _ready(pipe: IO[bytes], event: int, seconds: float) -> bool:
    """Return whether a pipe becomes readable, writable or closed within some seconds."""
    poll = select.poll()
    poll.register(pipe, event)
    return bool(poll.poll(seconds * 1000))


def _wait(pipe: IO[bytes], event: int, deadline: float) -> None:
    if not _ready(pipe, event, max(0.0, deadline - time.monotonic())):
        raise TimeoutError
