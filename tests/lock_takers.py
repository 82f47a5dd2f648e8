"""Processes that compete for the lock of a build folder; prints the outcomes.

    python tests/lock_takers.py FOLDER TAKERS ROUNDS

Every round begins with the lock that a killed process left, and has all takers try at one moment;
who got it holds it until the others were refused. Then all take it in turn, many times, and count
who else is inside.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from cfqa_data.builders.pipeline.lock import locked
from cfqa_data.errors import BuildError


def leave_stale(root: Path) -> int:
    """Kill a process that holds the lock; return its process id."""
    ready, tell = os.pipe()
    pid = os.fork()
    if not pid:
        with locked(root):
            os.write(tell, b"x")
            signal.pause()
    os.read(ready, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for handle in (ready, tell):
        os.close(handle)
    return pid


def race(root: Path, takers: int) -> list[str]:
    """Let processes try to take the lock at once; return their outcomes."""
    answers, tell = os.pipe()
    start, go = os.pipe()
    over, end = os.pipe()
    pids = []
    for _ in range(takers):
        pid = os.fork()
        if not pid:
            os.close(go)
            os.close(end)
            os.read(start, 1)  # returns when the parent closes its end
            try:
                with locked(root):
                    os.write(tell, f"won {os.getpid()}\n".encode())
                    os.read(over, 1)
            except BuildError as error:
                os.write(tell, f"{error}\n".encode())
            os._exit(0)
        pids.append(pid)
    os.close(tell)
    os.close(go)
    told = b""
    while told.count(b"\n") < takers:
        told += os.read(answers, 65536)
    os.close(end)
    for pid in pids:
        os.waitpid(pid, 0)
    for handle in (answers, start, over):
        os.close(handle)
    return told.decode().splitlines()


def turns(root: Path, takers: int, each: int) -> int:
    """Let processes take the lock `each` times; return how often two held it at once."""
    inside = root / "inside"
    pids = []
    for _ in range(takers):
        pid = os.fork()
        if not pid:
            met = taken = 0
            while taken < each:
                with suppress(BuildError), locked(root):
                    try:
                        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                        inside.unlink()
                    except FileExistsError:
                        met += 1
                    taken += 1
            os._exit(min(met, 255))
        pids.append(pid)
    return sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)


def main() -> None:
    """Run the rounds of the command line."""
    root, takers, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    told = []
    for _ in range(rounds):
        stale = leave_stale(root)
        assert json.loads((root / ".build" / "lock").read_text())["pid"] == stale
        told.append(race(root, takers))
    print(json.dumps({"rounds": told, "met": turns(root, takers, rounds)}))


if __name__ == "__main__":
    main()
