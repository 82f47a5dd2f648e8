"""Run an external program with a log, a time limit and a file size limit, and clean up after it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["LOG_BYTES", "last_words", "run_program"]

# Runs its arguments as a program, and ends the whole process group when its standard input closes:
# on purpose, or because the process at the other end has died, even by SIGKILL.
_GUARD = """
import os, resource, signal, subprocess, sys, threading

soft, hard = int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
if hard != resource.RLIM_INFINITY:
    soft = min(soft, hard)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

def end():
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)

threading.Thread(target=end, daemon=True).start()
try:
    status = subprocess.call(sys.argv[2:], stdin=subprocess.DEVNULL)
except OSError as error:
    print(f"it cannot be run: {error.strerror}", flush=True)
    status = 126
os._exit(status if status >= 0 else 128 - status)
"""

_SHOWN_LINES = 3
_SHOWN_CHARACTERS = 400
_TAIL_BYTES = 1 << 14

LOG_BYTES = 1 << 24
"""What a program may say: beyond, it is ended, before it fills the disk."""


def run_program(
    command: Sequence[str], log: Path, seconds: float, most_bytes: int = LOG_BYTES
) -> int:
    """Run a program to its end and return its exit status (128 + N if signal N ended it).

    The program has a process group of its own.  The group is killed when the time is over, when
    this call is left by an exception, and when this process dies.

    Args:
        command: The program and its arguments; there is no shell.
        log: File that receives the command, and then all that the program says.
        seconds: Time limit.
        most_bytes: That any file it writes may have, the log among them; whoever writes more is
            ended by SIGXFSZ.

    Raises:
        TimeoutError: If it took longer.
        OSError: If the log cannot be written.
    """
    with log.open("wb") as output:
        output.write(f"{shlex.join(command)}\n".encode())
        output.flush()
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARD, str(most_bytes), *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as guard:  # leaving the block closes the pipe
            try:
                return guard.wait(seconds)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"it took more than {seconds:.0f} s") from None


def last_words(log: Path) -> str:
    """Return the last lines of a log in one line, without the command that opens it."""
    with log.open("rb") as file:
        file.readline()
        file.seek(max(file.tell(), log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    shown = [" ".join(line.split()) for line in lines if line.strip()]
    return "; ".join(shown[-_SHOWN_LINES:])[-_SHOWN_CHARACTERS:] or "no output"
