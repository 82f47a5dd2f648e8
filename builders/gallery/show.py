"""One source, shown: in a notebook, as a page, as a picture, or in the terminal."""

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
    """What :meth:`cfqa_data.Dataset.show` returns; a notebook draws it.

    Attributes:
        view: All that is shown, as arrays, texts and numbers.
    """

    view: View
    _dataset: Dataset = field(repr=False)

    def figure(self) -> Figure:
        """Return a figure of matplotlib."""
        return figure_of(self.view)

    def save(self, path: str | Path) -> Path:
        """Write it, and return the path.

        Args:
            path: ``.html`` for a page with a slider, ``.png`` for a picture.

        Raises:
            CfqaError: It has another ending, or no file can be written there.
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

        Also the task's first answer, where it gives any.
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
        """Return what can be said of it in JSON."""
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
        known = f"{score.name}{f' ({score.unit})' * bool(score.unit)}"
        titles = {"bpfp": "bits/point", "score": known}
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
