"""The plan of a build (recipe, tier, software versions) and the work items of its stages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cfqa_data.errors import BuildError
from cfqa_data.format.layout import Layout
from cfqa_data.format.manifest import TIERS
from cfqa_data.recipe.load import Recipe

__all__ = ["PLAN", "Item", "Plan"]

PLAN = "plan.json"

RESULT_FILES = {
    "fit": ("fits", ".json"),
    "select": ("sources", ".json"),
    "extract": ("references", ".json"),
    "prepare": ("entries", ".json"),
    "compress": ("rows", ".parquet"),
    "preview": ("previews", ".parquet"),
}
"""Stage -> folder and suffix of the result files of its items."""


@dataclass(frozen=True)
class Item:
    """One unit of work: everything of a stage that belongs to a task, codec and shard of sources.

    Attributes:
        stage: Name of the stage.
        task: Name of the task.
        codec: Name of the codec, if the stage has items per codec.
        shard: Number of the shard, or -1 if it has no items per shard.
    """

    stage: str
    task: str
    codec: str = ""
    shard: int = -1

    def __str__(self) -> str:
        shard = "" if self.shard < 0 else f"shard {self.shard}"
        return " ".join(filter(None, (self.stage, self.task, self.codec, shard)))

    def result_path(self, layout: Layout) -> Path:
        """The item's result file in `.build`, written last: if it exists, the item is done."""
        folder, suffix = RESULT_FILES[self.stage]
        parts = [self.task, self.codec, "" if self.shard < 0 else f"{self.shard:05d}"]
        return layout.work / folder / f"{'-'.join(filter(None, parts))}{suffix}"


@dataclass(frozen=True)
class Plan:
    """A recipe, the tier to write, and the software and weights that decide the bytes.

    Attributes:
        recipe: What to build.
        tier: "light" (labels, originals, bitstreams) or "full" (and the decoded features).
        versions: Name -> version of every library and encoder that takes part.
        weights: Name -> SHA-256, of all weights and lists that the recipe names.
        packages: Name -> version and SHA-256 of every package beside this one that takes part.
    """

    recipe: Recipe
    tier: str = "full"
    versions: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tier not in TIERS:
            raise BuildError(f"tier {self.tier!r} is unknown: choose from {', '.join(TIERS)}")

    def shards(self, task: str) -> int:
        """Number of shards of a task: of its originals, and of each codec's bitstreams."""
        return -(-self.recipe.sources(task) // self.recipe.group_size)

    def members(self, task: str, shard: int) -> range:
        """Positions on the source axis of the sources in a shard."""
        start, size = shard * self.recipe.group_size, self.recipe.group_size
        return range(start, min(start + size, self.recipe.sources(task)))

    def to_json(self) -> str:
        """One text for one plan: equal plans give equal bytes."""
        return json.dumps(
            {
                "recipe": self.recipe.to_dict(),
                "tier": self.tier,
                "versions": dict(sorted(self.versions.items())),
                "weights": dict(sorted(self.weights.items())),
                "packages": {name: dict(self.packages[name]) for name in sorted(self.packages)},
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan of `to_json`.

        Raises:
            ValueError, KeyError: Where the text is not that of a plan.
        """
        data = json.loads(text)
        return cls(**data | {"recipe": Recipe.from_dict(data["recipe"])})

    def digest(self) -> str:
        """SHA-256 of `to_json`, by which a worker knows that it reads the same plan."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()
