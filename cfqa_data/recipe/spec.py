"""What a recipe is: everything that decides what a dataset holds, validated when it is made.

Tasks, backbones, sources and codecs are classes: built-in ones by name, installed entry points, or
`module:Class`. What a codec's class says of its parameter decides which levels it may have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from cfqa_data.codecs import CODECS, find_codec
from cfqa_data.errors import CfqaError, RecipeError, unknown_name
from cfqa_data.format.facts import MOST_CODECS, MOST_TASKS, CodecFacts, check_name
from cfqa_data.format.quantizers import Quantizer, quantizer_from_dict
from cfqa_data.format.resources import is_uri
from cfqa_data.registry import Found

__all__ = ["SOURCE_PATHS", "BackboneSpec", "Ladder", "Recipe", "SourceSpec", "TaskSpec"]

PROGRAMS = ("encoder", "config")
"""Options of codecs that name a program of one machine, and what it reads."""

SOURCE_PATHS = ("root", "list", "labels", "train")
"""Options of sources that are paths; of others those that begin as paths do are."""

TASK_CLASSES = {"cls": "classification", "seg": "segmentation", "dpt": "depth"}
"""Task -> its class, where a recipe names none; of all others it is the one of the task's name."""

Rename = Callable[[str], str]


@dataclass(frozen=True)
class BackboneSpec:
    """The network whose block outputs are the features.

    Attributes:
        weights: URI of its safetensors file; only DINOv2, which no `kind` stands for, needs one.
        num_heads: attention heads, of DINOv2.
        origin: how, on what and how well it was trained, for the card; may be empty.
        kind: name of the class, or `module:Class`; None is DINOv2.
        options: the class's own keyword arguments.
    """

    weights: str | None = None
    num_heads: int | None = None
    origin: str = ""
    kind: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind is None or self.weights is not None:
            _text("backbone.weights", self.weights)
        if self.kind is None:
            _count("backbone.num_heads", self.num_heads)
        else:
            _text("backbone.class", self.kind)
        if self.origin != "":
            _text("backbone.origin", self.origin)
        object.__setattr__(self, "options", _table("backbone.options", self.options))

    @classmethod
    def from_dict(cls, data: object) -> BackboneSpec:
        if "class" in _table("backbone", data):
            return cls(**_keys("backbone", data, ("class",), ("weights", "origin", "options")))
        return cls(**_keys("backbone", data, ("weights", "num_heads"), ("origin", "class")))

    def to_dict(self) -> dict[str, Any]:
        if self.kind is None:
            return {"weights": self.weights, "num_heads": self.num_heads, "origin": self.origin}
        weights = {} if self.weights is None else {"weights": self.weights}
        own = {"class": self.kind, "options": dict(self.options), "origin": self.origin}
        return weights | own


@dataclass(frozen=True)
class SourceSpec:
    """Where a task's inputs come from.

    Attributes:
        kind: name of the source, or `module:Class`.
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
    """One codec on one task, and its levels.

    Attributes:
        codec: its name in the dataset.
        levels: the parameter of each level; level 0 is the best.
        quantizer: between features and codes, of a codec on planes; else None.
        models: URI of a learned codec's weights.
        options: further keyword arguments of the codec.
        kind: name of its class, or `module:Class`; None is the codec's own name.
    """

    codec: str
    levels: tuple[float, ...]
    quantizer: Quantizer | None = None
    models: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: str | None = None

    def __post_init__(self) -> None:
        where = f"codecs.{self.codec}"
        if self.kind is not None:
            _text(f"{where}.class", self.kind)
        with _told(where):
            check_name("codec", self.codec)
            facts = self.facts
            object.__setattr__(self, "levels", facts.parameter.check_levels(self.levels))
        if (self.quantizer is None) == (facts.on == "planes"):
            needs = "needs one" if self.quantizer is None else "takes none"
            raise RecipeError(f"{where}.quantizer: a codec on {facts.on} {needs}")
        if self.models is not None:
            _text(f"{where}.models", self.models)
        object.__setattr__(self, "options", _table(f"{where}.options", self.options))
        if "models" in self.options:
            raise RecipeError(f"{where}: models is a key of the codec, not one of its options")

    @cached_property
    def found(self) -> Found:
        """The class, and the package that it comes from."""
        return find_codec(self.kind or self.codec, classes=True)

    @cached_property
    def facts(self) -> CodecFacts:
        """What the class says of itself."""
        return replace(self.found.target.facts(), name=self.codec)

    @property
    def parameter_name(self) -> str:
        """What the codec's numbers are, such as "qp"."""
        return self.facts.parameter.name

    @property
    def weights(self) -> tuple[str, ...]:
        """URIs of the weights that the codec uses: of its models, named or shipped."""
        return tuple(self.found.target.weights(self.codec_options))

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
        where = f"codecs.{codec}"
        optional = ("parameter_name", "quantizer", "models", "options", "class")
        values = _keys(where, data, ("levels",), optional)
        name = values.pop("parameter_name", None)
        if (quantizer := values.pop("quantizer", None)) is not None:
            quantizer = quantizer_from_dict(quantizer)
        ladder = cls(codec=codec, quantizer=quantizer, **values)
        if name not in (None, ladder.parameter_name):
            raise RecipeError(
                f"{where}: parameter_name must be {ladder.parameter_name}, got {name!r}"
            )
        return ladder

    def to_dict(self) -> dict[str, Any]:
        quantizer = {"quantizer": self.quantizer.to_dict()} if self.quantizer else {}
        return {
            "parameter_name": self.parameter_name,
            "levels": list(self.levels),
            **quantizer,
            "models": self.models,
            "options": dict(self.options),
            **({} if self.kind is None else {"class": self.kind}),
        }


@dataclass(frozen=True)
class TaskSpec:
    """One task of a recipe.

    Attributes:
        name: name of the task.
        source: where its inputs come from.
        blocks: backbone blocks (from 0) whose outputs are kept, one per layer C.
        head: URI of the weights of the task's head; None where it has none.
        ladders: the codecs by name: built-in ones first, in their order.
        sources: originals; None is the recipe's `sources_per_task`.
        kind: name of its class, or `module:Class`; None is the class of the task's name.
        options: the class's own keyword arguments.
    """

    name: str
    source: SourceSpec
    blocks: tuple[int, ...]
    head: str | None
    ladders: Mapping[str, Ladder]
    sources: int | None = None
    kind: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with _told(""):
            check_name("task", self.name)
        if self.head is not None or self.task_class in TASK_CLASSES.values():
            _text("head", self.head)
        if self.kind is not None:
            _text("class", self.kind)
        if self.sources is not None:
            _count("sources", self.sources)
        object.__setattr__(self, "options", _table("options", self.options))
        if not isinstance(self.blocks, list | tuple) or not all(
            isinstance(block, int) and not isinstance(block, bool) and block >= 0
            for block in self.blocks
        ):
            raise RecipeError(f"blocks must be whole numbers from 0, got {self.blocks!r}")
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if not self.blocks or any(b <= a for a, b in pairwise(self.blocks)):
            raise RecipeError(f"blocks must be one or more rising numbers, got {self.blocks}")
        if not 1 <= len(self.ladders) <= MOST_CODECS:
            raise RecipeError(f"there must be at least one codec, and at most {MOST_CODECS}")
        for name, ladder in self.ladders.items():
            if ladder.quantizer and ladder.quantizer.layers != len(self.blocks):
                raise RecipeError(
                    f"codecs.{name}: the quantiser has {ladder.quantizer.layers} layer(s), "
                    f"the task {len(self.blocks)}"
                )
        object.__setattr__(self, "ladders", _ordered(self.ladders, CODECS.builtin))

    @property
    def task_class(self) -> str:
        """Name of its class, or `module:Class`."""
        return self.kind or TASK_CLASSES.get(self.name, self.name)

    @classmethod
    def from_dict(cls, name: str, data: object) -> TaskSpec:
        optional = ("head", "sources", "class", "options")
        values = _keys("the task", data, ("source", "blocks", "codecs"), optional)
        codecs = _table("codecs", values.pop("codecs"))
        values["source"] = SourceSpec.from_dict(values["source"])
        ladders = {codec: Ladder.from_dict(codec, entry) for codec, entry in codecs.items()}
        return cls(name=name, head=values.pop("head", None), ladders=ladders, **values)

    def to_dict(self) -> dict[str, Any]:
        own = {"head": self.head, "sources": self.sources, "class": self.kind}
        return {
            "source": self.source.to_dict(),
            "blocks": list(self.blocks),
            **{key: value for key, value in own.items() if value is not None},
            **({"options": dict(self.options)} if self.options else {}),
            "codecs": {name: ladder.to_dict() for name, ladder in self.ladders.items()},
        }


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a dataset holds.

    Attributes:
        name: short name.
        summary: one line on what it makes.
        group_size: sources that one work item compresses together, and one shard holds.
        backbone: the network.
        tasks: the tasks by name: cls, seg and dpt first.
        sources_per_task: originals of tasks that do not say how many; None where all do.
    """

    name: str
    summary: str
    group_size: int
    backbone: BackboneSpec
    tasks: Mapping[str, TaskSpec]
    sources_per_task: int | None = None

    def __post_init__(self) -> None:
        _text("name", self.name)
        _text("summary", self.summary)
        _count("group_size", self.group_size)
        if not 1 <= len(self.tasks) <= MOST_TASKS:
            raise RecipeError(f"there must be at least one task, and at most {MOST_TASKS}")
        bare = [name for name, spec in self.tasks.items() if spec.sources is None]
        if bare or self.sources_per_task is not None:
            _count("sources_per_task", self.sources_per_task)
        object.__setattr__(self, "tasks", _ordered(self.tasks, TASK_CLASSES))

    def sources(self, task: str) -> int:
        """Return how many originals a task has."""
        count = self.tasks[task].sources or self.sources_per_task
        assert count is not None
        return count

    @property
    def paths(self) -> tuple[str, ...]:
        """What the recipe names, each once: weights, heads, models, and paths among options."""
        found: list[str] = []

        def note(uri: str) -> str:
            found.append(uri)
            return uri

        self.with_paths(note)
        return tuple(dict.fromkeys(found))

    def with_paths(self, rename: Rename) -> Recipe:
        """Return the recipe with other names of what it names (see :attr:`paths`)."""

        def named(uri: str | None) -> str | None:
            return uri if uri is None else rename(uri)

        def options(table: Mapping[str, Any], keys: tuple[str, ...] = ()) -> dict[str, Any]:
            return {
                key: rename(value) if _is_path(value, key in keys) else value
                for key, value in table.items()
            }

        backbone = self.backbone
        return replace(
            self,
            backbone=replace(
                backbone, weights=named(backbone.weights), options=options(backbone.options)
            ),
            tasks={
                name: replace(
                    spec,
                    source=replace(spec.source, options=options(spec.source.options, SOURCE_PATHS)),
                    head=named(spec.head),
                    options=options(spec.options),
                    ladders={
                        codec: replace(
                            entry,
                            models=named(entry.models),
                            options=entry.options
                            if entry.found.builtin
                            else options(entry.options),
                        )
                        for codec, entry in spec.ladders.items()
                    },
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
        required = ("name", "summary", "group_size", "backbone", "tasks")
        values = _keys("the recipe", data, required, ("sources_per_task",))
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
        count = self.sources_per_task
        return {
            "name": self.name,
            "summary": self.summary,
            **({} if count is None else {"sources_per_task": count}),
            "group_size": self.group_size,
            "backbone": self.backbone.to_dict(),
            "tasks": {name: task.to_dict() for name, task in self.tasks.items()},
        }


def _is_path(value: object, known: bool) -> bool:
    """Whether the value of an option is a path: where it is known to be one, or begins as one."""
    if not isinstance(value, str) or not value:
        return False
    return known or is_uri(value) or value.startswith(("/", "./", "../", "~"))


def _ordered(table: Mapping[str, Any], first: Iterable[str]) -> dict[str, Any]:
    """Return a table with some names before all others, in their order."""
    return {name: table[name] for name in dict.fromkeys([*first, *table]) if name in table}


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Say of whatever is wrong where in the recipe it stands."""
    try:
        yield
    except CfqaError as error:
        raise RecipeError(f"{where}: {error}" if where else str(error)) from None


def _keys(
    where: str, data: object, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the table ``data`` after checking its keys; `class` comes as `kind`."""
    table = _table(where, data)
    for key in table:
        if key not in required + optional:
            raise RecipeError(unknown_name(f"key in {where}", key, required + optional))
    if missing := [key for key in required if key not in table]:
        raise RecipeError(f"{where} lacks {', '.join(missing)}")
    return {"kind" if key == "class" else key: value for key, value in table.items()}


def _table(where: str, data: object) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where} must be a table, got {data!r}")
    return dict(data)


def _text(where: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise RecipeError(f"{where} must be a text, got {value!r}")


def _count(where: str, value: object, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RecipeError(f"{where} must be a whole number of at least {least}, got {value!r}")
