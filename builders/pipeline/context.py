"""Per-process context of a build: backbone, tasks, sources and codecs, each created once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from cfqa_data import registry
from cfqa_data.access.weights import resolve_weights
from cfqa_data.builders.backbones.base import BACKBONES, Backbone
from cfqa_data.builders.pipeline.plan import PLAN, Item, Plan
from cfqa_data.builders.sources.base import SOURCES, Source
from cfqa_data.builders.tasks.base import TASKS, Task
from cfqa_data.codecs import CODECS, get_codec
from cfqa_data.errors import BuildError, CfqaError, CodecError
from cfqa_data.format.facts import Layer, TaskEntry, TaskFacts
from cfqa_data.format.invariants import check_truth
from cfqa_data.format.layout import Layout
from cfqa_data.format.resources import HUB, is_uri, locate
from cfqa_data.format.schema import original_rows
from cfqa_data.format.storage import write_text
from cfqa_data.recipe.load import CodecSpec, Recipe

__all__ = ["BuildContext", "Models", "Selected", "check_feature", "codec_for"]

Shape = tuple[int, int, int, int]


def instantiate(
    entry: registry.RegistryEntry,
    options: Mapping[str, Any],
    what: str,
    error: type[CfqaError],
    **arguments: Any,
) -> Any:
    """Instantiate a class that a recipe names, with its options and further arguments.

    Raises:
        CfqaError: If the class has no such option, or its constructor fails.
    """
    if not entry.builtin:  # built-in classes resolve URIs themselves
        options = {
            key: str(_located(value)) if isinstance(value, str) and is_uri(value) else value
            for key, value in options.items()
        }
        what = f"{what}: {entry.name}" if entry.name not in what else what
    bound = registry.bind_options(entry.target, options, what, error, **arguments)
    try:
        instance = entry.target(**bound)
    except CfqaError:
        raise
    except Exception as failure:  # third-party code may raise anything
        reason = registry.user_failure(failure) or f"{type(failure).__name__}: {failure}"
        raise error(f"{what}: {reason}") from failure
    registry.check_declared(instance, what, error)
    return instance


def _located(uri: str) -> Path:
    return resolve_weights(uri) if uri.startswith(HUB) else locate(uri)


def codec_for(codec_spec: CodecSpec, tables: Mapping[str, np.ndarray] | None = None) -> Any:
    """Create the codec that a recipe specifies, with its fitted tables, if any."""
    if codec_spec.registered.builtin:
        name = codec_spec.kind or codec_spec.codec
        return get_codec(name, tables=tables or None, **codec_spec.codec_options)
    fitted = {"tables": tables} if tables else {}
    what = f"codec {codec_spec.codec}"
    return instantiate(codec_spec.registered, codec_spec.codec_options, what, CodecError, **fitted)


def check_feature(feature: Any, what: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """Validate a feature that a backbone or codec returned.

    Args:
        feature: The returned object: an array, or a list of layers.
        what: Description of the feature for the error message.
        shape: Required (N, C, T, D); None for an axis of any length.

    Returns:
        The feature as a contiguous float32 array.

    Raises:
        BuildError: If the feature is not a finite float32 array of that shape.
    """
    if isinstance(feature, list | tuple):
        shapes = {np.shape(layer) for layer in feature}
        if len(shapes) > 1:
            shown = ", ".join(map(str, sorted(shapes)))
            raise BuildError(f"{what}: layers of one task must have the same (T, D), not {shown}")
    array = np.asarray(feature)
    fits = array.ndim == 4 and all(
        expected in (None, length) for expected, length in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype != np.float32 or not array.size:
        names = ", ".join(
            name if n is None else str(n) for name, n in zip("NCTD", shape, strict=True)
        )
        raise BuildError(f"{what} is {array.dtype} {array.shape}, not float32 ({names})")
    if not np.isfinite(array).all():
        raise BuildError(f"{what} has values that are not finite")
    return np.ascontiguousarray(array)


@dataclass(frozen=True)
class Models:
    """The backbone, tasks and sources of a recipe, created on first use."""

    recipe: Recipe
    _tasks: dict[str, Task] = field(default_factory=dict, repr=False)

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone."""
        spec = self.recipe.backbone
        options = spec.options if spec.kind else {"num_heads": spec.num_heads}
        weights = resolve_weights(spec.weights) if spec.weights else None
        entry = self.backbone_class
        backbone: Backbone = instantiate(entry, options, "backbone", BuildError, weights=weights)
        return backbone

    @property
    def backbone_class(self) -> registry.RegistryEntry:
        """The registered class of the backbone; the backbone itself is not created."""
        return BACKBONES.find(self.recipe.backbone.kind or "dinov2", classes=True)

    def task(self, name: str) -> Task:
        """Return the task object that scores features.

        Raises:
            BuildError: If there is no such task, or its head is missing or does not fit.
        """
        if name not in self._tasks:
            spec = self.recipe.tasks[name]
            self._tasks[name] = instantiate(
                TASKS.find(spec.task_class, classes=True),
                spec.options,
                f"tasks.{name}",
                BuildError,
                backbone=self.backbone,
                blocks=spec.blocks,
                weights=resolve_weights(spec.head) if spec.head else None,
            )
        return self._tasks[name]

    def facts(self, task: str) -> TaskFacts:
        """Return the facts of a task under its name in the recipe; the task is not created."""
        return replace(self.task_type(task).facts, name=task)

    def task_type(self, task: str) -> type[Task]:
        """Return the class of a task."""
        cls: type[Task] = TASKS.find(self.recipe.tasks[task].task_class, classes=True).target
        return cls

    def source(self, task: str, seed: int | None = None, truths: bool | None = None) -> Source:
        """Create a source of the task's samples.

        Args:
            task: Name of the task.
            seed: Seed of the source; the recipe's if None.
            truths: Whether the source must supply truths; if None, the task's class decides.

        Raises:
            BuildError: If there is no such source, it lacks its data, or it has no such option.
        """
        spec = self.recipe.tasks[task].source
        arguments = {
            "task": task,
            "seed": spec.seed if seed is None else seed,
            "truths": not self.infers_truth(task) if truths is None else truths,
        }
        entry, what = SOURCES.find(spec.kind, classes=True), f"tasks.{task}.source: {spec.kind}"
        source: Source = instantiate(entry, spec.options, what, BuildError, **arguments)
        return source

    def infers_truth(self, task: str) -> bool:
        """Whether the task infers truths from uncompressed features, instead of the source."""
        return self.task_type(task).infer_truth is not Task.infer_truth

    def embeds(self, task: str) -> bool:
        """Whether a dataset stores the task's embeddings instead of the backbone's features."""
        return self.task_type(task).embed is not Task.embed

    def truth(self, task: str, truth: Any, feature: np.ndarray) -> Any:
        """Return the source's truth of a sample, or the truth that the task infers from a feature.

        Raises:
            CfqaError: If the task infers an invalid truth.
        """
        if not self.infers_truth(task):
            return truth
        scorer = self.task(task)
        inferred = np.asarray(scorer.infer_truth(feature))
        what = f"what {type(scorer).__name__}.infer_truth returns"
        check_truth(self.facts(task), inferred.dtype.name, inferred.ndim, what)
        return inferred

    def features(self, task: str, inputs: Any, what: str = "a feature") -> np.ndarray:
        """Return the float32 (N, C, T, D) feature of a sample's inputs, as a dataset stores it.

        Samples are extracted one at a time, so that a feature depends on its own inputs only.

        Raises:
            BuildError: If the backbone rejects the inputs, or returns an invalid feature.
        """
        feature = self.extracted(task, inputs, what)
        if not self.embeds(task):
            return feature
        shape = (None, feature.shape[1], None, None)
        return check_feature(self.task(task).embed(feature), f"{task}: {what} as embedded", shape)

    def extracted(self, task: str, inputs: Any, what: str = "a feature") -> np.ndarray:
        """Return the float32 (N, C, T, D) feature of the backbone's layers, before embedding.

        Raises:
            BuildError: If the backbone rejects the inputs, or returns an invalid feature.
        """
        blocks = self.recipe.tasks[task].blocks
        feature = self.backbone.extract(inputs, blocks)
        shape = (None, len(blocks), None, self.backbone.width)
        return check_feature(feature, f"{task}: {what} by the backbone", shape)

    def grid(self, task: str, inputs: Any) -> tuple[int, int] | None:
        """Return (rows, columns) of a feature's token grid; None if it has no grid."""
        return None if self.embeds(task) else self.backbone.grid(inputs)

    def about(self, task: str) -> dict[str, Any]:
        """Return the fields of a task's entry on prefix tokens and layers."""
        blocks = self.recipe.tasks[task].blocks
        if self.embeds(task):
            return {"prefix_tokens": 0, "layers": (Layer("embedding"),) * len(blocks)}
        layers = tuple(map(self.backbone.layer, blocks))
        return {"prefix_tokens": self.backbone.prefix_tokens, "layers": layers}

    def classes(self) -> list[tuple[registry.Registry, registry.RegistryEntry]]:
        """Return every class that the recipe uses, with its registry.

        Raises:
            CfqaError: If a class does not exist, or has the wrong base class.
        """
        names: list[tuple[registry.Registry, str]] = []
        for spec in self.recipe.tasks.values():
            names += [(TASKS, spec.task_class), (SOURCES, spec.source.kind)]
            names += [(CODECS, codec.kind or name) for name, codec in spec.codecs.items()]
        entries = [(kind, kind.find(name, classes=True)) for kind, name in names]
        return [(BACKBONES, self.backbone_class), *entries]


@dataclass(frozen=True)
class Selected:
    """The samples that were selected for a task.

    Attributes:
        ids: Source ids, in order.
        groups: Group of each source; None if every source is its own group.
    """

    ids: list[str]
    groups: list[str] | None = None


@dataclass(frozen=True)
class BuildContext:
    """Everything a work item may use: the plan, the folder, and objects created from the plan.

    It is pickled as the folder and the plan's digest; each process creates the objects once.
    """

    plan: Plan
    layout: Layout
    _codecs: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)
    _entries: dict[str, TaskEntry] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> Any:
        return _context, (str(self.layout.root), self.plan.digest())

    @cached_property
    def models(self) -> Models:
        """The recipe's backbone, tasks and sources."""
        return Models(self.plan.recipe)

    def codec_spec(self, item: Item) -> CodecSpec:
        """Return the codec, quantiser and levels of an item."""
        return self.plan.recipe.tasks[item.task].codecs[item.codec]

    def codec(self, task: str, name: str) -> Any:
        """Return a codec of a task, with its tables."""
        if (task, name) not in self._codecs:
            path = self.tables_path(task, name)
            tables = read_tensors(path) if path.exists() else None
            codec_spec = self.plan.recipe.tasks[task].codecs[name]
            self._codecs[task, name] = codec_for(codec_spec, tables)
        return self._codecs[task, name]

    def selected(self, task: str) -> Selected:
        """Return the selected sources of a task."""
        return Selected(**read_json(Item("select", task).result_path(self.layout)))

    def references(self, task: str, shard: int) -> dict[str, Any]:
        """Return the result of extracting a shard: lists "score", "loss" and "grids", by source."""
        return dict(read_json(Item("extract", task, shard=shard).result_path(self.layout)))

    def entry(self, task: str) -> TaskEntry:
        """Return the task's entry for the manifest, which the prepare stage writes."""
        if task not in self._entries:
            data = read_json(Item("prepare", task).result_path(self.layout))
            self._entries[task] = TaskEntry.from_dict(data, task)
        return self._entries[task]

    def ids(self, task: str, shard: int) -> list[str]:
        """Return the source ids of a shard."""
        ids = self.selected(task).ids
        return [ids[position] for position in self.plan.members(task, shard)]

    def tables_path(self, task: str, codec: str) -> Path:
        """Return the path of a codec's tables, which the decoder needs too."""
        return self.layout.tables(f"{task}-{codec}.safetensors")

    def gallery_path(self, task: str) -> Path:
        """Return the path of a task's gallery; it exists only if the task has one."""
        return self.layout.gallery(f"{task}-gallery.safetensors")

    def originals_path(self, task: str, shard: int) -> Path:
        """Return the path of a shard's originals."""
        return self.layout.originals(task, shard, self.plan.shards(task))

    def originals(self, task: str, shard: int) -> list[np.ndarray]:
        """Return the originals of a shard, float32 (N, C, T, D), in the order of its members."""
        path = self.originals_path(task, shard)
        return list(read_tensors(path, self.ids(task, shard)).values())

    def shapes(self, task: str, shard: int) -> dict[str, Shape]:
        """Return the shapes of the originals of a shard, by source id."""
        with safe_open(self.originals_path(task, shard), framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in self.ids(task, shard)}

    def columns(self, task: str, shard: int) -> list[dict[str, Any]]:
        """Return the columns of the tables that describe each original of a shard."""
        entry, references = self.entry(task), self.references(task, shard)
        tokens = [shape[2] for shape in self.shapes(task, shard).values()]
        members, facts = self.plan.members(task, shard), (references["score"], references["loss"])
        return original_rows(entry, members, tokens, *facts)

    def truths(self, task: str, shard: int) -> list[Any]:
        """Return the truths of a shard, in the order of its members; None if the task has none."""
        path, ids = self.layout.truth(task), self.ids(task, shard)
        return list(read_tensors(path, ids).values()) if path.exists() else [None] * len(ids)


@lru_cache(maxsize=1)
def _context(root: str, digest: str) -> BuildContext:
    layout = Layout(Path(root))
    path = layout.work / PLAN
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BuildError(
            f"a worker cannot see {path}: the folder must be shared by all workers"
        ) from None
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise BuildError(
            f"a worker sees a different plan in {path}: the folder must be shared by all workers"
        )
    return BuildContext(Plan.from_json(text), layout)


def read_json(path: Path) -> Any:
    """Return the content of a JSON result file.

    Raises:
        BuildError: If the file is damaged, for example by a disk fault.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BuildError(
            f"{path}: damaged ({error}); delete it and run the same command again"
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON result file; the order of keys is kept."""
    write_text(path, json.dumps(value))


def read_tensors(path: Path, keys: list[str] | None = None) -> dict[str, np.ndarray]:
    """Return the named tensors of a safetensors file, in the order of `keys`; all if None.

    Raises:
        BuildError: If the file is damaged, or lacks one of the tensors.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in keys or file.keys()}
    except SafetensorError as error:
        raise BuildError(f"{path}: damaged ({error}); build in a new folder") from None
