"""The command `cfqa`. Whatever is heavy is imported inside the command that needs it.

Exit status: 0 done; 2 bad use or bad input, with one line on stderr; 130 interrupted;
141 whoever read the output has gone.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfqa_data.errors import CfqaError, MetricError

if TYPE_CHECKING:
    from cfqa_data.eval import Evaluation

__all__ = ["app", "main"]

# Base of all of typer's usage errors; typer itself does not export it.
USAGE_ERROR: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

# Module that may be absent -> the extra that brings it.
EXTRAS = {
    "av": "codecs",
    "constriction": "codecs",
    "dask": "build",
    "datasets": "hf",
    "distributed": "build",
    "huggingface_hub": "hf",
    "imageio_ffmpeg": "codecs",
    "jinja2": "eval",
    "matplotlib": "build",
    "PIL": "build",
    "scipy": "eval",
    "torch": "eval",
}

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compressed Feature Quality Assessment: build a dataset, look at it, score metrics on it.",
)


class Tier(StrEnum):
    """Which files a dataset folder holds."""

    full = "full"
    light = "light"


class Precision(StrEnum):
    """How exact float32 matrix products are."""

    highest = "highest"
    high = "high"


class ExportFormat(StrEnum):
    """What `cfqa export` writes."""

    safetensors = "safetensors"
    zarr = "zarr"
    npy = "npy"
    parquet = "parquet"


class TableLayout(StrEnum):
    """How `cfqa eval` lays out its figures."""

    paper = "paper"
    plain = "plain"


class Target(StrEnum):
    """Label that a metric should follow."""

    distortion = "distortion"
    loss = "loss"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A dataset folder.")]
Encoder = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Reference encoder. Default: the environment's, or on PATH."),
]
EncoderConfig = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Its configuration. Default: the environment's, or near it."),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        command = typer.main.get_command(app)
        status = command.main(arguments or ["--help"], prog_name="cfqa", standalone_mode=False)
        sys.stdout.flush()
        if not arguments:
            return 2
        return status if isinstance(status, int) else 0
    except USAGE_ERROR as error:
        return _fail(f"{error.format_message()} (see cfqa --help)")
    except CfqaError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        module = (error.name or "").split(".")[0]
        if module not in EXTRAS:
            raise
        extra = "build" if arguments[:1] in (["build"], ["import-release"]) else EXTRAS[module]
        return _fail(f"{module} is not installed: pip install 'cfqa-data[{extra}]'")
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except BrokenPipeError:
        return _reader_gone()
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # typer makes that an exit with 1
            return _reader_gone()
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"cfqa {version('cfqa-data')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            is_eager=True,
            callback=_print_version,
        ),
    ] = False,
) -> None:
    pass


@app.command()
def build(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="mini, nano, paper, or a recipe's TOML file.")
    ] = "mini",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder to make.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-j", min=1, help="Processes. Default: one per core, up to 8."),
    ] = None,
    tier: Annotated[
        Tier, typer.Option(help="light leaves out what bitstreams decode to.")
    ] = Tier.full,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Dask scheduler to run on instead.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where root:// is: images and weights of a recipe."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Check everything, tell what it takes, build nothing.")
    ] = False,
    hm_encoder: Encoder = None,
    hm_config: EncoderConfig = None,
    vtm_encoder: Encoder = None,
    vtm_config: EncoderConfig = None,
    check_decoder: Annotated[
        bool,
        typer.Option("--check-decoder", help="Have HM's and VTM's decoders decode all again."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Build a dataset from a recipe. Goes on where an earlier build stopped."""
    from cfqa_data.builders.pipeline import build as run_build
    from cfqa_data.resources import ROOT_VARIABLE
    from cfqa_data.summary import build_text, summarise
    from cfqa_data.terminal import show_progress

    if root is not None:
        os.environ[ROOT_VARIABLE] = str(root.resolve())  # workers of this machine inherit it
    files = {
        "CFQA_HM_ENCODER": hm_encoder,
        "CFQA_HM_CONFIG": hm_config,
        "CFQA_VTM_ENCODER": vtm_encoder,
        "CFQA_VTM_CONFIG": vtm_config,
    }
    os.environ.update({name: str(file.absolute()) for name, file in files.items() if file})
    if check_decoder:
        os.environ["CFQA_CHECK_DECODER"] = "1"
    if plan:
        _plan(recipe, tier.value, as_json)
        return
    if out is None:
        raise typer.BadParameter("Missing option '--out' / '-o'.")
    try:
        with show_progress() as progress:
            folder = run_build(
                recipe,
                out,
                workers=workers or min(8, _cores()),
                tier=tier.value,
                scheduler=scheduler,
                progress=progress,
            )
    except KeyboardInterrupt:
        _interrupted("what is finished is kept, the same command goes on from here")
        raise typer.Exit(130) from None
    summary = summarise(folder)
    if as_json:
        _print_json(summary)
    else:
        print(build_text(summary, out))


def _plan(recipe: str, tier: str, as_json: bool) -> None:
    from cfqa_data.builders.pipeline.check import make_plan
    from cfqa_data.builders.pipeline.estimate import estimate, estimate_text
    from cfqa_data.recipe import load_recipe

    told = estimate(make_plan(load_recipe(recipe), tier))
    if as_json:
        _print_json(told)
    else:
        print(estimate_text(told))


@app.command("import-release")
def import_release(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A downloaded release of the benchmark.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to make.")],
    logs: Annotated[
        Path | None,
        typer.Option(metavar="LOGS", help="Published score logs. Default: score by the recipe."),
    ] = None,
    recipe: Annotated[
        str, typer.Option(metavar="RECIPE", help="Ranges, and what to score with.")
    ] = "paper",
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where root:// is: images and weights of the recipe."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a dataset of a downloaded release, without loss. Goes on where it was stopped."""
    from cfqa_data.builders.release import import_release as run_import
    from cfqa_data.resources import ROOT_VARIABLE
    from cfqa_data.summary import imported_text, summarise
    from cfqa_data.terminal import show_progress

    if root is not None:
        os.environ[ROOT_VARIABLE] = str(root.resolve())
    try:
        with show_progress() as progress:
            imported = run_import(source, out, logs=logs, recipe=recipe, progress=progress)
    except KeyboardInterrupt:
        _interrupted("what is finished is kept, the same command goes on from here")
        raise typer.Exit(130) from None
    summary = summarise(imported.root) | {"import": imported.to_dict()}
    if as_json:
        _print_json(summary)
    else:
        print(imported_text(summary, out))


@app.command()
def info(folder: Folder, as_json: Json = False) -> None:
    """Show what a dataset holds, and whether its labels can tell metrics apart."""
    from cfqa_data.summary import info_text, summarise

    summary = summarise(folder)
    if as_json:
        _print_json(summary)
    else:
        print(info_text(summary))


@app.command("eval")
def evaluate(
    context: typer.Context,
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="A dataset folder.", show_default=False)
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A metric's name, MODULE:FUNCTION, or `all`; repeat it for several. "
            "Default: mse, cosine and cka.",
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help="Only this task: cls, seg or dpt.")
    ] = None,
    codec: Annotated[
        list[str] | None,
        typer.Option(metavar="CODEC", help="Only this codec; repeat it for several."),
    ] = None,
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
            metavar="FILE",
            help="Write every score to this .parquet or .csv file. An interrupted run goes on "
            "from what it left beside it.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            help="Write a report: one .html file, or a folder for report.html and scores.parquet.",
        ),
    ] = None,
    table: Annotated[
        TableLayout, typer.Option(help="paper: as published. plain: every figure, one per line.")
    ] = TableLayout.paper,
    paper_logs: Annotated[
        Path | None,
        typer.Option(
            metavar="LOGS",
            help="Instead of a dataset: the published statistic from a folder of score logs.",
        ),
    ] = None,
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
    from cfqa_data.eval import evaluate as run_evaluation
    from cfqa_data.eval import list_metrics
    from cfqa_data.eval.evaluator import DEFAULT_METRICS
    from cfqa_data.eval.text import LAYOUTS
    from cfqa_data.terminal import show_progress

    if report is not None:  # what it needs is missed now, not when everything is scored
        from cfqa_data.eval.report import write_report
    page, out = _report_files(report, out)
    if any(":" in name for name in metric or ()):
        sys.path.insert(0, os.getcwd())  # a user's module lies where the command is run
    names: list[str] = []
    for name in metric or DEFAULT_METRICS:
        names += list_metrics() if name == "all" else [name]
    try:
        # What a metric prints is none of the answer.
        with show_progress() as progress, redirect_stdout(sys.stderr):
            evaluation = run_evaluation(
                folder,
                list(dict.fromkeys(names)),
                device,
                task=task,
                codec=codec or None,
                fold=fold,
                limit=limit,
                target=target.value,
                precision=precision.value,
                out=out,
                progress=progress,
            )
    except KeyboardInterrupt:
        _interrupted("the same command goes on from the scores so far" if out else "")
        raise typer.Exit(130) from None
    if as_json:
        _print_json(_evaluation_json(evaluation))
    else:
        print(LAYOUTS[table.value](evaluation), flush=True)
        if out is not None and str(out) not in evaluation.failures:
            print(f"Every score: {out}")
    if page is not None:
        write_report(evaluation, page, folder)
        if not as_json:
            print(f"Report: {page}")
    if evaluation.failures:
        raise MetricError("; ".join(evaluation.failures.values()))


def _report_files(report: Path | None, out: Path | None) -> tuple[Path | None, Path | None]:
    """Return where the page and the scores go; what cannot be written there is told of at once."""
    if report is None:
        return None, out
    from cfqa_data.storage import check_writable

    page = report
    if report.suffix != ".html":
        report.mkdir(exist_ok=True)
        page, out = report / "report.html", out or report / "scores.parquet"
    check_writable(page)
    return page, out


@app.command("report")
def write_page(
    folder: Folder,
    scores: Annotated[
        Path, typer.Argument(metavar="SCORES", help="What `cfqa eval DIR --out` wrote, .parquet.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Page to write, .html.")],
    target: Annotated[
        Target | None,
        typer.Option(help="Label to follow. Default: that of the scores.", show_default=False),
    ] = None,
) -> None:
    """Write a report of scores: one HTML file that opens offline."""
    from cfqa_data.dataset import load
    from cfqa_data.eval import read_evaluation
    from cfqa_data.eval.report import write_report
    from cfqa_data.storage import check_writable

    if out.suffix != ".html":
        raise CfqaError(f"{out}: a report is written as .html, by that ending")
    check_writable(out)
    dataset = load(folder)
    evaluation = read_evaluation(dataset, scores, target.value if target else None)
    print(f"Report: {write_report(evaluation, out, dataset)}")


@app.command()
def export(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A dataset folder.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="Folder to make, or to go on with.")
    ],
    format: Annotated[ExportFormat, typer.Option(help="Of the files to write.")],
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help="Only this task: cls, seg or dpt.")
    ] = None,
    codec: Annotated[
        list[str] | None,
        typer.Option(metavar="CODEC", help="Only this codec; repeat it for several."),
    ] = None,
    level: Annotated[
        list[int] | None,
        typer.Option(metavar="LEVEL", help="Only this level; repeat it for several."),
    ] = None,
    originals: Annotated[
        bool, typer.Option("--originals/--no-originals", help="Also write the originals.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Write features as plain float32 files. Goes on where it was stopped."""
    from cfqa_data.builders.export import INDEX
    from cfqa_data.builders.export import export as run_export
    from cfqa_data.terminal import show_progress
    from cfqa_data.text import size_text

    try:
        with show_progress() as progress:
            exported = run_export(
                folder,
                out,
                format.value,
                task=task,
                codec=codec or None,
                level=level or None,
                originals=originals,
                progress=progress,
            )
    except KeyboardInterrupt:
        _interrupted("what is finished is kept, the same command goes on from here")
        raise typer.Exit(130) from None
    if as_json:
        _print_json(exported.to_dict())
    else:
        print(f"{out}: {exported.features} features, {size_text(exported.size)} of float32")
        print(f"What is where, with the labels: {out / INDEX}")


@app.command()
def publish(
    folder: Folder,
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Dataset repo on the Hub.")],
    private: Annotated[
        bool, typer.Option("--private", help="A new repo is seen by its owners only.")
    ] = False,
    tier: Annotated[
        Tier | None,
        typer.Option(help="light leaves out the codes of a full folder. Default: the folder's."),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(metavar="BRANCH", help="Branch, made if it is not there. Default: main."),
    ] = None,
    tag: Annotated[
        str | None,
        typer.Option(metavar="TAG", help="Of this version. Default: one made of its content."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, tell what would go, send nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Publish a dataset on the Hugging Face Hub. Goes on where it was stopped."""
    from cfqa_data.builders.publish import plan_publishing
    from cfqa_data.builders.publish import publish as run_publishing
    from cfqa_data.builders.publish_text import plan_text, published_text, quiet_client
    from cfqa_data.terminal import show_progress

    with show_progress() as progress:
        plan = plan_publishing(
            folder,
            repo,
            tier=tier.value if tier else None,
            revision=revision,
            tag=tag,
            private=private,
            progress=progress,
        )
    if dry_run:
        if as_json:
            _print_json(plan.to_dict())
        else:
            print(plan_text(plan))
        return
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    try:
        with quiet_client():
            published = run_publishing(plan)
    except KeyboardInterrupt:
        _interrupted("what was sent is kept, the same command goes on from there")
        raise typer.Exit(130) from None
    if as_json:
        _print_json(published.to_dict())
    else:
        print(published_text(published))


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
        _print_json({"correlations": [figure.to_dict() for figure in figures]})
    else:
        print(paper_logs_text(figures))


def _evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    from cfqa_data.eval.statistics.columns import COLUMNS

    return {
        "target": evaluation.target,
        "metrics": [metric.name for metric in evaluation.metrics],
        "failures": evaluation.failures,
        **{name: getattr(evaluation, name).to_pylist() for name in COLUMNS},
    }


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(_json_safe(data), indent=1, allow_nan=False))


def _json_safe(value: Any) -> Any:
    """Return the value with NaN and infinity, which JSON lacks, as None."""
    if isinstance(value, dict):
        return {key: _json_safe(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _reader_gone() -> int:
    """Return the status for a reader that stopped, as in `cfqa info DIR | head -1`.

    Stdout goes nowhere from here, so that the interpreter's last flush does not fail again.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 141


def _interrupted(more: str = "") -> int:
    print(f"cfqa: interrupted{'; ' if more else ''}{more}", file=sys.stderr)
    return 130


def _fail(message: str) -> int:
    """Say in one line what is wrong, and return the exit status for it."""
    print(f"cfqa: {' '.join(message.split())}", file=sys.stderr)
    return 2
