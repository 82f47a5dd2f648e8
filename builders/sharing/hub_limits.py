"""Limits of the Hub: licence terms, and names, sizes and numbers of files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from cfqa_data.console.text import printable, size_text
from cfqa_data.errors import CfqaError
from cfqa_data.format.facts import Terms

__all__ = ["MAX_ENTRIES", "check_limits", "check_terms"]

MAX_ENTRIES = 10_000
"""Maximum number of files and folders in a folder."""

LARGEST, LARGE = 50_000_000_000, 20_000_000_000
"""Maximum and recommended maximum size of a file, in bytes."""

MANY_FILES = 100_000
"""Recommended maximum number of files in a repo."""

LONGEST_NAME = 255
"""Maximum length of a file's name on all file systems, in bytes."""

LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,49}")
LINK = re.compile(r"https?://[!-~]{1,1000}")


def check_terms(terms: Terms) -> None:
    """Check the licence, link and attribution that a user states.

    Raises:
        CfqaError: If one of them is invalid.
    """
    credit = terms.attribution
    if not LICENCE.fullmatch(terms.licence):
        raise CfqaError(
            f"{terms.licence!r:.99} is not a licence identifier of the Hub, such as cc-by-4.0; or "
            "give other with a link"
        )
    if (terms.link or terms.licence == "other") and not LINK.fullmatch(terms.link):
        raise CfqaError(f"the licence's link must be an http address, got {terms.link!r:.99}")
    if credit and (not credit.isprintable() or not credit.strip() or len(credit) > 1000):
        raise CfqaError(f"the attribution must be printable text, got {credit!r:.99}")


def check_limits(files: Mapping[str, int]) -> list[str]:
    """Check that the Hub accepts files of these paths and sizes.

    Args:
        files: Path in the repo -> size in bytes.

    Returns:
        A line for each of the Hub's recommendations that is not followed.

    Raises:
        CfqaError: If a name, a size or the number of files in a folder is not allowed.
    """
    entries: dict[str, set[str]] = {}
    for name, size in files.items():
        _check_name(name)
        if size > LARGEST:
            raise CfqaError(
                f"{printable(name)}: {size_text(size)}, and the Hub takes files of up to "
                f"{size_text(LARGEST)}; build with smaller groups (group_size)"
            )
        steps = PurePosixPath(name).parts
        for depth, step in enumerate(steps):
            entries.setdefault("/".join(steps[:depth]), set()).add(step)
    for folder, names in entries.items():
        if len(names) > MAX_ENTRIES:
            raise CfqaError(
                f"{printable(folder) or 'the folder itself'}: {len(names)} files and folders in "
                f"it, and the Hub takes {MAX_ENTRIES} in one folder; build with larger groups "
                "(group_size)"
            )
    large = [name for name, size in files.items() if size > LARGE]
    notes = []
    if large:
        notes.append(
            f"{len(large)} files are larger than the {size_text(LARGE)} that the Hub advises, "
            f"first {large[0]}"
        )
    if len(files) > MANY_FILES:
        notes.append(f"{len(files)} files are more than the {MANY_FILES} that the Hub advises")
    return notes


def _check_name(name: str) -> None:
    """Raise an error for names that Git, the Hub or some file system rejects."""
    for step in name.split("/"):
        if step in ("", ".", "..") or step.lower() == ".git":
            reason = f"{step!r} cannot be a step of a path in a repo"
        elif step != step.strip() or not step.isprintable() or "\\" in step:
            reason = "names have no outer spaces, backslashes or unprintable characters"
        elif len(step.encode("utf-8", "replace")) > LONGEST_NAME:
            reason = f"names have at most {LONGEST_NAME} bytes"
        else:
            continue
        raise CfqaError(f"{printable(name)}: cannot be published: {reason}")
