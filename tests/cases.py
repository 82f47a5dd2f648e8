"""Cases of a test: many quick ones in one test, and those that only a release tries."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest

__all__ = ["each", "release"]


def each(names: str | tuple[str, ...], cases: Iterable[Any]) -> Callable[[Any], Any]:
    """Run a test for every case, as `pytest.mark.parametrize` does, but as one test.

    All cases are run, those that fail are told together, each with its values. Fixtures are made
    once, so that a test which changes what it is given must not use this.

    Args:
        names: Of the parameters that a case gives.
        cases: Their values.
    """
    wanted = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    rows = [dict(zip(wanted, case if len(wanted) > 1 else [case], strict=True)) for case in cases]
    assert rows

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run_all(**fixtures: Any) -> None:
            failures = []
            for row in rows:
                try:
                    test(**fixtures, **row)
                except (Exception, pytest.fail.Exception) as failure:
                    failure.add_note(f"where {row}")
                    failures.append(failure)
            if len(failures) == 1:
                raise failures[0]
            if failures:
                raise BaseExceptionGroup(f"{len(failures)} of {len(rows)} cases", failures)

        signature = inspect.signature(test)
        kept = [value for name, value in signature.parameters.items() if name not in wanted]
        run_all.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return run_all

    return decorate


def release(*values: Any) -> list[Any]:
    """Return values of a parameter that are tried before a release only."""
    return [pytest.param(value, marks=pytest.mark.release) for value in values]
