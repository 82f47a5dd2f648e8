"""The specification of a recipe as frozen dataclasses, validated on construction.

Tasks, backbones, sources and codecs are classes: built-in ones by name, installed entry points, or
`module:Class`. The class of a codec determines which levels are valid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

from cfqa_data.codecs import CODECS, find_codec
from cfqa_data.errors import CfqaError, RecipeError, prefixed
from cfqa_data.format.facts import MAX_CODECS, MAX_TASKS, PROGRAMS, CodecFacts, check_name
from cfqa_data.format.fields import NAME, OMIT, Checked, Count, Number, Text
from cfqa_data.format.invariants import check_task_names
from cfqa_data.format.quantizers import Quantizer
from cfqa_data.format.resources import is_uri
from cfqa_data.recipe.fitted import AutoLevels, FittedRange
from cfqa_data.registry import Registry, RegistryEntry, path_options

__all__ = [
    "BackboneSpec",
    "CodecSpec",
    "Recipe",
    "SourceSpec",
    "TaskSpec",
    "parts_of",
    "path_locations",
    "table_at",
    "tables_at",
]

SOURCE_PATHS = ("root", "list", "labels", "train", "train_labels")
"""Options of sources that are always paths; other options are paths if they look like one."""

TASK_CLASSES = {"cls": "classification", "seg": "segmentation", "dpt": "depth"}
"""Task -> its class if a recipe names none; the class of any other task has the task's name."""

DEFAULT_FITTED_ON = 50
"""Default number of training inputs to which the codecs of a task are fitted."""

Options = Mapping[str, Any]


CLASS = {"key": "class", **OMIT}


class _Spec(Checked):
    error = RecipeError
    complete = False


@dataclass(frozen=True)
class BackboneSpec(_Spec):
    """The backbone of a recipe.

    Attributes:
        weights: URI of a safetensors file; required only for DINOv2, the backbone without a `kind`.
        num_heads: Attention heads of DINOv2; a 64th of its width if None.
        origin: How, on what data and how well it was trained, for the dataset card; may be empty.
        kind: Name of the class, or `module:Class`; None is DINOv2.
        options: Keyword arguments of the class.
    """

    weights: Text | None = field(default=None, metadata=OMIT)
    num_heads: Count | None = field(default=None, metadata=OMIT)
    kind: Text | None = field(default=None, metadata=CLASS)
    options: Options = field(default_factory=dict)
    origin: str = ""

    where = "backbone"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.kind or self.weights, ": needs weights or a class")
        self.require(self.kind or not self.options, ".options: only for a class")
        self.require(not (self.kind and self.num_heads), ".num_heads: only for DINOv2")

    def to_dict(self) -> dict[str, Any]:
        table = super().to_dict()
        if self.kind is None:
            del table["options"]
        return table


@dataclass(frozen=True)
class SourceSpec(_Spec):
    """The source of a task's samples.

    Attributes:
        kind: Name of the source, or `module:Class`.
        seed: Seed of its random choices.
        options: Keyword arguments of the source.
    """

    kind: Text
    seed: Number
    options: Options = field(default_factory=dict)

    where = "source"


@dataclass(frozen=True)
class CodecSpec(_Spec):
    """A codec of one task: its quantiser, options and levels.

    Attributes:
        codec: Name of the codec in the dataset.
        levels: The parameter of each level, best first, or `AutoLevels`.
        quantizer: Quantiser between features and codes, possibly a `FittedRange`, for a codec on
            planes; else None.
        models: URI of a learned codec's weights.
        options: Further keyword arguments of the codec.
        kind: Name of the class, or `module:Class`; None is the codec's own name.
        parameter_name: Name of the codec's parameter, such as "qp".
    """

    parameter_name: str = field(init=False)
    codec: str = field(metadata=NAME)
    levels: Any
    quantizer: Quantizer | None = field(default=None, metadata=OMIT)
    models: Text | None = None
    options: Options = field(default_factory=dict)
    kind: Text | None = field(default=None, metadata=CLASS)

    where_format = "codecs.{0.codec}"

    def __post_init__(self) -> None:
        levels = self.levels
        with prefixed(self.where, RecipeError):
            if FittedRange.describes(self.quantizer):
                object.__setattr__(self, "quantizer", FittedRange.from_dict(self.quantizer))
            if isinstance(levels, dict) or levels == "auto":
                levels = AutoLevels.from_dict(levels)
        super().__post_init__()
        with prefixed(self.where, RecipeError):
            check_name("codec", self.codec)
            if not isinstance(levels, AutoLevels):
                levels = self.facts.parameter.check_levels(levels)
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "parameter_name", self.facts.parameter.name)
        planes = self.facts.on == "planes"
        message = f"a codec on {self.facts.on} {'needs one' if planes else 'takes none'}"
        self.require(planes == (self.quantizer is not None), f".quantizer: {message}")
        duplicate = ": models is a key of the codec, not one of its options"
        self.require("models" not in self.options, duplicate)

    @property
    def to_fit(self) -> bool:
        """Whether the build determines its range or levels."""
        return isinstance(self.quantizer, FittedRange) or isinstance(self.levels, AutoLevels)

    @cached_property
    def registered(self) -> RegistryEntry:
        """The class, and the package that provides it."""
        return find_codec(self.kind or self.codec, classes=True)

    @cached_property
    def facts(self) -> CodecFacts:
        """The facts that the class declares."""
        return replace(self.registered.target.facts(), name=self.codec)

    def stored(self, tier: str) -> bool:
        """Return whether a dataset of a tier stores decoded features in addition to bitstreams.

        No tier stores those of built-in codecs on features, which decode fast everywhere. Both
        tiers store those of codecs on inputs, because only the backbone can compute them.
        """
        decodes_fast = self.facts.on == "features" and self.registered.builtin
        return self.facts.on == "inputs" or (tier == "full" and not decodes_fast)

    @property
    def weights(self) -> tuple[str, ...]:
        """URIs of the codec's weights, as named in the recipe or shipped."""
        return tuple(self.registered.target.weights(self.codec_options))

    @property
    def codec_options(self) -> dict[str, Any]:
        """Keyword arguments of the codec's class."""
        return dict(self.options) | ({"models": self.models} if self.models else {})


@dataclass(frozen=True)
class TaskSpec(_Spec):
    """One task of a recipe.

    Attributes:
        name: Name of the task.
        source: Source of its inputs.
        blocks: Backbone blocks (from 0) whose outputs are the layers C.
        head: URI of the weights of the task's head; None if it has no head.
        codecs: The codecs by name: built-in ones first, in registry order.
        sources: Number of originals; by default the recipe's `sources_per_task`.
        fitted_on: Number of training inputs to which tables and ranges of its codecs are fitted; 50
            if None.
        kind: Name of the class, or `module:Class`; None is the class of the task's name.
        options: Keyword arguments of the class.
    """

    name: str = field(metadata=NAME)
    source: SourceSpec
    blocks: Annotated[tuple[Number, ...], 1]
    head: Text | None = field(default=None, metadata=OMIT)
    sources: Count | None = field(default=None, metadata=OMIT)
    fitted_on: Count | None = field(default=None, metadata=OMIT)
    kind: Text | None = field(default=None, metadata=CLASS)
    options: Options = field(default_factory=dict, metadata=OMIT)
    codecs: Mapping[str, CodecSpec] = field(kw_only=True)

    where_format = "tasks.{0.name}"

    def __post_init__(self) -> None:
        super().__post_init__()
        with prefixed("", RecipeError):
            check_name("task", self.name)
        bare = self.head is None and self.task_class in TASK_CLASSES.values()
        self.require(not bare, f".head: {self.task_class} needs weights")
        rising = all(a < b for a, b in pairwise(self.blocks))
        self.require(rising, f".blocks must be increasing numbers, got {self.blocks}")
        valid = 1 <= len(self.codecs) <= MAX_CODECS
        self.require(valid, f": needs at least one codec, and at most {MAX_CODECS}")
        for name, codec_spec in self.codecs.items():
            quantizer = codec_spec.quantizer
            fitted = isinstance(quantizer, FittedRange)
            layers = quantizer.layers if quantizer and not fitted else len(self.blocks)
            message = f"the quantiser has {layers} layer(s), the task {len(self.blocks)}"
            self.require(layers == len(self.blocks), f".codecs.{name}: {message}")
        object.__setattr__(self, "codecs", _ordered(self.codecs, CODECS.builtin))

    @property
    def task_class(self) -> str:
        """Name of the task's class, or `module:Class`."""
        return self.kind or TASK_CLASSES.get(self.name, self.name)


@dataclass(frozen=True)
class Recipe(_Spec):
    """The complete specification of a dataset.

    Attributes:
        name: Short name.
        summary: Description in one line.
        group_size: Sources per work item and per shard.
        backbone: The backbone.
        tasks: The tasks by name: cls, seg and dpt first.
        sources_per_task: Number of originals of tasks that do not specify it; None if all do.
    """

    name: Text
    summary: Text
    sources_per_task: Count | None = field(default=None, metadata=OMIT)
    _: KW_ONLY
    group_size: Count
    backbone: BackboneSpec
    tasks: Mapping[str, TaskSpec]

    def __post_init__(self) -> None:
        super().__post_init__()
        valid = 1 <= len(self.tasks) <= MAX_TASKS
        self.require(valid, f": needs at least one task, and at most {MAX_TASKS}")
        complete = self.sources_per_task or all(spec.sources for spec in self.tasks.values())
        self.require(complete, ".sources_per_task must be a whole number of at least 1")
        with prefixed("", RecipeError):
            check_task_names({name: spec.codecs for name, spec in self.tasks.items()})
        object.__setattr__(self, "tasks", _ordered(self.tasks, TASK_CLASSES))

    def sources(self, task: str) -> int:
        """Return the number of originals of a task."""
        count = self.tasks[task].sources or self.sources_per_task
        assert count is not None
        return count

    def fitted_on(self, task: str) -> int:
        """Return the number of training inputs to which a task's codecs are fitted."""
        return self.tasks[task].fitted_on or DEFAULT_FITTED_ON

    @property
    def to_fit(self) -> list[CodecSpec]:
        """Codecs whose range or levels the build determines."""
        return [c for spec in self.tasks.values() for c in spec.codecs.values() if c.to_fit]

    def check_numbers(self) -> Recipe:
        """Return the recipe after checking that it needs no fitting.

        Raises:
            RecipeError: If the build must determine a range or levels.
        """
        for codec_spec in self.to_fit:
            message = 'range = "fit" and levels = "auto" are resolved by a build; give numbers'
            raise RecipeError(f"{codec_spec.where}: {message}")
        return self

    def fitted_as(self, built: Mapping[str, Any]) -> dict[str, Any]:
        """Return the recipe's data with the ranges and levels that an earlier build determined.

        Args:
            built: Data of the recipe of that build, or of any other recipe.
        """
        data = self.to_dict()
        tables = {part.where: part.table for part in parts_of(built)}
        for part in parts_of(data):
            table = tables.get(part.where, {})
            levels, quantizer = table.get("levels"), table_at(table, "quantizer")
            count = table_at(part.table, "levels").get("auto")
            if isinstance(levels, list) and len(levels) == count:
                part.table["levels"] = levels
            spec = table_at(part.table, "quantizer")
            same = all(quantizer.get(key) == spec.get(key) for key in ("kind", "bits"))
            if FittedRange.describes(spec) and same and not FittedRange.describes(quantizer):
                part.table["quantizer"] = quantizer
        return data

    @property
    def paths(self) -> tuple[str, ...]:
        """All distinct paths and URIs in the recipe: weights, heads, models, and options."""
        locations = path_locations(self.to_dict())
        return tuple(dict.fromkeys(table[key] for table, key in locations))

    def with_paths(self, rename: Callable[[str], str]) -> Recipe:
        """Return the recipe with its paths replaced (see :attr:`paths`)."""
        data = self.to_dict()
        for table, key in path_locations(data):
            table[key] = rename(table[key])
        return Recipe.from_dict(data)

    def without_programs(self) -> Recipe:
        """Return the recipe without codec options that name programs, as a manifest contains it.

        A manifest is untrusted: only this machine's environment may name programs to run.
        """
        data = self.to_dict()
        for part in parts_of(data):
            if part.kind == "codec":
                for key in PROGRAMS:
                    part.table["options"].pop(key, None)
        return Recipe.from_dict(data)


class Part(NamedTuple):
    """A table of a recipe's data that names a class.

    Attributes:
        kind: Kind of the part, such as "codec".
        where: Dotted key of the table, such as "tasks.cls.codecs.hm".
        table: The table.
        key: Key of the class in the table.
        default: Name of the class if the table has no such key.
    """

    kind: str
    where: str
    table: dict[str, Any]
    key: str = "class"
    default: str | None = None

    @property
    def name(self) -> Any:
        """Name of the class."""
        return self.table.get(self.key, self.default)


WEIGHT_KEYS = {"backbone": "weights", "task": "head", "codec": "models"}
"""Kind of a part -> key of its weights."""


def parts_of(data: Mapping[str, Any]) -> Iterator[Part]:
    """Yield the backbone, and each task with its source and its codecs.

    Invalid data is skipped; making a recipe of it reports the error.
    """
    yield Part("backbone", "backbone", table_at(data, "backbone"))
    for name, task in tables_at(data, "tasks"):
        where = f"tasks.{name}"
        yield Part("task", where, task, default=TASK_CLASSES.get(name, name))
        yield Part("source", f"{where}.source", table_at(task, "source"), "kind")
        for codec, spec in tables_at(task, "codecs"):
            yield Part("codec", f"{where}.codecs.{codec}", spec, default=codec)


def path_locations(data: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the table and the key of each path in a recipe's data."""
    for part in parts_of(data):
        locations = [(part.table, WEIGHT_KEYS[part.kind])] if part.kind in WEIGHT_KEYS else []
        if part.kind != "codec" or part.name not in CODECS.builtin:
            options, annotated = table_at(part.table, "options"), _annotated_paths(part)
            known = SOURCE_PATHS if part.kind == "source" else ()
            locations += [
                (options, key)
                for key, value in options.items()
                if (is_path(key, value, known) if annotated is None else key in annotated)
                or (isinstance(value, str) and is_uri(value))
            ]
        for table, key in locations:
            if isinstance(table.get(key), str) and table[key]:
                yield table, key


def table_at(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a table of unvalidated data; an empty one if there is none."""
    table = data.get(key)
    return table if isinstance(table, dict) else {}


def tables_at(data: Mapping[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the tables in a table of unvalidated data, with their names."""
    return [(name, entry) for name, entry in table_at(data, key).items() if isinstance(entry, dict)]


def _annotated_paths(part: Part) -> set[str] | None:
    """Return the options of a plugin's class that are annotated as `Path`; None if unknown."""
    try:
        entry = Registry(part.kind, {}, RecipeError).find(part.name, classes=True)
        return path_options(entry.target)
    except CfqaError:  # a built-in class, or one whose absence is reported when it is used
        return None


def is_path(key: str, value: object, known: Iterable[str] = SOURCE_PATHS) -> bool:
    """Return whether an option is a path: it is known as one, or looks like one."""
    if not isinstance(value, str) or not value:
        return False
    return key in known or is_uri(value) or value.startswith(("/", "./", "../", "~"))


def _ordered(table: Mapping[str, Any], first: Iterable[str]) -> dict[str, Any]:
    """Return a table with the keys of ``first`` first, in their order."""
    return {name: table[name] for name in dict.fromkeys([*first, *table]) if name in table}
