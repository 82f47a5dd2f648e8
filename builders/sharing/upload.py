"""Select the files of a dataset folder to upload, and write the card and manifest of the upload."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cfqa_data.access.files import LocalFiles
from cfqa_data.access.folder import Folder
from cfqa_data.arrow import pc
from cfqa_data.card.croissant import CROISSANT, croissant_text
from cfqa_data.card.write import card_text
from cfqa_data.errors import CfqaError
from cfqa_data.format.facts import TaskEntry, Terms
from cfqa_data.format.layout import NAMES
from cfqa_data.format.manifest import TIERS, Manifest, manifest_text
from cfqa_data.integrity.summary import light_files

__all__ = ["CARD", "MANIFEST", "Upload", "prepare_upload"]

CARD, MANIFEST = "README.md", "manifest.json"


@dataclass(frozen=True)
class Upload:
    """The files of an upload.

    Attributes:
        root: Folder with the files, except card and manifest.
        manifest: Manifest of the upload.
        card: Text of the card.
        croissant: Text of the Croissant metadata, for catalogues.
        tag: Name of this version.
        rewritten: Whether the folder's card differs from the generated one, because it was edited.
        withheld: Files that are not uploaded, since they may not be redistributed.
    """

    root: Path
    manifest: Manifest
    card: str
    croissant: str
    tag: str
    rewritten: bool = False
    withheld: tuple[str, ...] = ()

    @cached_property
    def texts(self) -> dict[str, bytes]:
        """Path -> content of the files that are generated: card, manifest and Croissant."""
        manifest = manifest_text(self.manifest)
        texts = {CARD: self.card, MANIFEST: manifest, CROISSANT: self.croissant}
        return {path: text.encode() for path, text in texts.items()}

    @cached_property
    def files(self) -> dict[str, dict[str, Any]]:
        """Path -> {"size": bytes, "sha256": hex} of all files, including those of `texts`."""
        unlisted = {path: _entry(self.texts[path]) for path in (MANIFEST, CROISSANT)}
        return {path: dict(entry) for path, entry in self.manifest.files.items()} | unlisted

    @property
    def size(self) -> int:
        """Size of all files in bytes."""
        return sum(entry["size"] for entry in self.files.values())


def prepare_upload(
    root: Path,
    manifest: Manifest,
    repo: str,
    tier: str | None = None,
    tag: str | None = None,
    *,
    terms: Terms | None = None,
    follow_links: bool = False,
) -> Upload:
    """Return the files of a folder to upload, with their card, manifest and Croissant.

    Args:
        root: A verified dataset folder.
        manifest: Manifest of the folder.
        repo: Id of the repo, "org/name", for the card.
        tier: Tier to upload, "light" or "full"; the folder's own if None.
        tag: Name of this version; derived from its content if None.
        terms: Terms of use of tasks for which the manifest states none.
        follow_links: Read the files that links point to, even outside the folder.

    Raises:
        CfqaError: If the folder cannot be published in that tier, or the terms of a task are
            unknown.
        FormatError: If a table is missing or damaged.
    """
    tier = tier or manifest.tier
    if TIERS.index(tier) > TIERS.index(manifest.tier):
        raise CfqaError(
            f"{root}: is of the {manifest.tier} tier; for the {tier} tier, build it again"
        )
    folder = Folder(LocalFiles(root, follow_links))
    labels = {task: folder.label_rows(task).table for task in manifest.tasks}
    kept = manifest.files if tier == manifest.tier else light_files(manifest, labels)
    if kept is None:
        raise CfqaError(
            f"{root}: not every compressed feature has its bitstream, so it has no light tier; "
            "publish the full tier"
        )
    tasks = {name: _with_terms(root, name, entry, terms) for name, entry in manifest.tasks.items()}
    withheld = _withheld(tasks, kept)
    if _shows_withheld(folder, tasks):
        pictures = (NAMES.previews.as_posix(), NAMES.hero.as_posix())
        withheld += tuple(path for path in pictures if path in kept)
    files = {path: entry for path, entry in kept.items() if path not in (CARD, *withheld)}
    originals, shown = folder.originals_table(), folder.shown_columns()
    if NAMES.previews.as_posix() in withheld:
        shown = []
    uploaded = replace(manifest, tier=tier, tasks=tasks, files=files)
    tag = tag or _tag(uploaded)

    def card(manifest: Manifest, *where: str) -> bytes:
        sizes = {path: entry["size"] for path, entry in manifest.files.items()}
        return card_text(manifest, labels, originals, sizes, shown, *where).encode()

    text = card(uploaded, repo, tag)
    generated = [_entry(one)["sha256"] for one in (text, card(manifest))]
    files = dict(sorted((files | {CARD: _entry(text)}).items()))
    return Upload(
        Path(root),
        replace(uploaded, files=files),
        text.decode(),
        croissant_text(uploaded, labels, originals, shown, repo, tag),
        tag,
        rewritten=manifest.files.get(CARD, {}).get("sha256") not in generated,
        withheld=withheld,
    )


def _with_terms(root: Path, name: str, entry: TaskEntry, terms: Terms | None) -> TaskEntry:
    """Return a task's entry with terms of use; raise an error if they are unknown."""
    if entry.terms or terms:
        return replace(entry, terms=entry.terms or terms)
    raise CfqaError(
        f"{root}: states no licence of task {name!r}: give --licence, an identifier as the Hub has "
        "it, or other with --licence-link"
    )


def _withheld(tasks: Mapping[str, TaskEntry], files: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the files of truths that may not be redistributed."""
    truths = (
        NAMES.truth(name)
        for name, entry in tasks.items()
        if not (entry.terms and entry.terms.truths)
    )
    return tuple(path.as_posix() for path in truths if path.as_posix() in files)


def _shows_withheld(folder: Folder, tasks: Mapping[str, TaskEntry]) -> bool:
    """Whether the previews show an input or a truth that may not be redistributed."""
    if NAMES.previews.as_posix() not in folder.manifest.files:
        return False
    table = folder.read_pictures()
    return any(
        not getattr(tasks[folder.task_of(source)].terms, part)
        for column, part in (("image", "inputs"), ("truth", "truths"))
        if column in table.column_names
        for source in table.filter(pc.is_valid(table[column]))["source_id"].to_pylist()
    )


def _entry(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _tag(manifest: Manifest) -> str:
    """Return a name that depends on the content of a dataset, but not on its card."""
    text = json.dumps(manifest.to_dict(), sort_keys=True)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", manifest.name).strip("-.") or "cfqa"
    return f"{name}-{manifest.tier}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
