"""The stages of an import: those of a build, on a release's features and bitstreams.

Each writes the files and last the marker that the stage of a build writes, so that what follows,
and going on after a stop, are a build's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfqa_data.builders.importing.files import LadderFiles, Release, load_feature
from cfqa_data.builders.importing.scores import Scores
from cfqa_data.builders.pipeline.compress import label_rows
from cfqa_data.builders.pipeline.label import baseline_values
from cfqa_data.builders.pipeline.plan import Item
from cfqa_data.builders.pipeline.tools import Tools
from cfqa_data.builders.pipeline.workspace import write_json
from cfqa_data.errors import BuildError, CodecError
from cfqa_data.format.codes import create_codes_array, find_centres, write_codes
from cfqa_data.format.first import TASKS
from cfqa_data.format.invariants import bits_of, check_truth
from cfqa_data.format.packing import plane_shape, unpack
from cfqa_data.format.schema import label_schema
from cfqa_data.format.storage import write_table, write_tensors, write_text

__all__ = ["Import"]


@dataclass(frozen=True)
class Import:
    """What the stages work on.

    Attributes:
        tools: of the plan and the folder.
        release: the files to import.
        scores: what labels them.
    """

    tools: Tools
    release: Release
    scores: Scores

    def run(self, item: Item) -> None:
        """Do one item.

        Raises:
            BuildError: a file is damaged or not what its place says; it is named.
        """
        stages: dict[str, Callable[[Item], None]] = {
            "select": self._select,
            "extract": self._extract,
            "centre": self._centre,
            "compress": self._compress,
        }
        stages[item.stage](item)

    def _select(self, item: Item) -> None:
        """Write what is known of the truths, then the sources' names."""
        ids = list(self.release.originals[item.task])
        truths = {name: self.scores.truth(item.task, name) for name in ids}
        known = {name: truth for name, truth in truths.items() if truth is not None}
        for name, truth in known.items():
            check_truth(TASKS[item.task], truth.dtype.name, truth.ndim, f"the truth of {name}")
        if known:
            write_tensors(self.tools.layout.truth(item.task), known)
        write_json(item.marker(self.tools.layout), ids)

    def _extract(self, item: Item) -> None:
        """Write a group's originals, then their scores and losses."""
        task, layout = item.task, self.tools.layout
        features = {
            name: load_feature(self.release.originals[task][name], self.release.shapes[task])
            for name in self.tools.group_ids(task, item.group)
        }
        write_tensors(layout.originals(task, item.group, self.tools.plan.groups), features)
        told = [self.scores.reference(task, name, feature) for name, feature in features.items()]
        marker = {"score": [score for score, _ in told], "loss": [loss for _, loss in told]}
        write_text(item.marker(layout), json.dumps(marker))  # an unknown loss is NaN

    def _centre(self, item: Item) -> None:
        """Take the codes that are counted from off the first source, and make the arrays."""
        task, layout = item.task, self.tools.layout
        ids = self.tools.source_ids(task)
        centres: dict[str, Any] = {}
        for codec, ladder in self.tools.spec(task).ladders.items():
            files = self.release.ladders[task, codec]
            centres[codec] = list(find_centres(self._codes(files, ids[0], 0)))
            create_codes_array(
                layout.compressed(task, codec),
                sources=len(ids),
                levels=len(ladder.levels),
                shape=self.release.shapes[task],
                quantizer=ladder.quantizer,
                centres=centres[codec],
                source_ids=ids,
            )
        write_json(item.marker(layout), centres)

    def _compress(self, item: Item) -> None:
        """Write a group's bitstreams and codes, and last its label rows."""
        import pyarrow as pa

        task, codec, layout, plan = item.task, item.codec, self.tools.layout, self.tools.plan
        files = self.release.ladders[task, codec]
        paths = files.files if files.is_video else files.streams
        ids, levels = self.tools.group_ids(task, item.group), range(len(files.levels))
        streams = {
            f"{name}/{level}": np.fromfile(paths[name, level], np.uint8)
            for name in ids
            for level in levels
            if paths
        }
        if streams:
            write_tensors(layout.bitstreams(task, codec, item.group, plan.groups), streams)
        rows: list[dict[str, Any]] = []
        for index, (position, original) in enumerate(
            zip(plan.members(item.group), self.tools.originals(task, item.group), strict=True)
        ):
            codes = np.stack([self._codes(files, ids[index], level) for level in levels])
            write_codes(layout.compressed(task, codec), position, codes)
            # Without a bitstream nothing was measured: no rate, rather than a rate of 0.
            streamed = [streams[f"{ids[index]}/{n}"].size for n in levels] if streams else []
            bits = [bits_of(size) for size in streamed] or [None] * len(levels)
            told = self._told(item, index, original, codes)
            rows += label_rows(self.tools, item, index, original.size, bits, told)
        write_table(item.marker(layout), pa.Table.from_pylist(rows, schema=label_schema()))

    def _told(
        self, item: Item, index: int, original: np.ndarray, codes: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return score, loss and baseline metrics of a source's levels, one level at a time."""
        name = self.tools.group_ids(item.task, item.group)[index]
        ladder = self.tools.ladder(item)
        parts: list[dict[str, float]] = []
        for level, parameter in enumerate(ladder.levels):
            decoded = ladder.quantizer.dequantize(codes[level])
            score, loss = self.scores.compressed(item.task, item.codec, name, parameter, decoded)
            values = baseline_values(self.tools.baselines, original, decoded[None])
            scores = {"score": score, "loss": loss}
            parts.append(scores | {metric: float(value[0]) for metric, value in values.items()})
        return {key: np.array([part[key] for part in parts]) for key in parts[0]}

    def _codes(self, files: LadderFiles, name: str, level: int) -> np.ndarray:
        """Return the codes (N, C, T, D) of one compressed feature.

        Raises:
            BuildError: they cannot be had without loss.
        """
        path, shape = files.files[name, level], self.release.shapes[files.task]
        quantizer = self.tools.spec(files.task).ladders[files.codec].quantizer
        if files.is_video:
            codec = self.tools.codec(files.task, files.codec)
            try:
                plane = codec.decode(path.read_bytes(), plane_shape(shape))
            except CodecError as error:
                raise BuildError(f"{path}: {error}") from None
            return unpack(plane, shape)
        feature = load_feature(path, shape)
        codes = quantizer.quantize(feature)
        if quantizer.dequantize(codes).tobytes() != feature.tobytes():
            raise BuildError(f"{path}: holds other values than the table that was found has")
        return codes
