"""What is trained: the settings of a run, its models and their parents, and the models kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cfqa_data.codecs.hyperprior.weights import (
    MINI_PAD,
    PAPER_PAD,
    HyperpriorWeights,
    Pad,
    read_ladder,
)
from cfqa_data.errors import BuildError
from cfqa_data.format.manifest import hash_file

__all__ = [
    "MULTI_TASK",
    "Job",
    "Settings",
    "check_kept",
    "model_size",
    "plan",
    "provenance",
    "read_model",
]

MULTI_TASK = "hyperprior_multi_task"

LEAST = {
    "m": 1,
    "stages": 2,
    "batch": 1,
    "first_steps": 0,
    "steps": 0,
    "rate": 0.0,
    "seed": 0,
    "threads": 1,
    "epoch": 1,
}
"""Smallest value of each setting that is a number; n's depends on the stages."""

CHOICES = {"start": ("chain", "random"), "device": ("cpu", "cuda")}
"""What each setting that is a name may be."""


@dataclass(frozen=True)
class Settings:
    """What all models of a run share.

    Attributes:
        features: file of planes.
        out: folder that receives models, ladders and report.
        n, m, stages: size of the network.
        batch: patches per step.
        patch: (rows, cols) that a patch has at least, see :attr:`patch_shape`.
        first_steps: steps of the model that starts from the transform.
        steps: steps of every other model.
        rate: Adam's step size at its highest.
        seed: of initialisation, sampling and noise.
        threads: of each worker.
        epoch: steps between two saved states, and between validations if published.
        start: ``chain``, from the transform and from each other, or ``random``.
        published: whether models are trained, padded and coded as the published ones: float32, a
            plateau schedule on held-out planes after every epoch, and CompressAI's conventions.
        device: ``cpu`` or ``cuda``.

    Raises:
        BuildError: a number is too small, or not finite; there is no such start or device.
    """

    features: str
    out: str
    n: int = 32
    m: int = 64
    stages: int = 3
    batch: int = 8
    patch: tuple[int, int] = (72, 96)
    first_steps: int = 4000
    steps: int = 2000
    rate: float = 2e-3
    seed: int = 0
    threads: int = 1
    epoch: int = 1000
    start: str = "chain"
    published: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if not least <= getattr(self, name) < math.inf:
                told = f"{name} must be {least} or more, and finite"
                raise BuildError(f"{told}; got {getattr(self, name)}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                told = f"{name} must be {' or '.join(known)}"
                raise BuildError(f"{told}, got {getattr(self, name)!r}")
        if self.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise BuildError("device cuda: torch finds none here; give cpu")
        if self.published and PAPER_PAD.multiple % self.stride:
            raise BuildError(f"published models have at most 6 stages, got {self.stages}")
        inner = 4 ** (self.stages - 1)
        if self.start == "chain" and self.n < inner:
            raise BuildError(f"{self.stages} stages need n = {inner} or more, got {self.n}")
        if min(self.patch) < 1:
            raise BuildError(f"patch must be 1 x 1 or more, got {self.patch}")

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


def plan(lambdas: dict[str, tuple[float, ...]], chained: bool = True) -> list[Job]:
    """Return the jobs of every ladder, parents before children; no parents if not chained.

    Raises:
        BuildError: a lambda is not positive and finite, or two of a ladder share a file.
    """
    for ladder, values in lambdas.items():
        for lmbda in values:
            if not 0.0 < lmbda < math.inf:
                raise BuildError(f"{ladder}: lambdas must be positive and finite, got {lmbda:g}")
        if len({f"{lmbda:g}" for lmbda in values}) < len(values):
            told = " ".join(f"{lmbda:g}" for lmbda in values)
            raise BuildError(f"{ladder}: lambdas must differ in six digits, got {told}")
    jobs: list[Job] = []
    for lmbda in sorted(lambdas[MULTI_TASK], reverse=True):
        jobs.append(Job(MULTI_TASK, lmbda, jobs[-1] if jobs and chained else None))
    chain = list(jobs)
    for ladder, values in lambdas.items():
        for lmbda in sorted(values, reverse=True) if ladder != MULTI_TASK else ():
            nearest = min(chain, key=lambda job: abs(math.log(job.lmbda / lmbda)))
            jobs.append(Job(ladder, lmbda, nearest if chained else None))
    return jobs


def provenance(job: Job, settings: Settings) -> dict[str, Any]:
    """Return what a model's file says of how it was made."""
    return {
        "ladder": job.ladder,
        "lambda": job.lmbda,
        "parent": job.parent.name if job.parent else None,
        **_common(settings),
        "batch": settings.batch,
        "steps": job.steps(settings),
        "rate": settings.rate,
        "seed": settings.seed,
        **(
            {
                "patch": list(settings.patch_shape),
                "start": settings.start,
                "epoch": settings.epoch,
            }
            if settings.published
            else {}
        ),
    }


def _common(settings: Settings) -> dict[str, Any]:
    """Return what all models in a folder must agree on; `planes` is the SHA-256 of their file."""
    size = {"n": settings.n, "m": settings.m, "stages": settings.stages}
    convention = "compressai" if settings.published else "cfqa"
    return {**size, "convention": convention, "planes": hash_file(Path(settings.features))}


def model_size(weights: HyperpriorWeights) -> dict[str, int]:
    """Return n, m and stages of a model, from its tensors."""
    convolutions = [f"g_a.{place}.weight" for place in range(0, 32, 2)]
    channels = [len(weights.state[key]) for key in convolutions if key in weights.state]
    return {"n": channels[0], "m": channels[-1], "stages": len(channels)}


def read_model(path: Path) -> tuple[dict[str, Any], float, HyperpriorWeights]:
    """Return a finished model: its line of the report, its lambda, its weights.

    Models of earlier versions name no parent, planes, rate or seed; the size is the tensors' own.

    Raises:
        CodecError: the file is not one of models.
    """
    facts, [(lmbda, weights)] = read_ladder(path)
    own = {**model_size(weights), "convention": weights.convention}
    return {**facts["report"], **own}, lmbda, weights


def check_kept(jobs: list[Job], settings: Settings) -> None:
    """Check that the models that are in `out` already can stand beside those still to be trained.

    Raises:
        BuildError: one has another size, or was trained on other planes.
    """
    wanted = _common(settings)
    for path in (job.path(settings) for job in jobs):
        if not path.is_file():
            continue
        report, _, _ = read_model(path)
        differing = [
            f"{key} {str(report[key])[:12]}, not {str(value)[:12]}"
            for key, value in wanted.items()
            if report.get(key, value) != value
        ]
        if differing:
            told = "; ".join(differing)
            raise BuildError(f"{path} has {told}: give the same again, or another --out")
