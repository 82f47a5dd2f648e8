"""`cfqa eval` and `cfqa report`: evaluate metrics on a dataset, and write a report."""

from __future__ import annotations

import sys
import warnings
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from cfqa_data.cli.command import Target, command
from cfqa_data.cli.process import print_error
from cfqa_data.cli.shared import answer, check_new_file, working
from cfqa_data.errors import CfqaError, DiskError, MetricError, MetricWarning, unknown_name
from cfqa_data.paths import absolute_path

if TYPE_CHECKING:
    from cfqa_data.eval import Evaluation
    from cfqa_data.eval.comparison import Comparison

__all__ = ["evaluate", "report"]

Table = Literal["paper", "plain", "text", "latex", "markdown", "csv"]


@command("eval")
def evaluate(
    context: typer.Context,
    folder: str | None = None,
    *,
    metric: list[str] | None = None,
    task: str | None = None,
    codec: list[str] | None = None,
    fold: int | None = None,
    max_sources: int | None = None,
    target: Target = "distortion",
    leave_out: Literal["codec"] | None = None,
    device: str = "cpu",
    precision: Literal["highest", "high"] = "highest",
    workers: int = 1,
    scheduler: str | None = None,
    out: Path | None = None,
    report: Path | None = None,
    classes: bool = False,
    pictures: bool = False,
    force: bool = False,
    table: Table = "paper",
    figure: str = "srocc",
    against: str | None = None,
    per_codec: bool = False,
    paper_logs: Path | None = None,
    untrusted: bool = False,
    plugin: list[str] | None = None,
    follow_links: bool = False,
    debug: bool = False,
    as_json: bool = False,
) -> None:
    """Evaluate metrics on a dataset: score it, and correlate the scores with its labels.

    Args:
        metric (NAME): A metric's name, MODULE:FUNCTION, FILE.py:FUNCTION, or `all`; options as in
            mutual_knn:k=3. Separated by commas, or repeated. Default: mse, cosine and cka.
        fold (K): Only the sources of this fold, 0 to 4.
        max_sources (N): At most this many sources per task, and per fold that is trained on.
        target: Label to correlate with: the distortion of the task score, or the task loss.
        leave_out: codec: also train each trained metric without each codec in turn, and report
            its accuracy on the codec left out.
        device (DEVICE): Torch device: cpu, cuda, cuda:1.
        precision: Precision of float32 matrix products: highest is exact, high allows TF32.
        workers (N): Number of processes, with one thread each; on cuda each takes a GPU. A single
            process uses several threads for large features.
        scheduler (ADDRESS): Dask scheduler on whose workers to score instead, not with --workers.
        out (FILE): Write every score to this .parquet or .csv file. An interrupted run resumes from
            the partial file next to it. To an existing .parquet file of this dataset, only missing
            scores are added.
        report (OUT): Write a report: an .html file, or a folder for report.html and scores.parquet.
        force: Overwrite the file, or its scores of metrics that have changed since.
        classes: With --report: also plot the classes at several levels, by t-SNE of the features.
        pictures: With --report: also show the features on which metric and label disagree most.
        table (TABLE): paper: as published. plain: all statistics, one per line. text, latex,
            markdown, csv: one statistic per metric and task, all codecs pooled.
        figure (FIGURE): Statistic of such a table: srocc, plcc, krocc, pooled_srocc, pooled_plcc,
            pooled_krocc, mapped_plcc or mapped_rmse.
        against (NAME): Also compare every other metric with this one: differences, confidence
            intervals, p-values.
        per_codec: With --against: also compare per codec and level.
        paper_logs (LOGS): Instead of DIR: compute the published statistic from a folder of score
            logs.
        debug: Print the traceback where a user-defined metric fails.
    """
    if paper_logs is not None:
        _only(context, "paper_logs", "as_json")
        _evaluate_logs(paper_logs, as_json)
        return
    if folder is None:
        raise typer.BadParameter(
            "missing; name a dataset, or a folder of logs with --paper-logs",
            context,
            param_hint="'DIR'",
        )
    from cfqa_data.access.dataset import load
    from cfqa_data.eval import evaluate as run_evaluation
    from cfqa_data.eval import list_metrics
    from cfqa_data.eval.comparison import baseline_of
    from cfqa_data.eval.evaluator import DEFAULT_METRICS
    from cfqa_data.eval.metrics.spec import split_specs
    from cfqa_data.eval.text import LAYOUTS

    for name, given in (("classes", classes), ("pictures", pictures)):
        if given and report is None:
            raise CfqaError(f"--{name} requires --report")
    if per_codec and against is None:
        raise CfqaError("--per-codec requires --against")
    _check_table(context, table, figure)
    if report is not None:  # report missing packages now, not after scoring
        from cfqa_data.eval.report import write_report
    if classes:
        import cfqa_data.eval.report.classes
    if pictures:
        import cfqa_data.eval.report.pictures  # noqa: F401
    page, out = _report_files(context, report, out, force)
    names: list[str] = []
    for name in split_specs(",".join(metric or DEFAULT_METRICS)):
        names += list_metrics() if name == "all" else [name]
    baseline = None
    if against is not None:
        names += split_specs(against)
        baseline = baseline_of(split_specs(against), device)
        if len(set(names)) < 2:
            raise MetricError(f"nothing to compare with {baseline!r}: name another --metric")
    hint = "scores so far are kept, run the same command again to resume" if out else ""
    with (
        working(hint) as progress,
        redirect_stdout(sys.stderr),  # keep the output of a user's metric out of the result
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", MetricWarning)  # the same messages are printed below
        dataset = load(
            folder,
            task,
            codec=codec or None,
            untrusted=untrusted,
            plugins=plugin,
            follow_links=follow_links,
        )
        evaluation = run_evaluation(
            dataset,
            list(dict.fromkeys(names)),
            device,
            fold=fold,
            limit=max_sources,
            target=target,
            leave_out=leave_out,
            precision=precision,
            workers=workers,
            client=scheduler,
            out=out,
            force=force,
            progress=progress,
        )
    failures, written = list(evaluation.failures.values()), []
    compared: Comparison | None = None
    if baseline is not None:
        try:
            compared = evaluation.compare(against=baseline)
        except MetricError as error:  # the tables are printed nevertheless
            failures.append(str(error))

    def text() -> str:
        parts = [_table_text(evaluation, table, figure)]
        if compared:
            parts.append(compared.text(per_codec=per_codec))
            parts += [] if per_codec else ["Per codec and level: --per-codec."]
        return "\n\n".join(parts)

    answer(as_json, lambda: _evaluation_json(evaluation, compared), text)
    sys.stdout.flush()
    if out is not None and str(out) not in evaluation.failures:
        written.append(f"Scores: {out}")
    if page is not None:
        try:
            against = compared.against if compared else None
            write_report(
                evaluation, page, dataset, against=against, classes=classes, pictures=pictures
            )
            written.append(f"Report: {page}")
        except DiskError as error:  # there would be no space for the scores either
            failures.append(str(error))
        except CfqaError as error:
            failures.append(f"{error}; {_save_scores(evaluation, page, out)}")
    machine_readable = as_json or table in ("latex", "markdown", "csv")
    for line in () if machine_readable else written:
        print(line)
    for note in evaluation.notes.values() if as_json or table not in LAYOUTS else ():
        print_error(note)  # the text of the other tables contains the notes
    if failures:
        raise MetricError("; ".join(failures)) from _cause(evaluation)


@command("report")
def report(
    context: typer.Context,
    folder: str,
    scores: list[Path],
    *,
    out: Path | None = None,
    table: Table | None = None,
    figure: str = "srocc",
    target: Target | None = None,
    against: str | None = None,
    classes: bool = False,
    pictures: bool = False,
    force: bool = False,
    follow_links: bool = False,
) -> None:
    """Write a report of scores as one offline HTML file, or print a table of them.

    Args:
        scores (SCORES): Score files, .parquet, of `cfqa eval DIR --out`; several are merged.
        out (FILE): Write the report to this .html file.
        table (TABLE): Print a table, as of `cfqa eval --table`.
        figure (FIGURE): Statistic of such a table, as of `cfqa eval --figure`.
        target: Label to correlate with. Default: that of the scores.
        against (NAME): Metric that the others are compared with. Default: cosine, or mse.
        classes: Also plot the classes at several levels, by t-SNE; reads features.
        pictures: Also show the features on which metric and label disagree most; reads features.
    """
    from cfqa_data.access.dataset import load
    from cfqa_data.eval import read_evaluation
    from cfqa_data.eval.report import write_report
    from cfqa_data.eval.text import LAYOUTS

    if out is None and table is None:
        raise CfqaError("nothing to write: name a page with --out, or a --table")
    for name, given in (("against", against), ("classes", classes), ("pictures", pictures)):
        if given and out is None:
            raise CfqaError(f"--{name} requires --out")
    _check_table(context, table or "text", figure)
    check_new_file(out, (".html",), force)
    dataset = load(folder, follow_links=follow_links)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)  # the page has them, or they are printed
        evaluation = read_evaluation(*scores, dataset=dataset, target=target)
    for name, note in evaluation.notes.items():
        if name.startswith("scores of ") and table not in LAYOUTS:  # their text contains the notes
            print_error(note)
    if table is not None:
        print(_table_text(evaluation, table, figure))
        sys.stdout.flush()
    if out is not None:
        page = write_report(
            evaluation, out, dataset, against=against, classes=classes, pictures=pictures
        )
        print(f"Report: {page}", file=sys.stderr if table else sys.stdout)


def _check_table(context: typer.Context, table: str, figure: str) -> None:
    """Check that a figure exists, and is given only for a table of one figure.

    Raises:
        CfqaError: If it is unknown, or the table shows several figures.
    """
    from cfqa_data.eval.tables import FIGURES
    from cfqa_data.eval.text import LAYOUTS

    source = context.get_parameter_source("figure")
    if table in LAYOUTS and source is not None and source.name == "COMMANDLINE":
        raise CfqaError("--figure requires --table text, latex, markdown or csv")
    if figure not in FIGURES:
        raise CfqaError(unknown_name("figure", figure, FIGURES))


def _table_text(evaluation: Evaluation, table: str, figure: str) -> str:
    from cfqa_data.eval.text import LAYOUTS

    layout = LAYOUTS.get(table)
    return layout(evaluation) if layout else str(evaluation.table(table, figure))


def _cause(evaluation: Evaluation) -> BaseException | None:
    """Return the exception that user-defined metrics raised, or a group of several."""
    causes = [e.__cause__ for e in evaluation.errors.values() if isinstance(e.__cause__, Exception)]
    return ExceptionGroup("metrics failed", causes) if len(causes) > 1 else next(iter(causes), None)


def _save_scores(evaluation: Evaluation, page: Path, out: Path | None) -> str:
    """Save the scores after a report failed, unless they are saved; return a message."""
    lost = out is not None and str(out) in evaluation.failures
    if out is None:
        out = page.with_suffix(".parquet")
        while out.exists():
            out = out.with_name(f"{out.stem}-again.parquet")
        try:
            evaluation.write(out)
        except CfqaError:
            lost = True
    return "the scores could not be saved" if lost else f"the scores are in {out}"


def _report_files(
    context: typer.Context, report: Path | None, out: Path | None, force: bool
) -> tuple[Path | None, Path | None]:
    """Return the paths of the report and the scores.

    Existing scores next to the report identify their dataset, so both are overwritten together.

    Raises:
        CfqaError: If a file cannot be written, or exists.
    """
    out = out and absolute_path(out)
    if report is None:
        return None, out
    page = absolute_path(report)
    if page.suffix != ".html":
        _make_folder(context, page)
        page, out = page / "report.html", out or page / "scores.parquet"
    again = out is not None and out.parent == page.parent and out.exists()
    check_new_file(page, (".html",), force or again)
    return page, out


def _make_folder(context: typer.Context, folder: Path) -> None:
    """Create a folder for the output; remove it at the end of the command if it is empty."""
    if folder.is_dir():
        return
    try:
        folder.mkdir()
    except FileExistsError:
        raise CfqaError(
            f"{folder}: exists and is not a folder; name a folder, or an .html file"
        ) from None
    except FileNotFoundError:
        raise CfqaError(f"{folder}: there is no folder {folder.parent} to create it in") from None

    @context.call_on_close
    def _() -> None:
        with suppress(OSError):
            folder.rmdir()


def _only(context: typer.Context, *allowed: str) -> None:
    """Check that the command line has no other parameters than two that belong together.

    Raises:
        CfqaError: If it has another one.
    """
    parameters = {parameter.name or "": parameter for parameter in context.command.params}
    for name, parameter in parameters.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and name not in allowed:
            first, second = (parameters[one].opts[0] for one in allowed)
            metavar = parameter.metavar if parameter.param_type_name == "argument" else None
            extra = metavar or parameter.opts[0]
            raise CfqaError(f"{first} cannot be combined with {extra}, only with {second}")


def _evaluate_logs(folder: Path, as_json: bool) -> None:
    from cfqa_data.eval.paper_logs import paper_figures, paper_logs_text

    figures = paper_figures(folder)
    content = {"correlations": [figure._asdict() for figure in figures]}
    answer(as_json, lambda: content, lambda: paper_logs_text(figures))


def _evaluation_json(evaluation: Evaluation, compared: Comparison | None) -> dict[str, Any]:
    from cfqa_data.eval.statistics.columns import COLUMNS

    differences = {"differences": compared.table.to_pylist()} if compared else {}
    return {
        "target": evaluation.target,
        "metrics": [metric.name for metric in evaluation.metrics],
        "failures": evaluation.failures,
        "notes": evaluation.notes,
        **{name: getattr(evaluation, name).to_pylist() for name in COLUMNS},
        **differences,
    }
