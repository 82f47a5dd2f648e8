"""Derive the recipe of an imported release from `paper` and the quantisers of the release."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from cfqa_data.builders.importing.files import CodecFiles, Release, load_feature
from cfqa_data.builders.importing.scores import LogScores
from cfqa_data.builders.pipeline.check import hash_sources, hash_uris, weights_of
from cfqa_data.builders.pipeline.context import Models
from cfqa_data.console.progress import Progress
from cfqa_data.format.manifest import package_versions
from cfqa_data.format.quantizers import (
    PaperKMeansQuantizer,
    Quantizer,
    UniformQuantizer,
    quantizer_from_dict,
)
from cfqa_data.recipe.load import Recipe

__all__ = ["Recorded", "find_quantizers", "provenance", "release_recipe"]

GROUP = 2
"""Sources per shard, which one work item imports: at full size, 160 MB of originals for dpt."""


BITS = 8
"""Bits of the hyperpriors' k-means tables."""

Recorded: TypeAlias = Mapping[tuple[str, str], tuple[tuple[float, ...], Quantizer]]
"""(task, codec) -> levels and quantiser."""


def find_quantizers(
    release: Release, base: Recipe, recorded: Recorded, progress: Progress
) -> dict[tuple[str, str], Quantizer]:
    """Return the quantiser of every task and codec; leave those without one out of the release.

    Args:
        release: Files of the release.
        base: Recipe with the ranges of HM's and VTM's quantisers.
        recorded: Levels and quantisers of an earlier run, which are reused; the import checks every
            feature against them anyway.
        progress: Display that is notified of the features that are searched for tables.
    """
    quantizers: dict[tuple[str, str], Quantizer] = {}
    for (task, codec), files in list(release.codec_files.items()):
        quantizer = _quantizer(release, base, files, recorded, progress)
        if isinstance(quantizer, str):
            release.leave_out_codec(task, codec, quantizer)
        else:
            quantizers[task, codec] = quantizer
    return quantizers


def _quantizer(
    release: Release, base: Recipe, files: CodecFiles, recorded: Recorded, progress: Progress
) -> Quantizer | str:
    """Return the quantiser of a codec on a task, or the reason why there is none."""
    task, codec = files.task, files.codec
    if task not in base.tasks:
        return f"recipe {base.name} has no task {task}"
    if files.is_video:
        spec = base.tasks[task].codecs.get(codec)
        if spec is None or not isinstance(spec.quantizer, UniformQuantizer):
            return f"recipe {base.name} has no range for {codec} on {task}"
        return quantizer_from_dict(spec.quantizer.to_dict() | {"kind": "paper_uniform"})
    levels, known = recorded.get((task, codec), ((), None))
    if known is not None and levels == files.levels:
        return known
    progress.start("tables", len(files.files), "features")
    table = find_table(release, files, progress.advance)
    progress.finish()
    return table


def find_table(
    release: Release, ladder: CodecFiles, advance: Callable[[], None]
) -> PaperKMeansQuantizer | str:
    """Return the k-means table of a hyperprior's features, or the reason why there is none.

    The values of features are centres of their task's table, at most 256 distinct numbers per
    layer. The returned table therefore consists of all distinct values of the features, followed by
    unused larger numbers in place of the centres that do not occur.

    Args:
        release: Release of the files.
        ladder: Files of a hyperprior.
        advance: Function that is called after each feature.

    Raises:
        BuildError: If a feature cannot be read, or contains NaN or infinity.
    """
    shape = release.shapes[ladder.task]
    tables = [np.empty(0, np.float32)] * shape[1]
    for path in ladder.files.values():
        feature = load_feature(path, shape)
        for layer, table in enumerate(tables):
            tables[layer] = table = np.union1d(table, feature[:, layer])
            if len(table) > 1 << BITS:
                name = path.relative_to(release.root).as_posix()
                return (
                    f"more than {1 << BITS} different values in layer {layer} by {name}: "
                    "not the centres of one k-means table"
                )
        if np.signbit(feature[feature == 0]).any():  # union1d merges -0 with +0
            return f"{path.relative_to(release.root).as_posix()} holds a negative zero"
        advance()
    return PaperKMeansQuantizer(BITS, tuple(tuple(_filled(table).tolist()) for table in tables))


def _filled(table: np.ndarray) -> np.ndarray:
    """Extend a table to 2**BITS increasing numbers."""
    missing = (1 << BITS) - len(table)
    step = max(1.0, float(abs(table[-1])))
    return np.append(table, table[-1] + step * np.arange(1, missing + 1, dtype=np.float32))


def release_recipe(
    release: Release,
    base: Recipe,
    quantizers: Mapping[tuple[str, str], Quantizer],
    logged: LogScores | None,
) -> Recipe:
    """Return the recipe of the imported dataset."""
    counts = {task: len(originals) for task, originals in release.originals.items()}
    most = max(counts.values())
    data = base.to_dict()
    tasks = {}
    for task in release.originals:
        ladders = {
            codec: {
                "levels": list(release.codec_files[task, codec].levels),
                "quantizer": quantizers[task, codec].to_dict(),
            }
            for codec in release.codecs(task)
        }
        extra = {} if counts[task] == most else {"sources": counts[task]}
        tasks[task] = data["tasks"][task] | {"codecs": ladders} | extra
    return Recipe.from_dict(
        data
        | {
            "name": "cfqa-release",
            "summary": _summary(release, base, logged),
            "sources_per_task": most,
            "group_size": GROUP,
            "tasks": tasks,
        }
    )


def _summary(release: Release, base: Recipe, logged: LogScores | None) -> str:
    if logged is None:
        return f"the published CFQA release, scored by the heads of recipe {base.name}"
    text = "the published CFQA release, with the scores of its logs"
    if borrowed := logged.borrowed(release):
        text += (
            f"; for {' and '.join(borrowed)} the score of the least distorted version is used as "
            "that of the original"
        )
    return text


def provenance(
    release: Release, recipe: Recipe, logged: LogScores | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the versions of software, and the hashes of weights, for the manifest."""
    if logged is not None:
        return package_versions() | logged.versions(release), {}
    sources = {task: Models(recipe).source(task) for task in recipe.tasks}
    return package_versions(), hash_uris(weights_of(recipe)) | hash_sources(recipe, sources)
