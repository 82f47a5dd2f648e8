"""Train the ladders of hyperprior models that ship with the package.

    python -m cfqa_data.builders.training.hyperprior --features planes.safetensors --out models

The features are packed planes of k-means codes, uint8 (count, rows, cols), one tensor per task. One
ladder is trained on all tasks, and one on each. The first model is initialised with the linear
transform of the planes, any other with a trained neighbour: the model of the next larger lambda in
the multi-task ladder, the multi-task model of the nearest lambda in other ladders. With
``--published``, every model starts from random weights and is trained like the published ones.

Each finished model is a file in ``OUT/models`` with its training settings. A second run, which must
have the same planes, n, m and stages, keeps finished models, resumes unfinished ones from their
last saved state, and trains missing ones. At the end, each ladder is written to one file (the
weights, and the tables that encoder and decoder share), and ``report.json`` lists the training
settings and held-out results of all models.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cfqa_data.builders.training import hyperprior_plan as planning
from cfqa_data.builders.training.hyperprior_plan import LAMBDAS as PUBLISHED
from cfqa_data.codecs.hyperprior.weights import write_ladder
from cfqa_data.console.progress import Silent
from cfqa_data.errors import BuildError
from cfqa_data.format.format_1 import TASKS
from cfqa_data.format.storage import write_text
from cfqa_data.paths import expanded
from cfqa_data.processes.executor import Executor
from cfqa_data.processes.stage import Stage, drive
from cfqa_data.scripts import run_script

__all__ = ["Trainings", "main", "train_ladders"]

LAMBDAS = (0.2, 0.1, 0.052, 0.027, 0.014, 0.0072, 0.0037, 0.0019, 0.001, 0.0005)


@dataclass(frozen=True)
class Trainings(Stage):
    """Stage that trains models, none of which is the parent of another."""

    name, unit = "train", "steps"
    jobs: Sequence[planning.Job]
    settings: planning.Settings

    def items(self) -> Sequence[planning.Job]:
        return self.jobs

    def outputs(self, item: planning.Job) -> tuple[Path, ...]:
        return (item.path(self.settings),)

    def cost(self, item: planning.Job) -> int:
        return item.steps(self.settings)

    def run(self, item: planning.Job) -> dict[str, Any]:
        """Train a model; print an error at once, since other models are still training."""
        from cfqa_data.builders.training.hyperprior_train import train

        try:
            return train(item, self.settings)
        except BuildError as error:
            print(error, file=sys.stderr, flush=True)
            raise


def train_ladders(
    settings: planning.Settings, lambdas: dict[str, tuple[float, ...]], workers: int
) -> list[Path]:
    """Train every model that has no file yet, then write the ladders and the report.

    Raises:
        BuildError: If the features, the lambdas or the existing models cannot be used.
    """
    if workers < 1:
        raise BuildError(f"workers must be 1 or more, got {workers}")
    jobs = planning.plan(lambdas, settings.start == "chain")
    planning.read_planes(settings.features, None)
    planning.check_kept(jobs, settings)
    waiting = [job for job in jobs if not job.path(settings).is_file()]
    if waiting:
        from cfqa_data.builders.training.hyperprior_train import check_states

        check_states(waiting, settings)
        with Executor(workers) as executor:
            for ready in planning.generations(waiting):
                for job, report in drive(Trainings(ready, settings), executor, Silent()):
                    print(_line(job, report), flush=True)
    return _assemble(jobs, settings)


def _line(job: planning.Job, report: dict[str, Any]) -> str:
    held_out = "  ".join(
        f"{task} {entry['bpfp']:.3f} bpfp mse {entry['mse']:.1f}"
        for task, entry in report["held_out"].items()
    )
    return f"{job.ladder} {job.lmbda:g} ({report['seconds']:.0f} s): {held_out}"


def _assemble(jobs: list[planning.Job], settings: planning.Settings) -> list[Path]:
    """Write one file per ladder, and the report."""
    paths, reports = [], []
    for ladder in dict.fromkeys(job.ladder for job in jobs):
        own = sorted((j for j in jobs if j.ladder == ladder), key=lambda job: job.lmbda)
        models = [planning.read_model(job.path(settings)) for job in own]
        reports += [report for report, *_ in models]
        paths.append(Path(settings.out) / f"{ladder}.safetensors")
        pairs = [(lmbda, weights) for _, lmbda, weights in models]
        write_ladder(paths[-1], ladder, pairs, planning.model_size(pairs[0][1]))
    text = json.dumps({"models": reports}, indent=1)
    write_text(Path(settings.out) / "report.json", text + "\n")
    return paths


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--features", required=True, help="safetensors of planes per task")
    parser.add_argument("--out", required=True, help="folder for models, ladders and report")
    parser.add_argument("--workers", type=int, default=2, help="models trained at a time")
    help_text = "size, lambdas, patches, schedule and coding of the published models"
    parser.add_argument("--published", action="store_true", help=help_text)
    for name, help_text in planning.OPTIONS.items():
        option, kind = f"--{name.replace('_', '-')}", type(getattr(planning.Settings, name))
        parser.add_argument(option, type=kind, default=argparse.SUPPRESS, help=help_text)
    parser.add_argument(
        "--lambdas", type=float, nargs="+", help="lambdas of the models of all tasks"
    )
    for task in TASKS:
        help_text = f"lambdas of the models of {task} alone; default: those of --lambdas"
        parser.add_argument(f"--lambdas-{task}", type=float, nargs="+", help=help_text)
    return parser


def _lambdas(options: argparse.Namespace, tasks: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """Return the lambdas of each ladder: those of the options, or the default lists."""
    ladders = {planning.MULTI_TASK: options.lambdas}
    for task in tasks:
        lambdas = getattr(options, f"lambdas_{task}", None) or options.lambdas
        ladders[f"hyperprior_task_specific-{task}"] = lambdas
    defaults = PUBLISHED if options.published else {}
    return {
        ladder: tuple(values or defaults.get(ladder, LAMBDAS)) for ladder, values in ladders.items()
    }


def _run(options: argparse.Namespace) -> None:
    changes = {name: getattr(options, name) for name in planning.OPTIONS if hasattr(options, name)}
    if options.published and "steps" in changes:
        changes.setdefault("first_steps", changes["steps"])
    base = planning.published if options.published else planning.Settings
    settings = replace(
        base(features=str(expanded(options.features)), out=str(expanded(options.out))), **changes
    )
    lambdas = _lambdas(options, planning.read_planes(settings.features, None))
    for path in train_ladders(settings, lambdas, options.workers):
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return run_script(_parser(), arguments, _run)


if __name__ == "__main__":
    sys.exit(main())
