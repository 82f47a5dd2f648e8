"""Publish a dataset folder on the Hub: verify, upload (resumable), and read back.

The manifest is uploaded last, in one commit with the card, so that a repo with a manifest is
complete. Files that the repo already has are compared by hash and not uploaded again.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cfqa_data.access.files import LocalFiles
from cfqa_data.access.hub_client import HubCalls
from cfqa_data.builders.sharing.hub_limits import check_limits, check_terms
from cfqa_data.builders.sharing.upload import CARD, MANIFEST, Upload, prepare_upload
from cfqa_data.console.progress import Progress, Silent
from cfqa_data.errors import CfqaError
from cfqa_data.extras import extras
from cfqa_data.format.facts import Terms
from cfqa_data.format.layout import TOP_NAMES
from cfqa_data.format.manifest import hash_file
from cfqa_data.integrity.consistency import inconsistencies
from cfqa_data.integrity.verify import verify
from cfqa_data.recipe.portable import check_portable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Plan", "Published", "plan_publishing", "publish"]

FOLDERS = tuple(f"{name}/" for name in sorted(TOP_NAMES) if "." not in name)
"""Folders of a repo that belong to the dataset; other files in them are of an older version."""

DATASET: dict[str, Any] = {"repo_type": "dataset"}
MAIN = "main"
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
REF = re.compile(r"(?!.*(\.\.|//|@\{|\.lock$))[A-Za-z0-9][\w./-]{0,99}(?<![/.])", re.ASCII)


@dataclass(frozen=True)
class Plan:
    """Plan of a publication.

    Attributes:
        upload: Files to upload.
        repo: Id of the repo, "org/name".
        revision: Name of the branch.
        private: Whether a new repo is private.
        notes: Remarks, such as recommendations of the hub that are not followed.
    """

    upload: Upload
    repo: str
    revision: str
    private: bool
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-safe data."""
        return {
            "path": str(self.upload.root),
            "repo": self.repo,
            "revision": self.revision,
            "private": self.private,
            "tag": self.upload.tag,
            "tier": self.upload.manifest.tier,
            "size": self.upload.size,
            "files": {path: entry["size"] for path, entry in self.upload.files.items()},
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Published:
    """Result of a publication.

    Attributes:
        repo: Id of the repo, "org/name".
        url: URL of its page.
        revision: Name of the branch.
        commit: Id of the commit that contains the dataset.
        tag: Tag of the commit.
        tier: Tier, "light" or "full".
        files: Number of files of the dataset.
        size: Size of the files in bytes.
        sent: Number of files that this run uploaded.
        sent_size: Size of the uploaded files in bytes.
        removed: Number of files of an older version that were removed.
        read_back: Number of files that were downloaded and compared.
    """

    repo: str
    url: str
    revision: str
    commit: str
    tag: str
    tier: str
    files: int
    size: int
    sent: int
    sent_size: int
    removed: int
    read_back: int

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-safe data."""
        return dict(self.__dict__)


@extras()
def plan_publishing(
    root: str | Path,
    repo: str,
    *,
    tier: str | None = None,
    revision: str | None = None,
    tag: str | None = None,
    private: bool = False,
    terms: Terms | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    follow_links: bool = False,
) -> Plan:
    """Check a folder, and whether a hub accepts it; nothing is uploaded or written.

    Args:
        root: A dataset folder.
        repo: Id of the repo, "org/name".
        tier: "light" or "full"; the folder's own if None. Full folders also have a light tier.
        revision: Branch, which is created if missing; main if None.
        tag: Name of this version; derived from its content if None.
        private: Whether a new repo is private; an existing repo is not changed.
        terms: Terms of use of tasks for which the folder states none.
        workers: Number of threads that hash files.
        progress: Display that is notified of every checked file.
        follow_links: Upload the files that links point to, even outside the folder.

    Raises:
        CfqaError: If the hub does not accept a name, a size or a number of files, the folder cannot
            be published in that tier, or the terms of a task are unknown.
        FormatError: If a file is missing, differs from the manifest, or contradicts other files.
    """
    steps = repo.split("/")
    if len(steps) != 2 or not all(NAME.fullmatch(step) for step in steps):
        raise CfqaError(f"{repo!r} is not a repo id: write org/name, of letters, digits and _ . -")
    for name in (revision, tag):
        if name is not None and not REF.fullmatch(name):
            raise CfqaError(f"{name!r} cannot be the name of a branch or tag")
    if terms:
        check_terms(terms)
    check_portable(root, LocalFiles(root, follow_links).read_manifest())
    verified = verify(root, workers=workers, progress=progress, follow_links=follow_links)
    verified.require()
    faults = inconsistencies(verified.files, verified.manifest, set())
    replace(verified, faults=tuple(faults)).require()
    folder = verified.files.root
    upload = prepare_upload(
        folder, verified.manifest, repo, tier, tag, terms=terms, follow_links=follow_links
    )
    notes = check_limits({path: entry["size"] for path, entry in upload.files.items()})
    if upload.rewritten:
        notes.append(f"{CARD} differs from what this version writes: a new one is uploaded")
    if upload.withheld:
        notes.append(
            f"not uploaded, since it may not be redistributed: {', '.join(upload.withheld)}"
        )
    if verified.unlisted:
        notes.append(
            f"{len(verified.unlisted)} files are not in the manifest and are not uploaded, first "
            f"{verified.unlisted[0]}"
        )
    return Plan(upload, repo, revision or MAIN, private, tuple(notes))


@extras()
def publish(plan: Plan, progress: Progress | None = None) -> Published:
    """Upload the files that a repo lacks, read a sample back, and tag the version.

    After an interruption, run it again to upload the files that are still missing; nothing is
    uploaded to a complete repo.

    Args:
        plan: Plan of :func:`plan_publishing`.
        progress: Display that is notified of every file that is read back.

    Raises:
        CfqaError: If there is no token, the hub refuses or cannot be reached, the tag is taken, or
            a downloaded file differs from the uploaded one. No message contains the token.
    """
    upload, repo, progress = plan.upload, plan.repo, progress or Silent()
    calls = HubCalls(repo)
    api = calls.api
    calls(_open_repo, api, plan)
    tagged = calls(_check_tag, api, plan)
    sent: set[str] = set()  # `calls` may retry: both sets collect files over all attempts
    removed: set[str] = set()
    commit = calls(_send, api, plan, sent, removed)
    for path in _missing(upload, calls(_listing, api, repo, commit)):
        raise CfqaError(
            f"{repo}: {path} on the Hub differs from what was uploaded; run the same command "
            "again to upload it"
        )
    sample = _sample(upload)
    progress.start("read back", len(sample), "files")
    for path in sample:
        calls(_read_back, api, plan, path, commit)
        progress.advance()
    progress.finish()
    if not tagged:
        calls(api.create_tag, repo, tag=upload.tag, revision=commit, exist_ok=True, **DATASET)
    return Published(
        repo=repo,
        url=f"{api.endpoint}/datasets/{repo}",
        revision=plan.revision,
        commit=commit,
        tag=upload.tag,
        tier=upload.manifest.tier,
        files=len(upload.files),
        size=upload.size,
        sent=len(sent),
        sent_size=sum(upload.files[path]["size"] for path in sent),
        removed=len(removed),
        read_back=len(sample),
    )


def _open_repo(api: HfApi, plan: Plan) -> None:
    """Create the repo and the branch if they do not exist."""
    private = True if plan.private else None
    api.create_repo(plan.repo, **DATASET, private=private, exist_ok=True)
    if plan.private and not api.repo_info(plan.repo, **DATASET).private:
        raise CfqaError(
            f"{plan.repo}: already exists and is public; make it private on the Hub, or publish "
            "without --private"
        )
    if plan.revision != MAIN and not plan.revision.startswith("refs/"):
        api.create_branch(plan.repo, branch=plan.revision, **DATASET, exist_ok=True)


def _check_tag(api: HfApi, plan: Plan) -> bool:
    """Return whether the repo has the tag; raise an error if it is of another version."""
    tag = plan.upload.tag
    refs = api.list_repo_refs(plan.repo, **DATASET)
    if tag not in {ref.name for ref in refs.tags}:
        return False
    if MANIFEST in _missing(plan.upload, _listing(api, plan.repo, tag)):
        raise CfqaError(
            f"{plan.repo}: already has a tag {tag!r} of another version; give another --tag"
        )
    return True


def _send(api: HfApi, plan: Plan, sent: set[str], removed: set[str]) -> str:
    """Upload the files that the branch lacks; return the commit that contains all."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    upload, texts = plan.upload, plan.upload.texts
    remote = _listing(api, plan.repo, plan.revision)
    missing = _missing(upload, remote)
    where = DATASET | {"revision": plan.revision}
    head = api.repo_info(plan.repo, **where).sha
    if arrays := [path for path in missing if path not in texts]:
        with TemporaryDirectory(prefix="cfqa-publish-") as folder:
            for path in arrays:
                _link(upload.root / path, Path(folder) / path)
            head = api.upload_folder(
                repo_id=plan.repo,
                folder_path=folder,
                commit_message=f"Files of {upload.tag}",
                # The manifest of an older version would not match these files.
                delete_patterns=[MANIFEST] if MANIFEST in missing else None,
                **where,
            ).oid
        sent.update(arrays)
    stale = [p for p in remote if p.startswith(FOLDERS) and p not in upload.files]
    changed = [path for path in missing if path in texts]
    if changed or stale:
        head = api.create_commit(
            plan.repo,
            [
                *(CommitOperationDelete(path) for path in stale),
                *(CommitOperationAdd(path, texts[path]) for path in changed),
            ],
            commit_message=f"Card and manifest of {upload.tag}",
            parent_commit=head,
            **where,
        ).oid
        sent.update(changed)
        removed.update(stale)
    return str(head)


def _listing(api: HfApi, repo: str, revision: str) -> Mapping[str, Any]:
    """Return the hub's entry of each file of a revision, by path."""
    entries = api.list_repo_tree(repo, recursive=True, revision=revision, **DATASET)
    return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}


def _missing(upload: Upload, remote: Mapping[str, Any]) -> list[str]:
    """Return the files that a repo lacks, or has with another size or hash."""

    def differs(path: str, entry: Mapping[str, Any], stored: Any) -> bool:
        if stored is None or stored.size != entry["size"]:
            return True
        if stored.lfs is not None:
            return bool(stored.lfs.sha256 != entry["sha256"])
        # A file outside LFS is small and identified by its Git hash.
        content = upload.texts.get(path) or (upload.root / path).read_bytes()
        git_hash = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return bool(stored.blob_id != git_hash)

    return [path for path, entry in upload.files.items() if differs(path, entry, remote.get(path))]


def _link(source: Path, target: Path) -> None:
    """Link a file into another folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source.resolve())
    except OSError:  # on Windows, symbolic links may need administrator rights
        os.link(source, target)


def _sample(upload: Upload) -> list[str]:
    """Return the card, the manifest, and the files of smallest and median size of each folder."""
    sizes = {path: entry["size"] for path, entry in upload.files.items()}
    chosen = [CARD, MANIFEST]
    for folder in FOLDERS:
        inside = sorted((size, path) for path, size in sizes.items() if path.startswith(folder))
        chosen += [inside[index][1] for index in sorted({0, len(inside) // 2}) if inside]
    return chosen


def _read_back(api: HfApi, plan: Plan, path: str, commit: str) -> None:
    """Download a file and check that it has the hash of the uploaded one."""
    with TemporaryDirectory(prefix="cfqa-read-back-") as folder:
        fetched = api.hf_hub_download(plan.repo, path, revision=commit, local_dir=folder, **DATASET)
        digest = hash_file(Path(fetched))
    expected = plan.upload.files[path]["sha256"]
    if digest != expected:
        raise CfqaError(
            f"{plan.repo}: {path} read back with SHA-256 {digest[:12]}, uploaded with "
            f"{expected[:12]}; run the same command again, and do not use the repo until it "
            "succeeds"
        )
