"""Plan the training of hyperpriors: settings, planes, models and their initialisation.

The published settings are those of the public code of Gao et al., "Compressed Feature Quality
Assessment: Dataset and Baselines" (ACM MM 2025, arXiv 2506.07412). Settings that it leaves open are
those of CompressAI's training example (version 1.2): Adam, gradient clipping at 1, a plateau
schedule with factor 0.1 and patience 10, and 16 patches per step.
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
"""Share of the planes that are held out from training."""

SEG_LISTED = (
    *(0.0003, 0.0005, 0.0007, 0.0008, 0.0015, 0.002),
    *(0.0025, 0.003, 0.004, 0.005, 0.01, 0.015),
)
"""The twelve lambdas that the code lists for seg; it is not stated which ten were released."""

LAMBDAS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        MULTI_TASK: (0.0005, 0.001, 0.0025, 0.003, 0.004, 0.005, 0.006, 0.007, 0.01, 0.015),
        "hyperprior_task_specific-cls": (
            *(0.0016, 0.002, 0.0025, 0.003, 0.004),
            *(0.005, 0.008, 0.01, 0.012, 0.015),
        ),
        # The two smallest are the most likely not to have been released: no other task's list goes
        # below 0.0013, and the multi-task list ends at 0.0005.
        "hyperprior_task_specific-seg": SEG_LISTED[2:],
        "hyperprior_task_specific-dpt": (
            *(0.0013, 0.0015, 0.0017, 0.0024, 0.0028),
            *(0.0032, 0.005, 0.007, 0.008, 0.009),
        ),
    }
)
"""Ladder -> its ten published lambdas."""


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
"""Settings that are command-line options -> their help texts."""


@dataclass(frozen=True)
class Settings(Checked):
    """Settings of all models of a run; `OPTIONS` describes the fields that are not listed here.

    Attributes:
        features: File of planes.
        out: Output folder of models, ladders and report.
        patch: Minimum (rows, cols) of a patch, see :attr:`patch_shape`.
        published: Whether models are trained, padded and coded like the published ones: in float32,
            with a plateau schedule on held-out planes after every epoch, and like CompressAI.

    Raises:
        BuildError: If a number is too small or not finite, or the start or device is unknown.
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
        """Shape (rows, cols) of a patch: `patch` rounded up to multiples of the stride."""
        rows, cols = (-(-side // self.stride) * self.stride for side in self.patch)
        return rows, cols

    @property
    def pad(self) -> Pad:
        """Padding of planes: that of the published models, or to multiples of the stride."""
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
    """One model to train: its ladder, its lambda, and the model that initialises it."""

    ladder: str
    lmbda: float
    parent: Job | None

    @property
    def name(self) -> str:
        """Name of the model, from ladder and lambda."""
        return f"{self.ladder}-{self.lmbda:g}"

    def path(self, settings: Settings) -> Path:
        """Return the path of the finished model."""
        return Path(settings.out) / "models" / f"{self.name}.safetensors"

    @property
    def task(self) -> str | None:
        """The only task that the model is trained on, or None for all."""
        return self.ladder.partition("-")[2] or None

    def steps(self, settings: Settings) -> int:
        """Return the number of training steps."""
        return settings.steps if self.parent else settings.first_steps


def check_lambdas(ladder: str, lambdas: Sequence[float]) -> None:
    """Check the lambdas of a ladder.

    Raises:
        BuildError: If a lambda is not positive and finite, or two are equal in six digits.
    """
    shown = " ".join(f"{lmbda:g}" for lmbda in lambdas)
    if not all(0.0 < lmbda < math.inf for lmbda in lambdas):
        raise BuildError(f"{ladder}: lambdas must be positive and finite, got {shown}")
    if len({f"{lmbda:g}" for lmbda in lambdas}) < len(lambdas):
        raise BuildError(f"{ladder}: lambdas must differ in six digits, got {shown}")


def plan(lambdas: dict[str, tuple[float, ...]], chained: bool = True) -> list[Job]:
    """Return the jobs of every ladder, parents before children.

    Args:
        lambdas: Ladder -> its lambdas.
        chained: Whether models are initialised with a trained neighbour, their parent.

    Raises:
        BuildError: See :func:`check_lambdas`.
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
    """Yield jobs in groups, such that the parents of a group are in earlier groups."""
    while jobs:
        ready = [job for job in jobs if job.parent not in jobs]
        yield ready
        jobs = [job for job in jobs if job not in ready]


SHARED = ("n", "m", "stages", "convention", "planes")
"""Settings that must be equal for all models in a folder."""


def provenance(job: Job, settings: Settings) -> dict[str, Any]:
    """Return the training settings in a model's file; `planes` is the SHA-256 of their file."""
    record = {
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
        record |= {"patch": [*settings.patch_shape]}
        record |= {"start": settings.start, "epoch": settings.epoch}
    return record


def differences(recorded: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Describe the differences of two provenances; "" if there are none."""
    return "; ".join(
        f"{key} {str(recorded.get(key))[:12]}, not {str(value)[:12]}"
        for key, value in expected.items()
        if recorded.get(key) != value
    )


def model_size(weights: HyperpriorWeights) -> dict[str, int]:
    """Return n, m and stages of a model, from its tensors."""
    convolutions = [f"g_a.{index}.weight" for index in range(0, 32, 2)]
    channels = [len(weights.state[key]) for key in convolutions if key in weights.state]
    return {"n": channels[0], "m": channels[-1], "stages": len(channels)}


def read_model(path: Path) -> tuple[dict[str, Any], float, HyperpriorWeights]:
    """Return the report, the lambda and the weights of a finished model.

    Earlier versions record no parent, planes, rate and seed. The size is that of the tensors.

    Raises:
        CodecError: If the file does not contain models.
    """
    facts, [(lmbda, weights)] = read_ladder(path)
    model_facts = {**model_size(weights), "convention": weights.convention}
    return {**facts["report"], **model_facts}, lmbda, weights


def check_kept(jobs: list[Job], settings: Settings) -> None:
    """Check that the existing models in `out` match those still to be trained.

    Raises:
        BuildError: If a model has another size, or was trained on other planes.
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
        path: Safetensors file with one tensor per task.
        task: Task to read; if None, all are read, built-in tasks first.

    Raises:
        BuildError: If the file does not contain planes.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BuildError(f"{path}: not a file of planes ({error})") from None
    planes = {}
    for name in sorted(tensors, key=_rank) if task is None else (task,):
        tensor = tensors.get(name)
        if tensor is None or tensor.ndim != 3 or tensor.dtype != np.uint8 or len(tensor) < 2:
            raise BuildError(f"{path}: needs a tensor {name!r}, uint8 (count > 1, rows, cols)")
        held_out = max(1, round(HELD_OUT * len(tensor)))
        planes[name] = (tensor[:-held_out], tensor[-held_out:])
    if not planes:
        raise BuildError(f"{path}: has no planes")
    return planes


def _rank(task: str) -> tuple[int, str]:
    """Return the sort key that puts built-in tasks first."""
    builtin = list(TASKS)
    return builtin.index(task) if task in builtin else len(builtin), task
