"""Train one hyperprior: steps, schedule, held-out loss, checkpoints and the final file.

CompressAI's auxiliary loss only fits the quantiles of z to its density; its gradient does not reach
the network. Here the quantiles are solved for by bisection whenever they are used, which gives the
values to which the auxiliary loss converges.

The state of a training is saved in a file beside the models, so that an interrupted training is
resumed without effect on its result. It is replaced atomically, and read without running code.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfqa_data.builders.training import hyperprior_plan as planning
from cfqa_data.builders.training.hyperprior_init import (
    block_statistics,
    rescale,
    start_at_transform,
)
from cfqa_data.codecs.hyperprior.codec import Hyperprior
from cfqa_data.codecs.hyperprior.module import GDN, ScaleHyperprior
from cfqa_data.codecs.hyperprior.weights import HyperpriorWeights, write_ladder
from cfqa_data.console.text import duration
from cfqa_data.errors import BuildError, CodecError
from cfqa_data.format.checkpoints import load_plain
from cfqa_data.format.invariants import bits_of
from cfqa_data.format.storage import atomic_path

__all__ = [
    "Training",
    "check_states",
    "evaluate",
    "learning_rate",
    "sample_batch",
    "state_path",
    "train",
]

EVALUATED = 12  # held-out planes per task that are evaluated for the report
PIECE = (256, 512)  # evaluated part of larger planes; exact coding takes minutes per million points
FACTOR, PATIENCE = 0.1, 10  # parameters of the plateau schedule
MIN_RATE = 0.99e-6  # learning rate below which a training with plateau schedule ends
EVERY = 60.0  # seconds between two lines of progress


_FOREIGN = (LookupError, TypeError, ValueError, AttributeError)


def state_path(job: planning.Job, settings: planning.Settings) -> Path:
    """Return the path of an unfinished model's state."""
    return job.path(settings).with_suffix(".state")


def check_states(jobs: Iterable[planning.Job], settings: planning.Settings) -> None:
    """Check, before anything is trained, that the states of unfinished models can be resumed.

    Raises:
        BuildError: If a file is damaged, or of another training.
    """
    for job in jobs:
        if state_path(job, settings).is_file():
            _read(state_path(job, settings), planning.provenance(job, settings))


def _read(path: Path, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state in a file, if it is of a training with this provenance."""
    try:
        state: dict[str, Any] = load_plain(path, mmap=False)
        differing = planning.differences(state["made"], provenance)
    except (BuildError, *_FOREIGN) as error:
        raise _damaged(path, error) from None
    if differing:
        message = f"{path} belongs to a training with {differing}"
        raise BuildError(f"{message}: give the same settings, or delete it")
    return state


def _damaged(path: Path, error: Exception) -> BuildError:
    reason = (str(error).removeprefix(f"{path}: ").splitlines() or [type(error).__name__])[0]
    return BuildError(f"{path}: not a training state ({reason}); delete it to start again")


def train(job: planning.Job, settings: planning.Settings) -> dict[str, Any]:
    """Train one model, write its file, and return its report.

    An interrupted training is resumed. Progress is printed to stderr once a minute.

    Raises:
        BuildError: If the saved state cannot be used, the loss is not finite, or memory is too
            small.
    """
    try:
        training = Training(job, settings)
        first, last_report = training.step, time.monotonic()
        while not training.ended:
            training.advance()
            if time.monotonic() - last_report >= EVERY:
                last_report = time.monotonic()
                print(training.progress_line(first), file=sys.stderr, flush=True)
        return training.finish()
    except torch.OutOfMemoryError:
        message = f"{job.name}: the device has too little memory for a batch of {settings.batch}"
        raise BuildError(f"{message}; give fewer --workers or a smaller --batch") from None


class Training:
    """Training of one model, new or resumed from its saved state.

    Args:
        job: Model to train.
        settings: Settings of the run.
    """

    def __init__(self, job: planning.Job, settings: planning.Settings) -> None:
        self.job, self.settings = job, settings
        self.start_time = time.monotonic()
        torch.set_num_threads(settings.threads)
        if settings.published:
            # By default, GPUs round float32 operands, and sum in a varying order.
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cudnn.deterministic = True
        seed = np.random.SeedSequence([settings.seed, *job.path(settings).name.encode()])
        self.generator = np.random.default_rng(seed)
        torch.manual_seed(int(seed.generate_state(1)[0]))
        self.provenance = planning.provenance(job, settings)
        self.planes = planning.read_planes(settings.features, job.task)
        self.training = [pair[0] for pair in self.planes.values()]
        self.steps = job.steps(settings)
        self.model = self._start()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, settings.rate)
        self.stateful: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer}
        if settings.published:
            self.stateful["plateau"] = torch.optim.lr_scheduler.ReduceLROnPlateau(
                self.optimizer, "min", factor=FACTOR, patience=PATIENCE
            )
        self.loss = math.nan
        self.state = state_path(job, settings)
        self.step, self.earlier = 0, 0.0
        if self.state.is_file():
            self._resume(_read(self.state, self.provenance))

    @property
    def seconds(self) -> float:
        """Training time in this run and earlier ones, in seconds."""
        return self.earlier + time.monotonic() - self.start_time

    @property
    def ended(self) -> bool:
        """Whether all steps are done, or the plateau schedule has ended."""
        flat = self.settings.published and self.optimizer.param_groups[0]["lr"] < MIN_RATE
        return self.step >= self.steps or flat

    def progress_line(self, first: int) -> str:
        """Return the progress, and the speed since the first step of this run."""
        pace = (self.step - first) / (time.monotonic() - self.start_time)
        left = duration((self.steps - self.step) / pace)
        loss = "" if math.isnan(self.loss) else f", loss {self.loss:.4g}"
        return (
            f"{self.job.name}: {self.step} of {self.steps} steps, {pace:.3g}/s, {left} left{loss}"
        )

    def advance(self) -> None:
        """Do one training step; at the end of an epoch, validate and save the state."""
        settings = self.settings
        if not settings.published:
            for group in self.optimizer.param_groups:
                group["lr"] = settings.rate * learning_rate(self.step, self.steps)
        stride = 1 if settings.published else settings.stride
        loss = self._loss(
            *sample_batch(
                self.training, settings.batch, settings.patch_shape, stride, self.generator
            )
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        if not settings.published:
            for layer in self.model.modules():
                if isinstance(layer, GDN):
                    layer.bound()
        self.step += 1
        if self.step % settings.epoch == 0 and not self.ended:
            self._end_epoch(float(loss.detach()))

    def _end_epoch(self, loss: float) -> None:
        """Record the loss, on held-out planes for published settings, and save the state."""
        self._check_weights()
        if self.settings.published:
            loss = self.validate()
            self.stateful["plateau"].step(loss)
        self.loss = loss
        self._save()

    def _save(self) -> None:
        cuda = self.settings.device == "cuda"
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "made": self.provenance,
            "generator": self.generator.bit_generator.state,
            "noise": torch.get_rng_state(),
            "device_noise": torch.cuda.get_rng_state() if cuda else None,
            **{name: part.state_dict() for name, part in self.stateful.items()},
        }
        with atomic_path(self.state) as partial:
            torch.save(state, partial)

    def _resume(self, state: Mapping[str, Any]) -> None:
        try:
            self.generator.bit_generator.state = state["generator"]
            torch.set_rng_state(state["noise"])
            if self.settings.device == "cuda" and state["device_noise"] is not None:
                torch.cuda.set_rng_state(state["device_noise"])
            for name, part in self.stateful.items():
                part.load_state_dict(state[name])
            self.step, self.earlier = int(state["step"]), float(state["seconds"])
        except (RuntimeError, *_FOREIGN) as error:
            raise _damaged(self.state, error) from None

    def validate(self) -> float:
        """Return the loss, with rounding instead of noise, on a fixed patch per held-out plane."""
        self.model.entropy_bottleneck.solve_quantiles()
        self.model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for _, held_out in self.planes.values():
                # A new generator gives the same patches at every validation.
                generator = np.random.default_rng(self.settings.seed)
                for plane in held_out:
                    batch = sample_batch([plane[None]], 1, self.settings.patch_shape, 1, generator)
                    total, count = total + float(self._loss(*batch)), count + 1
        self.model.train()
        return total / count

    def finish(self) -> dict[str, Any]:
        """Write the model's file and return its report."""
        self._check_weights()
        settings, path = self.settings, self.job.path(self.settings)
        model = self.model.cpu()
        if settings.published:
            model.entropy_bottleneck.solve_quantiles()
        # Round before computing the tables, which must match the stored weights.
        dtype = np.float32 if settings.published else np.float16
        state = {key: value.numpy().astype(dtype) for key, value in model.state_dict().items()}
        try:
            weights = HyperpriorWeights.from_state(
                state, settings.pad, published=settings.published
            )
            held_out = evaluate(weights, {name: pair[1] for name, pair in self.planes.items()})
        except CodecError as error:
            raise self._failed(str(error)) from None
        report = {
            **self.provenance,
            **({"ended": self.step} if settings.published else {}),
            "seconds": round(self.seconds, 1),
            "held_out": held_out,
        }
        write_ladder(path, self.job.ladder, [(self.job.lmbda, weights)], {"report": report})
        self.state.unlink(missing_ok=True)
        return report

    def _check_weights(self) -> None:
        if not all(bool(part.isfinite().all()) for part in self.parameters):
            raise self._failed(f"weights are not finite after step {self.step}")

    def _failed(self, reason: str) -> BuildError:
        message = f"{self.job.name}: the training failed: {reason}"
        return BuildError(f"{message}; delete {self.state} and give a lower --rate")

    def _start(self) -> ScaleHyperprior:
        job, settings = self.job, self.settings
        model = ScaleHyperprior(settings.n, settings.m, settings.stages)
        if job.parent:
            _, _, parent = planning.read_model(job.parent.path(settings))
            state = {key: torch.tensor(value).float() for key, value in parent.state.items()}
            model.load_state_dict(state)
            rescale(model, math.sqrt(job.lmbda / job.parent.lmbda))
        elif settings.start == "chain":
            start_at_transform(model, *block_statistics(self.training, settings.stride), job.lmbda)
        model.to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model.train()

    def _loss(self, patches: np.ndarray, mask: np.ndarray) -> Tensor:
        """Return lambda * 255**2 * error + bits per point."""
        device = self.settings.device
        x, valid = (torch.from_numpy(array).to(device) for array in (patches, mask))
        # The published models were trained in float32.
        with torch.autocast(device, dtype=torch.bfloat16, enabled=not self.settings.published):
            decoded, y, z = self.model(x.contiguous(memory_format=torch.channels_last))
        points = valid.sum()
        bits = -(y.log2().sum() + z.log2().sum()) / points
        error = ((decoded - x).square() * valid).sum() / points
        loss: Tensor = self.job.lmbda * 255.0**2 * error + bits
        return loss


def sample_batch(
    planes: list[np.ndarray],
    count: int,
    patch: tuple[int, int],
    stride: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return random patches of the tasks in turn, and a mask of their valid samples.

    Args:
        planes: Planes of each task, uint8 (count, rows, cols).
        count: Number of patches in the batch.
        patch: Shape (rows, cols) of a patch, multiples of the stride.
        stride: Positions of patches are multiples of it.
        generator: Generator that draws planes and positions.

    Returns:
        Patches, float32 (count, 1, rows, cols) in [0, 1), and a mask of the same shape, which is 0
        where a patch extends over the plane's edge into padding.
    """
    rows, cols = patch
    patches = np.empty((count, 1, rows, cols), np.float32)
    mask = np.zeros_like(patches)
    start = int(generator.integers(len(planes)))
    for index in range(count):
        source = planes[(start + index) % len(planes)]
        plane = source[generator.integers(len(source))]
        corner = [
            stride * int(generator.integers(max(0, -(-(side - length) // stride)) + 1))
            for side, length in zip(plane.shape, (rows, cols), strict=True)
        ]
        piece = plane[corner[0] : corner[0] + rows, corner[1] : corner[1] + cols]
        margins = ((0, rows - piece.shape[0]), (0, cols - piece.shape[1]))
        patches[index, 0] = np.pad(piece, margins, mode="edge") / np.float32(256.0)
        mask[index, 0, : piece.shape[0], : piece.shape[1]] = 1.0
    return patches, mask


def learning_rate(step: int, steps: int) -> float:
    """Return the factor of the learning rate: a short warm-up, then a cosine decay to 1%."""
    warmup = min(1.0, (step + 1) / 50)
    return warmup * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * step / steps)))


def evaluate(
    weights: HyperpriorWeights, planes: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Return, per task, bits per point and mean squared error (in codes) of actual bitstreams."""
    model = Hyperprior(weights)
    results = {}
    for task, all_planes in planes.items():
        bits = error = points = 0.0
        generator = np.random.default_rng(0)
        for plane in (_piece(whole, generator) for whole in all_planes[:EVALUATED]):
            stream = model.encode(plane / 256.0)
            decoded = np.clip(np.rint(256.0 * model.decode(stream, plane.shape)), 0, 255)
            bits += bits_of(len(stream))
            error += float(np.square(decoded - plane).sum())
            points += plane.size
        results[task] = {"bpfp": round(bits / points, 5), "mse": round(error / points, 4)}
    return results


def _piece(plane: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return a plane, or a random crop of it if it is large."""
    if plane.size <= math.prod(PIECE):
        return plane
    shape = [min(side, length) for side, length in zip(plane.shape, PIECE, strict=True)]
    top, left = (generator.integers(s - k + 1) for s, k in zip(plane.shape, shape, strict=True))
    return plane[top : top + shape[0], left : left + shape[1]]
