"""The `Progress` protocol by which long-running work reports its progress."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """A listener; each stage is started and finished, one within a step of another or after it."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """Begin a stage of ``total`` steps, counted in ``unit`` ("features", "images")."""

    def advance(self, n: int = 1) -> None:
        """Report ``n`` more steps done."""

    def finish(self) -> None:
        """End the stage."""


class Silent:
    """A listener that shows nothing."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """Ignore."""

    def advance(self, n: int = 1) -> None:
        """Ignore."""

    def finish(self) -> None:
        """Ignore."""
