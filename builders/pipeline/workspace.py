"""The output folder of a build: what it holds already, whose it is now, and how files land in it.

While a build is not finished, `.build/` holds its plan, its lock and one marker file per finished
work item. `.build/plan.json` is the first file written and `manifest.json` the last.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cfqa_data.builders.pipeline.plan import Plan
from cfqa_data.errors import BuildError, CfqaError
from cfqa_data.layout import Layout
from cfqa_data.manifest import read_manifest
from cfqa_data.recipe import Recipe
from cfqa_data.storage import write_text

__all__ = [
    "PLAN",
    "clear_disk_errors",
    "locked",
    "open_workspace",
    "remove_work",
    "status",
    "write_json",
]

PLAN, _LOCK = "plan.json", "lock"
_YOUNG = 10.0  # seconds within which a lock without a name may still get one
_DISK_ERRORS = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "disk quota exceeded",
    errno.EACCES: "no permission to write",
    errno.EPERM: "no permission to write",
    errno.EROFS: "read-only file system",
}


@contextmanager
def clear_disk_errors(what: str) -> Iterator[None]:
    """Turn a full or forbidden disk into one line that says what was being written.

    Raises:
        BuildError: instead of an OSError of that kind; every other exception passes.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        where = f" at {error.filename}" if error.filename else ""
        raise BuildError(
            f"{what}: {_DISK_ERRORS[error.errno]}{where}; what is finished is kept: "
            "make room or change the folder's permissions, then run the same command again"
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; NaN and infinity are refused with ValueError."""
    write_text(path, json.dumps(value, sort_keys=True, allow_nan=False))


def status(recipe: Recipe, out: Path | str, *, tier: str = "full") -> str:
    """Say how far a build of `recipe` in `out` is.

    Returns:
        "new" (nothing there yet), "begun" (goes on where it stopped) or "finished".

    Raises:
        BuildError: the folder holds something else, or cannot be read.
    """
    layout = Layout(Path(out))
    if not layout.root.exists():
        return "new"
    if not layout.root.is_dir():
        raise BuildError(f"{layout.root} is a file: choose a folder")
    try:
        names = {path.name for path in layout.root.iterdir()}
        inside = {path.name for path in layout.work.iterdir()} if ".build" in names else set()
    except OSError as error:
        raise BuildError(f"{layout.root} cannot be read: {error.strerror}") from None
    if layout.manifest.name in names:
        _check_finished(layout, recipe, tier)
        return "finished"
    if PLAN in inside and _untouched(layout):
        return "new"
    if PLAN in inside:
        begun = _read_plan(layout)
        if begun.recipe.to_dict() != recipe.to_dict() or begun.tier != tier:
            raise BuildError(
                f"{layout.root} holds a begun build of recipe {begun.recipe.name!r} "
                f"({begun.tier} tier) that is not this one: finish that one, or choose another "
                "folder"
            )
        return "begun"
    if names - {".build"} or inside - {_LOCK}:
        raise BuildError(
            f"{layout.root} holds something that is no CFQA dataset "
            f"({', '.join(sorted(names)[:3])}...): choose a new or empty folder"
        )
    return "new"


def _untouched(layout: Layout) -> bool:
    """Whether a build was begun here that has not finished a single file: nothing to keep."""
    names = {path.name for path in layout.root.iterdir()}
    return names == {layout.work.name} and {p.name for p in layout.work.iterdir()} <= {PLAN, _LOCK}


def _check_finished(layout: Layout, recipe: Recipe, tier: str) -> None:
    try:
        manifest = read_manifest(layout.root)
    except CfqaError as error:
        raise BuildError(f"{layout.root} is no dataset of this version: {error}") from None
    if manifest.recipe.to_dict() != recipe.to_dict() or manifest.tier != tier:
        raise BuildError(
            f"{layout.root} holds a finished dataset of recipe {manifest.name!r} "
            f"({manifest.tier} tier) that is not this one: choose another folder"
        )


def _read_plan(layout: Layout) -> Plan:
    path = layout.work / PLAN
    try:
        return Plan.from_json(path.read_text())
    except (OSError, ValueError, KeyError, TypeError, CfqaError) as error:
        raise BuildError(
            f"{path} is not the plan of a build ({error}): delete {layout.root}"
        ) from None


def open_workspace(plan: Plan, root: Path) -> None:
    """Record the plan in the folder, or see that the one recorded there is the same.

    Raises:
        BuildError: the build there was begun with other software or weights.
    """
    layout = Layout(root)
    path = layout.work / PLAN
    if not path.exists() or _untouched(layout):
        write_text(path, plan.to_json())
        return
    begun = _read_plan(layout)
    for what, then, now in (
        ("software", begun.versions, plan.versions),
        ("weights", begun.weights, plan.weights),
    ):
        changed = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
        if changed:
            name = changed[0]
            raise BuildError(
                f"{root} was begun with other {what} ({name}: {then.get(name)}, now "
                f"{now.get(name)}), so it would not end with the same bytes: go back to that, or "
                "choose another folder"
            )


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the folder for this process; the lock of a dead process on this host is taken over.

    Raises:
        BuildError: another build works in the folder.
    """
    path = Layout(root).work / _LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(3):
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            _take_over(path)
            continue
        with os.fdopen(handle, "w") as file:
            json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
        break
    else:
        raise BuildError(f"{path} cannot be taken: another build begins in {root}")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _take_over(path: Path) -> None:
    try:
        owner = json.loads(path.read_text())
        pid, host = int(owner["pid"]), str(owner["host"])
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):  # its writer is just writing, or was killed there
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime < _YOUNG:
                raise BuildError(f"another build has just begun in {path.parent.parent}") from None
            path.unlink()
        return
    if host != socket.gethostname() or _alive(pid):
        raise BuildError(
            f"another build works in {path.parent.parent} (process {pid} on {host}); "
            f"if it does not run any more, delete {path}"
        )
    path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove_work(root: Path) -> None:
    """Remove what only the build needed; the plan goes last, so that a kill here is harmless."""
    work = Layout(root).work
    for path in sorted(work.iterdir()):
        if path.name in (PLAN, _LOCK):
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (work / PLAN).unlink(missing_ok=True)
    (work / _LOCK).unlink(missing_ok=True)
    with suppress(OSError):
        work.rmdir()
