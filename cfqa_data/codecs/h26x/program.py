"""Run an external program with a log, a time limit and a file size limit."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["MAX_LOG_BYTES", "log_summary", "run_program"]

# Runs its arguments as a program, and kills the whole process group when its standard input closes,
# either on purpose or because the parent has died, even by SIGKILL.
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

_SUMMARY_LINES = 3
_SUMMARY_CHARACTERS = 400
_TAIL_BYTES = 1 << 14

MAX_LOG_BYTES = 1 << 24
"""Size of its output at which a program is killed, before it fills the disk."""


def run_program(
    command: Sequence[str], log: Path, seconds: float, max_bytes: int = MAX_LOG_BYTES
) -> int:
    """Run a program to its end and return its exit status (128 + N if signal N ended it).

    The program has its own process group. The group is killed at the time limit, when an exception
    leaves this call, and when this process dies.

    Args:
        command: The program and its arguments; no shell is involved.
        log: File that receives the command line and the program's output.
        seconds: Time limit in seconds.
        max_bytes: Size limit of each file that the program writes, including the log; SIGXFSZ ends
            a program that exceeds it.

    Raises:
        TimeoutError: If the program takes longer.
        OSError: If the log cannot be written.
    """
    with log.open("wb") as output:
        output.write(f"{shlex.join(command)}\n".encode())
        output.flush()
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARD, str(max_bytes), *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as guard:  # leaving the block closes the pipe
            try:
                return guard.wait(seconds)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"it took more than {seconds:.0f} s") from None


def log_summary(log: Path) -> str:
    """Return the last lines of a log, without its command line, joined into one line."""
    with log.open("rb") as file:
        file.readline()
        file.seek(max(file.tell(), log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    shown = [" ".join(line.split()) for line in lines if line.strip()]
    return "; ".join(shown[-_SUMMARY_LINES:])[-_SUMMARY_CHARACTERS:] or "no output"
