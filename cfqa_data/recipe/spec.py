"""What a recipe is: everything that decides what a dataset holds, validated when it is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cfqa_data.errors import RecipeError, unknown_name
from cfqa_data.format.quantizers import Quantizer, quantizer_from_dict
from cfqa_data.format.tasks import CODEC_PARAMETERS, CODECS, HIGHEST_QP, LEVELS, TASKS

__all__ = ["SOURCE_PATHS", "BackboneSpec", "Ladder", "Recipe", "SourceSpec", "TaskSpec"]

PROGRAMS = ("encoder", "config")
"""Options of codecs that name a program of one machine, and what it reads."""

SOURCE_PATHS = ("root", "list", "labels", "train")
"""Options of sources that are paths."""


@dataclass(frozen=True)
class BackboneSpec:
    """The network whose block outputs are the features.

    Attributes:
        weights: URI of its safetensors file.
        num_heads: attention heads.
        origin: how, on what and how well it was trained, for the card; may be empty.
    """

    weights: str
    num_heads: int
    origin: str = ""

    def __post_init__(self) -> None:
        _text("backbone.weights", self.weights)
        _count("backbone.num_heads", self.num_heads)
        if self.origin != "":
            _text("backbone.origin", self.origin)

    @classmethod
    def from_dict(cls, data: object) -> BackboneSpec:
        return cls(**_keys("backbone", data, ("weights", "num_heads"), ("origin",)))

    def to_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "num_heads": self.num_heads, "origin": self.origin}


@dataclass(frozen=True)
class SourceSpec:
    """Where a task's images come from.

    Attributes:
        kind: name of the source.
        seed: seed of its choices.
        options: the source's own keyword arguments.
    """

    kind: str
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _text("source.kind", self.kind)
        _count("source.seed", self.seed, least=0)
        object.__setattr__(self, "options", _table("source.options", self.options))

    @classmethod
    def from_dict(cls, data: object) -> SourceSpec:
        return cls(**_keys("source", data, ("kind", "seed"), ("options",)))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "seed": self.seed, "options": dict(self.options)}


@dataclass(frozen=True)
class Ladder:
    """One codec on one task: its quantiser and its ten levels.

    Attributes:
        codec: name of the codec.
        parameter_name: what the codec's numbers are, "qp" (rising) or "lambda" (falling).
        levels: the parameter of each level; level 0 is the best.
        quantizer: between features and the codec's samples.
        models: URI of a learned codec's weights.
        options: further keyword arguments of the codec.
    """

    codec: str
    parameter_name: str
    levels: tuple[float, ...]
    quantizer: Quantizer
    models: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"codecs.{self.codec}"
        if self.codec not in CODECS:
            raise RecipeError(unknown_name("codec", self.codec, CODECS))
        parameter = CODEC_PARAMETERS[self.codec]
        if self.parameter_name != parameter:
            raise RecipeError(
                f"{where}: parameter_name must be {parameter}, got {self.parameter_name!r}"
            )
        if not isinstance(self.levels, list | tuple) or not all(map(_is_number, self.levels)):
            raise RecipeError(f"{where}: levels must be {LEVELS} numbers, got {self.levels!r}")
        object.__setattr__(self, "levels", tuple(self.levels))
        if len(self.levels) != LEVELS:
            raise RecipeError(f"{where}: needs {LEVELS} levels, got {len(self.levels)}")
        worse = 1 if self.parameter_name == "qp" else -1
        if any((b - a) * worse <= 0 for a, b in zip(self.levels, self.levels[1:], strict=False)):
            order = "rise" if worse > 0 else "fall"
            raise RecipeError(
                f"{where}: {self.parameter_name} must {order} from level 0 (best) on, "
                f"got {list(self.levels)}"
            )
        low, high = min(self.levels), max(self.levels)
        if self.parameter_name == "qp":
            limit = HIGHEST_QP[self.codec]
            if low < 0 or high > limit or any(level != int(level) for level in self.levels):
                raise RecipeError(
                    f"{where}: a qp is a whole number from 0 to {limit}, got {self.levels}"
                )
        elif low <= 0:
            raise RecipeError(f"{where}: a lambda is positive, got {low}")
        if self.models is not None:
            _text(f"{where}.models", self.models)
        object.__setattr__(self, "options", _table(f"{where}.options", self.options))
        if "models" in self.options:
            raise RecipeError(f"{where}: models is a key of the codec, not one of its options")

    @property
    def weights(self) -> str | None:
        """URI of the weights that the codec uses: of its models, named or shipped."""
        if self.models is not None or self.parameter_name != "lambda":
            return self.models
        task = f"-{self.options['task']}" if "task" in self.options else ""
        return f"package://cfqa_data.codecs/weights/{self.codec}{task}.safetensors"

    @property
    def codec_options(self) -> dict[str, Any]:
        """Keyword arguments that make this ladder's codec."""
        return dict(self.options) | ({"models": self.models} if self.models else {})

    def without_programs(self) -> Ladder:
        """Return the ladder without options that name programs, for the recipe of a manifest.

        A manifest may be a stranger's: what is run is for this machine's environment to say.
        """
        kept = {key: value for key, value in self.options.items() if key not in PROGRAMS}
        return replace(self, options=kept)

    @classmethod
    def from_dict(cls, codec: str, data: object) -> Ladder:
        values = _keys(
            f"codecs.{codec}",
            data,
            ("parameter_name", "levels", "quantizer"),
            ("models", "options"),
        )
        values["quantizer"] = quantizer_from_dict(values["quantizer"])
        return cls(codec=codec, **values)

    def to_dict(self) -> dict[str, Any]:
        return {
            "parameter_name": self.parameter_name,
            "levels": list(self.levels),
            "quantizer": self.quantizer.to_dict(),
            "models": self.models,
            "options": dict(self.options),
        }


@dataclass(frozen=True)
class TaskSpec:
    """One task of a recipe.

    Attributes:
        name: name of the task.
        source: where its images come from.
        blocks: backbone blocks (from 0) whose outputs are kept, one per layer C.
        head: URI of the weights of the task's head.
        ladders: the codecs by name, in the order of :data:`cfqa_data.format.tasks.CODECS`.
    """

    name: str
    source: SourceSpec
    blocks: tuple[int, ...]
    head: str
    ladders: Mapping[str, Ladder]

    def __post_init__(self) -> None:
        if self.name not in TASKS:
            raise RecipeError(unknown_name("task", self.name, TASKS))
        _text("head", self.head)
        if not isinstance(self.blocks, list | tuple) or not all(
            isinstance(block, int) and block >= 0 for block in self.blocks
        ):
            raise RecipeError(f"blocks must be whole numbers from 0, got {self.blocks!r}")
        object.__setattr__(self, "blocks", tuple(self.blocks))
        layers = TASKS[self.name].layers
        if len(self.blocks) != layers or sorted(set(self.blocks)) != list(self.blocks):
            raise RecipeError(f"blocks must be {layers} rising number(s), got {list(self.blocks)}")
        if not self.ladders:
            raise RecipeError("there must be at least one codec")
        for name, ladder in self.ladders.items():
            if ladder.quantizer.layers != layers:
                raise RecipeError(
                    f"codecs.{name}: the quantiser has {ladder.quantizer.layers} layer(s), "
                    f"the task {layers}"
                )
        ordered = {name: self.ladders[name] for name in CODECS if name in self.ladders}
        object.__setattr__(self, "ladders", ordered)

    @classmethod
    def from_dict(cls, name: str, data: object) -> TaskSpec:
        values = _keys("the task", data, ("source", "blocks", "head", "codecs"))
        codecs = _table("codecs", values.pop("codecs"))
        values["source"] = SourceSpec.from_dict(values["source"])
        ladders = {codec: Ladder.from_dict(codec, entry) for codec, entry in codecs.items()}
        return cls(name=name, ladders=ladders, **values)

    def to_dict(self) -> dict[str, Any]:
        return {
            "source": self.source.to_dict(),
            "blocks": list(self.blocks),
            "head": self.head,
            "codecs": {name: ladder.to_dict() for name, ladder in self.ladders.items()},
        }


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a dataset holds.

    Attributes:
        name: short name.
        summary: one line on what it makes.
        sources_per_task: originals per task.
        group_size: sources that one work item compresses together, and one shard holds.
        backbone: the network.
        tasks: the tasks by name, in the order of :data:`cfqa_data.format.tasks.TASKS`.
    """

    name: str
    summary: str
    sources_per_task: int
    group_size: int
    backbone: BackboneSpec
    tasks: Mapping[str, TaskSpec]

    def __post_init__(self) -> None:
        _text("name", self.name)
        _text("summary", self.summary)
        _count("sources_per_task", self.sources_per_task)
        _count("group_size", self.group_size)
        if not self.tasks:
            raise RecipeError("there must be at least one task")
        ordered = {name: self.tasks[name] for name in TASKS if name in self.tasks}
        object.__setattr__(self, "tasks", ordered)

    @property
    def paths(self) -> tuple[str, ...]:
        """What the recipe names, each once: weights, heads, models, and the paths of sources."""
        found: list[str] = []

        def note(uri: str) -> str:
            found.append(uri)
            return uri

        self.with_paths(note)
        return tuple(dict.fromkeys(found))

    def with_paths(self, rename: Callable[[str], str]) -> Recipe:
        """Return the recipe with other names of what it names (see :attr:`paths`)."""

        def source(spec: SourceSpec) -> SourceSpec:
            named = {
                key: rename(value)
                for key, value in spec.options.items()
                if key in SOURCE_PATHS and isinstance(value, str) and value
            }
            return replace(spec, options={**spec.options, **named})

        def ladder(spec: Ladder) -> Ladder:
            return replace(spec, models=rename(spec.models)) if spec.models else spec

        return replace(
            self,
            backbone=replace(self.backbone, weights=rename(self.backbone.weights)),
            tasks={
                name: replace(
                    spec,
                    source=source(spec.source),
                    head=rename(spec.head),
                    ladders={codec: ladder(entry) for codec, entry in spec.ladders.items()},
                )
                for name, spec in self.tasks.items()
            },
        )

    def without_programs(self) -> Recipe:
        """Return the recipe with :meth:`Ladder.without_programs` of every ladder."""
        return replace(
            self,
            tasks={
                name: replace(
                    spec,
                    ladders={c: ladder.without_programs() for c, ladder in spec.ladders.items()},
                )
                for name, spec in self.tasks.items()
            },
        )

    @classmethod
    def from_dict(cls, data: object) -> Recipe:
        """Return the recipe that :meth:`to_dict` (or a recipe file, resolved) describes.

        Raises:
            RecipeError: a key is missing, unknown or has an impossible value.
        """
        values = _keys(
            "the recipe",
            data,
            ("name", "summary", "sources_per_task", "group_size", "backbone", "tasks"),
        )
        values["backbone"] = BackboneSpec.from_dict(values["backbone"])
        tasks = {}
        for name, entry in _table("tasks", values["tasks"]).items():
            try:
                tasks[name] = TaskSpec.from_dict(name, entry)
            except RecipeError as error:
                raise RecipeError(f"tasks.{name}: {error}") from None
        return cls(**values | {"tasks": tasks})

    def to_dict(self) -> dict[str, Any]:
        """Return the whole recipe as JSON-safe data."""
        return {
            "name": self.name,
            "summary": self.summary,
            "sources_per_task": self.sources_per_task,
            "group_size": self.group_size,
            "backbone": self.backbone.to_dict(),
            "tasks": {name: task.to_dict() for name, task in self.tasks.items()},
        }


def _keys(
    where: str, data: object, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return a copy of the table ``data`` after checking that its keys are the expected ones."""
    table = _table(where, data)
    for key in table:
        if key not in required + optional:
            raise RecipeError(unknown_name(f"key in {where}", key, required + optional))
    if missing := [key for key in required if key not in table]:
        raise RecipeError(f"{where} lacks {', '.join(missing)}")
    return table


def _table(where: str, data: object) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where} must be a table, got {data!r}")
    return dict(data)


def _text(where: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise RecipeError(f"{where} must be a text, got {value!r}")
    return value


def _count(where: str, value: object, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RecipeError(f"{where} must be a whole number of at least {least}, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
