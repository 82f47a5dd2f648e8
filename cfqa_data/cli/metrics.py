"""`cfqa metrics`: list the metrics and their properties."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cfqa_data.cli.command import command
from cfqa_data.cli.process import print_error
from cfqa_data.cli.shared import answer
from cfqa_data.errors import CfqaError

if TYPE_CHECKING:
    from cfqa_data.eval import Metric

__all__ = ["metrics"]


@command("metrics")
def metrics(*, family: str | None = None, paper: bool = False, as_json: bool = False) -> None:
    """List the metrics and their properties.

    Args:
        family (FAMILY): Only metrics of this family.
        paper: Also list the metrics that reproduce the faults of the published code.
    """
    from cfqa_data.eval import create_metric, list_metrics

    created = []
    for name in list_metrics(family, paper=paper):
        try:
            created.append(create_metric(name))
        except CfqaError as error:  # a broken metric of another package
            print_error(str(error))
    answer(as_json, lambda: {"metrics": [_facts(one) for one in created]}, lambda: _text(created))


def _facts(metric: Metric) -> dict[str, Any]:
    names = ("name", "family", "formula", "lower_better", "cost", "citation")
    facts = {name: getattr(metric, name) for name in names}
    facts["score_range"] = list(metric.score_range)
    facts["needs"] = _needs(metric)
    facts["options"] = sorted(metric.options)
    return facts | {"differentiable": metric.differentiable}


def _needs(metric: Metric) -> list[str]:
    """Return what a metric requires of other sources: statistics, or labels."""
    return [*metric.needs, *(["labels"] if metric.fit else [])]


def _text(metrics: list[Metric]) -> str:
    from cfqa_data.console.text import WIDTH, table_text

    heads = ["name", "family", "better", "range", "cost", "gradient", "needs"]
    rows = [
        [
            metric.name,
            metric.family,
            {True: "lower", False: "higher", None: "?"}[metric.lower_better],
            "{:g} to {:g}".format(*metric.score_range),
            metric.cost,
            "yes" if metric.differentiable else "no",
            ", ".join(_needs(metric)) or "-",
        ]
        for metric in metrics
    ]
    notes = (
        "cost: TD, a few passes over the values; T2D, matrix products; D3, matrix decompositions.\n"
        "gradient: differentiable, create_metric(NAME, as_loss=True) is a training loss.\n"
        "needs: statistics of the sources of other folds; labels: the metric is trained on them."
    )
    return f"{table_text([heads, *rows], left=len(heads), width=WIDTH)}\n\n{notes}"
