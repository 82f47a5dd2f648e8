<<<<<<< HEAD
"""Parametrisation of tests: many quick cases in one test, and cases for releases only."""
=======
"""Helpers for parametrised tests: many quick cases in one test, and cases for releases only."""
>>>>>>> main

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest

__all__ = ["each", "release"]


def each(names: str | tuple[str, ...], cases: Iterable[Any]) -> Callable[[Any], Any]:
<<<<<<< HEAD
    """Run a test for every case, as `pytest.mark.parametrize` does, but as a single test.

    All cases are run; failures are reported together, each with its values. Fixtures are created
    once, so a test that modifies its fixtures must not use this.

    Args:
        names: Names of the parameters.
        cases: Values of the parameters for each case.
=======
    """Run a test for every case like `pytest.mark.parametrize`, but as a single test.

    All cases run, and failures are reported together with the values of their cases. Fixtures are
    created once for all cases, so the test must not modify them.

    Args:
        names: Names of the parameters of a case.
        cases: Values of the parameters.
>>>>>>> main
    """
    parameters = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    rows = [
        dict(zip(parameters, case if len(parameters) > 1 else [case], strict=True))
        for case in cases
    ]
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
        kept = [value for name, value in signature.parameters.items() if name not in parameters]
        run_all.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return run_all

    return decorate


def release(*values: Any) -> list[Any]:
    """Return parameter values that are tested only before a release."""
    return [pytest.param(value, marks=pytest.mark.release) for value in values]
