"""The `Stage` base class, and the loop that runs the unfinished items of a stage.

Building, importing a release, repairing, verifying and calibrating consist of stages. A stage
declares the output files of each item, so that a repair can find the items that recreate a file.
Results do not depend on the order of the items.
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
    """Work of one kind, divided into independent items. Stages are pickled to run in workers.

    Attributes:
        name: Name of the stage, such as "compress".
        unit: Unit of progress, such as "features".
    """

    name: ClassVar[str]
    unit: ClassVar[str]

    @abstractmethod
    def items(self) -> Sequence[Any]:
        """Return all items, the slowest first, so that workers finish at about the same time."""

    @abstractmethod
    def run(self, item: Any) -> Any:
        """Process an item and return its result to the main process.

        Raises:
            CfqaError: If the item failed, and a retry would fail too.
        """

    def outputs(self, item: Any) -> tuple[Path, ...]:
        """Return the files that an item writes; the item is done when the last one exists."""
        return ()

    def cost(self, item: Any) -> int:
        """Return the progress that an item counts for, in the stage's unit."""
        return 1

    def effort(self, item: Any) -> float:
        """Return the relative duration of an item, from which the time left is estimated."""
        return self.cost(item)

    def done(self, item: Any) -> bool:
        """Return whether an item is done already."""
        files = self.outputs(item)
        return bool(files) and files[-1].exists()

    def check(self, todo: Sequence[Any]) -> None:  # noqa: B027
        """Check that the remaining items can be processed, before the first one starts.

        Raises:
            CfqaError: If they cannot.
        """


def drive(
    stage: Stage,
    executor: Executor,
    progress: Progress,
    items: Sequence[Any] | None = None,
    todo: Sequence[Any] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Run the unfinished items of a stage; yield each item with its result.

    Args:
        stage: Stage to run.
        executor: Executor of the items.
        progress: Listener that is notified of the stage's progress.
        items: Items of the stage to consider; all of them if None.
        todo: Unfinished ones among them; determined by `Stage.done` if None.

    Raises:
        CfqaError: If items failed. It is raised after all other items were processed.
    """
    items = stage.items() if items is None else items
    todo = [item for item in items if not stage.done(item)] if todo is None else todo
    stage.check(todo)
    if not todo:
        return
    total, effort = sum(map(stage.cost, items)), sum(map(stage.effort, items)) or 1.0
    set_share = getattr(progress, "reach", lambda share: None)
    progress.start(stage.name, total, stage.unit)
    left = sum(map(stage.effort, todo))
    if done := total - sum(map(stage.cost, todo)):
        set_share(1 - left / effort)
        progress.advance(done)
    for item, result in executor.run(stage, todo):
        yield item, result
        left -= stage.effort(item)
        set_share(1 - left / effort)
        progress.advance(stage.cost(item))
    progress.finish()
