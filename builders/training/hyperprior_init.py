"""Initialise a hyperprior with a linear transform coder, or with an already trained neighbour.

From random weights, a short training is mostly spent on making the decoder invert the encoder, and
the remaining error limits the quality of the whole ladder. The best orthonormal transform of
blocks, the Karhunen-Loeve transform of the training planes, is known in closed form. A model
therefore starts as exactly this transform, with the optimal step size for its lambda and the
standard deviations of the coefficients as scales. Training then improves on the fixed transform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from cfqa_data.codecs.hyperprior.module import ScaleHyperprior

__all__ = ["block_statistics", "rescale", "start_at_transform", "step_size"]

HIDDEN_GAIN = 16.0  # codes/256 have a deviation of about 0.1; inner layers should see more than 1
FREE_GAIN = 0.1  # factor of the random weights that are not part of the transform
GAMMA = 0.002  # makes GDN nearly linear


def step_size(lmbda: float) -> float:
    """Return the optimal quantiser step at a lambda, for planes in [0, 1).

    A small step s causes an error of s**2 / 12, and halving the error costs half a bit. Therefore
    lambda * 255**2 * error + bits is minimal at error = 1 / (2 ln 2 * lambda * 255**2).
    """
    return math.sqrt(12.0 / (2.0 * math.log(2.0) * lmbda * 255.0**2))


def block_statistics(planes: Sequence[np.ndarray], side: int) -> tuple[float, np.ndarray]:
    """Return mean and covariance of blocks, (side**2, side**2), with equal weight of all tasks.

    Args:
        planes: Planes of each task, uint8 (count, rows, cols), which stand for numbers in [0, 1).
        side: Side of a block. Blocks form a grid from the top left; remainders are ignored.
    """
    means, covariances = [], []
    for stack in planes:
        count, rows, cols = (stack.shape[0], *(size // side for size in stack.shape[1:]))
        blocks = stack[:, : rows * side, : cols * side].reshape(count, rows, side, cols, side)
        flat = blocks.transpose(0, 1, 3, 2, 4).reshape(-1, side**2)
        mean = float(flat.mean(dtype=np.float64)) / 256.0
        total = np.zeros((side**2, side**2))
        for part in np.array_split(flat, max(1, len(flat) // 65536)):
            centred = part / 256.0 - mean
            total += centred.T @ centred
        means.append(mean)
        covariances.append(total / len(flat))
    return float(np.mean(means)), np.mean(covariances, axis=0)


def start_at_transform(
    model: ScaleHyperprior, mean: float, covariance: np.ndarray, lmbda: float
) -> None:
    """Set a new model to the Karhunen-Loeve transform of blocks, in place.

    All stages except the last move 2 x 2 neighbours into channels; the last is the transform.
    Channels that are not needed keep their random weights, scaled down.

    Args:
        model: A new model with `stages` convolutions of stride 2, n >= 4**(stages - 1).
        mean: Mean of the planes.
        covariance: Covariance of blocks of side 2**stages, (4**stages, 4**stages), row by row.
        lmbda: Lambda, which determines the step size.

    Raises:
        ValueError: If the model has too few inner channels.
    """
    part = dict(model.named_parameters())
    last = len(model.g_a) - 1  # convolutions have even indices, GDN odd ones
    stages, side = last // 2 + 1, 2 ** (last // 2 + 1)
    n, m = len(part["g_a.0.weight"]), len(part[f"g_a.{last}.weight"])
    inner = 4 ** (stages - 1)
    if n < inner:
        raise ValueError(f"{stages} stages need {inner} inner channels, got {n}")
    variances, vectors = np.linalg.eigh(covariance)
    variances, vectors = variances[::-1][:m].copy(), vectors[:, ::-1][:, :m].copy()
    components, step = len(variances), step_size(lmbda)
    with torch.no_grad():
        for index in range(0, last + 1, 2):
            for network in ("g_a", "g_s"):
                part[f"{network}.{index}.weight"].mul_(FREE_GAIN)
                part[f"{network}.{index}.bias"].zero_()
                if index:
                    gamma = torch.sqrt(GAMMA * torch.eye(n) + 2.0**-36)
                    part[f"{network}.{index - 1}.gamma"].copy_(gamma)
        for stage in range(stages - 1):
            conv, deconv = part[f"g_a.{2 * stage}.weight"], part[f"g_s.{last - 2 * stage}.weight"]
            gain = HIDDEN_GAIN if stage == 0 else 1.0
            inputs, outputs = 4**stage, 4 ** (stage + 1)
            conv[:outputs, :inputs] = 0.0
            deconv[:outputs, :inputs] = 0.0
            for channel in range(outputs):
                origin, row, col = channel // 4, 2 + channel % 4 // 2, 2 + channel % 2
                conv[channel, origin, row, col] = gain
                deconv[channel, origin, row, col] = 1.0 / gain
        part["g_a.0.bias"][:4] = -HIDDEN_GAIN * mean
        part[f"g_s.{last}.bias"][:] = mean
        conv, deconv = part[f"g_a.{last}.weight"], part["g_s.0.weight"]
        gain = HIDDEN_GAIN * step
        conv[:components, :inner] = 0.0
        deconv[:components, :inner] = 0.0
        for row in range(side):
            for col in range(side):
                channel = 0
                for bit in range(stages - 1):
                    channel = 4 * channel + 2 * (row >> bit & 1) + (col >> bit & 1)
                tap = 2 + (row >> stages - 1), 2 + (col >> stages - 1)
                vector = torch.from_numpy(vectors[row * side + col]).float()
                conv[:components, channel, *tap] = vector / gain
                deconv[:components, channel, *tap] = vector * gain
        part["h_s.4.weight"].mul_(FREE_GAIN)
        deviations = np.sqrt(np.maximum(variances, 0.0)) / step
        part["h_s.4.bias"][:components] = torch.from_numpy(np.maximum(deviations, 0.2)).float()


def rescale(model: ScaleHyperprior, factor: float) -> None:
    """Multiply y by a factor, in place, and adapt all other layers: a finer or coarser step.

    With factor = sqrt(lambda / parent's lambda), a model starts near the rate for its lambda.
    """
    part = dict(model.named_parameters())
    last = len(model.g_a) - 1
    with torch.no_grad():
        for name in (f"g_a.{last}.weight", f"g_a.{last}.bias", "h_s.4.weight", "h_s.4.bias"):
            part[name].mul_(factor)
        for name in ("g_s.0.weight", "h_a.0.weight"):
            part[name].div_(factor)
