"""Make requests to the Hub, with a bounded number of attempts and one-line errors.

`HubRepo` reads the files of a repo. `HubCalls` calls the functions of `huggingface_hub` that write.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from cfqa_data.errors import CfqaError, FormatError, HubError
from cfqa_data.extras import extras
from cfqa_data.format.limits import LARGEST_WHOLE

__all__ = ["LARGEST_WHOLE", "HubCalls", "HubRepo"]

T = TypeVar("T")

ATTEMPTS = 5
"""Number of attempts per request."""

PAUSE = 0.5
"""Seconds before the second attempt; each further pause is twice as long."""

WRITING_PAUSE = 1.0
"""The same for calls that write."""

TIMEOUT = 30.0
"""Seconds without data after which a connection is dropped."""

PIECE = 1 << 20

REDIRECTS = 5
"""Most redirects to follow; the Hub uses one or two."""

LATER = "uploaded files are kept, run the same command again to resume"

REFUSALS = {
    401: "the Hub does not accept this token; run `hf auth login`, or set HF_TOKEN",
    403: "this token may not write to {repo}",
    404: "not found on the Hub, or not visible to this token: {text}",
    409: f"the repo was changed meanwhile; {LATER}",
    412: f"the repo was changed meanwhile; {LATER}",
}
"""Messages for requests that the Hub refuses, by HTTP status."""


class _TransientError(Exception):
    """A request failed, and may succeed if it is repeated."""


class HubRepo:
    """A repo on the Hub at one revision.

    Args:
        repo: Repo id, "org/name".
        revision: Branch, tag or commit; the main branch if None.
        kind: Kind of repo: "dataset" or "model".

    Attributes:
        location: URL of the repo, for messages.
        commit: Revision of the requests; after the first response, the id of its commit.

    Raises:
        MissingDependencyError: If `huggingface_hub` is not installed.
    """

    def __init__(self, repo: str, revision: str | None, kind: str = "dataset") -> None:
        self.repo, self.kind = repo, kind
        self.commit = revision or "main"
        place = f"datasets/{repo}" if kind == "dataset" else repo
        self.location = f"hf://{place}" + (f"@{revision}" if revision else "")
        self._pinned = False
        self._storage: dict[str, str] = {}
        with extras():
            import huggingface_hub  # noqa: F401

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_storage": {}}

    def fetch(self, name: str, start: int = 0, stop: int | None = None, size: int = 0) -> bytearray:
        """Return the bytes from ``start`` to ``stop`` of a file of ``size`` bytes.

        Without ``stop``, return a whole file of unknown size, and use its commit for all later
        requests. A repeated request of a range continues where the last one stopped.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If the file has another size.
            HubError: If the Hub cannot be reached, or the file may not be read.
        """
        data = bytearray()
        why: Exception | None = None
        for _ in _attempts():
            if stop is None:
                data.clear()
            try:
                self._request(name, start + len(data), stop, size, data)
            except _TransientError as error:
                why = error
            else:
                self._pinned = self._pinned or stop is None
                return data
        raise HubError(
            f"{self.location}/{name}: cannot be read after {ATTEMPTS} attempts: {why}"
        ) from None

    def download(self, name: str, cache: bool | str | Path, *, again: bool = False) -> Path:
        """Download a file into a cache, unless it is cached, and return its path.

        Args:
            name: Name of the file.
            cache: True for the cache of `huggingface_hub`, or the folder of a cache.
            again: Download the file even if it is cached.

        Raises:
            FileNotFoundError: If the file does not exist.
            HubError: If the Hub cannot be reached, or the file may not be read.
        """
        import huggingface_hub.constants as constants
        from huggingface_hub import errors, hf_hub_download

        why = ""
        for _ in _attempts():
            try:
                path = hf_hub_download(
                    self.repo,
                    name,
                    repo_type=self.kind,
                    revision=self.commit,
                    cache_dir=None if cache is True else str(cache),
                    force_download=again,
                    library_name="cfqa-data",
                )
            # Errors of huggingface_hub are OSErrors, those of its HTTP client are _http_error(),
            # and malformed headers raise ValueError.
            except (OSError, _http_error(), ValueError) as error:
                if isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
                    raise HubError(
                        f"{self.location}/{name}: not in the cache, and HF_HUB_OFFLINE is set"
                    ) from None
                response = getattr(error, "response", None)
                if response is not None and not _is_transient_status(response.status_code):
                    raise self._refusal(name, response) from None
                why = str(error) or type(error).__name__
            else:
                if not self._pinned:  # the folder of a snapshot is named by its commit
                    self.commit, self._pinned = Path(path).parents[name.count("/")].name, True
                return Path(path)
        raise HubError(f"{self.location}/{name}: cannot be fetched: {' '.join(why.split())}")

    def _request(self, name: str, start: int, stop: int | None, size: int, data: bytearray) -> None:
        """Append the bytes from ``start`` to ``stop`` to ``data`` with one request."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import OfflineModeIsEnabled
        from huggingface_hub.utils import build_hf_headers, get_session

        url = self._storage.get(name)
        # The storage has a signed URL on another host, which must not receive the token.
        headers = {} if url else build_hf_headers(library_name="cfqa-data")
        headers["Accept-Encoding"] = "identity"
        if stop is not None:
            headers["Range"] = f"bytes={start}-{stop - 1}"
        url = url or hf_hub_url(self.repo, name, repo_type="dataset", revision=self.commit)
        most = LARGEST_WHOLE if stop is None else stop - start
        first_host = urlsplit(url).netloc
        commit = ""  # from the Hub's own response, not from a redirect target
        try:
            for _ in range(REDIRECTS + 1):
                # The client would read the bodies of redirects, of any length, so they are
                # followed here.
                with get_session().stream(
                    "GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=False
                ) as response:
                    commit = commit or response.headers.get("X-Repo-Commit", "")
                    if response.has_redirect_location:
                        url = self._redirected(name, url, response.headers["Location"], headers)
                        continue
                    self._check(name, response, start, stop, size)
                    if urlsplit(url).netloc != first_host:
                        self._storage[name] = url
                    if stop is None and commit:
                        self.commit = commit
                    for piece in response.iter_bytes(PIECE):
                        if len(piece) > most:
                            raise ValueError("more bytes arrived than were requested")
                        most -= len(piece)
                        data += piece
                    break
            else:
                raise HubError(f"{self.location}/{name}: more than {REDIRECTS} redirects")
        except OfflineModeIsEnabled:
            raise HubError(
                f"{self.location}: HF_HUB_OFFLINE is set; give a folder, or cache=True to read "
                "files cached earlier"
            ) from None
        except _http_error() as error:
            raise _TransientError(f"{type(error).__name__}: {error}") from None
        if stop is not None and most:
            raise _TransientError(f"{most} of {stop - start} bytes did not arrive")

    def _check(self, name: str, response: Any, start: int, stop: int | None, size: int) -> None:
        """Check that a response has the requested range.

        Raises:
            _TransientError: If the request should be repeated.
            ValueError: If the file has another size.
            CfqaError: If the request was refused.
        """
        status, content_range = response.status_code, response.headers.get("Content-Range", "")
        if _is_transient_status(status):
            raise _TransientError(f"the server answers {status}")
        if status >= 400 and self._storage.pop(name, None):  # the signed URL has expired
            raise _TransientError(f"the storage answers {status}")
        if status == 416:
            raise ValueError(f"fewer bytes than the manifest's {size}; is the upload complete?")
        if status >= 400:
            raise self._refusal(name, response)
        if (
            stop is not None
            and (status, start, stop) != (200, 0, size)
            and (status != 206 or content_range != f"bytes {start}-{stop - 1}/{size}")
        ):
            sent = repr(content_range[:60]) if status == 206 else f"status {status}"
            raise ValueError(
                f"requested bytes {start}-{stop - 1} of the manifest's {size}, the server sends "
                f"{sent}; is the upload complete?"
            )

    def _redirected(self, name: str, url: str, location: str, headers: dict[str, str]) -> str:
        """Return the target of a redirect; remove the token from the headers for another host."""
        try:
            target = urljoin(url, location)
            redirect, origin = urlsplit(target), urlsplit(url)
            allowed = redirect.scheme == "https" or redirect.scheme == origin.scheme == "http"
        except ValueError:
            allowed = False
        if not allowed:
            raise HubError(f"{self.location}/{name}: the server redirects to {location[:200]!r}")
        if redirect.netloc != origin.netloc:
            for key in [key for key in headers if key.lower() == "authorization"]:
                del headers[key]
        return target

    def _refusal(self, name: str, response: Any) -> CfqaError | OSError:
        """Return the error for a response with status 400 or more."""
        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        if "Invalid credentials" in response.headers.get("X-Error-Message", ""):
            return HubError(f"{self.location}: {REFUSALS[401]}")
        if code == "RevisionNotFound":
            return HubError(f"{self.location}: no such branch, tag or commit")
        if code == "GatedRepo":
            return HubError(f"{self.location}: gated: request access on its page, and log in")
        if code == "EntryNotFound" and not self._pinned and self.kind == "dataset":
            return FormatError(
                f"{self.location}: not a CFQA dataset folder (no {name} in it); is the upload "
                "complete?"
            )
        if code == "EntryNotFound":
            return FileNotFoundError(f"{self.location}/{name}")
        if status in (401, 403, 404):
            here = "no folder of this name here, and " if self.kind == "dataset" else ""
            return HubError(
                f"{self.location}: {here}no {self.kind} repo on the Hub that you can read; for a "
                "private one set HF_TOKEN or run: hf auth login"
            )
        return HubError(f"{self.location}/{name}: the server answers {status}")


class HubCalls:
    """Calls functions of the Hub's client for a repo, with the user's token.

    ``calls(function, *args)`` calls a function, and repeats the call after a transient failure.

    Args:
        repo: Repo id, "org/name".

    Attributes:
        api: Client of the Hub.

    Raises:
        CfqaError: If the user has no token, or HF_HUB_OFFLINE is set. Calls raise it if the Hub
            refuses them or cannot be reached.
    """

    def __init__(self, repo: str) -> None:
        from huggingface_hub import HfApi, constants, get_token

        self.repo = repo
        if constants.HF_HUB_OFFLINE:
            raise CfqaError("publishing is not possible while HF_HUB_OFFLINE is set")
        self._token = get_token()
        if not self._token:
            raise CfqaError("no token for the Hub: run `hf auth login`, or set HF_TOKEN")
        self.api = HfApi(token=self._token)

    def __call__(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        cause: BaseException | None = None
        for _ in _attempts(WRITING_PAUSE):
            try:
                return function(*args, **kwargs)
            except CfqaError:
                raise
            except (OSError, ValueError, RuntimeError, _http_error()) as error:
                cause = error
                while isinstance(cause, RuntimeError):  # the client wraps those of its threads
                    if cause.__cause__ is None:
                        raise
                    cause = cause.__cause__
                if not _is_transient(cause):
                    break
        raise CfqaError(self._message(cause)) from None

    def _message(self, error: BaseException | None) -> str:
        """Return a one-line message for an error, without the token."""
        status = _status(error)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = lines[0] if lines else type(error).__name__
        if status in REFUSALS:
            text = REFUSALS[status].format(repo=self.repo, text=text)
        elif _is_transient(error):
            what = f"answers with status {status}" if status else "cannot be reached"
            text = f"the Hub at {self.api.endpoint} {what}; {LATER}"
        return f"{self.repo}: {text}".replace(str(self._token), "***")


def _attempts(pause: float | None = None) -> Iterator[None]:
    """Yield once per attempt, with growing pauses between the attempts."""
    pause = PAUSE if pause is None else pause
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        yield


def _is_transient_status(status: int) -> bool:
    return status >= 500 or status in (408, 429)


def _http_error() -> Any:
    """Return the base class of HTTP errors: that of httpx or httpx2, by huggingface_hub version."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status of an error or its cause; None if it has no response."""
    for candidate in (error, getattr(error, "__cause__", None)):
        status = getattr(getattr(candidate, "response", None), "status_code", None)
        if status is not None:
            return int(status)
    return None


def _is_transient(error: BaseException | None) -> bool:
    """Return whether a repeated call may succeed."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    status = _status(error)
    if status is not None:
        return _is_transient_status(status)
    return isinstance(
        error, (_http_error(), ConnectionError, TimeoutError, LocalEntryNotFoundError)
    )
