"""`cfqa info`, `cfqa verify` and `cfqa repair`: show, check and repair a dataset."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cfqa_data.cli.command import command, cores
from cfqa_data.cli.shared import answer, working
from cfqa_data.console import terminal
from cfqa_data.console.progress import Progress
from cfqa_data.console.text import printable, size_text
from cfqa_data.errors import CfqaError, FormatError, FormatVersionError
from cfqa_data.paths import absolute_path

if TYPE_CHECKING:
    from cfqa_data.integrity.verify import Fault

__all__ = ["info", "repair", "verify"]


@command("info")
def info(
    folder: str,
    *,
    useless: bool = False,
    plugin: list[str] | None = None,
    follow_links: bool = False,
    as_json: bool = False,
) -> None:
    """Show the contents of a dataset, and label sanity checks.

    Args:
        useless: Also score an uninformative feature, and report each level's distortion as a share
            of its distortion.
    """
    from cfqa_data.access.dataset import load
    from cfqa_data.eval.label_figures import describe_labels, labels_text
    from cfqa_data.integrity.summary import info_text, summarise

    summary, harms = summarise(folder, follow_links=follow_links), {}
    dataset = load(folder, plugins=plugin, follow_links=follow_links)
    if useless:
        from cfqa_data.builders.extending.labelling import uninformative_distortion

        harms = {task: uninformative_distortion(dataset, task) for task in dataset.manifest.tasks}
    figures = describe_labels(dataset.labels, harms)
    answer(
        as_json,
        lambda: summary | figures,
        lambda: f"{info_text(summary)}\n\n{labels_text(figures)}",
    )


@command("verify")
def verify(
    folder: Path,
    *,
    deep: bool = False,
    sample: int = 100,
    seed: int = 0,
    against: str | None = None,
    tolerance: float | None = None,
    workers: int | None = None,
    root: Path | None = None,
    untrusted: bool = False,
    plugin: list[str] | None = None,
    follow_links: bool = False,
    as_json: bool = False,
) -> None:
    """Check a dataset against its manifest, or compare it with another.

    Exit status 1: damaged or different.

    Args:
        folder (DIR): A dataset folder.
        deep: Also decode every bitstream, and recompute the labels of a sample of rows.
        sample (N): With --deep: number of label rows to recompute.
        seed: With --deep: random seed of the sample.
        against (DATASET): Compare with this folder or Hub repo instead, built from the same recipe
            on another machine.
        tolerance: With --against: largest relative difference at which labels agree. Default: 1e-6.
    """
    if against is not None:
        limit = 1e-6 if tolerance is None else tolerance
        _compare(folder, against, limit, untrusted, plugin, follow_links, as_json)
        return
    if tolerance is not None:
        raise CfqaError("--tolerance requires --against")
    options = {"sample": sample, "seed": seed, "untrusted": untrusted, "plugins": plugin or ()}
    with terminal.show_progress() as progress:
        report, damage = _verify(
            folder, workers or cores(), follow_links, options if deep else None, progress
        )
    faults = {"damage": [{"path": fault.path, "what": fault.what} for fault in damage]}
    answer(as_json, lambda: report | faults, lambda: _text(folder, report, damage))
    if damage:
        raise typer.Exit(1)


@command("repair", extra="build")
def repair(
    folder: Path,
    *,
    workers: int | None = None,
    dry_run: bool = False,
    root: Path | None = None,
    allow_version_mismatch: bool = False,
    plugin: list[str] | None = None,
    follow_links: bool = False,
    as_json: bool = False,
) -> None:
    """Rebuild damaged files, byte for byte. Exit status 1: some could not be rebuilt.

    Args:
        folder (DIR): A dataset folder.
        dry_run: Report what would be done, and do nothing.
        allow_version_mismatch: Try with other software versions; a file is accepted only if its
            SHA-256 is the manifest's.
    """
    from cfqa_data.builders.maintenance.repair import ASIDE
    from cfqa_data.builders.maintenance.repair import repair as run_repair

    with working("repaired files are kept, run the same command again to resume") as progress:
        repaired = run_repair(
            folder,
            workers=workers or cores(),
            accept_versions=allow_version_mismatch,
            dry_run=dry_run,
            progress=progress,
            follow_links=follow_links,
            plugins=plugin or (),
        )
    lines = [f"{name}: {'can be' if dry_run else 'was'} rebuilt" for name in repaired.repaired]
    lines += [
        f"{name}: {'would be' if dry_run else 'was'} moved to {ASIDE}" for name in repaired.aside
    ]
    lines = [printable(line) for line in (*lines, *map(str, repaired.failed))]
    if not repaired.damaged:
        lines.append(f"{folder}: no file is damaged")
    answer(as_json, repaired.to_dict, lambda: "\n".join(lines))
    if repaired.failed:
        raise typer.Exit(1)


def _compare(
    folder: Path,
    against: str,
    tolerance: float,
    untrusted: bool,
    plugins: list[str] | None,
    follow_links: bool,
    as_json: bool,
) -> None:
    """Report the differences between a folder and another dataset."""
    from cfqa_data.access.dataset import load
    from cfqa_data.integrity.difference import difference_text, differences

    options: Any = {"untrusted": untrusted, "plugins": plugins, "follow_links": follow_links}
    with terminal.show_progress() as progress:
        datasets = load(folder, **options), load(against, **options)
        compared = differences(*datasets, tolerance, progress)
    same = not any(one.lacking or one.labels for one in compared)
    answer(
        as_json,
        lambda: {"agree": same, "parts": [asdict(one) for one in compared]},
        lambda: difference_text(compared),
    )
    if not same:
        raise typer.Exit(1)


def _verify(
    folder: Path, workers: int, follow_links: bool, deep: dict[str, Any] | None, progress: Progress
) -> tuple[dict[str, Any], list[Fault]]:
    """Return a report on a folder, and its damage; ``deep`` has the options of `verify_deep`."""
    from cfqa_data.format.layout import Layout
    from cfqa_data.integrity.consistency import inconsistencies
    from cfqa_data.integrity.verify import Fault
    from cfqa_data.integrity.verify import verify as run_verify

    report: dict[str, Any] = {"path": str(folder)}
    try:
        verified = run_verify(folder, workers=workers, progress=progress, follow_links=follow_links)
    except FormatError as error:
        path = Layout(absolute_path(folder)).manifest
        # A folder without a manifest, or of a newer format, is not a damaged dataset.
        if not os.path.lexists(path) or isinstance(error, FormatVersionError):
            raise
        return report, [Fault(path.name, str(error).removeprefix(f"{path}: "))]
    report |= {"files": len(verified.manifest.files) + 1, "bytes": verified.size}
    bad = {fault.path for fault in verified.faults}
    damage = [*verified.damage, *inconsistencies(verified.files, verified.manifest, bad)]
    if deep is not None:
        from cfqa_data.builders.maintenance.deep_verify import verify_deep

        bad = {fault.path for fault in damage}
        options = deep | {"workers": workers, "progress": progress}
        try:
            result = verify_deep(verified.files, verified.manifest, bad, **options)
            damage += [fault for fault in result.faults if fault not in damage]
            for name in ("decoded", "compared", "labelled", "scored"):
                report[name] = getattr(result, name)
            report["not_checked"] = list(result.notes)
        except CfqaError as error:
            if not damage:
                raise
            report["not_checked"] = [f"--deep: {error}"]  # the damage found so far is reported
    return report | {"foreign": list(verified.foreign)}, damage


def _text(folder: Path, report: dict[str, Any], damage: list[Fault]) -> str:
    """Return the report as text; print its notes on stderr."""
    notes = list(report.get("not_checked", ()))
    if foreign := report.get("foreign"):
        notes.append(
            f"{len(foreign)} files are weights or belong to other tools, first {foreign[0]}"
        )
    for note in notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    if damage:
        count = len({fault.path for fault in damage})
        lines = [printable(str(fault)) for fault in damage]
        are = "s are" if count > 1 else " is"
        return "\n".join([*lines, f"{folder}: {count} file{are} damaged"])
    deep = ""
    if "decoded" in report:
        deep = (
            "; {decoded:,} bitstreams decoded, {compared:,} compared with the stored codes, "
            "labels of {labelled:,} rows recomputed"
        ).format_map(report)
        if report["scored"] < report["labelled"]:
            deep += f", scores of {report['scored'] or 'none'} of them"
    return f"{folder}: {report['files']:,} files, {size_text(report['bytes'])}, no damage{deep}"
