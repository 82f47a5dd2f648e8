"""Turn disk errors (full, read-only) into a one-line `DiskError`."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from cfqa_data.errors import DiskError

__all__ = ["clear_disk_errors"]

_DISK_ERRORS = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "disk quota exceeded",
    errno.EFBIG: "larger than a file may be",
    errno.EACCES: "no permission to write",
    errno.EPERM: "no permission to write",
    errno.EROFS: "read-only file system",
}


@contextmanager
def clear_disk_errors(what: str) -> Iterator[None]:
    """Turn a full or forbidden disk into one line that says what was being written.

    Raises:
        DiskError: instead of an OSError of that kind; every other exception passes.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        where = f" at {error.filename}" if error.filename else ""
        raise DiskError(
            f"{what}: {_DISK_ERRORS[error.errno]}{where}; what is finished is kept: "
            "make room or change the folder's permissions, then run the same command again"
        ) from None
