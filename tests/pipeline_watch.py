"""Count the file operations of a build, and inject a fault: a kill, a power cut, or a full disk.

The counted events are opens for writing, renames, removals, new folders, syncs and locks. A fault
is injected before the n-th event. Its kinds:

- kill: SIGKILL.
- half: the kernel kills the process within the next write, after some bytes of the file.
- power: a power cut: content that was not synced is lost, and directory entries that were not
  synced may be lost.
- torn: like power, but all directory entries exist; files that were not synced are empty.
- full: the disk is full (ENOSPC); the build must end with a one-line error.
- short: like full, but within the next write, after some bytes of the file.
- timer: SIGKILL by the parent process after a random time.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = ("kill", "half", "power", "torn", "full", "short", "timer")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
COUNTED = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate")
TAKES_ROOM = ("open", "os.mkdir", "os.rename", "os.fsync")


@dataclass(frozen=True)
class Fault:
    """A fault of one run of a build.

    Attributes:
        kind: One of `KINDS`, or "none".
        at: Index of the event before which it happens; for "timer", the time in thousandths of
            the duration of a build.
        size: Number of bytes that are still written to a file.
    """

    kind: str = "none"
    at: int = 0
    size: int = 0


class Watch:
    """Counts the events of a build in a folder, and injects the fault."""

    def __init__(self, out: Path, fault: Fault) -> None:
        self.out, self.fault = str(out), fault
        self.events: list[str] = []
        self.disk = Disk(out.parent) if fault.kind in ("power", "torn") else None
        self.busy = False
        sync = os.fsync

        def fsync(handle: int) -> None:
            self.count_event("os.fsync", _path(handle))
            sync(handle)
            if self.disk:
                self.disk.synced(handle)

        os.fsync = fsync
        sys.addaudithook(self.audit)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count an audit event that changes the folder."""
        if event == "fcntl.flock":
            self.count_event(event, "")
        elif event in COUNTED and not self.busy:
            if event == "open" and not (arguments[2] or 0) & WRITES:
                return
            path = arguments[0]
            inside = not isinstance(path, int) and os.fsdecode(path).startswith(self.out)
            by_rmtree = event in ("os.remove", "os.rmdir") and arguments[-1] != -1
            if inside or by_rmtree or event == "os.truncate":
                self.count_event(event, os.fsdecode(path) if not isinstance(path, int) else "")

    def count_event(self, event: str, path: str) -> None:
        """Record an event, and inject the fault from its index on."""
        if self.busy:
            return
        self.busy = True
        try:
            self.events.append(f"{event} {path.removeprefix(self.out)}")
            if len(self.events) > self.fault.at:
                self.inject(event, path)
        finally:
            self.busy = False

    def inject(self, event: str, path: str) -> None:
        kind, first = self.fault.kind, len(self.events) == self.fault.at + 1
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind in ("half", "short") and first:
            if kind == "half":
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.fault.size, most))
        elif kind == "full" and event in TAKES_ROOM:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        elif self.disk:
            self.disk.restore(self.fault)
            os._exit(9)


def _path(handle: int) -> str:
    return os.readlink(f"/proc/self/fd/{handle}") if os.path.isdir("/proc/self/fd") else ""


class Disk:
    """The state of a folder after a power cut: files and folders as they were last synced."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.files: dict[int, bytes] = {}
        self.folders: dict[int, list[tuple[str, int, bool]]] = {}
        self.pinned: list[int] = []  # open files, so that their inode numbers are not reused
        for path in (base, *base.rglob("*")):  # existing files count as synced
            handle = os.open(path, os.O_RDONLY)
            self.synced(handle)
            os.close(handle)

    def synced(self, handle: int) -> None:
        """Record the content of an open file or folder."""
        facts = os.fstat(handle)
        self.pinned.append(os.dup(handle))
        if stat.S_ISDIR(facts.st_mode):
            with os.scandir(handle) as entries:
                self.folders[facts.st_ino] = [(e.name, e.inode(), e.is_dir()) for e in entries]
        else:
            self.files[facts.st_ino] = os.pread(handle, facts.st_size, 0)

    def restore(self, fault: Fault) -> None:
        """Replace the folder by its state after a power cut.

        Each folder has, at random, either its synced or its current entries. In every third fault,
        all folders have their synced entries.
        """
        drawn = random.Random(repr(fault))
        strict = fault.kind == "power" and fault.size % 3 == 0
        live: dict[int, list[tuple[str, int, bool]]] = {}
        for path in (self.base, *(p for p in self.base.rglob("*") if p.is_dir())):
            with os.scandir(path) as entries:
                live[path.stat().st_ino] = [(e.name, e.inode(), e.is_dir()) for e in entries]

        def make(folder: int, to: Path) -> None:
            to.mkdir()
            synced, current = self.folders.get(folder, []), live.get(folder)
            use_synced = (
                current is None or strict or (fault.kind == "power" and drawn.random() < 0.5)
            )
            for name, inode, is_folder in synced if use_synced else current:
                if is_folder:
                    make(inode, to / name)
                else:
                    (to / name).write_bytes(self.files.get(inode, b""))

        left = self.base.with_name(f"{self.base.name}.left")
        make(self.base.stat().st_ino, left)
        shutil.rmtree(self.base)
        left.rename(self.base)
