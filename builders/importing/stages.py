"""The stages of an import: those of a build, which read a release's features and bitstreams.

Each writes the same files as the stage of a build, so that later stages and resuming still work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfqa_data.builders.importing.files import CodecFiles, Release, load_feature
from cfqa_data.builders.importing.scores import LogScores
from cfqa_data.builders.pipeline.coding import Coded
from cfqa_data.builders.pipeline.compress import Compress
from cfqa_data.builders.pipeline.label import Scored
from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.prepare import Prepare
from cfqa_data.builders.pipeline.select import BuildStage, Extract, Select, check_sample
from cfqa_data.errors import BuildError, CodecError, prefixed
from cfqa_data.format.codes import find_centres
from cfqa_data.format.facts import Layer
from cfqa_data.format.invariants import bits_of
from cfqa_data.format.packing import plane_shape, unpack
from cfqa_data.recipe.load import CodecSpec

__all__ = ["STAGES", "ImportStage"]


@dataclass(frozen=True)
class ImportStage(BuildStage):
    """Base class of the stages of an import.

    Attributes:
        release: Files to import.
        logged: Scores of the features; if None, the recipe's tasks score them, as in a build.
    """

    release: Release
    logged: LogScores | None

    def scorer(self, item: Item) -> Callable[[int, int, np.ndarray], Scored]:
        """Return the function that looks up the scores of the logs, which have no loss."""
        if (logged := self.logged) is None:
            return super().scorer(item)
        ids = self.context.ids(item.task, item.shard)
        levels = self.context.codec_spec(item).levels if item.codec else (0.0,)

        def scored(index: int, first: int, features: np.ndarray) -> Scored:
            chosen = levels[first : first + len(features)]
            scores = [logged.score(item.task, item.codec, ids[index], each) for each in chosen]
            return np.array(scores), np.full(len(scores), np.nan)

        return scored

    def codes(self, files: CodecFiles, name: str, level: int) -> np.ndarray:
        """Return the codes (N, C, T, D) of one compressed feature.

        Raises:
            BuildError: If the feature cannot be read, or the codes would not be lossless.
        """
        path, shape = files.files[name, level], self.release.shapes[files.task]
        if files.is_video:
            codec = self.context.codec(files.task, files.codec)
            with prefixed(path, BuildError, CodecError):
                plane = codec.decode(path.read_bytes(), plane_shape(shape))
            return unpack(plane, shape)
        quantizer = self.plan.recipe.tasks[files.task].codecs[files.codec].quantizer
        assert quantizer is not None
        feature = load_feature(path, shape)
        codes = quantizer.quantize(feature)
        if quantizer.dequantize(codes).tobytes() != feature.tobytes():
            raise BuildError(f"{path}: contains values that are not in its table")
        return codes


class _Select(ImportStage, Select):
    def run(self, item: Item) -> None:
        """Write the truths, unless the scores are logged, then the ids of the sources."""
        truths: dict[str, Any] = dict.fromkeys(self.release.originals[item.task])
        if self.logged is None:
            source = self.context.models.source(item.task)
            facts = self.context.models.facts(item.task)
            truths = {name: check_sample(source.sample(name), facts).truth for name in truths}
        self.write(item, {name: (None, truth) for name, truth in truths.items()})


class _Extract(ImportStage, Extract):
    def features(self, item: Item) -> tuple[dict[str, np.ndarray], list[Any]]:
        """Return a shard's originals; their token grids are unknown."""
        files, shape = self.release.originals[item.task], self.release.shapes[item.task]
        ids = self.context.ids(item.task, item.shard)
        return {name: load_feature(files[name], shape) for name in ids}, []


class _Prepare(ImportStage, Prepare):
    def fit(self, task: str, spec: CodecSpec) -> None:
        """Do nothing, since codecs of a release have no tables."""

    def centres(self, task: str) -> dict[str, list[int]]:
        """Return the centres of the codes of the first source."""
        first = self.context.selected(task).ids[0]
        return {
            codec: list(find_centres(self.codes(self.release.codec_files[task, codec], first, 0)))
            for codec in self.plan.recipe.tasks[task].codecs
        }

    def about(self, task: str, varying: bool) -> dict[str, Any]:
        """Return the fields of the entry that are known for every release."""
        blocks = self.plan.recipe.tasks[task].blocks
        layers = tuple(Layer(f"block {block}", "before") for block in blocks)
        return {"prefix_tokens": 1, "layers": layers}


class _Compress(ImportStage, Compress):
    def run(self, item: Item) -> None:
        """Read a shard's bitstreams and codes from the release, and score them."""
        files = self.release.codec_files[item.task, item.codec]
        paths = files.files if files.is_video else files.streams
        ids, levels = self.context.ids(item.task, item.shard), range(len(files.levels))
        streams = [[paths[name, n].read_bytes() for n in levels if paths] for name in ids]
        # Without a bitstream the rate is unknown, and not 0.
        bits = [[bits_of(len(s)) for s in row] or [None] * len(levels) for row in streams]
        codes = [[self.codes(files, name, level) for level in levels] for name in ids]
        self.write(item, Coded(streams, bits, codes))


STAGES: tuple[type[ImportStage], ...] = (_Select, _Extract, _Prepare, _Compress)
