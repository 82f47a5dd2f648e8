"""The stage that prepares a task's codecs: fitted tables, code centres and empty arrays."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.builders.pipeline.context import Shape, codec_for, write_json
from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.select import BuildStage
from cfqa_data.codecs import CODECS
from cfqa_data.codecs.base import AnyCodec
from cfqa_data.errors import BuildError
from cfqa_data.format.codes import create_codes_array
from cfqa_data.format.facts import CodecEntry, Origin, TaskEntry
from cfqa_data.format.packing import pack
from cfqa_data.format.quantizers import Quantizer
from cfqa_data.format.storage import write_tensors
from cfqa_data.recipe.load import CodecSpec
from cfqa_data.recipe.portable import portable

__all__ = ["Prepare", "is_fitted", "median_codes"]

KEPT_POINTS = 1 << 24
"""Maximum points of training features that are kept in memory for further codecs."""


class Prepare(BuildStage):
    """Stage that fits the tables of a task's codecs, and creates arrays for their codes."""

    name, unit = "prepare", "tasks"

    @cached_property
    def cached(self) -> dict[str, list[np.ndarray]]:
        """Task -> training features, kept so that further codecs need not extract them again."""
        return {}

    def items(self) -> list[Item]:
        return [Item(self.name, task) for task in self.plan.recipe.tasks]

    def outputs(self, item: Item) -> tuple[Path, ...]:
        codec_specs, layout = self.plan.recipe.tasks[item.task].codecs, self.layout
        arrays = [layout.compressed(item.task, c) / "zarr.json" for c in codec_specs]
        tables = [self.context.tables_path(item.task, codec) for codec in codec_specs]
        return (*arrays, *tables, item.result_path(layout))

    def run(self, item: Item) -> None:
        """Write fitted tables, create the arrays of stored codecs, then write the task's entry."""
        task, spec = item.task, self.plan.recipe.tasks[item.task]
        shape, varying = self.shape(task)
        for codec_spec in spec.codecs.values():
            self.fit(task, codec_spec)
        centres = self.centres(task)
        for codec, codec_spec in spec.codecs.items():
            if codec_spec.stored(self.plan.tier):
                self.make_array(task, codec_spec, shape, centres.get(codec, ()))
        selected, gallery = self.context.selected(task), self.context.gallery_path(task)
        entry = TaskEntry(
            facts=self.context.models.facts(task),
            shape=shape,
            sources=tuple(selected.ids),
            codecs={codec: self.codec_entry(task, each) for codec, each in spec.codecs.items()},
            shard=self.plan.recipe.group_size,
            groups=tuple(selected.groups) if selected.groups else None,
            tokens="varying" if varying else None,
            gallery=gallery.name if gallery.exists() else None,
            **self.about(task, varying),
        )
        write_json(item.result_path(self.layout), entry.to_dict())

    def about(self, task: str, varying: bool) -> dict[str, Any]:
        """Return the fields of the entry on tokens, layers and terms of use."""
        models, shards = self.context.models, range(self.plan.shards(task))
        grids = {
            tuple(grid) if grid else None
            for shard in shards
            for grid in self.context.references(task, shard)["grids"]
        }
        return {
            **models.about(task),
            "grid": grids.pop() if len(grids) == 1 and not varying else None,
            "terms": models.source(task).terms,
        }

    def shape(self, task: str) -> tuple[Shape, bool]:
        """Return (N, C, T, D) of a task with its largest T, and whether features differ in T.

        Raises:
            BuildError: If features differ in another axis.
        """
        shards = range(self.plan.shards(task))
        shapes = dict(item for n in shards for item in self.context.shapes(task, n).items())
        (first, shape), *_ = shapes.items()
        for name, (n, c, t, d) in shapes.items():
            if (n, c, d) != (*shape[:2], shape[3]):
                raise BuildError(
                    f"the feature of {name} is {(n, c, t, d)}, that of {first} {shape}: only the "
                    "number of tokens may differ"
                )
        tokens = [t for _, _, t, _ in shapes.values()]
        return (*shape[:2], max(tokens), shape[3]), len(set(tokens)) > 1

    def fit(self, task: str, spec: CodecSpec) -> None:
        """Fit a codec, if it can be fitted, and write its tables, if it has any."""
        codec = codec_for(spec)
        kind, source = type(codec), self.plan.recipe.tasks[task].source
        if is_fitted(codec):
            codec.fit(self.training(task, spec), source.seed)
        if tables := codec.tables() if hasattr(kind, "tables") else {}:
            write_tensors(self.context.tables_path(task, spec.codec), tables)

    def training(self, task: str, spec: CodecSpec) -> Iterable[Any]:
        """Yield the training data of a codec: planes, features or inputs."""
        models, recipe = self.context.models, self.plan.recipe
        seed = recipe.tasks[task].source.seed
        inputs = models.source(task).training_inputs(recipe.fitted_on(task), seed)
        if spec.facts.on == "inputs":
            yield from inputs
            return
        what = "a training feature"
        seen: list[np.ndarray] = []
        for feature in self.cached.get(task) or (models.features(task, x, what) for x in inputs):
            yield pack(spec.quantizer.quantize(feature)) if spec.quantizer else feature
            if len(seen) * feature.size < KEPT_POINTS:
                seen.append(feature)
        if len(seen) == recipe.fitted_on(task):
            self.cached[task] = seen

    def centres(self, task: str) -> dict[str, list[int]]:
        """Return, for each codec on planes, the code per layer that is stored as zero."""
        specs = self.plan.recipe.tasks[task].codecs
        quantizers = {codec: spec.quantizer for codec, spec in specs.items() if spec.quantizer}
        centres = {each: self.centre(task, each) for each in dict.fromkeys(quantizers.values())}
        return {codec: centres[quantizer] for codec, quantizer in quantizers.items()}

    def centre(self, task: str, quantizer: Quantizer) -> list[int]:
        """Return the median code of each layer of a task's originals."""
        shards = range(self.plan.shards(task))
        originals = (self.context.originals(task, shard) for shard in shards)
        return median_codes(quantizer, itertools.chain.from_iterable(originals))

    def make_array(self, task: str, spec: CodecSpec, shape: Shape, centres: Sequence[int]) -> None:
        """Create the array of a codec's codes or values."""
        ids = self.context.selected(task).ids
        create_codes_array(
            self.layout.compressed(task, spec.codec),
            sources=len(ids),
            levels=len(spec.levels),
            shape=shape,
            quantizer=spec.quantizer,
            centres=centres,
            source_ids=ids,
        )

    def codec_entry(self, task: str, spec: CodecSpec) -> CodecEntry:
        """Return the manifest's entry of a codec."""
        options = portable(self.plan.recipe).tasks[task].codecs[spec.codec].codec_options
        found, tables = spec.registered, self.context.tables_path(task, spec.codec)
        package = {} if found.builtin else {"version": found.version, "sha256": found.sha256}
        return CodecEntry(
            facts=spec.facts,
            levels=spec.levels,
            quantizer=spec.quantizer,
            tables=(tables.name,) if tables.exists() else (),
            origin=Origin(CODECS.recorded(found.name), options, found.package, **package),
        )


def is_fitted(codec: Any) -> bool:
    """Whether a codec has tables that are fitted to training inputs."""
    return getattr(type(codec), "fit", AnyCodec.fit) is not AnyCodec.fit


def median_codes(quantizer: Quantizer, features: Iterable[np.ndarray]) -> list[int]:
    """Return the lower median code of each layer of originals, from histograms of their codes.

    Args:
        quantizer: Quantiser of the ladder.
        features: Originals, float32 (..., N, C, T, D).

    Raises:
        BuildError: If a feature is outside the range of a quantiser that wraps around.
    """
    size = 1 << quantizer.bits
    counts = np.zeros((quantizer.layers, size), np.int64)
    for feature in features:
        codes = quantizer.quantize(feature)
        if int(codes.max(initial=0)) >= size:  # happens with quantisers that wrap around only
            raise BuildError(
                f"quantiser {quantizer.to_dict()['kind']}: a feature is outside its range and "
                f"wraps around to code {int(codes.max())}; widen the range, or use uniform"
            )
        for layer in range(quantizer.layers):
            counts[layer] += np.bincount(codes[..., layer, :, :].ravel(), minlength=size)
    half = (counts.sum(axis=1, keepdims=True) + 1) // 2
    return [int(code) for code in (counts.cumsum(axis=1) >= half).argmax(axis=1)]
