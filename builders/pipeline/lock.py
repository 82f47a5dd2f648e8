"""The lock of a build folder: one builder at a time.

It is a kernel lock (flock) on the file `.build/lock`. The kernel releases it when the process ends,
even if it is killed, and grants it to one process at a time. The file names the process and host
that hold it, for error messages and for file systems whose locks do not reach other machines.
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
"""Number of attempts, and seconds between them, while another process takes or releases a lock."""


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Lock a build folder for this process; on exit, remove the lock and, if empty, its folder.

    The folder is created if missing. A lock of a dead process on this machine is taken over. On a
    file system without locks, the process that the file names decides; two builds that start at
    the same moment are then not told apart.

    Raises:
        BuildError: If another build runs in the folder, or one on another machine left its lock.
    """
    path = Layout(root).work / LOCK
    handle = _acquire(path)
    try:
        yield
    finally:
        with suppress(OSError):
            if _is_at(handle, path):  # otherwise it is the lock of another process
                path.unlink()
        os.close(handle)
        with suppress(OSError):  # not empty, or in use by another process
            path.parent.rmdir()


def _acquire(path: Path) -> int:
    """Return the file descriptor of the lock file, opened and locked."""
    root = path.parent.parent
    for _ in range(_TRIES):
        try:
            make_folder(path.parent)
            handle = _open(path)
        except (FileNotFoundError, FileExistsError):  # the previous holder is removing the folder
            time.sleep(_PAUSE)
            continue
        try:
            locked = try_lock(handle)
            pid, host = _owner(handle)
            same_host = host == socket.gethostname()
            # A file that names a dead process is about to be rewritten by the new lock holder.
            if locked is False and pid and not (same_host and not _alive(pid)):
                raise BuildError(f"another build is running in {root} (process {pid} on {host})")
            if locked is not False and pid and (not same_host or (locked is None and _alive(pid))):
                raise BuildError(
                    f"another build is running in {root} (process {pid} on {host}); "
                    f"if it is no longer running, delete {path}"
                )
            if locked is not False and _is_at(handle, path):
                owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
                os.lseek(handle, 0, os.SEEK_SET)
                os.write(handle, owner)
                os.ftruncate(handle, len(owner))
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        time.sleep(_PAUSE)
    raise BuildError(f"another build has just started in {root}")


def _open(path: Path) -> int:
    """Open the lock file without following links, since the folder is untrusted."""
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
    """Try to lock an open file or folder, without waiting.

    Returns:
        True if it is locked now, False if another process has locked it, None if the platform or
        the file system does not support locks.
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
    """Whether a path still names the open file; the previous holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def _owner(handle: int) -> tuple[int, str]:
    """Return the process id and host in the lock file; (0, "") if it is empty or incomplete."""
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
