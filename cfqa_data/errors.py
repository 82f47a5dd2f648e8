"""The exceptions of this package; a message is one line: what is wrong, and what to do."""

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

LONGEST_MESSAGE = 4000
"""Characters of a message; of a longer one, what is in the middle is left out."""

_DISK_ERRORS = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "disk quota exceeded",
    errno.EFBIG: "file too large",
    errno.EACCES: "no permission to write",
    errno.EPERM: "no permission to write",
    errno.EROFS: "read-only file system",
}


class CfqaError(Exception):
    """Base of all errors of this package; the command line shows it without a traceback.

    Its text is one line that any terminal can show: names and values in it may come from files of
    untrusted sources, so what cannot be printed is escaped, and what is very long is cut.
    """

    def __str__(self) -> str:
        text = _cut(without_styles(super().__str__()))
        return text if text.isprintable() else _cut(printable(" ".join(text.splitlines())))


class RecipeError(CfqaError):
    """A recipe is not there, has an unknown key, or asks for something impossible."""


class FormatError(CfqaError):
    """A dataset folder, or a file in it, is not what its format says it should be."""


class FormatVersionError(FormatError):
    """A dataset folder is of a version of the format that this package does not read."""


class HubError(CfqaError):
    """A repo on the Hub is not there, may not be read or written, or cannot be reached."""


class BuildError(CfqaError):
    """A dataset could not be built."""


class DiskError(CfqaError):
    """A file could not be written: the disk is full, or may not be written to."""


class CodecError(CfqaError):
    """A codec was given something it cannot encode or decode."""


class MetricError(CfqaError):
    """A metric was given something it cannot score."""


class UndefinedError(MetricError):
    """A metric is not defined for the features of a task; its message says where it is not."""


class MetricWarning(UserWarning):
    """A metric has no score for some features, or its scores are not what they should be."""


class MissingDependencyError(CfqaError, ImportError):
    """An optional dependency is needed for this and is not installed."""


def unknown_name(what: str, name: object, known: Iterable[str]) -> str:
    """Return one line saying that ``name`` is not a known ``what``, with the near names first.

    Args:
        what: The kind of thing, as in "codec" or "key".
        name: What was asked for.
        known: The names that would have been right, in the order to show them.
    """
    names = [str(entry) for entry in known]
    hint = near_names(name, names)
    hint = f"{hint} " if hint else ""
    shown = names if len(names) <= MOST_SHOWN else [*names[:MOST_SHOWN], "..."]
    listed = f"known: {', '.join(shown)}" if names else "none are available"
    return f"unknown {what} {str(name)!r}: {hint}{listed}"


def near_names(name: object, known: Iterable[str]) -> str:
    """Return a question whether a near name was meant, or nothing where none is near.

    Args:
        name: What was asked for.
        known: The names that would have been right; ``NAME:OPTION=VALUE`` is a variant of NAME.
    """
    names = list(known)
    variants = [one for one in names if one.startswith(f"{name}:")]
    near = variants[:2] or difflib.get_close_matches(str(name), names, n=2)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""


def check_known(
    what: str, name: Any, known: Collection[str], error: type[CfqaError], where: object = ""
) -> Any:
    """Return a name that is known; raise an error of :func:`unknown_name` of any other.

    Args:
        what: The kind of thing.
        name: What was asked for.
        known: The names that are right.
        error: Kind of error that is raised.
        where: The place, to put in front.
    """
    if not isinstance(name, str) or name not in known:
        message = unknown_name(what, name, known)
        raise error(f"{where}: {message}" if where else message)
    return name


@contextmanager
def prefixed(where: object, error: type[CfqaError], *kinds: type[Exception]) -> Iterator[None]:
    """Put the place in front of an error's message, where it does not begin with it.

    Args:
        where: The place.
        error: Kind of error that is raised.
        kinds: Of what may go wrong; errors of this package if none are given.
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
    """Turn a full or forbidden disk into one line that says what was being written.

    Raises:
        DiskError: Instead of an OSError of that kind; every other exception passes.
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
    """Return a text of at most LONGEST_MESSAGE characters, without its middle if need be."""
    if len(text) <= LONGEST_MESSAGE:
        return text
    return f"{text[: LONGEST_MESSAGE * 3 // 4]} ... {text[-LONGEST_MESSAGE // 5 :]}"
