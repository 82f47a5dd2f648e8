"""Calls of a hub's client: tried again where that may help, and failing in one line."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from cfqa_data.errors import CfqaError

__all__ = ["HubCalls"]

T = TypeVar("T")

WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further attempt."""

TRY_AGAIN = (408, 429)
"""Statuses under 500 that pass by themselves."""


class HubCalls:
    """Calls functions on behalf of a repo, with the token of whoever runs this.

    Calling it is calling the function; one that met a passing fault is called again.

    Args:
        repo: "org/name".

    Raises:
        CfqaError: there is no token. (Calls raise it for whatever the hub refuses.)

    Attributes:
        api: the hub's client.
    """

    def __init__(self, repo: str) -> None:
        from huggingface_hub import HfApi, constants, get_token

        self.repo = repo
        if constants.HF_HUB_OFFLINE:
            raise CfqaError("nothing can be published while HF_HUB_OFFLINE is set")
        self._token = get_token()
        if not self._token:
            raise CfqaError("no token for the Hub: run `hf auth login`, or set HF_TOKEN")
        self.api = HfApi(token=self._token)

    def __call__(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        for wait in (*WAITS, None):
            try:
                return function(*args, **kwargs)
            except CfqaError:
                raise
            except (OSError, ValueError, RuntimeError, _http_error()) as error:
                cause = _cause(error)
                if isinstance(cause, RuntimeError):
                    raise
                if wait is None or not _passes(cause):
                    raise CfqaError(self._say(cause)) from None
            time.sleep(wait)
        raise AssertionError  # the last attempt returns or raises

    def _say(self, error: BaseException) -> str:
        """Return one line on an error, without the token in it."""
        status = _status(error)
        later = "what was sent is kept, the same command goes on from there"
        if status == 401:
            text = "the Hub does not know this token; run `hf auth login`, or set HF_TOKEN"
        elif status == 403:
            text = f"this token may not write to {self.repo}"
        elif status == 404:
            text = f"the Hub has no such thing, or this token may not see it: {_first_line(error)}"
        elif status in (409, 412):
            text = f"the repo changed meanwhile; {later}"
        elif _passes(error):
            what = f"answers with status {status}" if status else "cannot be reached"
            text = f"the Hub at {self.api.endpoint} {what}; {later}"
        else:
            text = _first_line(error)
        return f"{self.repo}: {text}".replace(str(self._token), "***")


def _http_error() -> type[Exception]:
    """Return the base of what the client's HTTP library raises, whichever that is."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__mro__[1:] if base.__name__ == "HTTPError")


def _cause(error: BaseException) -> BaseException:
    """Return what lies under an error: the client wraps those of its upload threads."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _status(error: BaseException) -> int | None:
    """Return the status of the answer that an error is about, if there was one."""
    for seen in (error, error.__cause__):
        status = getattr(getattr(seen, "response", None), "status_code", None)
        if status is not None:
            return int(status)
    return None


def _passes(error: BaseException) -> bool:
    """Return whether the same call may well succeed a little later."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    status = _status(error)
    if status is not None:
        return status >= 500 or status in TRY_AGAIN
    return isinstance(
        error, (_http_error(), ConnectionError, TimeoutError, LocalEntryNotFoundError)
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
