"""The `Progress` protocol for listeners of long-running work."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """A listener of progress. Stages may be nested: one may run within a step of another."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """Start a stage of ``total`` steps, counted in ``unit`` ("features", "images")."""

    def advance(self, n: int = 1) -> None:
        """Report ``n`` more steps of the innermost stage."""

    def finish(self) -> None:
        """Finish the innermost stage."""


class Silent:
    """A listener that ignores progress."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """Ignore."""

    def advance(self, n: int = 1) -> None:
        """Ignore."""

    def finish(self) -> None:
        """Ignore."""
