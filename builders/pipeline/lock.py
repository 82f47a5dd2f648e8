"""The lock of a build folder: one builder at a time.

The lock is the kernel's, on the file `.build/lock`: it goes with its process, so that of a killed
one is free at once, whoever has its number now, and of several that want it one gets it. What the
file says is for people, and for the file systems whose locks do not reach other machines.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cfqa_data.errors import BuildError
from cfqa_data.format.layout import Layout
from cfqa_data.format.storage import make_folder

__all__ = ["LOCK", "locked", "try_lock"]

LOCK = "lock"
_TRIES, _PAUSE = 40, 0.05
"""How often and after how many seconds to look again at a lock that is just changing hands."""


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Lock a build folder, made if missing, for this process; remove the lock's folder at the end.

    A lock of a dead process on this machine is taken over. Where the file system has no locks, the
    process that the file names decides: two that begin within a moment are then not distinguished.

    Raises:
        BuildError: Another build works in the folder, or one on another machine did not end there.
    """
    path = Layout(root).work / LOCK
    handle = _take(path)
    try:
        yield
    finally:
        with suppress(OSError):  # never the file of another process, if ours was removed
            if _is_at(handle, path):
                path.unlink()
        os.close(handle)
        with suppress(OSError):  # not empty, or in use by another process
            path.parent.rmdir()


def _take(path: Path) -> int:
    """Return the open and locked file."""
    root = path.parent.parent
    for _ in range(_TRIES):
        try:
            make_folder(path.parent)
            handle = _open(path)
        except (FileNotFoundError, FileExistsError):  # the previous holder is removing the folder
            time.sleep(_PAUSE)
            continue
        try:
            got = try_lock(handle)
            pid, host = _owner(handle)
            same_host = host == socket.gethostname()
            # The file may still name a dead process whose lock another has just taken.
            if got is False and pid and not (same_host and not _alive(pid)):
                raise BuildError(f"another build is running in {root} (process {pid} on {host})")
            if got is not False and pid and (not same_host or (got is None and _alive(pid))):
                raise BuildError(
                    f"another build is running in {root} (process {pid} on {host}); "
                    f"if it is no longer running, delete {path}"
                )
            if got is not False and _is_at(handle, path):
                me = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
                os.lseek(handle, 0, os.SEEK_SET)
                os.write(handle, me)
                os.ftruncate(handle, len(me))
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        time.sleep(_PAUSE)
    raise BuildError(f"another build has just started in {root}")


def _open(path: Path) -> int:
    """Open the lock file without following links: the folder is untrusted.

    Raises:
        BuildError: A link or something else that is no file is in its place.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    for entry in (path.parent, path):
        if entry.is_symlink():
            raise BuildError(f"{entry} is a link, not made by a build: remove it")
    try:
        handle = os.open(path, flags, 0o666)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise BuildError(f"{path} is not a file made by a build: remove it") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BuildError(f"{path} is not a file made by a build: remove it")
    return handle


def try_lock(handle: int) -> bool | None:
    """Lock an open file or folder.

    Returns:
        False if another process has locked it, None if there are no locks here.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is still the one of that name: the last holder removes it."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def _owner(handle: int) -> tuple[int, str]:
    """Return process and host that the file names; 0 if it names none, or only half."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        owner = json.loads(os.read(handle, 1000))
        return int(owner["pid"]), str(owner["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, ""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
