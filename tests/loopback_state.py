"""State of the loopback Hub: repos with their commits, requests and faults."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

__all__ = ["READ_TOKEN", "TOKEN", "Commit", "Fault", "Repo", "Request", "git_oid", "is_lfs"]

TOKEN, READ_TOKEN = "hf_loopback_write", "hf_loopback_read"
"""Tokens with write and with read permission."""

LFS_SUFFIXES = (".parquet", ".safetensors")
LARGEST_REGULAR = 10 << 20


@dataclass
class Request:
    """A request with its response; `sent` is the size of the response body in bytes."""

    method: str
    path: str
    range: str
    authorized: bool
    status: int = 0
    sent: int = 0


@dataclass
class Fault:
    """A fault of the next `times` requests whose path matches a pattern."""

    pattern: str
    times: int
    status: int = 0
    drop_after: int = -1
    corrupt: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Commit:
    """A commit: path -> SHA-256 of the content, and the paths that are in LFS."""

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
        """Return the commit id of a branch, tag or commit id; None if it does not exist."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        sha = self.branches.get(name) or self.tags.get(name)
        return sha or (revision if revision in self.commits else None)

    def commit(self, branch: str, title: str, files: dict[str, str], lfs: frozenset[str]) -> str:
        """Add a commit to a branch; return its id."""
        facts = json.dumps([len(self.commits), title, files])
        sha = hashlib.sha1(facts.encode()).hexdigest()
        self.commits[sha] = Commit(title, files, lfs & set(files))
        self.branches[branch] = sha
        return sha


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    """Return whether a file is stored in LFS: if it is large, binary, or has an LFS suffix."""
    return path.endswith(LFS_SUFFIXES) or size > LARGEST_REGULAR or b"\0" in sample


def git_oid(content: bytes) -> str:
    """Return the git object id of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
