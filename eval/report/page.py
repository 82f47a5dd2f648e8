"""Render the report's templates into a single HTML file.

Names of datasets, sources and metrics are untrusted: the templates escape them, and the content
security policy of the page allows only its own script and no requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfqa_data.errors import CfqaError, DiskError, MetricError
from cfqa_data.eval.features.datasets import FeatureSource, dataset_identity, opened
from cfqa_data.eval.label_figures import ceilings
from cfqa_data.eval.metrics.base import FAMILIES, error_line
from cfqa_data.eval.report.ranking import differences, heat_maps, left_out, ranking, rankings
from cfqa_data.eval.text import in_groups, ladders_text, trained_names
from cfqa_data.extras import extras
from cfqa_data.format.storage import check_writable, write_text
from cfqa_data.paths import absolute_path

with extras():
    from cfqa_data.eval.report.cards import PER_TASK, cards
    from cfqa_data.eval.report.drawing import render_page
    from cfqa_data.eval.report.figures import POINTS, TaskPoints, curve, target_text, task_points

if TYPE_CHECKING:
    from cfqa_data.access.dataset import Dataset
    from cfqa_data.eval import Evaluation
    from cfqa_data.eval.report.classes import ClassMap
    from cfqa_data.eval.report.pictures import Pictures

__all__ = ["report_html", "write_report"]


def write_report(
    evaluation: Evaluation,
    path: str | Path,
    dataset: Dataset | str | Path | None = None,
    *,
    against: str | None = None,
    classes: bool = False,
    pictures: bool = False,
    follow_links: bool = False,
) -> Path:
    """Write an evaluation as one HTML file and return its path.

    Args:
        evaluation: The evaluation.
        path: Path of the ``.html`` file to write.
        dataset: The dataset that was scored, open or as a path, to describe it on the page.
        against: Metric that all others are compared with; by default ``cosine``, or else ``mse``,
            if it was scored.
        classes: Also plot the classes at each level. This reads features of the dataset.
        pictures: Also show the image of each source on which a metric and the label disagree most,
            if the dataset can provide it, and a map of the token errors. This reads features.
        follow_links: Follow symbolic links in the dataset's folder, even out of it; only for a
            path.

    Raises:
        MetricError: If there are no scores, the report cannot be made, or another dataset was
            scored.
        DiskError: If the disk is full.
        CfqaError: If the file cannot be written.
        FormatError: If the folder is not a dataset.
    """
    path = absolute_path(path)
    check_writable(path)
    try:
        how: Any = {"against": against, "classes": classes, "pictures": pictures}
        how["follow_links"] = follow_links
        page = report_html(evaluation, dataset, **how)
    except CfqaError:
        raise
    except Exception as error:  # a figure that fails must not cost the caller the scores
        message = f"the report could not be made: {error_line(error)}"
        raise MetricError(f"{path}: {message}") from error
    try:
        write_text(path, page)
    except OSError as error:
        why = error.strerror or error
        raise DiskError(f"{path}: the report could not be written: {why}") from None
    return path


def report_html(
    evaluation: Evaluation,
    dataset: Dataset | str | Path | None = None,
    *,
    against: str | None = None,
    classes: bool = False,
    pictures: bool = False,
    follow_links: bool = False,
) -> str:
    """Return an evaluation as one HTML page; equal input gives equal bytes. See `write_report`."""
    if not evaluation.metrics or evaluation.labels.num_rows == 0:
        raise MetricError("there are no scores to report")
    source = None if dataset is None else opened(dataset, follow_links=follow_links)
    origin = _origin(evaluation, source)
    class_plots = _class_maps(evaluation, source) if classes else []
    evaluation.make_tables("across_codecs", "across_tasks", "discrimination", "per_level")
    baseline, compared = differences(evaluation, against)
    ranked = ranking(evaluation)
    points = task_points(evaluation)
    columns, maps = heat_maps(evaluation, ranked)
    sections = cards(evaluation, ranked, points)
    target = evaluation.target
    curves = {
        kind: [(part, drawn) for part in points if (drawn := curve(part, kind, target))]
        for kind in ("error", "distortion")
    }
    return render_page(
        "report.html",
        **{name: getattr(evaluation, name) for name in ("target", "failures", "notes")},
        origin=origin,
        counts=_counts(evaluation, points, origin),
        points=points,
        codecs=points[0].codecs,
        ladders=ladders_text(evaluation),
        drawn="groups of sources" if in_groups(evaluation) else "sources",
        ranked=ranked,
        compared=[entry for entry in ranked if entry.place],
        apart=[entry for entry in ranked if not entry.place],
        rankings=rankings(ranked, compared),
        baseline=baseline,
        ceilings=_ceilings(evaluation),
        columns=columns,
        maps=maps,
        left_out=left_out(evaluation),
        trained=", ".join(trained_names(evaluation)),
        cards=sections,
        pictures=_pictures(sections, source) if pictures else None,
        families=FAMILIES,
        classes=class_plots,
        curves={kind: panels for kind, panels in curves.items() if panels},
        shown=POINTS,
        per_task=PER_TASK,
    )


def _origin(evaluation: Evaluation, source: FeatureSource | None) -> dict[str, Any] | None:
    """Return the manifest, hash and codec levels of the dataset; None if they are unknown.

    Raises:
        MetricError: If another dataset was scored.
    """
    from cfqa_data.access.dataset import Dataset

    if source is None:
        return None
    identity = dataset_identity(source)
    if evaluation.dataset not in (None, identity):
        raise MetricError("these are scores of another dataset; give that one, or none")
    if not isinstance(source, Dataset):
        return None
    ladders = [
        (
            task,
            codec,
            codec_entry.facts.parameter.name,
            ", ".join(f"{level:g}" for level in codec_entry.levels),
            ", ".join(f"{name} {value}" for name, value in options.items() if name != "models"),
        )
        for task, entry in source.manifest.tasks.items()
        for codec, codec_entry in entry.codecs.items()
        for options in [codec_entry.origin.options if codec_entry.origin else {}]
    ]
    return {"manifest": source.manifest, "identity": identity, "ladders": ladders}


def _class_maps(evaluation: Evaluation, source: FeatureSource | None) -> list[ClassMap]:
    from cfqa_data.access.dataset import Dataset
    from cfqa_data.eval.report.classes import class_maps  # needs scikit-learn

    if not isinstance(source, Dataset):
        raise MetricError("to plot classes, give the dataset: a folder, or one on the Hub")
    return class_maps(evaluation, source)


def _pictures(
    sections: Sequence[Mapping[str, Any]], source: FeatureSource | None
) -> Pictures | None:
    from cfqa_data.access.dataset import Dataset
    from cfqa_data.eval.report.pictures import Pictures  # needs matplotlib and Pillow

    if not isinstance(source, Dataset):
        raise MetricError("to show pictures, give the dataset: a folder, or one on the Hub")
    items = (item.version for section in sections for item in section["items"])
    pictures = Pictures(source, items)
    return pictures if pictures.any else None


def _counts(
    evaluation: Evaluation, points: Sequence[TaskPoints], origin: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Count, for each task, the sources and features that were scored, and its sources in all.

    ``valid`` counts the sources whose label varies over codecs and levels. The means are over these
    sources, except where a metric lacks a score.
    """
    tasks = origin["manifest"].tasks if origin else {}
    rows = {row["task"]: row for row in evaluation.across_codecs.to_pylist()}
    return [
        {
            "task": part.task,
            "target": target_text(part.facts, evaluation.target),
            "sources": len(set(part.source.tolist())),
            "of": len(tasks[part.task].sources) if part.task in tasks else None,
            "features": len(part.truth),
            "valid": rows[part.task]["n_valid"] + rows[part.task]["n_missing"],
        }
        for part in points
    ]


def _ceilings(evaluation: Evaluation) -> dict[str, dict[str, float | None]]:
    """Return the correlation of each task's loss with its distortion, per source and pooled.

    The result is empty if no task has a loss, or if the loss is the target.
    """
    known = {"distortion", "loss"} <= set(evaluation.labels.column_names)
    if evaluation.target != "distortion" or not known:
        return {}
    by_task = ceilings(evaluation.labels)
    return by_task if any(one["source"] is not None for one in by_task.values()) else {}
