"""Derive the recipe of an imported release: `paper`, with the quantisers of the release."""

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

__all__ = ["Begun", "find_quantizers", "provenance", "release_recipe"]

GROUP = 2
"""Sources that one shard holds and one step imports: at full size 160 MB of originals for dpt."""


BITS = 8
"""Of the hyperpriors' k-means tables."""

Begun: TypeAlias = Mapping[tuple[str, str], tuple[tuple[float, ...], Quantizer]]
"""Levels and quantiser of a task and codec."""


def find_quantizers(
    release: Release, base: Recipe, begun: Begun, progress: Progress
) -> dict[tuple[str, str], Quantizer]:
    """Return the quantiser of every task and codec; those without one are left out of the release.

    Args:
        release: The files.
        base: Says the ranges of HM's and VTM's quantisers.
        begun: Levels and quantisers of an earlier run, which are taken over: every feature is held
            against them anyway.
        progress: Notified of the features that are looked through for tables.
    """
    found: dict[tuple[str, str], Quantizer] = {}
    for (task, codec), files in list(release.codec_files.items()):
        quantizer = _quantizer(release, base, files, begun, progress)
        if isinstance(quantizer, str):
            release.leave_out_codec(task, codec, quantizer)
        else:
            found[task, codec] = quantizer
    return found


def _quantizer(
    release: Release, base: Recipe, files: CodecFiles, begun: Begun, progress: Progress
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
    levels, known = begun.get((task, codec), ((), None))
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

    A feature holds only centres of its task's table, at most 256 different numbers per layer, so
    the table that it needs is the set of numbers that are there; the table's centres that no
    feature uses are not needed, and are filled up with numbers above the largest.

    Args:
        release: That the files belong to.
        ladder: Of a hyperprior.
        advance: Called after each feature.

    Raises:
        BuildError: A feature cannot be read, or holds NaN or infinity.
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
        if np.signbit(feature[feature == 0]).any():  # a table has one zero, and it is positive
            return f"{path.relative_to(release.root).as_posix()} holds a negative zero"
        advance()
    return PaperKMeansQuantizer(BITS, tuple(tuple(_filled(table).tolist()) for table in tables))


def _filled(table: np.ndarray) -> np.ndarray:
    """Return an increasing table of 2**BITS numbers that begins with ``table``."""
    lacking = (1 << BITS) - len(table)
    step = max(1.0, float(abs(table[-1])))
    return np.append(table, table[-1] + step * np.arange(1, lacking + 1, dtype=np.float32))


def release_recipe(
    release: Release,
    base: Recipe,
    quantizers: Mapping[tuple[str, str], Quantizer],
    logged: LogScores | None,
) -> Recipe:
    """Return the recipe that the dataset's manifest holds."""
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
    release: Release, made: Recipe, logged: LogScores | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the versions and the weights' hashes that the manifest holds."""
    if logged is not None:
        return package_versions() | logged.versions(release), {}
    sources = {task: Models(made).source(task) for task in made.tasks}
    return package_versions(), hash_uris(weights_of(made)) | hash_sources(made, sources)
