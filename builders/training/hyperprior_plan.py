"""Plan the training of hyperpriors: settings, planes, models and the models they start from.

The published settings are from the public code of Gao et al., "Compressed Feature Quality
Assessment: Dataset and Baselines" (ACM MM 2025, arXiv 2506.07412), and, where that leaves the
choice to CompressAI, from CompressAI's example of a training (version 1.2): Adam, gradient clip 1,
a plateau schedule with a factor of 0.1 and a patience of ten, 16 patches a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np

from cfqa_data.codecs.hyperprior.weights import (
    MINI_PAD,
    PAPER_PAD,
    HyperpriorWeights,
    Pad,
    read_ladder,
)
from cfqa_data.errors import BuildError
from cfqa_data.format.fields import Amount, Checked, Count, Number
from cfqa_data.format.format_1 import TASKS
from cfqa_data.format.manifest import hash_file

__all__ = [
    "LAMBDAS",
    "MULTI_TASK",
    "OPTIONS",
    "SEG_LISTED",
    "Job",
    "Settings",
    "check_kept",
    "check_lambdas",
    "differences",
    "generations",
    "model_size",
    "plan",
    "provenance",
    "published",
    "read_model",
    "read_planes",
]

MULTI_TASK = "hyperprior_multi_task"

HELD_OUT = 0.1
"""Share of the planes that no model is trained on."""

SEG_LISTED = (
    *(0.0003, 0.0005, 0.0007, 0.0008, 0.0015, 0.002),
    *(0.0025, 0.003, 0.004, 0.005, 0.01, 0.015),
)
"""The twelve lambdas that the code lists for seg; which ten were released is not stated."""

LAMBDAS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        MULTI_TASK: (0.0005, 0.001, 0.0025, 0.003, 0.004, 0.005, 0.006, 0.007, 0.01, 0.015),
        "hyperprior_task_specific-cls": (
            *(0.0016, 0.002, 0.0025, 0.003, 0.004),
            *(0.005, 0.008, 0.01, 0.012, 0.015),
        ),
        # Without the two smallest: no other task's own list goes below 0.0013, and the shared one
        # ends at 0.0005, so they are the likeliest to have been given up.
        "hyperprior_task_specific-seg": SEG_LISTED[2:],
        "hyperprior_task_specific-dpt": (
            *(0.0013, 0.0015, 0.0017, 0.0024, 0.0028),
            *(0.0032, 0.005, 0.007, 0.008, 0.009),
        ),
    }
)
"""Ten lambdas per ladder."""


OPTIONS = {
    "threads": "threads of each worker",
    "first_steps": "training steps of a model initialised from the transform",
    "steps": "steps of every other model; with --published, at most",
    "batch": "patches per step",
    "n": "inner channels",
    "m": "channels of y",
    "stages": "number of stride-2 convolutions to y",
    "rate": "highest step size",
    "epoch": "steps between two saved states, and validations with --published",
    "seed": "seed of initialisation, sampling and noise",
    "start": "initialisation: random weights, or the transform, then each model from the one "
    "before",
    "device": "torch device",
}
"""Settings that the command takes, and their help."""


@dataclass(frozen=True)
class Settings(Checked):
    """What all models of a run share.

    Attributes:
        features: File of planes.
        out: Folder that receives models, ladders and report.
        patch: (rows, cols) that a patch has at least, see :attr:`patch_shape`.
        published: Whether models are trained, padded and coded as the published ones: float32, a
            plateau schedule on held-out planes after every epoch, and CompressAI's conventions.

    Raises:
        BuildError: A number is too small, or not finite; there is no such start or device.
    """

    features: str
    out: str
    threads: Count = 1
    first_steps: Number = 4000
    steps: Number = 2000
    batch: Count = 8
    n: int = 32
    m: Count = 64
    stages: Annotated[int, 2] = 3
    rate: Amount = 2e-3
    epoch: Count = 1000
    seed: Number = 0
    start: Literal["chain", "random"] = "chain"
    device: Literal["cpu", "cuda"] = "cpu"
    patch: tuple[Count, Count] = (72, 96)
    published: bool = False
    error = BuildError

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise BuildError("device cuda: not available; give cpu")
        if self.published and PAPER_PAD.multiple % self.stride:
            raise BuildError(f"published models have at most 6 stages, got {self.stages}")
        inner = 4 ** (self.stages - 1)
        if self.start == "chain" and self.n < inner:
            raise BuildError(f"{self.stages} stages need n = {inner} or more, got {self.n}")

    @property
    def stride(self) -> int:
        """Samples of a plane per sample of y, on each axis."""
        return 2**self.stages

    @property
    def patch_shape(self) -> tuple[int, int]:
        """(rows, cols) of a patch: the least multiples of the stride that hold `patch`."""
        rows, cols = (-(-side // self.stride) * self.stride for side in self.patch)
        return rows, cols

    @property
    def pad(self) -> Pad:
        """How the models pad planes: as the published ones, or to multiples of the stride."""
        if self.published:
            return PAPER_PAD
        return replace(MINI_PAD, multiple=self.stride)


def published(features: str, out: str) -> Settings:
    """Return the settings of the published training."""
    size: dict[str, Any] = {"n": 128, "m": 192, "stages": 4, "batch": 16, "patch": (256, 256)}
    length: dict[str, Any] = {"first_steps": 500_000, "steps": 500_000, "rate": 1e-4}
    return Settings(features, out, **size, **length, start="random", published=True)


@dataclass(frozen=True)
class Job:
    """One model to train: which ladder, which lambda, and from which model it starts."""

    ladder: str
    lmbda: float
    parent: Job | None

    @property
    def name(self) -> str:
        """Ladder and lambda."""
        return f"{self.ladder}-{self.lmbda:g}"

    def path(self, settings: Settings) -> Path:
        """Return the file of the finished model."""
        return Path(settings.out) / "models" / f"{self.name}.safetensors"

    @property
    def task(self) -> str | None:
        """The only task it sees, or None for all."""
        return self.ladder.partition("-")[2] or None

    def steps(self, settings: Settings) -> int:
        """Return the steps it takes."""
        return settings.steps if self.parent else settings.first_steps


def check_lambdas(ladder: str, lambdas: Sequence[float]) -> None:
    """Check the lambdas of a ladder.

    Raises:
        BuildError: One is not positive and finite, or two are alike.
    """
    shown = " ".join(f"{lmbda:g}" for lmbda in lambdas)
    if not all(0.0 < lmbda < math.inf for lmbda in lambdas):
        raise BuildError(f"{ladder}: lambdas must be positive and finite, got {shown}")
    if len({f"{lmbda:g}" for lmbda in lambdas}) < len(lambdas):
        raise BuildError(f"{ladder}: lambdas must differ in six digits, got {shown}")


def plan(lambdas: dict[str, tuple[float, ...]], chained: bool = True) -> list[Job]:
    """Return the jobs of every ladder, parents before children; no parents if not chained.

    Raises:
        BuildError: A lambda is not positive and finite, or two of a ladder share a file.
    """
    for ladder, values in lambdas.items():
        check_lambdas(ladder, values)
    jobs: list[Job] = []
    for lmbda in sorted(lambdas[MULTI_TASK], reverse=True):
        jobs.append(Job(MULTI_TASK, lmbda, jobs[-1] if jobs and chained else None))
    chain = list(jobs)
    for ladder, values in lambdas.items():
        for lmbda in sorted(values, reverse=True) if ladder != MULTI_TASK else ():
            nearest = min(chain, key=lambda job: abs(math.log(job.lmbda / lmbda)))
            jobs.append(Job(ladder, lmbda, nearest if chained else None))
    return jobs


def generations(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Yield jobs in groups, each after those with the parents of its models."""
    while jobs:
        ready = [job for job in jobs if job.parent not in jobs]
        yield ready
        jobs = [job for job in jobs if job not in ready]


SHARED = ("n", "m", "stages", "convention", "planes")
"""What all models in a folder must agree on."""


def provenance(job: Job, settings: Settings) -> dict[str, Any]:
    """Return what a model's file says of how it was made; `planes` is the SHA-256 of their file."""
    made = {
        "ladder": job.ladder,
        "lambda": job.lmbda,
        "parent": job.parent.name if job.parent else None,
        **{name: getattr(settings, name) for name in ("n", "m", "stages")},
        "convention": "compressai" if settings.published else "cfqa",
        "planes": hash_file(Path(settings.features)),
        "batch": settings.batch,
        "steps": job.steps(settings),
        "rate": settings.rate,
        "seed": settings.seed,
    }
    if settings.published:
        made |= {"patch": [*settings.patch_shape], "start": settings.start, "epoch": settings.epoch}
    return made


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Return in words where two provenances differ; "" where they do not."""
    return "; ".join(
        f"{key} {str(found.get(key))[:12]}, not {str(value)[:12]}"
        for key, value in expected.items()
        if found.get(key) != value
    )


def model_size(weights: HyperpriorWeights) -> dict[str, int]:
    """Return n, m and stages of a model, from its tensors."""
    convolutions = [f"g_a.{place}.weight" for place in range(0, 32, 2)]
    channels = [len(weights.state[key]) for key in convolutions if key in weights.state]
    return {"n": channels[0], "m": channels[-1], "stages": len(channels)}


def read_model(path: Path) -> tuple[dict[str, Any], float, HyperpriorWeights]:
    """Return a finished model: its line of the report, its lambda, its weights.

    Models of earlier versions name no parent, planes, rate or seed; the size is the tensors' own.

    Raises:
        CodecError: The file is not one of models.
    """
    facts, [(lmbda, weights)] = read_ladder(path)
    model_facts = {**model_size(weights), "convention": weights.convention}
    return {**facts["report"], **model_facts}, lmbda, weights


def check_kept(jobs: list[Job], settings: Settings) -> None:
    """Check that the models that are in `out` already can stand beside those still to be trained.

    Raises:
        BuildError: One has another size, or was trained on other planes.
    """
    for job in jobs:
        if (path := job.path(settings)).is_file():
            report, _, _ = read_model(path)
            expected = provenance(job, settings)
            known = {key: expected[key] for key in SHARED if key in report}
            if differing := differences(report, known):
                raise BuildError(
                    f"{path} has {differing}: give the same settings, or another --out"
                )


def read_planes(path: str, task: str | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return training and held-out planes per task, uint8 (count, rows, cols).

    Args:
        path: Safetensors with one tensor per task; the published tasks come first.
        task: The only one wanted, or None for all.

    Raises:
        BuildError: The file is not one of planes.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BuildError(f"{path}: not a file of planes ({error})") from None
    planes = {}
    for name in sorted(tensors, key=_place) if task is None else (task,):
        found = tensors.get(name)
        if found is None or found.ndim != 3 or found.dtype != np.uint8 or len(found) < 2:
            raise BuildError(f"{path}: needs a tensor {name!r}, uint8 (count > 1, rows, cols)")
        held_out = max(1, round(HELD_OUT * len(found)))
        planes[name] = (found[:-held_out], found[-held_out:])
    if not planes:
        raise BuildError(f"{path}: has no planes")
    return planes


def _place(task: str) -> tuple[int, str]:
    published = list(TASKS)
    return published.index(task) if task in published else len(published), task
