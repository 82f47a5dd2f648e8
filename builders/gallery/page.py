"""Write an offline HTML page of a dataset's sources, with a slider for levels and codecs to choose.

Names are untrusted: the template escapes them, the script sets texts and pictures only, and the
page's content security policy forbids requests.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cfqa_data.access.dataset import Dataset, opened
from cfqa_data.builders.gallery.views import Version, View, Viewer
from cfqa_data.builders.tasks.drawing import webp
from cfqa_data.console.progress import Progress, Silent
from cfqa_data.errors import CfqaError
from cfqa_data.extras import extras
from cfqa_data.format.storage import check_writable, write_text
from cfqa_data.paths import absolute_path

if TYPE_CHECKING:
    from cfqa_data.builders.tasks.drawing import Drawing
    from cfqa_data.eval import Evaluation
    from cfqa_data.eval.metrics.registry import MetricLike

__all__ = ["SOURCES", "error_picture", "page_of", "score_text", "write_gallery"]

SOURCES = 12
"""Default number of sources in a gallery."""

TEMPLATES = Path(__file__).parent / "templates"

MAX_LETTERS = 600
"""Number of letters after which texts are truncated."""


@extras("build")
def write_gallery(
    dataset: Dataset | str | Path,
    path: str | Path,
    *,
    sources: int = SOURCES,
    metrics: Sequence[MetricLike] | None = None,
    evaluation: Evaluation | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a page that shows the effect of compression on a dataset, and return its path.

    Sources are spread over tasks and, within a task, over their mean distortion. The page shows the
    codecs and levels with rows in the dataset, which `load(..., codec=..., level=...)` selects.

    Args:
        dataset: An open dataset, or its path.
        path: File to write, ``.html``.
        sources: Number of sources of all tasks together; there is at least one of each task.
        metrics: Metrics whose scores are shown; the baselines in the labels if None.
        evaluation: Evaluation that has the scores; `metrics` then selects from its metrics.
        progress: Display that is notified of the sources; None shows nothing.

    Raises:
        CfqaError: If the file cannot be written, a feature is damaged, or there is no such metric.
    """
    _import_all()
    path, dataset = absolute_path(path), opened(dataset)
    check_writable(path)
    chosen, display, views = _spread(dataset, sources), progress or Silent(), []
    viewer = Viewer(dataset, metrics, evaluation)
    display.start("draw", len(chosen), "sources")
    for source in chosen:  # keep the page's data only: the arrays of a view are large
        views.append(_data(viewer.view(source)))
        display.advance()
    display.finish()
    write_text(path, _html(dataset, views))
    return path


def page_of(dataset: Dataset, view: View) -> str:
    """Return the HTML page of one source."""
    return _html(dataset, [_data(view)])


def score_text(view: View, version: Version) -> str:
    """Format a version's score and its bits per point."""
    score = view.entry.facts.score
    unit = f" {score.unit}" if score.unit else ""
    bits = f" · {version.bpfp:.3g} bits/point" if version.bpfp is not None else ""
    return f"{score.name} {version.score:.3g}{unit}{bits}"


def error_picture(errors: np.ndarray) -> np.ndarray:
    """Return errors of tokens as colours, uint8 (rows, columns, 3): black is 0, bright is 2."""
    from matplotlib import colormaps

    picture = (255 * colormaps["inferno"]((errors / 2).clip(0, 1))[..., :3]).astype(np.uint8)
    picture[np.isnan(errors)] = 128
    return picture


@extras("build")
def _import_all() -> None:
    """Import the packages that a page needs, to report missing ones before anything is drawn."""
    import jinja2  # noqa: F401
    import matplotlib  # noqa: F401
    from PIL import Image  # noqa: F401


def _spread(dataset: Dataset, count: int) -> list[str]:
    """Return sources of all tasks; within a task, spread from least to most distorted."""
    labels = dataset.labels.select(["task", "source_id", "distortion"])
    means = labels.group_by(["task", "source_id"]).aggregate([("distortion", "mean")]).to_pylist()
    if not means:
        raise CfqaError(f"{dataset.location}: nothing to show: no row was selected")
    tasks: dict[str, list[tuple[float, str]]] = {task: [] for task in dataset.manifest.tasks}
    for row in means:
        tasks[row["task"]].append((row["distortion_mean"], row["source_id"]))
    ranked = [sorted(pairs) for pairs in tasks.values() if pairs]
    chosen: list[str] = []
    for number, pairs in enumerate(ranked):
        share = max(1, (count - len(chosen)) // (len(ranked) - number))
        indices = np.linspace(0, len(pairs) - 1, min(share, len(pairs))).round().astype(int)
        chosen += [pairs[index][1] for index in indices]
    return chosen


def _html(dataset: Dataset, views: Sequence[dict[str, Any]]) -> str:
    """Render the page; the same views give the same bytes."""
    _import_all()
    from cfqa_data.eval.report.drawing import render_page

    codecs = dict.fromkeys(codec for view in views for codec in view["codecs"])
    return render_page(
        "gallery.html",
        TEMPLATES,
        manifest=dataset.manifest,
        views=views,
        codecs=list(codecs),
        titles=_titles(dataset),
        most=max(len(of) for view in views for of in view["codecs"].values()) - 1,
    )


def _titles(dataset: Dataset) -> dict[str, str]:
    """Return the title of each codec."""
    entries = (c for task in dataset.manifest.tasks.values() for c in task.codecs.values())
    return {entry.name: entry.facts.title for entry in entries}


def _data(view: View) -> dict[str, Any]:
    """Return the page's data of a source: texts, numbers, and pictures as data URLs."""
    facts = view.entry.facts
    key: dict[str, tuple[int, ...]] = {}
    for drawing in (view.truth, view.original.drawing, *(v.drawing for v in view.versions)):
        key |= drawing.key if drawing else {}
    image = view.input if isinstance(view.input, np.ndarray) else None
    return {
        "id": view.source_id,
        "task": facts.name,
        "title": facts.title,
        "image": None if image is None else _data_url(image),
        "text": _text(view.input),
        "truth": _drawing(view.truth),
        "key": [(text, "#" + bytes(colour).hex()) for text, colour in key.items()],
        "original": _version(view, view.original),
        "codecs": {
            codec: [_version(view, version) for version in versions]
            for codec, versions in view.codecs.items()
        },
        "notes": view.notes,
        "views": len(view.entry.views) or view.entry.shape[0],
    }


def _version(view: View, version: Version) -> dict[str, Any]:
    facts = view.entry.facts.score
    codec = view.entry.codecs.get(version.codec)
    name = codec.facts.parameter.name if codec else ""
    figures = [(facts.name, f"{version.score:.3g}{' ' * bool(facts.unit)}{facts.unit}")]
    if codec:
        figures += [("distortion", f"{version.distortion:.3g}")]
        figures += [("bits per point", "-" if version.bpfp is None else f"{version.bpfp:.3g}")]
        figures += [
            (metric, "-" if value is None else f"{value:.4g}")
            for metric, value in version.metrics.items()
        ]
    return {
        "level": version.level,
        "setting": f"{name} {version.parameter:g}" if codec else "",
        "figures": figures,
        "drawing": _drawing(version.drawing),
        "errors": None if version.errors is None else _data_url(error_picture(version.errors)),
        "input": _data_url(version.input) if isinstance(version.input, np.ndarray) else None,
        "text": _text(version.input),
        "colours": None if version.colours is None else _data_url(version.colours),
    }


def _drawing(drawing: Drawing | None) -> dict[str, Any] | None:
    if drawing is None:
        return None
    bars = [(b.label, round(b.share, 3), b.text, b.right) for b in drawing.bars]
    picture = None if drawing.picture is None else _data_url(drawing.picture)
    return {"picture": picture, "bars": bars}


def _text(content: Any) -> str | None:
    """Return the beginning of an input that is a text; None for other inputs."""
    if not isinstance(content, str):
        return None
    return content[:MAX_LETTERS] + "…" * (len(content) > MAX_LETTERS)


def _data_url(picture: np.ndarray) -> str:
    """Return a picture as a data URL."""
    return "data:image/webp;base64," + base64.b64encode(webp(picture)).decode()
