"""What a build consists of: the recipe, what it runs on, and its work items in order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfqa_data.errors import BuildError
from cfqa_data.format.layout import Layout
from cfqa_data.format.manifest import TIERS
from cfqa_data.format.tasks import get_task
from cfqa_data.recipe.load import Recipe

__all__ = ["STAGES", "Item", "Plan"]

STAGES: tuple[str, ...] = ("select", "extract", "centre", "compress")
"""The stages made of work items, in order; `pack` follows and is one step."""

_UNITS = {"select": "tasks", "extract": "sources", "centre": "tasks", "compress": "features"}


@dataclass(frozen=True)
class Item:
    """One unit of work: everything of a stage that belongs to a task, codec and source group."""

    stage: str
    task: str
    codec: str = ""
    group: int = 0

    def __str__(self) -> str:
        return " ".join((self.stage, self.task, *((self.codec,) if self.codec else ()))) + (
            f" group {self.group}" if self.stage in ("extract", "compress") else ""
        )

    def marker(self, layout: Layout) -> Path:
        """The file that this item writes last: its presence means that the item is done."""
        name = {
            "select": f"sources/{self.task}.json",
            "extract": f"references/{self.task}-{self.group:05d}.json",
            "centre": f"centres/{self.task}.json",
            "compress": f"rows/{self.task}-{self.codec}-{self.group:05d}.parquet",
        }[self.stage]
        return layout.work / name


@dataclass(frozen=True)
class Plan:
    """A recipe, the tier to write, and the software and weights that decide the bytes.

    Attributes:
        recipe: what to build.
        tier: "light" (labels, originals, bitstreams) or "full" (and the decoded codes).
        versions: name -> version of every library and encoder that takes part.
        weights: name -> SHA-256, of all weights and lists that the recipe names.
    """

    recipe: Recipe
    tier: str = "full"
    versions: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tier not in TIERS:
            raise BuildError(f"tier {self.tier!r} is unknown: choose from {', '.join(TIERS)}")

    @property
    def groups(self) -> int:
        """Number of source groups per task; also the number of shards of every sharded file."""
        return -(-self.recipe.sources_per_task // self.recipe.group_size)

    def members(self, group: int) -> range:
        """Positions on the source axis of the sources in a group."""
        start = group * self.recipe.group_size
        return range(start, min(start + self.recipe.group_size, self.recipe.sources_per_task))

    def items(self, stage: str) -> list[Item]:
        """All items of a stage, those that take longest first, so that none is left over last."""
        tasks = self.recipe.tasks
        if stage in ("select", "centre"):
            return [Item(stage, task) for task in tasks]
        if stage == "extract":
            return [Item(stage, task, "", group) for task in tasks for group in range(self.groups)]
        items = [
            Item(stage, task, codec, group)
            for task, spec in tasks.items()
            for codec in spec.ladders
            for group in range(self.groups)
        ]
        return sorted(items, key=lambda item: -self._cost(item))

    def _cost(self, item: Item) -> float:
        task = get_task(item.task)
        spec = self.recipe.tasks[item.task]
        cost: float = spec.ladders[item.codec].found.target.cost
        return task.views * len(spec.blocks) * cost * len(self.members(item.group))

    def size(self, item: Item) -> int:
        """How much progress an item is, in the unit of its stage."""
        if item.stage == "extract":
            return len(self.members(item.group))
        if item.stage == "compress":
            ladder = self.recipe.tasks[item.task].ladders[item.codec]
            return len(self.members(item.group)) * len(ladder.levels)
        return 1

    @staticmethod
    def unit(stage: str) -> str:
        """What a stage counts: "tasks", "sources" or "features"."""
        return _UNITS[stage]

    def to_json(self) -> str:
        """One text for one plan: equal plans give equal bytes."""
        return json.dumps(
            {
                "recipe": self.recipe.to_dict(),
                "tier": self.tier,
                "versions": dict(self.versions),
                "weights": dict(self.weights),
            },
            sort_keys=True,
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan of `to_json`.

        Raises:
            ValueError, KeyError: where the text is not that of a plan.
        """
        data: dict[str, Any] = json.loads(text)
        return cls(
            recipe=Recipe.from_dict(data["recipe"]),
            tier=data["tier"],
            versions=data["versions"],
            weights=data["weights"],
        )

    def digest(self) -> str:
        """SHA-256 of `to_json`, by which a worker knows that it reads the same plan."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()
