"""Counts what a build does to its folder, and has a fault happen: a kill, a power cut, no room.

Counted is every open for writing, rename, removal, new folder, sync and lock. A fault comes before
the n-th of them. Its kinds:

- kill: SIGKILL.
- half: the kernel kills the process within the next write, after some bytes of the file.
- power: as after a power cut: what was not synced of a file is gone, what was not synced of the
  names in a folder may be.
- torn: as power, but all names are there: files that were not synced are empty.
- full: the disk takes nothing more (ENOSPC); the build says so in one line and ends.
- short: as full, but within the next write, after some bytes of the file.
- timer: SIGKILL after a random time, wherever that is; the process that started the build does it.
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
    """What happens to one run of a build.

    Attributes:
        kind: One of `KINDS`, or "none".
        at: Number of the event before which it happens; of "timer", thousandths of the time.
        size: Bytes of a file that still get written.
    """

    kind: str = "none"
    at: int = 0
    size: int = 0


class Watch:
    """Counts what a build does below a folder, and has the fault happen."""

    def __init__(self, out: Path, fault: Fault) -> None:
        self.out, self.fault = str(out), fault
        self.events: list[str] = []
        self.disk = Disk(out.parent) if fault.kind in ("power", "torn") else None
        self.busy = False
        sync = os.fsync

        def fsync(handle: int) -> None:
            self.note("os.fsync", _path(handle))
            sync(handle)
            if self.disk:
                self.disk.synced(handle)

        os.fsync = fsync
        sys.addaudithook(self.heard)

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note an audit event that writes below the folder."""
        if event == "fcntl.flock":
            self.note(event, "")
        elif event in COUNTED and not self.busy:
            if event == "open" and not (arguments[2] or 0) & WRITES:
                return
            path = arguments[0]
            inside = not isinstance(path, int) and os.fsdecode(path).startswith(self.out)
            beside = event in ("os.remove", "os.rmdir") and arguments[-1] != -1  # of a rmtree
            if inside or beside or event == "os.truncate":
                self.note(event, os.fsdecode(path) if not isinstance(path, int) else "")

    def note(self, event: str, path: str) -> None:
        """Count an event; the fault's own is the last one, but for a full disk."""
        if self.busy:
            return
        self.busy = True
        try:
            self.events.append(f"{event} {path.removeprefix(self.out)}")
            if len(self.events) > self.fault.at:
                self.happen(event, path)
        finally:
            self.busy = False

    def happen(self, event: str, path: str) -> None:
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
    """What of a folder would outlast a power cut: files and folders as they were last synced."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.files: dict[int, bytes] = {}
        self.folders: dict[int, list[tuple[str, int, bool]]] = {}
        self.pinned: list[int] = []  # an open file's number is not given to another
        for path in (base, *base.rglob("*")):  # what is there was there before the machine started
            handle = os.open(path, os.O_RDONLY)
            self.synced(handle)
            os.close(handle)

    def synced(self, handle: int) -> None:
        """Note what an open file or folder is now."""
        facts = os.fstat(handle)
        self.pinned.append(os.dup(handle))
        if stat.S_ISDIR(facts.st_mode):
            with os.scandir(handle) as entries:
                found = [(entry.name, entry.inode(), entry.is_dir()) for entry in entries]
            self.folders[facts.st_ino] = found
        else:
            self.files[facts.st_ino] = os.pread(handle, facts.st_size, 0)

    def restore(self, fault: Fault) -> None:
        """Make the folder what a power cut leaves of it.

        Of each folder either the names are there that were synced, or those of now; which, is
        drawn. Every third time they are all the synced ones.
        """
        drawn = random.Random(repr(fault))
        strict = fault.kind == "power" and fault.size % 3 == 0
        live: dict[int, list[tuple[str, int, bool]]] = {}
        for path in (self.base, *(p for p in self.base.rglob("*") if p.is_dir())):
            with os.scandir(path) as found:
                live[path.stat().st_ino] = [(e.name, e.inode(), e.is_dir()) for e in found]

        def make(folder: int, to: Path) -> None:
            to.mkdir()
            kept, now = self.folders.get(folder, []), live.get(folder)
            lasting = now is None or strict or (fault.kind == "power" and drawn.random() < 0.5)
            for name, inode, is_folder in kept if lasting else now:
                if is_folder:
                    make(inode, to / name)
                else:
                    (to / name).write_bytes(self.files.get(inode, b""))

        left = self.base.with_name(f"{self.base.name}.left")
        make(self.base.stat().st_ino, left)
        shutil.rmtree(self.base)
        left.rename(self.base)
