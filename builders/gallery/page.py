"""A page that opens offline: sources of a dataset, a slider over levels and a choice of codec.

Names come from anywhere: the template escapes them, the script sets texts and pictures only, and
the page's security policy lets nothing be fetched.
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
"""Sources of a gallery, if nothing else is said."""

TEMPLATES = Path(__file__).parent / "templates"

MOST_LETTERS = 600
"""Of a text, beyond which only its beginning is shown."""


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
    """Write a page of what compression does to a dataset's features, and return its path.

    Sources are spread over tasks and, in each, over how much they are harmed. Codecs and levels are
    those that have rows in the dataset: `load(..., codec=..., level=...)` chooses.

    Args:
        dataset: Open, or its path.
        path: File to write, ``.html``.
        sources: How many, of all tasks together; one of each task at least.
        metrics: Whose scores are shown; those that the labels hold if None.
        evaluation: Holds the scores; `metrics` then names some of its metrics.
        progress: Notified of the sources; optional.

    Raises:
        CfqaError: No file can be written there, a feature is damaged, or there is no such metric.
    """
    _import_all()
    path, dataset = absolute_path(path), opened(dataset)
    check_writable(path)
    chosen, look, views = _spread(dataset, sources), progress or Silent(), []
    viewer = Viewer(dataset, metrics, evaluation)
    look.start("draw", len(chosen), "sources")
    for source in chosen:  # as data of the page, so that no two are held with their arrays
        views.append(_data(viewer.view(source)))
        look.advance()
    look.finish()
    write_text(path, _html(dataset, views))
    return path


def page_of(dataset: Dataset, view: View) -> str:
    """Return the page of one source."""
    return _html(dataset, [_data(view)])


def score_text(view: View, version: Version) -> str:
    """Return a version's score, and its bits per point, in words."""
    score = view.entry.facts.score
    unit = f" {score.unit}" if score.unit else ""
    bits = f" · {version.bpfp:.3g} bits/point" if version.bpfp is not None else ""
    return f"{score.name} {version.score:.3g}{unit}{bits}"


def error_picture(errors: np.ndarray) -> np.ndarray:
    """Return errors of tokens as colours, uint8 (rows, columns, 3): black is 0, bright is 2."""
    from matplotlib import colormaps

    found = (255 * colormaps["inferno"]((errors / 2).clip(0, 1))[..., :3]).astype(np.uint8)
    found[np.isnan(errors)] = 128
    return found


@extras("build")
def _import_all() -> None:
    """Import what a page needs, so that what is missing is told before anything is drawn."""
    import jinja2  # noqa: F401
    import matplotlib  # noqa: F401
    from PIL import Image  # noqa: F401


def _spread(dataset: Dataset, count: int) -> list[str]:
    """Return sources of all tasks, in each from the least harmed to the most."""
    labels = dataset.labels.select(["task", "source_id", "distortion"])
    means = labels.group_by(["task", "source_id"]).aggregate([("distortion", "mean")]).to_pylist()
    if not means:
        raise CfqaError(f"{dataset.location}: nothing to show: no row was selected")
    tasks: dict[str, list[tuple[float, str]]] = {task: [] for task in dataset.manifest.tasks}
    for row in means:
        tasks[row["task"]].append((row["distortion_mean"], row["source_id"]))
    held = [sorted(found) for found in tasks.values() if found]
    chosen: list[str] = []
    for place, found in enumerate(held):
        share = max(1, (count - len(chosen)) // (len(held) - place))
        places = np.linspace(0, len(found) - 1, min(share, len(found))).round().astype(int)
        chosen += [found[at][1] for at in places]
    return chosen


def _html(dataset: Dataset, views: Sequence[dict[str, Any]]) -> str:
    """Return the page; the same bytes for the same views."""
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
    """Return each codec in words."""
    entries = (c for task in dataset.manifest.tasks.values() for c in task.codecs.values())
    return {entry.name: entry.facts.title for entry in entries}


def _data(view: View) -> dict[str, Any]:
    """Return a source as the page has it: texts, numbers, and pictures as data addresses."""
    facts = view.entry.facts
    key: dict[str, tuple[int, ...]] = {}
    for drawing in (view.truth, view.original.drawing, *(v.drawing for v in view.versions)):
        key |= drawing.key if drawing else {}
    image = view.input if isinstance(view.input, np.ndarray) else None
    return {
        "id": view.source_id,
        "task": facts.name,
        "title": facts.title,
        "image": None if image is None else _address(image),
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
        "errors": None if version.errors is None else _address(error_picture(version.errors)),
        "input": _address(version.input) if isinstance(version.input, np.ndarray) else None,
        "text": _text(version.input),
        "colours": None if version.colours is None else _address(version.colours),
    }


def _drawing(drawing: Drawing | None) -> dict[str, Any] | None:
    if drawing is None:
        return None
    bars = [(b.label, round(b.share, 3), b.text, b.right) for b in drawing.bars]
    return {"picture": None if drawing.picture is None else _address(drawing.picture), "bars": bars}


def _text(found: Any) -> str | None:
    """Return the beginning of an input that is a text."""
    return (
        found[:MOST_LETTERS] + "…" * (len(found) > MOST_LETTERS) if isinstance(found, str) else None
    )


def _address(picture: np.ndarray) -> str:
    """Return a picture as a data address."""
    return "data:image/webp;base64," + base64.b64encode(webp(picture)).decode()
