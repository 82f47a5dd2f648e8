"""Publish a dataset folder on the Hub: verify, upload (resumable), and read back.

The manifest goes up last, in one commit with the card, so a repo that has one is complete. What is
there already is compared by hash and not sent again.
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
"""Folders of a repo that belong to the dataset: what else lies in them is of an older version."""

DATASET: dict[str, Any] = {"repo_type": "dataset"}
MAIN = "main"
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
REF = re.compile(r"(?!.*(\.\.|//|@\{|\.lock$))[A-Za-z0-9][\w./-]{0,99}(?<![/.])", re.ASCII)


@dataclass(frozen=True)
class Plan:
    """What is to be published, and where.

    Attributes:
        upload: The files.
        repo: "org/name".
        revision: The branch.
        private: Whether only those who may see it do.
        notes: What is against the hub's advice, a line each.
    """

    upload: Upload
    repo: str
    revision: str
    private: bool
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the facts, JSON-safe."""
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
    """What publishing did.

    Attributes:
        repo: "org/name".
        url: Its page.
        revision: The branch.
        commit: Id of the commit that holds the dataset.
        tag: The tag on it.
        tier: "light" or "full".
        files: How many files the dataset has.
        size: Their bytes.
        sent: How many of them this run sent.
        sent_size: Bytes of those.
        removed: Files of an older version that it removed.
        read_back: Files whose bytes were fetched and compared.
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
        """Return the facts, JSON-safe."""
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
    """Check a folder, and whether a hub takes it; nothing is sent or written.

    Args:
        root: A dataset folder.
        repo: "org/name".
        tier: "light" or "full"; the folder's own if None. Of a full folder light can be published.
        revision: Branch; main if None. It is made if it is not there.
        tag: Name of this version; one made of its content if None.
        private: Whether only those who may see it do; an existing repo stays as it is.
        terms: Of the tasks of which the folder states none.
        workers: Threads that hash.
        progress: Notified of every file that is checked.
        follow_links: Send what links lead to, wherever that is.

    Raises:
        CfqaError: The hub would not take a name, a size or a number of files, the folder cannot be
            given in that tier, or the terms of a task are not known.
        FormatError: A file is missing or is not what the manifest says, or the parts of the folder
            do not agree.
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
    """Send what a repo lacks of an upload, read a sample back, and tag it.

    Run again after whatever stopped it, it sends what is still missing; a repo that has it all gets
    nothing new.

    Args:
        plan: From :func:`plan_publishing`.
        progress: Notified of every file that is read back.

    Raises:
        CfqaError: There is no token, the hub refuses or cannot be reached, the tag is taken, or
            what comes back is not what was sent. No message has the token in it.
    """
    upload, repo, progress = plan.upload, plan.repo, progress or Silent()
    calls = HubCalls(repo)
    api = calls.api
    calls(_open_repo, api, plan)
    tagged = calls(_check_tag, api, plan)
    sent: set[str] = set()  # over all attempts, as are those that were removed
    removed: set[str] = set()
    commit = calls(_send, api, plan, sent, removed)
    for path in _lacking(upload, calls(_listing, api, repo, commit)):
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
    """Make the repo and the branch if they are not there."""
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
    """Return whether this very version has its tag already.

    Raises:
        CfqaError: The tag stands for another one.
    """
    tag = plan.upload.tag
    refs = api.list_repo_refs(plan.repo, **DATASET)
    if tag not in {ref.name for ref in refs.tags}:
        return False
    if MANIFEST in _lacking(plan.upload, _listing(api, plan.repo, tag)):
        raise CfqaError(
            f"{plan.repo}: already has a tag {tag!r} of another version; give another --tag"
        )
    return True


def _send(api: HfApi, plan: Plan, sent: set[str], removed: set[str]) -> str:
    """Send what the branch lacks; return the commit that has it all."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    upload, texts = plan.upload, plan.upload.texts
    remote = _listing(api, plan.repo, plan.revision)
    lacking = _lacking(upload, remote)
    where = DATASET | {"revision": plan.revision}
    head = api.repo_info(plan.repo, **where).sha
    if arrays := [path for path in lacking if path not in texts]:
        with TemporaryDirectory(prefix="cfqa-publish-") as folder:
            for path in arrays:
                _place(upload.root / path, Path(folder) / path)
            head = api.upload_folder(
                repo_id=plan.repo,
                folder_path=folder,
                commit_message=f"Files of {upload.tag}",
                # An older version's manifest would promise other files than these.
                delete_patterns=[MANIFEST] if MANIFEST in lacking else None,
                **where,
            ).oid
        sent.update(arrays)
    stale = [p for p in remote if p.startswith(FOLDERS) and p not in upload.files]
    changed = [path for path in lacking if path in texts]
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
    """Return what a hub knows of each file of a revision, by path."""
    entries = api.list_repo_tree(repo, recursive=True, revision=revision, **DATASET)
    return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}


def _lacking(upload: Upload, remote: Mapping[str, Any]) -> list[str]:
    """Return the files that a repo lacks, or has with another size or hash."""

    def differs(path: str, entry: Mapping[str, Any], there: Any) -> bool:
        if there is None or there.size != entry["size"]:
            return True
        if there.lfs is not None:
            return bool(there.lfs.sha256 != entry["sha256"])
        # Small, or it would be in LFS.
        content = upload.texts.get(path) or (upload.root / path).read_bytes()
        git_hash = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return bool(there.blob_id != git_hash)

    return [path for path, entry in upload.files.items() if differs(path, entry, remote.get(path))]


def _place(source: Path, target: Path) -> None:
    """Make a file appear in another folder without a copy of its bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source.resolve())
    except OSError:  # systems that keep symbolic links for administrators
        os.link(source, target)


def _sample(upload: Upload) -> list[str]:
    """Return the card, the manifest, and the smallest and the middle file of every folder."""
    sizes = {path: entry["size"] for path, entry in upload.files.items()}
    chosen = [CARD, MANIFEST]
    for folder in FOLDERS:
        inside = sorted((size, path) for path, size in sizes.items() if path.startswith(folder))
        chosen += [inside[place][1] for place in sorted({0, len(inside) // 2}) if inside]
    return chosen


def _read_back(api: HfApi, plan: Plan, path: str, commit: str) -> None:
    """Fetch a file and compare its hash.

    Raises:
        CfqaError: It is not what was sent.
    """
    with TemporaryDirectory(prefix="cfqa-read-back-") as folder:
        fetched = api.hf_hub_download(plan.repo, path, revision=commit, local_dir=folder, **DATASET)
        found = hash_file(Path(fetched))
    expected = plan.upload.files[path]["sha256"]
    if found != expected:
        raise CfqaError(
            f"{plan.repo}: {path} read back with SHA-256 {found[:12]}, uploaded with "
            f"{expected[:12]}; run the same command again, and do not use the repo until it "
            "succeeds"
        )
