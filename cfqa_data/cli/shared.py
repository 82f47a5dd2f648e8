"""Functions that commands share: output as text or JSON, progress, and interrupts."""

from __future__ import annotations

import json
import math
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import typer

from cfqa_data.cli.process import print_error
from cfqa_data.console import terminal
from cfqa_data.console.progress import Progress
from cfqa_data.errors import CfqaError, CfqaWarning

__all__ = ["answer", "check_new_file", "interrupted", "working"]


def check_new_file(path: Path | None, suffixes: Sequence[str], force: bool) -> None:
    """Check that a file can be written, has a known suffix, and does not exist unless forced.

    Raises:
        CfqaError: If it does not.
    """
    from cfqa_data.format.storage import check_writable

    if path is None:
        return
    if path.suffix not in suffixes:
        raise CfqaError(f"{path}: the file name must end in {' or '.join(suffixes)}")
    check_writable(path)
    if path.exists() and not force:
        raise CfqaError(
            f"{path}: already exists; write to another file, or overwrite it with --force"
        )


def answer(as_json: bool, data: Callable[[], dict[str, Any]], text: Callable[[], str]) -> None:
    """Print the result of a command as text or JSON, with null for NaN and infinity."""
    print(json.dumps(_json_safe(data()), indent=1, allow_nan=False) if as_json else text())


def _json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_safe(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def working(
    hint: str = "finished work is kept, run the same command again to resume",
) -> Iterator[Progress]:
    """Show progress and warnings of this package; after an interrupt, print how to resume."""
    try:
        with warnings.catch_warnings(), terminal.show_progress() as progress:
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            yield progress
    except KeyboardInterrupt as stop:
        raise typer.Exit(interrupted(stop, hint)) from None


def _show_warning(
    other: Callable[..., None], message: Any, category: type[Warning], *args: Any, **kwargs: Any
) -> None:
    """Print a warning of this package as one line; pass any other on to ``other``."""
    if issubclass(category, CfqaWarning):
        print_error(str(message))
    else:
        other(message, category, *args, **kwargs)


def interrupted(stop: BaseException, more: str = "") -> int:
    """Print that the command was interrupted, and return the exit status.

    Args:
        stop: The `KeyboardInterrupt`, whose argument may be the number of the signal.
        more: Further information to print.
    """
    number = stop.args[0] if stop.args and isinstance(stop.args[0], int) else signal.SIGINT
    print_error(f"interrupted{'; ' if more else ''}{more}")
    return 128 + number
