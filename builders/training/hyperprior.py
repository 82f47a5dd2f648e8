"""Train the ladders of hyperprior models that ship with the package.

    python -m cfqa_data.builders.training.hyperprior --features planes.safetensors --out models

The features are packed planes of k-means codes, uint8 (count, rows, cols), one tensor per task.
One ladder is trained on all tasks, one on each.  The first model starts from the planes' own linear
transform, any other from its neighbour: in the multi-task ladder from the next larger lambda,
elsewhere from the multi-task model of the nearest lambda.  Each finished model is a file in
``OUT/models`` that says how it was made.  A second run trains what is missing and keeps the rest;
it must have the same planes, n, m and stages.  At the end every ladder becomes one file (float16
weights, and the tables that encoder and decoder share), and ``report.json`` says how each model was
made and what it does on held-out planes.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.builders.training.hyperprior_batches import read_planes, sample_batch
from cfqa_data.builders.training.hyperprior_plan import (
    MULTI_TASK,
    Job,
    Settings,
    check_kept,
    model_size,
    plan,
    provenance,
    read_model,
)
from cfqa_data.codecs.hyperprior import Hyperprior
from cfqa_data.codecs.hyperprior_weights import HyperpriorWeights, write_ladder
from cfqa_data.errors import BuildError, CfqaError
from cfqa_data.tasks import TASKS

__all__ = ["evaluate", "main", "train", "train_ladders"]

LAMBDAS = (0.2, 0.1, 0.052, 0.027, 0.014, 0.0072, 0.0037, 0.0019, 0.001, 0.0005)
EVALUATED = 12  # held-out planes per task in the report

_counter: Any = None  # steps done by all workers together; set in each worker


def train(job: Job, settings: Settings) -> dict[str, Any]:
    """Train one model, write its file, and return its line of the report."""
    import torch

    from cfqa_data.builders.training.hyperprior_start import (
        block_statistics,
        rescale,
        start_at_transform,
    )
    from cfqa_data.codecs.hyperprior_module import GDN, ScaleHyperprior

    began = time.monotonic()
    torch.set_num_threads(settings.threads)
    seed = np.random.SeedSequence([settings.seed, *job.path(settings).name.encode()])
    generator = np.random.default_rng(seed)
    torch.manual_seed(int(seed.generate_state(1)[0]))
    made = provenance(job, settings)
    planes = read_planes(settings.features, job.task)
    training = [pair[0] for pair in planes.values()]

    model = ScaleHyperprior(settings.n, settings.m, settings.stages)
    if job.parent:
        _, _, parent = read_model(job.parent.path(settings))
        model.load_state_dict({key: torch.tensor(v).float() for key, v in parent.state.items()})
        rescale(model, math.sqrt(job.lmbda / job.parent.lmbda))
    else:
        start_at_transform(model, *block_statistics(training, settings.stride), job.lmbda)
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, settings.rate)
    normalisations = [layer for layer in model.modules() if isinstance(layer, GDN)]
    steps, patch = job.steps(settings), settings.patch_shape
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * learning_rate(step, steps)
        batch = sample_batch(training, settings.batch, patch, settings.stride, generator)
        patches, mask = map(torch.from_numpy, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            decoded, y, z = model(patches.contiguous(memory_format=torch.channels_last))
        points = mask.sum()
        bits = -(y.log2().sum() + z.log2().sum()) / points
        error = ((decoded - patches).square() * mask).sum() / points
        loss = job.lmbda * 255.0**2 * error + bits
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for layer in normalisations:
            layer.bound()
        if _counter is not None:
            with _counter.get_lock():
                _counter.value += 1
    # float16 first: the tables must belong to the weights that are stored.
    state = {key: value.numpy().astype(np.float16) for key, value in model.state_dict().items()}
    weights = HyperpriorWeights.from_state(state, settings.pad)
    report = {
        **made,
        "seconds": round(time.monotonic() - began, 1),
        "held_out": evaluate(weights, {name: pair[1] for name, pair in planes.items()}),
    }
    job.path(settings).parent.mkdir(parents=True, exist_ok=True)
    write_ladder(job.path(settings), job.ladder, [(job.lmbda, weights)], {"report": report})
    return report


def learning_rate(step: int, steps: int) -> float:
    """Return the factor on the step size: a short rise, then a cosine down to 1%."""
    rise = min(1.0, (step + 1) / 50)
    return rise * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * step / steps)))


def evaluate(
    weights: HyperpriorWeights, planes: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Return bits per point and mean squared error (in codes) of real bitstreams, per task."""
    model = Hyperprior(weights)
    results = {}
    for task, all_planes in planes.items():
        bits = error = points = 0.0
        for plane in all_planes[:EVALUATED]:
            stream = model.encode(plane / 256.0)
            decoded = np.clip(np.rint(256.0 * model.decode(stream, plane.shape)), 0, 255)
            bits += 8 * len(stream)
            error += float(np.square(decoded - plane).sum())
            points += plane.size
        results[task] = {"bpfp": round(bits / points, 5), "mse": round(error / points, 4)}
    return results


def train_ladders(
    settings: Settings, lambdas: dict[str, tuple[float, ...]], workers: int
) -> list[Path]:
    """Train every model that has no file yet, then write ladders and report.

    Raises:
        BuildError: the features, the lambdas or the models that are there cannot be used.
    """
    if workers < 1:
        raise BuildError(f"workers must be 1 or more, got {workers}")
    jobs = plan(lambdas)
    read_planes(settings.features, None)
    check_kept(jobs, settings)
    waiting = [job for job in jobs if not job.path(settings).is_file()]
    if waiting:
        _run(waiting, settings, workers)
    return _assemble(jobs, settings)


def _run(waiting: list[Job], settings: Settings, workers: int) -> None:
    """Run the jobs, each after its parent, with a progress bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed
    from rich.progress import TimeRemainingColumn as Remaining

    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("steps {task.fields[rate]}"))
    text = TextColumn("{task.description}")
    total = sum(job.steps(settings) for job in waiting)
    began = time.monotonic()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (counter,))
    with Progress(text, *columns, Elapsed(), Remaining(elapsed_when_finished=True)) as bar, pool:
        line = bar.add_task("hyperprior", total=total, rate="")
        running: dict[Future[dict[str, Any]], Job] = {}
        todo = list(waiting)
        while todo or running:
            blocked = {*todo, *running.values()}
            for job in [job for job in todo if job.parent not in blocked]:
                if len(running) < workers:
                    todo.remove(job)
                    running[pool.submit(train, job, settings)] = job
            done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            rate = counter.value / max(time.monotonic() - began, 1e-9)
            names = ", ".join(f"{job.task or 'all'} {job.lmbda:g}" for job in running.values())
            bar.update(line, completed=counter.value, rate=f"{rate:.1f}/s", description=names)
            for future in done:
                report, job = future.result(), running.pop(future)
                told = "  ".join(
                    f"{task} {entry['bpfp']:.3f} bpfp mse {entry['mse']:.1f}"
                    for task, entry in report["held_out"].items()
                )
                bar.console.print(f"{job.ladder} {job.lmbda:g} ({report['seconds']:.0f} s): {told}")


def _start_worker(counter: Any) -> None:
    global _counter
    _counter = counter


def _assemble(jobs: list[Job], settings: Settings) -> list[Path]:
    """Write one file per ladder, and the report."""
    paths, reports = [], []
    for ladder in dict.fromkeys(job.ladder for job in jobs):
        models = []
        for job in sorted((job for job in jobs if job.ladder == ladder), key=lambda job: job.lmbda):
            report, lmbda, weights = read_model(job.path(settings))
            models.append((lmbda, weights))
            reports.append(report)
        path = Path(settings.out) / f"{ladder}.safetensors"
        write_ladder(path, ladder, models, model_size(models[0][1]))
        paths.append(path)
    text = json.dumps({"models": reports}, indent=1)
    (Path(settings.out) / "report.json").write_text(text + "\n")
    return paths


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--features", required=True, help="safetensors of planes per task")
    parser.add_argument("--out", required=True, help="folder for models, ladders and report")
    parser.add_argument("--workers", type=int, default=2, help="models trained at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each worker")
    parser.add_argument("--first-steps", type=int, default=Settings.first_steps)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--batch", type=int, default=Settings.batch)
    parser.add_argument("--n", type=int, default=Settings.n, help="inner channels")
    parser.add_argument("--m", type=int, default=Settings.m, help="channels of y")
    parser.add_argument("--stages", type=int, default=Settings.stages, help="strides of 2 to y")
    parser.add_argument("--rate", type=float, default=Settings.rate, help="highest step size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lambdas", type=float, nargs="+", default=LAMBDAS)
    for task in TASKS:
        told = f"lambdas of the ladder of {task} alone; those of --lambdas if not given"
        parser.add_argument(f"--lambdas-{task}", type=float, nargs="+", help=told)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    given = _parse(arguments)
    lambdas = {MULTI_TASK: tuple(given.lambdas)}
    for task in TASKS:
        own = getattr(given, f"lambdas_{task}") or given.lambdas
        lambdas[f"hyperprior_task_specific-{task}"] = tuple(own)
    try:
        settings = Settings(
            features=given.features,
            out=given.out,
            batch=given.batch,
            first_steps=given.first_steps,
            steps=given.steps,
            rate=given.rate,
            n=given.n,
            m=given.m,
            stages=given.stages,
            seed=given.seed,
            threads=given.threads,
        )
        for path in train_ladders(settings, lambdas, given.workers):
            print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")
    except CfqaError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
