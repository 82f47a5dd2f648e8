"""Commands that score metrics: `eval` and `report`."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import redirect_stdout, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfqa_data.cli.process import say
from cfqa_data.cli.shared import (
    AnyDataset,
    Codecs,
    FollowLinks,
    Force,
    Json,
    Task,
    Untrusted,
    local_path,
    print_json,
    resumable,
)
from cfqa_data.errors import CfqaError, DiskError, MetricError, MetricWarning
from cfqa_data.paths import absolute_path

if TYPE_CHECKING:
    from cfqa_data.eval import Evaluation

__all__ = ["evaluate", "write_page"]


class Precision(StrEnum):
    """How exact float32 matrix products are."""

    highest = "highest"
    high = "high"


class TableLayout(StrEnum):
    """How `cfqa eval` lays out its figures."""

    paper = "paper"
    plain = "plain"


class Target(StrEnum):
    """Label that a metric should follow."""

    distortion = "distortion"
    loss = "loss"


def evaluate(
    context: typer.Context,
    folder: Annotated[
        str | None,
        typer.Argument(
            metavar="DIR", help="A dataset folder, or org/name on the Hub.", show_default=False
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A metric's name, MODULE:FUNCTION, or `all`; repeat it for several. "
            "Default: mse, cosine and cka.",
        ),
    ] = None,
    task: Task = None,
    codec: Codecs = None,
    fold: Annotated[
        int | None, typer.Option(metavar="K", help="Only the sources of this fold, 0 to 4.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="At most so many sources of each task."),
    ] = None,
    target: Annotated[
        Target, typer.Option(help="Label to follow: the score's distortion or the task's loss.")
    ] = Target.distortion,
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1.")] = "cpu",
    precision: Annotated[
        Precision,
        typer.Option(help="Of float32 matrix products: highest is exact, high allows TF32."),
    ] = Precision.highest,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            metavar="FILE",
            help="Write every score to this .parquet or .csv file. An interrupted run goes on "
            "from what it left beside it. A file that holds anything else is not replaced.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            metavar="OUT",
            help="Write a report: one .html file, or a folder for report.html and scores.parquet.",
        ),
    ] = None,
    force: Force = False,
    table: Annotated[
        TableLayout, typer.Option(help="paper: as published. plain: every figure, one per line.")
    ] = TableLayout.paper,
    paper_logs: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            metavar="LOGS",
            help="Instead of a dataset: the published statistic from a folder of score logs.",
        ),
    ] = None,
    untrusted: Untrusted = False,
    follow_links: FollowLinks = False,
    as_json: Json = False,
) -> None:
    """Score metrics on a dataset and correlate them with its labels."""
    if paper_logs is not None:
        _only(context, "paper_logs", "as_json")
        _evaluate_logs(paper_logs, as_json)
        return
    if folder is None:
        raise typer.BadParameter(
            "missing; or name a folder of logs with --paper-logs", context, param_hint="'DIR'"
        )
    from cfqa_data.access.dataset import load
    from cfqa_data.console.terminal import show_progress
    from cfqa_data.eval import evaluate as run_evaluation
    from cfqa_data.eval import list_metrics
    from cfqa_data.eval.evaluator import DEFAULT_METRICS
    from cfqa_data.eval.text import LAYOUTS

    if report is not None:  # what it needs is missed now, not when everything is scored
        from cfqa_data.eval.report import write_report
    page, out = _report_files(context, report, out, force)
    if any(":" in name for name in metric or ()):
        sys.path.insert(0, os.getcwd())  # a user's module lies where the command is run
    names: list[str] = []
    for name in metric or DEFAULT_METRICS:
        names += list_metrics() if name == "all" else [name]
    with (
        resumable("the same command goes on from the scores so far" if out else ""),
        show_progress() as progress,
        redirect_stdout(sys.stderr),  # what a metric prints is none of the answer
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", MetricWarning)  # they are told below
        dataset = load(
            folder,
            task,
            codec=codec or None,
            untrusted=untrusted,
            follow_links=follow_links,
        )
        evaluation = run_evaluation(
            dataset,
            list(dict.fromkeys(names)),
            device,
            fold=fold,
            limit=limit,
            target=target.value,
            precision=precision.value,
            out=out,
            force=force,
            progress=progress,
        )
    if as_json:
        print_json(_evaluation_json(evaluation))
    else:
        print(LAYOUTS[table.value](evaluation), flush=True)
        if out is not None and str(out) not in evaluation.failures:
            print(f"Every score: {out}")
    failures = list(evaluation.failures.values())
    if page is not None:
        try:
            write_report(evaluation, page, dataset)
        except DiskError as error:  # there is no room for scores beside it either
            failures.append(str(error))
        except CfqaError as error:
            failures.append(f"{error}; {_kept_scores(evaluation, page, out)}")
        else:
            if not as_json:
                print(f"Report: {page}")
    for note in evaluation.notes.values():
        say(note)
    if failures:
        raise MetricError("; ".join(failures))


def _kept_scores(evaluation: Evaluation, page: Path, out: Path | None) -> str:
    """See that the scores outlive a report that failed: return where they are, in words."""
    from cfqa_data.eval.results import with_facts
    from cfqa_data.format.storage import write_table

    if out is None:
        out = page.with_suffix(".parquet")
        while out.exists():
            out = out.with_name(f"{out.stem}-again.parquet")
        try:
            facts = evaluation.target, evaluation.metrics, evaluation.failures, evaluation.notes
            assert evaluation.dataset is not None  # a folder was scored
            write_table(out, with_facts(evaluation.scores, evaluation.dataset, *facts))
        except (OSError, CfqaError):
            return "the scores are only in the tables"
    elif str(out) in evaluation.failures:
        return "the scores are only in the tables"
    return f"the scores are in {out}"


def _report_files(
    context: typer.Context, report: Path | None, out: Path | None, force: bool
) -> tuple[Path | None, Path | None]:
    """Return where the page and the scores go; what cannot be written there is told of at once.

    A page in a folder is replaced with its scores, which say what they are of.
    """
    out = out and absolute_path(out)
    if report is None:
        return None, out
    from cfqa_data.format.storage import check_writable

    report = page = absolute_path(report)
    if report.suffix != ".html":
        _make_folder(context, report)
        page, out = report / "report.html", out or report / "scores.parquet"
    check_writable(page)
    if out is None or out.parent != page.parent or not out.exists():
        _check_free(page, force)
    return page, out


def _check_free(page: Path, force: bool) -> None:
    """See that a page replaces nothing, unless that is asked for."""
    if page.exists() and not force:
        raise CfqaError(f"{page}: is there; write to another file, or replace it with --force")


def _make_folder(context: typer.Context, folder: Path) -> None:
    """Make a folder for this command's files; it goes with the command if it stays empty."""
    if folder.is_dir():
        return
    try:
        folder.mkdir()
    except FileExistsError:
        raise CfqaError(
            f"{folder}: is there and is no folder; name a folder, or an .html file"
        ) from None
    except FileNotFoundError:
        raise CfqaError(f"{folder}: there is no folder {folder.parent} to make it in") from None

    @context.call_on_close
    def _() -> None:
        with suppress(OSError):
            folder.rmdir()


def _only(context: typer.Context, *allowed: str) -> None:
    """See that no parameter of the command was given but some that go together."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE" and parameter.name not in allowed:
            names = [p.opts[0] for p in context.command.params if p.name in allowed]
            given = parameter.metavar if parameter.param_type_name == "argument" else None
            raise CfqaError(
                f"{names[0]} does not go with {given or parameter.opts[0]}, only with {names[1]}"
            )


def _evaluate_logs(folder: Path, as_json: bool) -> None:
    from cfqa_data.eval.paper_logs import paper_figures, paper_logs_text

    figures = paper_figures(folder)
    if as_json:
        print_json({"correlations": [figure.to_dict() for figure in figures]})
    else:
        print(paper_logs_text(figures))


def _evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    from cfqa_data.eval.statistics.columns import COLUMNS

    return {
        "target": evaluation.target,
        "metrics": [metric.name for metric in evaluation.metrics],
        "failures": evaluation.failures,
        "notes": evaluation.notes,
        **{name: getattr(evaluation, name).to_pylist() for name in COLUMNS},
    }


def write_page(
    folder: AnyDataset,
    scores: Annotated[
        Path,
        typer.Argument(
            parser=local_path, metavar="SCORES", help="What `cfqa eval DIR --out` wrote, .parquet."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", parser=local_path, metavar="FILE", help="Page to write, .html."
        ),
    ],
    target: Annotated[
        Target | None,
        typer.Option(help="Label to follow. Default: that of the scores.", show_default=False),
    ] = None,
    force: Force = False,
    follow_links: FollowLinks = False,
) -> None:
    """Write a report of scores: one HTML file that opens offline."""
    from cfqa_data.access.dataset import load
    from cfqa_data.eval import read_evaluation
    from cfqa_data.eval.report import write_report
    from cfqa_data.format.storage import check_writable

    if out.suffix != ".html":
        raise CfqaError(f"{out}: a report is written as .html, by that ending")
    check_writable(out)
    _check_free(out, force)
    dataset = load(folder, follow_links=follow_links)
    evaluation = read_evaluation(dataset, scores, target.value if target else None)
    print(f"Report: {write_report(evaluation, out, dataset)}")
