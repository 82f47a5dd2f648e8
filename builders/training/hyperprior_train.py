"""Train one hyperprior: steps, schedule, held-out loss, checkpoints and the final file.

The auxiliary loss of CompressAI moves the quantiles of z to where its density has them, and
nothing else: no gradient of it reaches the network.  Here they are solved for, by bisection,
whenever they are used, which is where a converged auxiliary loss ends.

The state of a training is saved, so that an interrupted one goes on as if it had not been: one file
beside the models, replaced whole, read without running any code from it.
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

EVALUATED = 12  # held-out planes per task in the report
PIECE = (256, 512)  # of planes that have more points; exact coding takes minutes per million
FACTOR, PATIENCE = 0.1, 10  # of the plateau schedule
LEAST = 0.99e-6  # a plateau schedule that falls below this has ended
EVERY = 60.0  # seconds between two lines of a training


_FOREIGN = (LookupError, TypeError, ValueError, AttributeError)


def state_path(job: planning.Job, settings: planning.Settings) -> Path:
    """Return the file of an unfinished model's state."""
    return job.path(settings).with_suffix(".state")


def check_states(jobs: Iterable[planning.Job], settings: planning.Settings) -> None:
    """Check that the states of unfinished models can be taken up, before anything is trained.

    Raises:
        BuildError: A file is damaged, or another training's.
    """
    for job in jobs:
        if state_path(job, settings).is_file():
            _read(state_path(job, settings), planning.provenance(job, settings))


def _read(path: Path, made: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file holds, if it is of the training that makes ``made``."""
    try:
        state: dict[str, Any] = load_plain(path, mmap=False)
        differing = planning.differences(state["made"], made)
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
    """Train one model, write its file, and return its line of the report.

    A training that was interrupted goes on from the state that it saved last. It says on stderr,
    once a minute, how far it is.

    Raises:
        BuildError: Its state cannot be used, its loss is not finite, or the memory does not
            suffice.
    """
    try:
        training = Training(job, settings)
        began, last_report = training.step, time.monotonic()
        while not training.ended:
            training.advance()
            if time.monotonic() - last_report >= EVERY:
                last_report = time.monotonic()
                print(training.progress_line(began), file=sys.stderr, flush=True)
        return training.finish()
    except torch.OutOfMemoryError:
        message = f"{job.name}: the device has too little memory for a batch of {settings.batch}"
        raise BuildError(f"{message}; give fewer --workers or a smaller --batch") from None


class Training:
    """A model on its way.

    Args:
        job: Which model.
        settings: Of the run.
    """

    def __init__(self, job: planning.Job, settings: planning.Settings) -> None:
        self.job, self.settings = job, settings
        self.began = time.monotonic()
        torch.set_num_threads(settings.threads)
        if settings.published:
            # A GPU would round float32 to fewer bits, and add in an order of its own each time.
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cudnn.deterministic = True
        seed = np.random.SeedSequence([settings.seed, *job.path(settings).name.encode()])
        self.generator = np.random.default_rng(seed)
        torch.manual_seed(int(seed.generate_state(1)[0]))
        self.made = planning.provenance(job, settings)
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
            self._take_up(_read(self.state, self.made))

    @property
    def seconds(self) -> float:
        """How long it has been trained, in this run and those before."""
        return self.earlier + time.monotonic() - self.began

    @property
    def ended(self) -> bool:
        """Whether all steps are done, or the plateau schedule has come to its end."""
        flat = self.settings.published and self.optimizer.param_groups[0]["lr"] < LEAST
        return self.step >= self.steps or flat

    def progress_line(self, first: int) -> str:
        """Return the progress and the rate since the step at which this run began."""
        pace = (self.step - first) / (time.monotonic() - self.began)
        left = duration((self.steps - self.step) / pace)
        loss = "" if math.isnan(self.loss) else f", loss {self.loss:.4g}"
        return (
            f"{self.job.name}: {self.step} of {self.steps} steps, {pace:.3g}/s, {left} left{loss}"
        )

    def advance(self) -> None:
        """Do one step; validate and save when it is time to."""
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
        """Note the loss, on held-out planes if trained as published; save the state."""
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
            "made": self.made,
            "generator": self.generator.bit_generator.state,
            "noise": torch.get_rng_state(),
            "device_noise": torch.cuda.get_rng_state() if cuda else None,
            **{name: part.state_dict() for name, part in self.stateful.items()},
        }
        with atomic_path(self.state) as partial:
            torch.save(state, partial)

    def _take_up(self, state: Mapping[str, Any]) -> None:
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
        """Return the loss with rounding on held-out training planes, a fixed patch of each."""
        self.model.entropy_bottleneck.solve_quantiles()
        self.model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for _, held_out in self.planes.values():
                # The same places at every validation, whatever was drawn before.
                places = np.random.default_rng(self.settings.seed)
                for plane in held_out:
                    batch = sample_batch([plane[None]], 1, self.settings.patch_shape, 1, places)
                    total, count = total + float(self._loss(*batch)), count + 1
        self.model.train()
        return total / count

    def finish(self) -> dict[str, Any]:
        """Write the model's file and return its line of the report."""
        self._check_weights()
        settings, path = self.settings, self.job.path(self.settings)
        model = self.model.cpu()
        if settings.published:
            model.entropy_bottleneck.solve_quantiles()
        # Rounded first: the tables must belong to the weights that are stored.
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
            **self.made,
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

    def _failed(self, why: str) -> BuildError:
        message = f"{self.job.name}: the training failed: {why}"
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
        x, counted = (torch.from_numpy(array).to(device) for array in (patches, mask))
        # The published training was in float32 throughout.
        with torch.autocast(device, dtype=torch.bfloat16, enabled=not self.settings.published):
            decoded, y, z = self.model(x.contiguous(memory_format=torch.channels_last))
        points = counted.sum()
        bits = -(y.log2().sum() + z.log2().sum()) / points
        error = ((decoded - x).square() * counted).sum() / points
        loss: Tensor = self.job.lmbda * 255.0**2 * error + bits
        return loss


def sample_batch(
    planes: list[np.ndarray],
    count: int,
    patch: tuple[int, int],
    stride: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return random patches on the stride's grid, the tasks in turn, and which samples count.

    Args:
        planes: Per task, uint8 (count, rows, cols).
        count: Patches in the batch.
        patch: (rows, cols) of a patch, multiples of the stride.
        stride: Patches begin at its multiples.
        generator: Draws planes and places.

    Returns:
        float32 patches (count, 1, rows, cols) in [0, 1) and a mask of the same shape: 0 where
        a patch reaches over the plane's edge into the padding.
    """
    rows, cols = patch
    patches = np.empty((count, 1, rows, cols), np.float32)
    mask = np.zeros_like(patches)
    start = int(generator.integers(len(planes)))
    for place in range(count):
        source = planes[(start + place) % len(planes)]
        plane = source[generator.integers(len(source))]
        corner = [
            stride * int(generator.integers(max(0, -(-(side - length) // stride)) + 1))
            for side, length in zip(plane.shape, (rows, cols), strict=True)
        ]
        piece = plane[corner[0] : corner[0] + rows, corner[1] : corner[1] + cols]
        margins = ((0, rows - piece.shape[0]), (0, cols - piece.shape[1]))
        patches[place, 0] = np.pad(piece, margins, mode="edge") / np.float32(256.0)
        mask[place, 0, : piece.shape[0], : piece.shape[1]] = 1.0
    return patches, mask


def learning_rate(step: int, steps: int) -> float:
    """Return the factor on the step size: a short rise, then a cosine down to 1%."""
    rise = min(1.0, (step + 1) / 50)
    return rise * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * step / steps)))


def evaluate(
    weights: HyperpriorWeights, planes: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Return bits per point and mean squared error (in codes) of real bitstreams, per task."""
    model = Hyperprior(weights)
    results = {}
    for task, all_planes in planes.items():
        bits = error = points = 0.0
        places = np.random.default_rng(0)
        for plane in (_piece(whole, places) for whole in all_planes[:EVALUATED]):
            stream = model.encode(plane / 256.0)
            decoded = np.clip(np.rint(256.0 * model.decode(stream, plane.shape)), 0, 255)
            bits += bits_of(len(stream))
            error += float(np.square(decoded - plane).sum())
            points += plane.size
        results[task] = {"bpfp": round(bits / points, 5), "mse": round(error / points, 4)}
    return results


def _piece(plane: np.ndarray, places: np.random.Generator) -> np.ndarray:
    """Return a plane, or a piece of it somewhere if it is large."""
    if plane.size <= math.prod(PIECE):
        return plane
    shape = [min(side, length) for side, length in zip(plane.shape, PIECE, strict=True)]
    top, left = (places.integers(s - k + 1) for s, k in zip(plane.shape, shape, strict=True))
    return plane[top : top + shape[0], left : left + shape[1]]
