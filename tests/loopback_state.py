"""What the loopback Hub keeps: repos with their commits, and what it was asked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

__all__ = ["READ_TOKEN", "TOKEN", "Commit", "Fault", "Repo", "Request", "git_oid", "is_lfs"]

TOKEN, READ_TOKEN = "hf_loopback_write", "hf_loopback_read"
"""What the server takes for one who may write, and for one who may only read."""

LFS_SUFFIXES = (".parquet", ".safetensors")
LARGEST_REGULAR = 10 << 20


@dataclass
class Request:
    """One request as it was answered; `sent` are the bytes of the answer's body."""

    method: str
    path: str
    range: str
    authorized: bool
    status: int = 0
    sent: int = 0


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose path matches."""

    pattern: str
    times: int
    status: int = 0
    drop_after: int = -1
    corrupt: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Commit:
    """One state of a repo: path -> SHA-256 of the content, and which of the paths are in LFS."""

    title: str
    files: dict[str, str]
    lfs: frozenset[str]


@dataclass
class Repo:
    """A dataset repo."""

    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> str | None:
        """Return the id of the commit that a branch, tag or id names."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        sha = self.branches.get(name) or self.tags.get(name)
        return sha or (revision if revision in self.commits else None)

    def commit(self, branch: str, title: str, files: dict[str, str], lfs: frozenset[str]) -> str:
        """Put a commit at the head of a branch; return its id."""
        facts = json.dumps([len(self.commits), title, files])
        sha = hashlib.sha1(facts.encode()).hexdigest()
        self.commits[sha] = Commit(title, files, lfs & set(files))
        self.branches[branch] = sha
        return sha


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    """Return whether a file goes to LFS: what is large, binary, or of a suffix that always does."""
    return path.endswith(LFS_SUFFIXES) or size > LARGEST_REGULAR or b"\0" in sample


def git_oid(content: bytes) -> str:
    """Return the id that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
