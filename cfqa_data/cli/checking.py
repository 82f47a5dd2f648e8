"""Commands that look for damage in a dataset and mend it: `verify` and `repair`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfqa_data.cli.shared import (
    DataRoot,
    Folder,
    FollowLinks,
    Json,
    Untrusted,
    Workers,
    cores,
    print_json,
    resumable,
    use_root,
)
from cfqa_data.console.text import printable, size_text
from cfqa_data.errors import CfqaError, FormatError, FormatVersionError
from cfqa_data.paths import absolute_path

if TYPE_CHECKING:
    from cfqa_data.integrity.verify import Fault

__all__ = ["repair", "verify"]


def verify(
    folder: Folder,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Also decode every bitstream, and compute labels of a sample."),
    ] = False,
    sample: Annotated[
        int, typer.Option(metavar="N", min=0, help="With --deep: label rows to compute again.")
    ] = 100,
    seed: Annotated[int, typer.Option(min=0, help="With --deep: of the choice of the sample.")] = 0,
    workers: Workers = None,
    root: DataRoot = None,
    untrusted: Untrusted = False,
    follow_links: FollowLinks = False,
    as_json: Json = False,
) -> None:
    """Compare a dataset with its manifest. Exit status: 0 clean, 1 damaged, 2 not a dataset."""
    from cfqa_data.console.terminal import show_progress
    from cfqa_data.integrity.consistency import inconsistencies
    from cfqa_data.integrity.verify import verify as run_verify

    use_root(root)
    workers = workers or cores()
    found, damage = None, list[Any]()
    told: dict[str, Any] = {"path": str(folder)}
    with show_progress() as progress:
        try:
            found = run_verify(
                folder, workers=workers, progress=progress, follow_links=follow_links
            )
        except FormatError as error:
            damage = [_damaged_manifest(folder, error)]
        if found is not None:
            told |= {"files": len(found.manifest.files) + 1, "bytes": found.size}
            damage += found.damage
            bad = {fault.path for fault in found.faults}
            damage += inconsistencies(found.files, found.manifest, bad)
            if deep:
                from cfqa_data.builders.maintenance.deep import look_into

                bad = {fault.path for fault in damage}
                try:
                    looked = look_into(
                        found.files,
                        found.manifest,
                        bad,
                        sample=sample,
                        seed=seed,
                        workers=workers,
                        untrusted=untrusted,
                        progress=progress,
                    )
                    damage += [fault for fault in looked.faults if fault not in damage]
                    told |= {"decoded": looked.decoded, "compared": looked.compared}
                    told |= {"labelled": looked.labelled, "not_checked": list(looked.notes)}
                except CfqaError as error:
                    if not damage:
                        raise
                    # What was found is told all the same.
                    told["not_checked"] = [f"--deep: {error}"]
            told["foreign"] = list(found.foreign)
    if as_json:
        print_json(told | {"damage": [{"path": f.path, "what": f.what} for f in damage]})
    else:
        _tell(folder, told, damage)
    if damage:
        raise typer.Exit(1)


def _damaged_manifest(folder: Path, error: FormatError) -> Fault:
    """Return what is wrong with the manifest; without one, or with a newer, this is no dataset."""
    from cfqa_data.format.layout import Layout
    from cfqa_data.integrity.verify import Fault

    path = Layout(absolute_path(folder)).manifest
    if not os.path.lexists(path) or isinstance(error, FormatVersionError):
        raise error
    return Fault(path.name, str(error).removeprefix(f"{path}: "))


def _tell(folder: Path, told: dict[str, Any], damage: list[Fault]) -> None:
    for note in told.get("not_checked", ()):
        print(f"note: {printable(note)}", file=sys.stderr)
    if foreign := told.get("foreign"):
        first = printable(foreign[0])
        text = f"note: {len(foreign)} files are of tools or weights, first {first}"
        print(text, file=sys.stderr)
    for fault in damage:
        print(printable(str(fault)))
    if damage:
        count = len({fault.path for fault in damage})
        print(f"{folder}: {count} file{'s are' if count > 1 else ' is'} damaged")
        return
    deep = ""
    if "decoded" in told:
        deep = (
            f"; {told['decoded']:,} bitstreams decoded, {told['compared']:,} compared with the "
            f"stored codes, labels of {told['labelled']:,} rows computed again"
        )
    print(f"{folder}: {told['files']:,} files, {size_text(told['bytes'])}, no damage{deep}")


def repair(
    folder: Folder,
    workers: Workers = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be done, and do nothing.")
    ] = False,
    root: DataRoot = None,
    accept_versions: Annotated[
        bool,
        typer.Option(
            "--accept-versions",
            help="Try with other versions of software; only the manifest's bytes get in.",
        ),
    ] = False,
    follow_links: FollowLinks = False,
    as_json: Json = False,
) -> None:
    """Make damaged files again, to the manifest's bytes. Exit status: 1 where that fails."""
    from cfqa_data.builders.maintenance.repair import ASIDE
    from cfqa_data.builders.maintenance.repair import repair as run_repair
    from cfqa_data.console.terminal import show_progress

    use_root(root)
    kept = "what was made again stays, the same command goes on from here"
    with resumable(kept), show_progress() as progress:
        repaired = run_repair(
            folder,
            workers=workers or cores(),
            accept_versions=accept_versions,
            dry_run=dry_run,
            progress=progress,
            follow_links=follow_links,
        )
    if as_json:
        print_json(repaired.to_dict())
    else:
        for name in repaired.repaired:
            print(f"{printable(name)}: {'can be' if dry_run else 'was'} made again")
        for name in repaired.aside:
            print(f"{printable(name)}: {'goes' if dry_run else 'went'} to {ASIDE}")
        for fault in repaired.failed:
            print(printable(str(fault)))
        if not repaired.damaged:
            print(f"{folder}: no file is damaged")
    if repaired.failed:
        raise typer.Exit(1)
