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
"""Stage -> folder and suffix of its items' result files."""


@dataclass(frozen=True)
class Item:
    """One unit of work: what a stage does for one task, codec and shard of sources.

    Attributes:
        stage: Name of the stage.
        task: Name of the task.
        codec: Name of the codec; empty if the item is not specific to a codec.
        shard: Number of the shard; -1 if the item is not specific to a shard.
    """

    stage: str
    task: str
    codec: str = ""
    shard: int = -1

    def __str__(self) -> str:
        shard = "" if self.shard < 0 else f"shard {self.shard}"
        return " ".join(filter(None, (self.stage, self.task, self.codec, shard)))

    def result_path(self, layout: Layout) -> Path:
        """Return the item's result file in `.build`; it is written last and marks it as done."""
        folder, suffix = RESULT_FILES[self.stage]
        parts = [self.task, self.codec, "" if self.shard < 0 else f"{self.shard:05d}"]
        return layout.work / folder / f"{'-'.join(filter(None, parts))}{suffix}"


@dataclass(frozen=True)
class Plan:
    """A recipe, the tier to write, and the software and weights that decide the bytes.

    Attributes:
        recipe: Recipe of the dataset.
        tier: "light" (labels, originals, bitstreams) or "full" (also decoded features).
        versions: Name -> version of every library and encoder in use.
        weights: Name -> SHA-256 of all weights and lists that the recipe names.
        packages: Name -> version and SHA-256 of every third-party package in use.
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
        """Return the number of shards of a task's originals and of each codec's bitstreams."""
        return -(-self.recipe.sources(task) // self.recipe.group_size)

    def members(self, task: str, shard: int) -> range:
        """Return the positions of a shard's sources on the source axis."""
        start, size = shard * self.recipe.group_size, self.recipe.group_size
        return range(start, min(start + size, self.recipe.sources(task)))

    def to_json(self) -> str:
        """Serialise the plan; equal plans give equal bytes."""
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
        """Return the plan that `to_json` serialised.

        Raises:
            ValueError, KeyError: The text is not that of a plan.
        """
        data = json.loads(text)
        return cls(**data | {"recipe": Recipe.from_dict(data["recipe"])})

    def digest(self) -> str:
        """Return the SHA-256 of `to_json`, by which a worker checks that it reads the same plan."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()
