"""A small Hub on 127.0.0.1, for the real `huggingface_hub` and `datasets` clients.

It implements the requests that those clients make from `create_repo` to `load_dataset`, without
Xet: repos, commits of regular and LFS files, branches and tags, trees, ranges, private repos. Like
the Hub, it serves LFS content by a redirect to another host. Tests can inject faults and inspect
all requests. Everything is in memory.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from loopback_handler import Handler
from loopback_state import READ_TOKEN, TOKEN, Fault, Repo, Request, is_lfs

__all__ = ["READ_TOKEN", "TOKEN", "LoopbackHub", "Request", "loopback_hub", "point_clients_at"]


class LoopbackHub:
    """The server with its state.

    Attributes:
        endpoint: URL of the server, for `HF_ENDPOINT`.
        repos: Repo id -> repo. Each is a dataset repo; its files are served as a model repo too.
        blobs: SHA-256 -> content.
        requests: All requests so far.
        page: Most entries of a tree in one response.
        ranges: Whether range requests are honoured.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.page = 1000
        self.ranges = True
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.hub = self  # type: ignore[attr-defined]
        self.port = self.server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def fail(self, pattern: str, times: int = 1, **what: Any) -> None:
        """Inject a fault into the next requests whose path matches a pattern.

        Args:
            pattern: Pattern of the whole decoded path, such as `*/labels/cls.parquet`. LFS files
                are served from `/cdn/{sha256}/{path}`, so it matches the redirect and its target.
            times: Number of requests.
            what: `status=503`; or, for responses with content, `drop_after=100` to close the
                connection after so many bytes, `corrupt=True` to flip the bits of the last byte,
                or `headers={...}` to change headers.
        """
        self.faults.append(Fault(pattern, times, **what))

    def find(self, pattern: str = "*", method: str = "*") -> list[Request]:
        """Return the requests whose path and method match patterns."""
        return [
            request
            for request in list(self.requests)
            if fnmatchcase(request.path, pattern) and fnmatchcase(request.method, method)
        ]

    def count(self, pattern: str = "*", method: str = "*") -> int:
        """Return the number of requests that :meth:`find` returns."""
        return len(self.find(pattern, method))

    def sent(self, pattern: str = "*") -> int:
        """Return the size in bytes of the bodies sent for matching paths."""
        return sum(request.sent for request in self.find(pattern))

    def reset(self) -> None:
        """Clear the requests and faults."""
        self.requests.clear()
        self.faults.clear()

    def put(self, repo_id: str, folder: Path, *, private: bool = False, tag: str = "") -> str:
        """Commit a folder as the whole content of a repo's main branch; return the commit id."""
        files, lfs = {}, set()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name, content = path.relative_to(folder).as_posix(), path.read_bytes()
                files[name] = self.store(content)
                if is_lfs(name, len(content), content[:512]):
                    lfs.add(name)
        with self.lock:
            repo = self.repos.setdefault(repo_id, Repo(private))
            sha = repo.commit("main", "put", files, frozenset(lfs))
            if tag:
                repo.tags[tag] = sha
        return sha

    def store(self, content: bytes) -> str:
        """Store content and return its SHA-256."""
        oid = hashlib.sha256(content).hexdigest()
        self.blobs[oid] = content
        return oid

    def take_fault(self, path: str, *, content: bool) -> Fault | None:
        """Return and count the first fault that applies to a path.

        Args:
            path: Path of the request.
            content: Whether content is being sent; otherwise only faults with a status apply.
        """
        with self.lock:
            for fault in self.faults:
                due = fault.times and bool(fault.status) != content
                if due and fnmatchcase(path, fault.pattern):
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    """Run a Hub in a thread."""
    hub = LoopbackHub()
    thread = threading.Thread(target=hub.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


def point_clients_at(
    hub: LoopbackHub, monkeypatch: Any, cache: Path, token: str | None = TOKEN
) -> None:
    """Make the clients of this process and its children use a loopback Hub only.

    Args:
        hub: The Hub.
        monkeypatch: Fixture of pytest.
        cache: Folder for the caches of the clients.
        token: Token of the clients; None for anonymous access.
    """
    values = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_TOKEN_PATH": str(cache / "token"),
        "HF_DATASETS_CACHE": str(cache / "datasets"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "*",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    # The clients read their environment once, when they are imported.
    import huggingface_hub.constants as constants

    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    if "datasets" in sys.modules:
        import datasets.config as config

        monkeypatch.setattr(config, "HF_ENDPOINT", hub.endpoint)
        monkeypatch.setattr(config, "HF_DATASETS_CACHE", cache / "datasets")
