"""The state of a training, saved so that an interrupted one goes on as if it had not been.

One file beside the models, replaced whole: weights, optimizer, schedule, and the generators that
draw patches and noise.  It is read without running any code from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cfqa_data.builders.training.hyperprior_plan import Job, Settings, provenance
from cfqa_data.errors import BuildError
from cfqa_data.format.checkpoints import load_plain
from cfqa_data.format.storage import atomic_path

__all__ = ["check_states", "load_state", "save_state", "state_path"]


def state_path(job: Job, settings: Settings) -> Path:
    """Return the file of an unfinished model's state."""
    return job.path(settings).with_suffix(".state")


def save_state(
    path: Path,
    done: tuple[int, float],
    made: dict[str, Any],
    model: nn.Module,
    stateful: dict[str, Any],
    generator: np.random.Generator,
) -> None:
    """Write a state.

    Args:
        path: of the file.
        done: steps, and the seconds that they took.
        made: how the model is made; another training does not take up the file.
        model: its weights.
        stateful: optimizer and schedules, by name.
        generator: of the patches; torch's own generators draw the noise.
    """
    device = next(model.parameters()).device
    state = {
        "step": done[0],
        "seconds": done[1],
        "made": made,
        "model": model.state_dict(),
        "generator": generator.bit_generator.state,
        "noise": torch.get_rng_state(),
        "device_noise": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        **{name: part.state_dict() for name, part in stateful.items()},
    }
    with atomic_path(path) as partial:
        torch.save(state, partial)


def load_state(
    path: Path,
    made: dict[str, Any],
    model: nn.Module,
    stateful: dict[str, Any],
    generator: np.random.Generator,
) -> tuple[int, float]:
    """Take up the state in a file, if there is one; return the steps done, and their seconds.

    Raises:
        BuildError: the file is damaged, or another training's.
    """
    if not path.is_file():
        return 0, 0.0
    state = _read(path, made)
    device = next(model.parameters()).device
    try:
        model.load_state_dict(state["model"])
        generator.bit_generator.state = state["generator"]
        torch.set_rng_state(state["noise"])
        if device.type == "cuda" and state["device_noise"] is not None:
            torch.cuda.set_rng_state(state["device_noise"], device)
        for name, part in stateful.items():
            part.load_state_dict(state[name])
        return int(state["step"]), float(state["seconds"])
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from None


def check_states(jobs: Sequence[Job], settings: Settings) -> None:
    """See that the states of unfinished models can be taken up, before anything is trained.

    Raises:
        BuildError: a file is damaged, or another training's.
    """
    for job in jobs:
        if state_path(job, settings).is_file():
            _read(state_path(job, settings), provenance(job, settings))


def _read(path: Path, made: dict[str, Any]) -> dict[str, Any]:
    """Return what a file holds, if it is of the training that makes ``made``."""
    try:
        state: dict[str, Any] = load_plain(path, mapped=False)
        kept = state["made"]
        differing = [key for key in made if kept.get(key) != made[key]]
    except BuildError as error:
        raise _damaged(path, error) from None
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from None
    if differing:
        told = ", ".join(f"{key} {kept.get(key)}, not {made[key]}" for key in differing)
        raise BuildError(f"{path} is of a training with {told}: give the same again, or delete it")
    return state


def _damaged(path: Path, error: Exception) -> BuildError:
    reason = (str(error).removeprefix(f"{path}: ").splitlines() or [type(error).__name__])[0]
    return BuildError(f"{path}: not the state of a training ({reason}); delete it to start again")
