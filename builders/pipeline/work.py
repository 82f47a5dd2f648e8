"""Running one work item: the single entry that this process and every worker call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from cfqa_data.builders.pipeline.compress import compress
from cfqa_data.builders.pipeline.extract import centre, extract
from cfqa_data.builders.pipeline.plan import Item, Plan
from cfqa_data.builders.pipeline.select import select
from cfqa_data.builders.pipeline.tools import Tools
from cfqa_data.builders.pipeline.workspace import PLAN
from cfqa_data.disk import clear_disk_errors
from cfqa_data.errors import BuildError
from cfqa_data.extras import extras
from cfqa_data.format.layout import Layout

__all__ = ["one_thread", "run_item"]

_STAGES: dict[str, Callable[[Tools, Item], None]] = {
    "select": select,
    "extract": extract,
    "centre": centre,
    "compress": compress,
}


def run_item(root: str, digest: str, item: Item) -> Item:
    """Do one item in the build folder `root` and return it.

    Args:
        root: absolute path of the folder, the same on every machine.
        digest: digest of the plan, so that no worker goes by another one.
        item: what to do.

    Raises:
        CfqaError: it cannot be done, and trying again would not help.
    """
    with clear_disk_errors(str(item)), extras("build"), one_thread():
        _STAGES[item.stage](_tools(root, digest), item)
    return item


@lru_cache(maxsize=1)
def _tools(root: str, digest: str) -> Tools:
    layout = Layout(Path(root))
    path = layout.work / PLAN
    try:
        plan = Plan.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BuildError(
            f"a worker does not see {path}: the folder must be shared by all"
        ) from None
    if plan.digest() != digest:
        raise BuildError(f"a worker sees another plan in {path}: the folder must be shared by all")
    return Tools(plan, layout)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are taken in an order that depends on the number of threads: so it is always one."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
