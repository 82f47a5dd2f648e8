"""The stages of an import: those of a build, on a release's features and bitstreams.

Each writes the files and last the marker that the stage of a build writes, so that what follows,
and going on after a stop, are a build's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfqa_data.builders.importing.files import LadderFiles, Release, load_feature
from cfqa_data.builders.importing.scores import Scores
from cfqa_data.builders.pipeline.compress import Compress
from cfqa_data.builders.pipeline.label import baseline_values, label_rows
from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.prepare import Prepare
from cfqa_data.builders.pipeline.select import BuildStage, Extract, Select
from cfqa_data.errors import BuildError, CodecError
from cfqa_data.format.codes import find_centres, write_codes
from cfqa_data.format.facts import Layer
from cfqa_data.format.invariants import bits_of
from cfqa_data.format.packing import plane_shape, unpack
from cfqa_data.format.schema import label_schema
from cfqa_data.format.storage import write_table, write_tensors, write_text

__all__ = ["STAGES", "ImportStage"]


@dataclass(frozen=True)
class ImportStage(BuildStage):
    """A stage of an import.

    Attributes:
        release: the files to import.
        scores: what labels them.
    """

    release: Release
    scores: Scores

    def codes(self, files: LadderFiles, name: str, level: int) -> np.ndarray:
        """Return the codes (N, C, T, D) of one compressed feature.

        Raises:
            BuildError: they cannot be had without loss.
        """
        path, shape = files.files[name, level], self.release.shapes[files.task]
        if files.is_video:
            codec = self.tools.codec(files.task, files.codec)
            try:
                plane = codec.decode(path.read_bytes(), plane_shape(shape))
            except CodecError as error:
                raise BuildError(f"{path}: {error}") from None
            return unpack(plane, shape)
        quantizer = self.plan.recipe.tasks[files.task].ladders[files.codec].quantizer
        assert quantizer is not None
        feature = load_feature(path, shape)
        codes = quantizer.quantize(feature)
        if quantizer.dequantize(codes).tobytes() != feature.tobytes():
            raise BuildError(f"{path}: holds other values than the table that was found has")
        return codes


class _Select(ImportStage, Select):
    def run(self, item: Item) -> None:
        """Write what is known of the truths, then the sources' names."""
        ids = self.release.originals[item.task]
        self.write(item, {name: (None, self.scores.truth(item.task, name)) for name in ids})


class _Extract(ImportStage, Extract):
    def run(self, item: Item) -> None:
        """Write a shard's originals, then their scores and losses."""
        task, shard = item.task, item.shard
        assert shard is not None
        features = {
            name: load_feature(self.release.originals[task][name], self.release.shapes[task])
            for name in self.tools.ids(task, shard)
        }
        write_tensors(self.tools.originals_path(task, shard), features)
        told = [self.scores.reference(task, name, feature) for name, feature in features.items()]
        marker = {"score": [score for score, _ in told], "loss": [loss for _, loss in told]}
        write_text(item.marker(self.layout), json.dumps(marker))  # an unknown loss is NaN


class _Prepare(ImportStage, Prepare):
    def run(self, item: Item) -> None:
        """Take the codes that are counted from off the first source."""
        task = item.task
        first = self.tools.selected(task).ids[0]
        centres = {
            codec: list(find_centres(self.codes(self.release.ladders[task, codec], first, 0)))
            for codec, _ in self.ladders(task)
        }
        blocks = self.plan.recipe.tasks[task].blocks
        about = {
            "prefix_tokens": 1,
            "layers": tuple(Layer(f"block {block}", "before") for block in blocks),
        }
        self.write(item, self.release.shapes[task], centres, {}, about)


class _Compress(ImportStage, Compress):
    def run(self, item: Item) -> None:
        """Write a shard's bitstreams and codes, and last its label rows."""
        import pyarrow as pa

        task, shard, tools = item.task, item.shard, self.tools
        assert shard is not None
        files, entry = self.release.ladders[task, item.codec], tools.entry(task)
        paths = files.files if files.is_video else files.streams
        ids, levels = tools.ids(task, shard), range(len(files.levels))
        streams = {
            f"{name}/{level}": np.fromfile(paths[name, level], np.uint8)
            for name in ids
            for level in levels
            if paths
        }
        if streams:
            write_tensors(self.layout.bitstreams(task, item.codec, shard, entry.shards), streams)
        rows: list[dict[str, Any]] = []
        for index, (name, original) in enumerate(
            zip(ids, tools.originals(task, shard), strict=True)
        ):
            position = self.plan.members(task, shard)[index]
            codes = np.stack([self.codes(files, name, level) for level in levels])
            write_codes(self.layout.compressed(task, item.codec), position, codes)
            # Without a bitstream nothing was measured: no rate, rather than a rate of 0.
            streamed = [streams[f"{name}/{level}"].size for level in levels] if streams else []
            bits = [bits_of(size) for size in streamed] or [None] * len(levels)
            told = self._told(item, name, original, codes)
            rows += label_rows(tools, item, entry, index, original.shape[2], bits, told)
        write_table(item.marker(self.layout), pa.Table.from_pylist(rows, schema=label_schema(2)))

    def _told(
        self, item: Item, name: str, original: np.ndarray, codes: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return score, loss and baseline metrics of a source's levels, one level at a time."""
        ladder = self.tools.ladder(item)
        assert ladder.quantizer is not None
        parts: list[dict[str, float]] = []
        for level, parameter in enumerate(ladder.levels):
            decoded = ladder.quantizer.dequantize(codes[level])
            score, loss = self.scores.compressed(item.task, item.codec, name, parameter, decoded)
            values = baseline_values(self.tools.baselines, original, decoded[None])
            scores = {"score": score, "loss": loss}
            parts.append(scores | {metric: float(value[0]) for metric, value in values.items()})
        return {key: np.array([part[key] for part in parts]) for key in parts[0]}


STAGES: tuple[type[ImportStage], ...] = (_Select, _Extract, _Prepare, _Compress)
