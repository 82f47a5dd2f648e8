"""Helpers for parametrised tests: many quick cases in one test, and cases for releases only."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest

__all__ = ["each", "release"]


def each(names: str | tuple[str, ...], cases: Iterable[Any]) -> Callable[[Any], Any]:
    """Run a test for every case like `pytest.mark.parametrize`, but as a single test.

    All cases run, and failures are reported together with the values of their cases. Fixtures are
    created once for all cases, so the test must not modify them.

    Args:
        names: Names of the parameters of a case.
        cases: Values of the parameters.
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
    """Return parameter values that are tested only before a release."""
    return [pytest.param(value, marks=pytest.mark.release) for value in values]
