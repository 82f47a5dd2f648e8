"""The stages of an import: those of a build, reading a release's features and bitstreams.

Each writes the same files as the stage of a build, the result file last, so that later stages and
resuming work as in a build.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from cfqa_data.builders.importing.files import CodecFiles, Release, load_feature
from cfqa_data.builders.importing.scores import Scores
from cfqa_data.builders.pipeline.coding import Coded
from cfqa_data.builders.pipeline.compress import Compress
from cfqa_data.builders.pipeline.label import Scorer
from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.prepare import Prepare
from cfqa_data.builders.pipeline.select import BuildStage, Extract, Select
from cfqa_data.errors import BuildError, CodecError
from cfqa_data.format.codes import find_centres
from cfqa_data.format.facts import Layer
from cfqa_data.format.invariants import bits_of
from cfqa_data.format.packing import plane_shape, unpack
from cfqa_data.format.storage import write_tensors, write_text

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

    def codes(self, files: CodecFiles, name: str, level: int) -> np.ndarray:
        """Return the codes (N, C, T, D) of one compressed feature.

        Raises:
            BuildError: they cannot be had without loss.
        """
        path, shape = files.files[name, level], self.release.shapes[files.task]
        if files.is_video:
            codec = self.context.codec(files.task, files.codec)
            try:
                plane = codec.decode(path.read_bytes(), plane_shape(shape))
            except CodecError as error:
                raise BuildError(f"{path}: {error}") from None
            return unpack(plane, shape)
        quantizer = self.plan.recipe.tasks[files.task].codecs[files.codec].quantizer
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
            for name in self.context.ids(task, shard)
        }
        write_tensors(self.context.originals_path(task, shard), features)
        scored_levels = [
            self.scores.reference(task, name, feature) for name, feature in features.items()
        ]
        result = {
            "score": [score for score, _ in scored_levels],
            "loss": [loss for _, loss in scored_levels],
        }
        write_text(item.result_path(self.layout), json.dumps(result))  # an unknown loss is NaN


class _Prepare(ImportStage, Prepare):
    def run(self, item: Item) -> None:
        """Take the codes that are counted from off the first source."""
        task = item.task
        first = self.context.selected(task).ids[0]
        centres = {
            codec: list(find_centres(self.codes(self.release.codec_files[task, codec], first, 0)))
            for codec, _ in self.codec_specs(task)
        }
        blocks = self.plan.recipe.tasks[task].blocks
        about = {
            "prefix_tokens": 1,
            "layers": tuple(Layer(f"block {block}", "before") for block in blocks),
        }
        self.write(item, self.release.shapes[task], centres, {}, about)


class _Compress(ImportStage, Compress):
    def run(self, item: Item) -> None:
        """Take a shard's bitstreams and codes from the release, and score them."""
        task, codec, shard = item.task, item.codec, item.shard
        assert shard is not None
        files, spec = self.release.codec_files[task, codec], self.context.codec_spec(item)
        paths = files.files if files.is_video else files.streams
        ids, levels = self.context.ids(task, shard), range(len(files.levels))
        streams = [[paths[name, n].read_bytes() for n in levels if paths] for name in ids]
        # Without a bitstream nothing was measured: no rate, rather than a rate of 0.
        bits = [[bits_of(len(s)) for s in of] or [None] * len(levels) for of in streams]
        codes = [[self.codes(files, name, level) for level in levels] for name in ids]

        def scorer(index: int) -> Scorer:
            def scored(decoded: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
                scored_levels = [
                    self.scores.compressed(task, codec, ids[index], spec.levels[first + n], one)
                    for n, one in enumerate(decoded)
                ]
                return np.array([score for score, _ in scored_levels]), np.array(
                    [loss for _, loss in scored_levels]
                )

            return scored

        self.write(item, Coded(streams, bits, codes), scorer)


STAGES: tuple[type[ImportStage], ...] = (_Select, _Extract, _Prepare, _Compress)
