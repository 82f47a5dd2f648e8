"""Format the plan and the result of `cfqa publish` for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cfqa_data.builders.sharing.publish import Plan, Published
from cfqa_data.console.text import printable, size_text, table_text
from cfqa_data.format.manifest import Manifest

__all__ = ["plan_text", "published_text", "quiet_client"]


def plan_text(plan: Plan) -> str:
    """Format a plan: files, sizes, tier and target."""
    upload = plan.upload
    parts: dict[str, list[int]] = {}
    for path, entry in upload.files.items():
        parts.setdefault(path.split("/")[0], []).append(entry["size"])
    rows = [["", "files", "size"]]
    rows += [[name, str(len(sizes)), size_text(sum(sizes))] for name, sizes in parts.items()]
    rows.append(["all", str(len(upload.files)), size_text(upload.size)])
    return "\n".join(
        [
            f"{upload.root}: {upload.manifest.name}, {upload.manifest.tier} tier",
            f"to   datasets/{plan.repo}, branch {plan.revision}"
            f"{', private if it is new' if plan.private else ''}",
            f"tag  {upload.tag}",
            f"on   {_licences(upload.manifest)}",
            "",
            table_text(rows),
            "",
            *(f"note: {printable(note)}" for note in plan.notes),
            "Every file matches the manifest. Nothing was uploaded (--dry-run).",
        ]
    )


def _licences(manifest: Manifest) -> str:
    """Format the licences of the tasks, such as "cls, seg: cc-by-4.0"."""
    tasks: dict[str, list[str]] = {}
    for name, entry in manifest.tasks.items():
        if terms := entry.terms:
            credit = f" ({terms.attribution})" if terms.attribution else ""
            tasks.setdefault(f"{terms.licence}{credit}", []).append(name)
    return printable("; ".join(f"{', '.join(names)}: {text}" for text, names in tasks.items()))


def published_text(published: Published) -> str:
    """Format the result of a publication, and how to open the dataset."""
    sent = f"{published.sent} of them uploaded now, {size_text(published.sent_size)}"
    removed = f"; {published.removed} of an older version removed" if published.removed else ""
    return "\n".join(
        [
            f"{published.url}: {published.tier} tier, {published.files} files, "
            f"{size_text(published.size)}",
            f"{sent if published.sent else 'nothing new to upload'}{removed}",
            f"tag {published.tag} on commit {published.commit}; "
            f"{published.read_back} files read back, all identical",
            "",
            "Try next:",
            f'  load_dataset("{published.repo}", revision="{published.tag}")',
            f'  cfqa_data.load("{published.repo}", revision="{published.tag}")',
        ]
    )


@contextmanager
def quiet_client() -> Iterator[None]:
    """Disable the hub client's progress bars if stderr is not a terminal."""
    from huggingface_hub import utils

    if sys.stderr.isatty() or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()
