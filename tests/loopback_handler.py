"""Request handler of the loopback Hub: its endpoints and responses."""

from __future__ import annotations

import base64
import json
import re
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from loopback_state import READ_TOKEN, TOKEN, Commit, Repo, Request, git_oid, is_lfs

if TYPE_CHECKING:
    from loopback_hub import LoopbackHub

__all__ = ["Handler"]

DATE = "2026-01-01T00:00:00.000Z"
WRITES = re.compile(r"/(create|delete|settings|commit|branch|tag|batch|preupload)(/|$)")


class Refusal(Exception):
    """An error response in the form that `huggingface_hub` expects."""

    def __init__(
        self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | (headers or {})
        if code:
            self.headers["X-Error-Code"] = code


class Handler(BaseHTTPRequestHandler):
    """Handles the requests of a connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_: Any) -> None:
        """Do not log; requests are recorded instead."""

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client hung up
            super().handle()

    def finish(self) -> None:
        with suppress(ConnectionError, ValueError):
            super().finish()

    def do_GET(self) -> None:
        self.hub: LoopbackHub = self.server.hub  # type: ignore[attr-defined]
        self.body = self._read_body()
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.entry = Request(
            self.command, "/" + "/".join(parts), self.headers.get("Range", ""), bool(self.token)
        )
        self.hub.requests.append(self.entry)
        try:
            self._check()
            with self.hub.lock:
                answer = self._route(parts)
        except Refusal as refusal:
            answer = self._json({"error": str(refusal)}, refusal.status, refusal.headers)
        self._send(*answer)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _check(self) -> None:
        """Refuse requests with a fault, with an unknown token, or without the right to write."""
        if fault := self.hub.take_fault(self.entry.path, content=False):
            raise Refusal(fault.status, "as asked")
        if self.token not in ("", TOKEN, READ_TOKEN):
            raise Refusal(401, "Invalid credentials in Authorization header")
        writes = self.command != "GET" and WRITES.search(self.entry.path)
        if writes and self.entry.path.startswith("/api/") and self.token != TOKEN:
            if self.token:
                raise Refusal(403, "no write access")
            raise Refusal(401, "Invalid username or password.")

    # What each address answers: (status, body, headers).

    def _route(self, parts: list[str]) -> tuple[int, bytes, dict[str, str]]:
        match parts:
            case ["api", "whoami-v2"]:
                return self._whoami()
            case ["api", "validate-yaml"]:
                return self._json({"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                return self._create(json.loads(self.body))
            case ["api", "repos", "delete"]:
                self._repo(self._named(json.loads(self.body)))
                del self.hub.repos[self.repo_id]
                return self._json({})
            case ["cdn", oid, *_] if self.command == "PUT":
                if self.hub.store(self.body) != oid:
                    raise Refusal(400, "content is not what its SHA-256 says")
                return self._json({})
            case ["cdn", oid, *_]:
                return self._content(self.hub.blobs[oid], {"ETag": f'"{oid}"'})
            case ["datasets", org, name, "info", "lfs", "objects", "batch"]:
                self._repo(f"{org}/{name.removesuffix('.git')}")
                return self._lfs_batch()
            case ["datasets", org, name, "resolve", revision, *path]:
                return self._resolve(self._at(f"{org}/{name}", revision), "/".join(path))
            case ["api", "datasets", org, name, *rest]:
                return self._repo_api(f"{org}/{name}", rest)
            case [org, name, "resolve", revision, *path]:  # of a model, which is only read
                return self._resolve(self._at(f"{org}/{name}", revision), "/".join(path))
        raise Refusal(404, f"no such endpoint: {self.entry.path}")

    def _repo_api(self, repo_id: str, rest: list[str]) -> tuple[int, bytes, dict[str, str]]:
        match rest:
            case []:
                return self._info(self._at(repo_id, "main"))
            case ["revision", revision]:
                return self._info(self._at(repo_id, revision))
            case ["tree", revision, *path]:
                return self._tree(self._at(repo_id, revision), "/".join(path))
            case ["paths-info", revision]:
                return self._paths_info(self._at(repo_id, revision))
            case ["commits", revision]:
                return self._commits(self._at(repo_id, revision))
            case ["preupload", revision]:
                return self._preupload(self._at(repo_id, revision))
            case ["commit", branch]:
                return self._commit(self._at(repo_id, branch), branch)
            case ["refs"]:
                return self._refs(self._repo(repo_id))
            case ["settings"]:
                self._repo(repo_id).private = _is_private(json.loads(self.body))
                return self._json({})
            case [("branch" | "tag") as kind, name]:
                return self._label(self._repo(repo_id), kind, name)
        raise Refusal(404, f"no such endpoint: {self.entry.path}")

    def _named(self, facts: dict[str, Any]) -> str:
        return f"{facts.get('organization') or 'tester'}/{facts['name']}"

    def _repo(self, repo_id: str) -> Repo:
        """Return a repo that the client may read."""
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not self.token):
            # The client interprets any 401 over https as a missing repo; here it needs the code.
            if self.token:
                raise Refusal(404, "Repository not found", "RepoNotFound")
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        self.repo_id, self.repo = repo_id, repo
        return repo

    def _at(self, repo_id: str, revision: str) -> Commit:
        """Return a repo's commit by branch, tag or id."""
        sha = self._repo(repo_id).find(revision)
        if sha is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        self.sha = sha
        return self.repo.commits[sha]

    def _whoami(self) -> tuple[int, bytes, dict[str, str]]:
        if not self.token:
            raise Refusal(401, "Invalid username or password.")
        role = "write" if self.token == TOKEN else "read"
        auth = {"type": "access_token", "accessToken": {"displayName": "loopback", "role": role}}
        return self._json(
            {"type": "user", "name": "tester", "orgs": [{"name": "org"}], "auth": auth}
        )

    def _create(self, facts: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        if facts.get("type") != "dataset":
            raise Refusal(400, "only dataset repos here")
        repo_id = self._named(facts)
        url = f"{self.hub.endpoint}/datasets/{repo_id}"
        if repo_id in self.hub.repos:
            return self._json({"error": "You already created this repo", "url": url}, 409)
        repo = self.hub.repos[repo_id] = Repo(_is_private(facts))
        first = {".gitattributes": self.hub.store(b"*.parquet filter=lfs -text\n")}
        repo.commit("main", "initial commit", first, frozenset())
        return self._json({"url": url, "name": repo_id, "id": "0"})

    def _info(self, commit: Commit) -> tuple[int, bytes, dict[str, str]]:
        return self._json(
            {"_id": "0", "id": self.repo_id, "author": self.repo_id.split("/")[0], "sha": self.sha}
            | {"private": self.repo.private, "gated": False, "disabled": False, "downloads": 0}
            | {"likes": 0, "lastModified": DATE, "createdAt": DATE, "tags": []}
            | {"siblings": [{"rfilename": name} for name in sorted(commit.files)]}
        )

    def _entry_of(self, commit: Commit, path: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"path": path}
        if self.query.get("expand", "").lower() in ("true", "1"):
            entry["lastCommit"] = {"id": self.sha, "title": commit.title, "date": DATE}
        if path not in commit.files:
            return entry | {"type": "directory", "oid": git_oid(path.encode()), "size": 0}
        oid = commit.files[path]
        content = self.hub.blobs[oid]
        if path in commit.lfs:
            entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
        return entry | {"type": "file", "oid": git_oid(content), "size": len(content)}

    def _tree(self, commit: Commit, path: str) -> tuple[int, bytes, dict[str, str]]:
        prefix = f"{path}/" if path else ""
        listed = set()
        for name in commit.files:
            if name.startswith(prefix):
                parts = name.removeprefix(prefix).split("/")
                recursive = self.query.get("recursive", "").lower() in ("true", "1")
                for depth in range(len(parts) if recursive else 1):
                    listed.add(prefix + "/".join(parts[: depth + 1]))
        if not listed and path:
            raise Refusal(404, f"{path} does not exist on {self.sha}", "EntryNotFound")
        names, start = sorted(listed), int(self.query.get("cursor", 0))
        stop = start + self.hub.page
        headers = {}
        if stop < len(names):
            query = urlencode(self.query | {"cursor": stop})
            address = f"{self.hub.endpoint}{urlsplit(self.path).path}?{query}"
            headers["Link"] = f'<{address}>; rel="next"'
        entries = [self._entry_of(commit, name) for name in names[start:stop]]
        return self._json(entries, headers=headers)

    def _paths_info(self, commit: Commit) -> tuple[int, bytes, dict[str, str]]:
        folders = {str(folder) for name in commit.files for folder in PurePosixPath(name).parents}
        requested = parse_qs(self.body.decode()).get("paths", [])
        existing = [path for path in requested if path in commit.files or path in folders - {"."}]
        return self._json([self._entry_of(commit, path) for path in existing])

    def _commits(self, _: Commit) -> tuple[int, bytes, dict[str, str]]:
        shas = list(self.repo.commits)
        history = []
        for sha in reversed(shas[: shas.index(self.sha) + 1]):
            title = self.repo.commits[sha].title
            history.append({"id": sha, "title": title, "message": "", "date": DATE, "authors": []})
        return self._json(history)

    def _refs(self, repo: Repo) -> tuple[int, bytes, dict[str, str]]:
        listed: dict[str, list[dict[str, str]]] = {"converts": [], "pullRequests": []}
        for key, kind, names in (
            ("branches", "heads", repo.branches),
            ("tags", "tags", repo.tags),
        ):
            listed[key] = [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha}
                for name, sha in names.items()
            ]
        return self._json(listed)

    def _label(self, repo: Repo, kind: str, name: str) -> tuple[int, bytes, dict[str, str]]:
        """Create or delete a branch (named in the URL) or a tag (named in the body)."""
        known = repo.branches if kind == "branch" else repo.tags
        if self.command == "DELETE":
            if known.pop(name, None) is None:
                raise Refusal(404, f"no {kind} {name}", "RevisionNotFound")
            return self._json({})
        facts = json.loads(self.body or b"{}")
        start = facts.get("startingPoint", "main") if kind == "branch" else name
        name = name if kind == "branch" else facts["tag"]
        sha = repo.find(start)
        if sha is None:
            raise Refusal(404, f"Invalid rev id: {start}", "RevisionNotFound")
        if name in known:
            raise Refusal(409, f"{kind} {name} is there already")
        known[name] = sha
        return self._json({})

    def _preupload(self, commit: Commit) -> tuple[int, bytes, dict[str, str]]:
        files = []
        for file in json.loads(self.body)["files"]:
            path, sample = file["path"], base64.b64decode(file["sample"])
            mode = "lfs" if is_lfs(path, file["size"], sample) else "regular"
            known = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if path in commit.files:
                oid = commit.files[path]
                known["oid"] = oid if path in commit.lfs else git_oid(self.hub.blobs[oid])
            files.append(known)
        return self._json({"files": files})

    def _lfs_batch(self) -> tuple[int, bytes, dict[str, str]]:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            known = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.blobs:
                known["actions"] = {"upload": {"href": f"{self.hub.endpoint}/cdn/{wanted['oid']}"}}
            objects.append(known)
        return self._json({"transfer": "basic", "objects": objects})

    def _commit(self, commit: Commit, branch: str) -> tuple[int, bytes, dict[str, str]]:
        files, lfs, title = dict(commit.files), set(commit.lfs), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            path = value.get("path", "").rstrip("/")
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, self.sha):
                    raise Refusal(412, "A commit has happened since.")
            elif key == "file":
                files[path] = self.hub.store(base64.b64decode(value["content"]))
                lfs.discard(path)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    raise Refusal(400, f"LFS object of {path} was not uploaded")
                files[path] = value["oid"]
                lfs.add(path)
            else:  # deletedFile or deletedFolder
                gone = [name for name in files if name == path or name.startswith(f"{path}/")]
                if not gone:
                    raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
                for name in gone:
                    del files[name]
        sha = self.repo.commit(branch, title, files, frozenset(lfs))
        address = f"{self.hub.endpoint}/datasets/{self.repo_id}/commit/{sha}"
        return self._json({"commitUrl": address, "commitOid": sha, "pullRequestUrl": None})

    def _resolve(self, commit: Commit, path: str) -> tuple[int, bytes, dict[str, str]]:
        headers = {"X-Repo-Commit": self.sha}
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound", headers)
        oid = commit.files[path]
        content = self.hub.blobs[oid]
        if path not in commit.lfs:
            return self._content(content, headers | {"ETag": f'"{git_oid(content)}"'})
        # Like the Hub's storage, on another host than the endpoint, which must not get the token.
        headers["Location"] = f"http://localhost:{self.hub.port}/cdn/{oid}/{quote(path)}"
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{oid}"'}
        return 302, b"", headers | {"ETag": f'"{oid}"'}

    def _content(
        self, content: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes, dict[str, str]]:
        """Return a file, or the requested range of it."""
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"} | headers
        requested = re.fullmatch(r"bytes=(\d*)-(\d*)", self.entry.range)
        if not requested or not self.hub.ranges:
            return 200, content, headers
        size = len(content)
        if requested[1]:
            start, stop = int(requested[1]), min(int(requested[2] or size), size - 1) + 1
        else:
            start, stop = max(size - int(requested[2]), 0), size
        if start >= stop:
            return 416, b"", headers | {"Content-Range": f"bytes */{size}"}
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return 206, content[start:stop], headers

    def _json(
        self, data: Any, status: int = 200, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        return (
            status,
            json.dumps(data).encode(),
            {"Content-Type": "application/json"} | (headers or {}),
        )

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Send a response, modified by a fault if one is due."""
        headers = {"Content-Length": str(len(body))} | headers
        if body and status in (200, 206) and self.command == "GET":
            fault = self.hub.take_fault(self.entry.path, content=True)
            if fault and fault.corrupt:
                body = body[:-1] + bytes([body[-1] ^ 0xFF])
            if fault and fault.drop_after >= 0:
                body = body[: fault.drop_after]
                self.close_connection = True
            headers |= fault.headers if fault else {}
        self.entry.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.entry.sent = len(body)
            self.wfile.write(body)
        self.wfile.flush()


def _is_private(facts: dict[str, Any]) -> bool:
    """Return whether a request creates a private repo, in the form of newer or older clients."""
    return facts.get("visibility") == "private" or bool(facts.get("private"))
