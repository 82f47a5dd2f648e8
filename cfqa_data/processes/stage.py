"""The `Stage` base class, and the loop that runs a stage's unfinished items.

Building, importing a release, repairing, verifying and calibrating are stages. A stage
declares the output files of each item, by which a repair finds the items that recreate a file. The
order of items does not matter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from cfqa_data.console.progress import Progress
from cfqa_data.processes.executor import Executor

__all__ = ["Stage", "drive"]


class Stage(ABC):
    """Work of one kind, divided into items that any process can run. It is pickled for that.

    Attributes:
        name: Such as "compress".
        unit: What `cost` counts, such as "features".
    """

    name: ClassVar[str]
    unit: ClassVar[str]

    @abstractmethod
    def items(self) -> Sequence[Any]:
        """Return all items, those that take longest first, so that none is left over last."""

    @abstractmethod
    def run(self, item: Any) -> Any:
        """Do an item, and return what the process that drives the stage is to know of it.

        Raises:
            CfqaError: It cannot be done, and trying again would not help.
        """

    def outputs(self, item: Any) -> tuple[Path, ...]:
        """Return the files that an item makes; it is done when the last of them is there."""
        return ()

    def cost(self, item: Any) -> int:
        """Return how much progress an item is, in the stage's unit."""
        return 1

    def effort(self, item: Any) -> float:
        """Return about how long an item takes, in any unit: the time left is told by that."""
        return self.cost(item)

    def done(self, item: Any) -> bool:
        """Whether an item need not be done again."""
        files = self.outputs(item)
        return bool(files) and files[-1].exists()

    def check(self, todo: Sequence[Any]) -> None:  # noqa: B027
        """Check that what remains can be done, before it is begun.

        Raises:
            CfqaError: It cannot.
        """


def drive(
    stage: Stage,
    executor: Executor,
    progress: Progress,
    items: Sequence[Any] | None = None,
    todo: Sequence[Any] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Do what is not done yet of a stage; yield each item that was done, with its result.

    Args:
        stage: The stage.
        executor: Where to run.
        progress: Notified of the stage's progress.
        items: Some of the stage's items; all of them if None.
        todo: Those of them that are not done yet; the stage says, if None.

    Raises:
        CfqaError: At the end, if items failed; all others were done before.
    """
    items = stage.items() if items is None else items
    todo = [item for item in items if not stage.done(item)] if todo is None else todo
    stage.check(todo)
    if not todo:
        return
    total, effort = sum(map(stage.cost, items)), sum(map(stage.effort, items)) or 1.0
    reach = getattr(progress, "reach", lambda share: None)
    progress.start(stage.name, total, stage.unit)
    left = sum(map(stage.effort, todo))
    if done := total - sum(map(stage.cost, todo)):
        reach(1 - left / effort)
        progress.advance(done)
    for item, result in executor.run(stage, todo):
        yield item, result
        left -= stage.effort(item)
        reach(1 - left / effort)
        progress.advance(stage.cost(item))
    progress.finish()
