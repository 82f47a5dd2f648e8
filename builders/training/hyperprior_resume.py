"""The state of a training, saved so that an interrupted one goes on as if it had not been.

One file beside the models, replaced whole: weights, optimizer, schedule, and the generators that
draw patches and noise.  It is read without running any code from it.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cfqa_data.errors import BuildError

__all__ = ["load_state", "save_state"]


def save_state(
    path: Path,
    step: int,
    made: dict[str, Any],
    model: nn.Module,
    stateful: dict[str, Any],
    generator: np.random.Generator,
) -> None:
    """Write the state after ``step`` steps.

    Args:
        path: of the file.
        step: steps done.
        made: how the model is made; another training does not take up the file.
        model: its weights.
        stateful: optimizer and schedules, by name.
        generator: of the patches; torch's own generators draw the noise.
    """
    device = next(model.parameters()).device
    state = {
        "step": step,
        "made": made,
        "model": model.state_dict(),
        "generator": generator.bit_generator.state,
        "noise": torch.get_rng_state(),
        "device_noise": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        **{name: part.state_dict() for name, part in stateful.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    torch.save(state, partial)
    partial.replace(path)


def load_state(
    path: Path,
    made: dict[str, Any],
    model: nn.Module,
    stateful: dict[str, Any],
    generator: np.random.Generator,
) -> int:
    """Take up the state in a file, if there is one; return the steps done.

    Raises:
        BuildError: the file is damaged, or another training's.
    """
    if not path.is_file():
        return 0
    device = next(model.parameters()).device
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        kept = state["made"]
        differing = [key for key in made if kept.get(key) != made[key]]
        if not differing:
            model.load_state_dict(state["model"])
            generator.bit_generator.state = state["generator"]
            torch.set_rng_state(state["noise"])
            if device.type == "cuda" and state["device_noise"] is not None:
                torch.cuda.set_rng_state(state["device_noise"], device)
            for name, part in stateful.items():
                part.load_state_dict(state[name])
            return int(state["step"])
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise _damaged(path, error) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from None
    told = ", ".join(f"{key} {kept.get(key)}, not {made[key]}" for key in differing)
    raise BuildError(f"{path} is of a training with {told}: give the same again, or delete it")


def _damaged(path: Path, error: Exception) -> BuildError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return BuildError(f"{path}: not the state of a training ({reason}); delete it to start again")
