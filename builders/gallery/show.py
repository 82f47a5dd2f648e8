"""Show one source: in a notebook, as a page, as a picture, or in the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfqa_data.access.dataset import Dataset
from cfqa_data.builders.gallery.figure import figure_of, save_figure
from cfqa_data.builders.gallery.page import page_of
from cfqa_data.builders.gallery.views import View, Viewer
from cfqa_data.builders.tasks.drawing import Drawing
from cfqa_data.console.text import printable, table_text
from cfqa_data.errors import CfqaError
from cfqa_data.extras import extras
from cfqa_data.format.storage import atomic_path, check_writable, write_text
from cfqa_data.paths import absolute_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cfqa_data.eval import Evaluation
    from cfqa_data.eval.metrics.registry import MetricLike

__all__ = ["Shown", "show"]


@dataclass(frozen=True, repr=False)
class Shown:
    """Result of :meth:`cfqa_data.Dataset.show`, which a notebook displays as a picture.

    Attributes:
        view: The content, as arrays, texts and numbers.
    """

    view: View
    _dataset: Dataset = field(repr=False)

    def figure(self) -> Figure:
        """Return a matplotlib figure."""
        return figure_of(self.view)

    def save(self, path: str | Path) -> Path:
        """Write a page or a picture, and return its absolute path.

        Args:
            path: File to write: ``.html`` for a page with a slider, ``.png`` for a picture.

        Raises:
            CfqaError: If the path has another suffix, or cannot be written to.
        """
        path = absolute_path(path)
        check_writable(path)
        if path.suffix == ".html":
            write_text(path, page_of(self._dataset, self.view))
        elif path.suffix == ".png":
            with atomic_path(path) as partial:
                save_figure(self.figure(), partial)
        else:
            raise CfqaError(f"{path}: the file name must end in .html or .png")
        return path

    def rows(self) -> list[dict[str, Any]]:
        """Return codec, level, parameter, bits, score, distortion and metrics of each version.

        If the task has answers, each row also has its top answer.
        """
        versions = self.view.versions
        answers = any(v.answer is not None for v in (self.view.original, *versions))
        return [
            {name: getattr(version, name) for name in version._fields[:6]}
            | version.metrics
            | ({"answer": version.answer} if answers else {})
            for version in versions
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the content, without pictures, as JSON-safe data."""
        view = self.view
        return {
            "source_id": view.source_id,
            "task": view.entry.name,
            "reference_score": view.original.score,
            "answers": [bar._asdict() for bar in (view.original.drawing or Drawing()).bars],
            "versions": self.rows(),
            "notes": list(view.notes),
        }

    def __repr__(self) -> str:
        view, rows = self.view, self.rows()
        score = view.entry.facts.score
        unit = f" ({score.unit})" * bool(score.unit)
        titles = {"bpfp": "bits/point", "score": f"{score.name}{unit}"}
        original = {
            "codec": "original",
            "score": view.original.score,
            "answer": view.original.answer,
        }
        table = [[titles.get(name, name) for name in rows[0]]]
        for row in ({name: original.get(name, "") for name in rows[0]}, *rows):
            table.append([v if isinstance(v, str) else _number(v) for v in row.values()])
        lines = [f"{view.source_id}: {view.entry.facts.title}", "", table_text(table), *view.notes]
        return "\n".join(map(printable, "\n".join(lines).split("\n")))

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        save_figure(self.figure(), data)
        return data.getvalue()


@extras("build")
def show(
    dataset: Dataset,
    source_id: str,
    metrics: Iterable[MetricLike] | None = None,
    evaluation: Evaluation | None = None,
) -> Shown:
    """Show a source; see :meth:`cfqa_data.Dataset.show`."""
    return Shown(Viewer(dataset, metrics, evaluation).view(source_id), dataset)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
