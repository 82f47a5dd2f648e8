"""`cfqa verify`: look for damage in a dataset."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfqa_data.cli import shared
from cfqa_data.console import terminal
from cfqa_data.console.progress import Progress
from cfqa_data.console.text import printable, size_text
from cfqa_data.errors import CfqaError, FormatError, FormatVersionError
from cfqa_data.paths import absolute_path

if TYPE_CHECKING:
    from cfqa_data.integrity.verify import Fault

__all__ = ["verify"]


def verify(
    folder: shared.Folder,
    deep: Annotated[bool, typer.Option("--deep")] = False,
    sample: Annotated[int, typer.Option(metavar="N", min=0)] = 100,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: shared.Workers = None,
    root: shared.DataRoot = None,
    untrusted: shared.Untrusted = False,
    plugin: shared.Plugins = None,
    follow_links: shared.FollowLinks = False,
    as_json: shared.Json = False,
) -> None:
    """Compare a dataset with its manifest. Exit status: 0 clean, 1 damaged, 2 not a dataset.

    Args:
        deep: Also decode every bitstream, and compute labels of a sample.
        sample: With --deep: label rows to compute again.
        seed: With --deep: of the choice of the sample.
    """
    shared.use_root(root)
    plugins = shared.use_plugins(plugin)
    how = {"sample": sample, "seed": seed, "untrusted": untrusted, "plugins": plugins}
    with terminal.show_progress() as progress:
        report, damage = _look(
            folder, workers or shared.cores(), follow_links, how if deep else None, progress
        )
    wrong = {"damage": [{"path": fault.path, "what": fault.what} for fault in damage]}
    shared.answer(as_json, lambda: report | wrong, lambda: _text(folder, report, damage))
    if damage:
        raise typer.Exit(1)


def _look(
    folder: Path, workers: int, follow_links: bool, deep: dict[str, Any] | None, progress: Progress
) -> tuple[dict[str, Any], list[Fault]]:
    """Return what there is to tell of a folder, and what is wrong with it."""
    from cfqa_data.integrity.consistency import inconsistencies
    from cfqa_data.integrity.verify import verify as run_verify

    report: dict[str, Any] = {"path": str(folder)}
    try:
        found = run_verify(folder, workers=workers, progress=progress, follow_links=follow_links)
    except FormatError as error:
        return report, [_damaged_manifest(folder, error)]
    report |= {"files": len(found.manifest.files) + 1, "bytes": found.size}
    bad = {fault.path for fault in found.faults}
    damage = [*found.damage, *inconsistencies(found.files, found.manifest, bad)]
    if deep is not None:
        from cfqa_data.builders.maintenance.deep_verify import verify_deep

        bad = {fault.path for fault in damage}
        how = deep | {"workers": workers, "progress": progress}
        try:
            result = verify_deep(found.files, found.manifest, bad, **how)
            damage += [fault for fault in result.faults if fault not in damage]
            report |= {"decoded": result.decoded, "compared": result.compared}
            report |= {"labelled": result.labelled, "scored": result.scored}
            report |= {"not_checked": list(result.notes)}
        except CfqaError as error:
            if not damage:
                raise
            # Report the damage found so far all the same.
            report["not_checked"] = [f"--deep: {error}"]
    return report | {"foreign": list(found.foreign)}, damage


def _damaged_manifest(folder: Path, error: FormatError) -> Fault:
    """Return what is wrong with the manifest; without one, or with a newer, this is no dataset."""
    from cfqa_data.format.layout import Layout
    from cfqa_data.integrity.verify import Fault

    path = Layout(absolute_path(folder)).manifest
    if not os.path.lexists(path) or isinstance(error, FormatVersionError):
        raise error
    return Fault(path.name, str(error).removeprefix(f"{path}: "))


def _text(folder: Path, report: dict[str, Any], damage: list[Fault]) -> str:
    """Return the result as text; print notes on stderr."""
    for note in report.get("not_checked", ()):
        print(f"note: {printable(note)}", file=sys.stderr)
    if foreign := report.get("foreign"):
        first = printable(foreign[0])
        text = f"note: {len(foreign)} files are of tools or weights, first {first}"
        print(text, file=sys.stderr)
    if damage:
        count = len({fault.path for fault in damage})
        found = [printable(str(fault)) for fault in damage]
        are = "s are" if count > 1 else " is"
        return "\n".join([*found, f"{folder}: {count} file{are} damaged"])
    deep = ""
    if "decoded" in report:
        deep = (
            f"; {report['decoded']:,} bitstreams decoded, {report['compared']:,} compared with the "
            f"stored codes, labels of {report['labelled']:,} rows computed again"
        )
        if report["scored"] < report["labelled"]:
            deep += f", scores of {report['scored'] or 'none'} of them"
    return f"{folder}: {report['files']:,} files, {size_text(report['bytes'])}, no damage{deep}"
