"""Exceptions of this package. A message is one line: what is wrong, and what to do."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from cfqa_data.console.text import printable, without_styles

__all__ = [
    "BuildError",
    "CfqaError",
    "CfqaWarning",
    "CodecError",
    "DiskError",
    "FormatError",
    "FormatVersionError",
    "HubError",
    "MetricError",
    "MetricWarning",
    "MissingDependencyError",
    "RecipeError",
    "UndefinedError",
    "check_known",
    "clear_disk_errors",
    "near_names",
    "prefixed",
    "unknown_name",
]

MOST_SHOWN = 16
"""Most known names that a message lists."""

LONGEST_MESSAGE = 4000
"""Most characters of a message; the middle of a longer one is left out."""

_DISK_ERRORS = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "disk quota exceeded",
    errno.EFBIG: "file too large",
    errno.EACCES: "no permission to write",
    errno.EPERM: "no permission to write",
    errno.EROFS: "read-only file system",
}


class CfqaError(Exception):
    """Base class of the errors of this package; the command line prints them without a traceback.

    The message is one printable line. Since it may quote untrusted files, unprintable characters
    are escaped and long messages are shortened.
    """

    def __str__(self) -> str:
        text = _cut(without_styles(super().__str__()))
        return text if text.isprintable() else _cut(printable(" ".join(text.splitlines())))


class RecipeError(CfqaError):
    """A recipe does not exist, has an unknown key, or an invalid value."""


class FormatError(CfqaError):
    """A dataset folder, or a file in it, is missing, damaged, or does not follow the format."""


class FormatVersionError(FormatError):
    """A dataset folder has a format version that this package cannot read."""


class HubError(CfqaError):
    """A repo on the Hub does not exist, may not be read or written, or cannot be reached."""


class BuildError(CfqaError):
    """A dataset could not be built."""


class DiskError(CfqaError):
    """A file could not be written, because the disk is full or write-protected."""


class CodecError(CfqaError):
    """A codec does not exist, or cannot encode or decode its input."""


class MetricError(CfqaError):
    """A metric does not exist, or cannot score its input."""


class UndefinedError(MetricError):
    """A metric is not defined for the features of a task."""


class CfqaWarning(UserWarning):
    """Base class of the warnings of this package; the command line prints each as one line."""


class MetricWarning(CfqaWarning):
    """A metric has no score for some features, or unexpected scores."""


class MissingDependencyError(CfqaError, ImportError):
    """A required optional dependency is not installed."""


def unknown_name(what: str, name: object, known: Iterable[str]) -> str:
    """Return the message for an unknown name: similar names, then the known names.

    Args:
        what: Kind of name, such as "codec" or "key".
        name: The unknown name.
        known: The known names, in the order to list them.
    """
    names = [str(entry) for entry in known]
    hint = near_names(name, names)
    hint = f"{hint} " if hint else ""
    shown = names if len(names) <= MOST_SHOWN else [*names[:MOST_SHOWN], "..."]
    listed = f"known: {', '.join(shown)}" if names else "none are available"
    return f"unknown {what} {str(name)!r}: {hint}{listed}"


def near_names(name: object, known: Iterable[str]) -> str:
    """Return "did you mean ...?" with similar names, or an empty string.

    Args:
        name: The unknown name.
        known: The known names; ``NAME:OPTION=VALUE`` is a variant of NAME.
    """
    names = list(known)
    variants = [one for one in names if one.startswith(f"{name}:")]
    near = variants[:2] or difflib.get_close_matches(str(name), names, n=2)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""


def check_known(
    what: str, name: Any, known: Collection[str], error: type[CfqaError], where: object = ""
) -> Any:
    """Return a name after checking that it is known.

    Args:
        what: Kind of name, such as "codec" or "key".
        name: The name.
        known: The known names.
        error: Type of the error to raise.
        where: Location that prefixes the message, such as a file.

    Raises:
        CfqaError: If the name is unknown; see :func:`unknown_name`.
    """
    if not isinstance(name, str) or name not in known:
        message = unknown_name(what, name, known)
        raise error(f"{where}: {message}" if where else message)
    return name


@contextmanager
def prefixed(where: object, error: type[CfqaError], *kinds: type[Exception]) -> Iterator[None]:
    """Prefix the messages of errors with a location, unless they begin with it already.

    Args:
        where: The location, such as a file.
        error: Type of the error to raise.
        kinds: Types of the errors to catch; `CfqaError` by default.
    """
    caught = kinds or (CfqaError,)
    try:
        yield
    except caught as failure:
        message = str(failure)
        begins = message.startswith(str(where))
        raise error(message if begins else f"{where}: {message}") from None


@contextmanager
def clear_disk_errors(what: str) -> Iterator[None]:
    """Convert the `OSError` of a full or write-protected disk to a one-line error.

    Args:
        what: The work that failed, for the message.

    Raises:
        DiskError: Replaces such an `OSError`; other exceptions are not changed.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        where = f" at {error.filename}" if error.filename else ""
        raise DiskError(
            f"{what}: {_DISK_ERRORS[error.errno]}{where}; finished work is kept: "
            "make room or change the folder's permissions, then run the same command again"
        ) from None


def _cut(text: str) -> str:
    """Shorten a text to about LONGEST_MESSAGE characters by leaving out its middle."""
    if len(text) <= LONGEST_MESSAGE:
        return text
    return f"{text[: LONGEST_MESSAGE * 3 // 4]} ... {text[-LONGEST_MESSAGE // 5 :]}"
