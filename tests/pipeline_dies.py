"""A stage with few imports, so that workers start and die quickly."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import NoReturn

from cfqa_data.errors import BuildError
from cfqa_data.processes.stage import Stage

__all__ = ["Doubling", "refuse"]


def refuse(*_: object) -> NoReturn:
    """Raise a one-line error."""
    raise BuildError("nothing doing")


@dataclass(frozen=True)
class Doubling(Stage):
    """Doubles numbers.

    Attributes:
        count: Number of items.
        deadly: Items that kill the process, like the kernel when out of memory.
        refused: Items that raise a BuildError.
        variable: Environment variable whose value is returned instead.
    """

    count: int
    deadly: tuple[int, ...] = ()
    refused: tuple[int, ...] = ()
    variable: str = ""

    name, unit = "double", "numbers"

    def items(self) -> list[int]:
        return list(range(self.count))

    def run(self, item: int) -> int | str:
        if item in self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if item in self.refused:
            raise BuildError("it is odd")
        return os.environ[self.variable] if self.variable else 2 * item
