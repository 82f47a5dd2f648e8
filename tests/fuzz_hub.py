"""Targets of the fuzzer: responses of a Hub.

A case is a JSON table of changes to the responses for some paths: another status, other headers,
fewer or more bytes, a flipped byte, or a body above the size limit of whole files.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from fuzz_files import small_dataset
from fuzzing import Target, register
from loopback_handler import Handler
from loopback_hub import LoopbackHub, loopback_hub, point_clients_at
from mutations import in_json

import cfqa_data
from cfqa_data.access import hub_client
from cfqa_data.errors import CfqaError

__all__: list[str] = []

REPO = "org/little"
AS_IT_IS = {"status": 0, "cut": 0, "flip": -1, "longer": 0}
HEADERS = {
    "*/resolve/*/manifest.json": {"X-Repo-Commit": "0123abc"},
    "*/resolve/*.parquet": {"Location": "/nowhere", "ETag": '"0"', "X-Linked-Size": "1"},
    "/cdn/*.parquet": {"Content-Length": "10", "Content-Range": "bytes 0-9/10"},
    "*/resolve/*.safetensors": {"X-Linked-Etag": '"0"', "X-Error-Code": "EntryNotFound"},
    "/cdn/*.safetensors": {"Content-Range": "bytes 0-9/10", "Content-Encoding": "gzip"},
    "*/zarr.json": {"Content-Type": "text/html", "X-Error-Message": "Invalid credentials"},
    "*/c/*": {"Content-Range": "bytes 0-9/10", "Transfer-Encoding": "chunked"},
}


class Hostile(Handler):
    """Changes responses according to the server's script."""

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        for pattern, changes in self.hub.script.items():  # type: ignore[attr-defined]
            if isinstance(changes, dict) and fnmatchcase(self.entry.path, str(pattern)):
                status, body, headers = _changed(changes, status, body, headers)
                if changes.get("longer") not in (0, None):
                    return self._longer(status, headers)
        if status in (204, 304):
            body = b""
        return super()._send(status, body, headers)

    def _longer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name in headers.keys() - {"Content-Length"}:
            self.send_header(name, headers[name])
        self.end_headers()
        self.close_connection = True
        with suppress(OSError):
            for _ in range(1 << 4):  # a little above the lowered limit of whole files
                self.wfile.write(bytes(1 << 16))


def _changed(
    changes: dict[str, Any], status: int, body: bytes, headers: dict[str, str]
) -> tuple[int, bytes, dict[str, str]]:
    cut, flip, more = (changes.get(key) for key in ("cut", "flip", "headers"))
    if type(changes.get("status")) is int and 200 <= changes["status"] < 600:
        status = changes["status"]
    if type(cut) is int and abs(cut) < 10**6:
        body = body[: len(body) - cut] if cut > 0 else body + bytes(-cut)
    if type(flip) is int and 0 <= flip < len(body):
        body = body[:flip] + b"\xff" + body[flip + 1 :]
    for name, value in more.items() if isinstance(more, dict) else ():
        if name not in AS_IT_IS and f"{value}" not in HEADERS.get(name, ()):
            line = f"{value}".encode("latin-1", "replace").decode("latin-1")[:5000]
            if name.isascii() and name.replace("-", "").isalnum():
                headers = headers | {name: line.replace("\r", "").replace("\n", "")}
    return status, body, headers


_hub: LoopbackHub | None = None


def _server(folder: Path) -> LoopbackHub:
    """Return the Hub of this process, which has one repo with a small dataset."""
    global _hub
    if _hub is None:
        context = loopback_hub()
        _hub = context.__enter__()
        _hub.server.RequestHandlerClass = Hostile
        _hub.script = {}  # type: ignore[attr-defined]
        _hub.context = context  # type: ignore[attr-defined]
        hub_client.PAUSE, hub_client.TIMEOUT = 0.0, 1.0
        hub_client.LARGEST_WHOLE = 1 << 18
    patch = pytest.MonkeyPatch()  # never undone in this process
    point_clients_at(_hub, patch, folder / "cache", token=None)
    if REPO not in _hub.repos:
        _hub.put(REPO, small_dataset(folder / "data"))
    return _hub


def _answers(folder: Path) -> dict[str, bytes]:
    _server(folder)
    os.chdir(folder)
    unchanged = {**AS_IT_IS, "headers": {}}
    return {
        f"{pattern} {name}": json.dumps({pattern: unchanged}).encode()
        for pattern, headers in HEADERS.items()
        for name in headers
    }


def _read_repo(cache: bool | Path, data: bytes, folder: Path) -> None:
    hub = _server(folder)
    hub.reset()
    try:
        script = json.loads(data)
    except (ValueError, RecursionError):
        script = {}
    hub.script = script if isinstance(script, dict) else {}  # type: ignore[attr-defined]
    try:
        dataset = cfqa_data.load(REPO, "seg", cache=cache)
        dataset[0]
        source = dataset.source_ids[0]
        dataset.truth(source)
        dataset.bitstream(source, "hyperprior_multi_task", 9)
    finally:
        hub.script = {}  # type: ignore[attr-defined]


def in_answers(rng, data: bytes, others) -> bytes:  # type: ignore[no-untyped-def]
    """Change the responses for a pattern in one to three ways."""
    facts = json.loads(data)
    ((pattern, changes),) = facts.items()
    statuses = (200, 204, 206, 301, 302, 304, 401, 403, 404, 416, 500)
    for _ in range(rng.choice((1, 1, 2, 3))):
        match rng.randrange(5):
            case 0:
                changes["status"] = rng.choice(statuses)
            case 1:
                changes["cut"] = rng.choice((1, -1, 7, -7, 10**5, -(10**5)))
            case 2:
                changes["flip"] = rng.randrange(5000)
            case 3:
                changes["longer"] = 1
            case _:
                name = rng.choice(list(HEADERS[pattern]))
                changes["headers"][name] = HEADERS[pattern][name]
    text = json.dumps(facts).encode()
    return in_json(rng, text, others) if rng.random() < 0.5 else text


def _read_ranges(name: str, data: bytes, folder: Path) -> None:
    _read_repo(False, data, folder)


def _read_cached(name: str, data: bytes, folder: Path) -> None:
    import shutil

    try:
        _read_repo(folder / "kept", data, folder)
    finally:
        shutil.rmtree(folder / "kept", ignore_errors=True)


for target in (
    Target("hub", _answers, _read_ranges, (in_answers,), connects=True, cost=20, seconds=30.0),
    Target(
        *("hub-cache", _answers, _read_cached, (in_answers,)),
        connects=True,
        writes=True,
        cost=50,
        seconds=60.0,
    ),
):
    register(target)
assert issubclass(cfqa_data.errors.HubError, CfqaError)
