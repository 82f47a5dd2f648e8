"""The scale hyperprior as a codec: exact networks, stored tables, one ANS stream.

A bitstream consists of the model's index in its ladder (one byte), rows and columns (varints), and
the stream of the entropy coder: z with fixed tables, then y with the tables that z selects. All
networks run in exact arithmetic (:mod:`cfqa_data.codecs.hyperprior.fixed_point`), so neither the
bitstream nor the decoded plane depends on the machine or the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from cfqa_data.codecs.base import Bitstream, Codec, check_bitstream, check_plane, check_shape
from cfqa_data.codecs.hyperprior.checkpoint import read_checkpoint
from cfqa_data.codecs.hyperprior.entropy_coder import TableCoder, decoding, encode_parts
from cfqa_data.codecs.hyperprior.fixed_point import (
    FRACTION,
    GDN,
    LONG,
    SHORT,
    Arithmetic,
    Conv,
    Deconv,
    Layer,
    ReLU,
)
from cfqa_data.codecs.hyperprior.strips import Network
from cfqa_data.codecs.hyperprior.weights import HyperpriorWeights, read_ladder
from cfqa_data.errors import CodecError, prefixed
from cfqa_data.format.facts import Parameter
from cfqa_data.format.resources import resolve
from cfqa_data.paths import absolute_path

__all__ = ["Hyperprior", "HyperpriorCodec", "load_hyperprior"]

PEDESTAL = 2.0**-36

SHIPPED = "package://cfqa_data.codecs/weights/{}.safetensors"
"""URI of a ladder that is part of the package."""

COST: Mapping[str, float] = MappingProxyType({"cfqa": 1.0, "compressai": 14.0})
"""Core-seconds per million points, by coding convention.

Measured with N = 32, M = 64 for cfqa, and N = 128, M = 192 for compressai, which needs finer
arithmetic to reproduce CompressAI's rounding. The time grows with the square of N.
"""


class Hyperprior:
    """One model, which codes planes of floats in [0, 1).

    Args:
        weights: The model's weights and tables.
        index: The model's index in its ladder, 0..255, the first byte of every bitstream.
    """

    def __init__(self, weights: HyperpriorWeights, index: int = 0) -> None:
        self.weights = weights
        self.index = index
        published = weights.convention == "compressai"
        self.arithmetic = LONG if published else SHORT
        try:
            state = weights.state
            self.analysis = _make_network(state, "g_a", self.arithmetic)
            self.synthesis = _make_network(state, "g_s", self.arithmetic)
            self.hyper_analysis = _make_network(state, "h_a", self.arithmetic)
            self.hyper_synthesis = _make_network(state, "h_s", self.arithmetic)
        except (KeyError, ValueError, IndexError) as error:
            raise CodecError(f"the hyperprior's state dict is incomplete ({error})") from None
        convolutions = [layer for layer in self.analysis.layers if isinstance(layer, Conv)]
        self.stages, self._y_channels = len(convolutions), convolutions[-1].outputs
        if weights.pad.multiple % 2**self.stages:
            raise CodecError(f"the model needs sides that are multiples of {2**self.stages}")
        self._y_coder = TableCoder(weights.y_tables, published)
        self._z_coder = TableCoder(weights.z_tables, published)

    def encode(self, plane: np.ndarray) -> bytes:
        """Return the bitstream of a plane of floats in [0, 1), shape (rows, cols)."""
        y, z = self.latents(plane)
        z_part = self._z_coder, z.ravel(), self._z_table_indexes(z.shape[1:])
        y_part = self._y_coder, y.ravel(), self._y_table_indexes(z, y.shape)
        return self._header(plane.shape) + encode_parts([z_part, y_part])

    def decode(self, bitstream: Bitstream, shape: tuple[int, int]) -> np.ndarray:
        """Return the plane that a bitstream holds, float64 in [0, 1].

        Raises:
            CodecError: If the bitstream is damaged, or of another shape or model.
        """
        shape = check_shape("hyperprior", shape)
        bitstream, header = check_bitstream("hyperprior", bitstream), self._header(shape)
        if not bitstream.startswith(header):
            raise CodecError(
                f"hyperprior: the bitstream does not contain {shape[0]} x {shape[1]} samples "
                f"of model {self.index}"
            )
        (top, bottom), (left, right) = self.weights.pad.margins(shape)
        stride = 2**self.stages
        height = (top + shape[0] + bottom) // stride
        width = (left + shape[1] + right) // stride
        y_shape = (self._y_channels, height, width)
        z_size = (-(-height // 4), -(-width // 4))
        channels = len(self.weights.medians)
        with decoding(bitstream[len(header) :]) as decode:
            z = decode(self._z_coder, self._z_table_indexes(z_size)).reshape(channels, *z_size)
            y = decode(self._y_coder, self._y_table_indexes(z, y_shape))
        x = self.synthesis(y.reshape(y_shape).astype(np.float64))
        return np.clip(x[0, top : top + shape[0], left : left + shape[1]], 0.0, 1.0)

    def latents(self, plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the integer latents y (M, h, w) and z (N, h', w') of a plane.

        The medians are subtracted from z.
        """
        margins = self.weights.pad.margins(check_shape("hyperprior", plane.shape))
        plane = np.asarray(plane, np.float64)
        mode: Any = "edge" if self.weights.pad.mode == "edge" else "constant"
        x = np.pad(plane, margins, mode)[None]
        x = self.analysis(self.arithmetic.values.snap(x))
        z = self.hyper_analysis(np.abs(x)) - self.weights.medians[:, None, None]
        return np.rint(x).astype(np.int64), np.rint(z).astype(np.int64)

    def _z_table_indexes(self, size: tuple[int, ...]) -> np.ndarray:
        return np.repeat(np.arange(len(self.weights.medians)), size[0] * size[1])

    def _y_table_indexes(self, z: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return the table index of every y; encoder and decoder must agree on every one."""
        x = self.hyper_synthesis(z + self.weights.medians[:, None, None])
        scales = x[:, : shape[1], : shape[2]] * 2.0**FRACTION
        return np.searchsorted(self.weights.y_thresholds, scales.ravel().astype(np.int64))

    def _header(self, shape: tuple[int, ...]) -> bytes:
        return bytes([self.index]) + b"".join(map(_varint, shape))


class HyperpriorCodec(Codec):
    """A ladder of models for planes of the codes 0..255 of an 8-bit quantiser.

    The input of the network is code / 256; its output y becomes the code clip(round(256 y), 0,
    255).

    Args:
        models: Path or ``package://`` URI of the ladder.
    """

    parameter = Parameter("lambda", "higher", lowest=0.0)
    dtype = np.dtype(np.uint8)
    peak = 255

    def __init__(self, models: str | Path) -> None:
        self.models = str(models)
        self.metadata, ladder = read_ladder(resolve(self.models))
        self._weights = [weights for _, weights in ladder]
        self._index = {lmbda: index for index, (lmbda, _) in enumerate(ladder)}
        self._loaded: dict[int, Hyperprior] = {}
        self.cost = COST[self._weights[0].convention] if ladder else type(self).cost

    @property
    def lambdas(self) -> list[float]:
        """The lambdas of the ladder's models."""
        return list(self._index)

    def encode(self, plane: np.ndarray, parameter: float) -> bytes:
        """See :meth:`Codec.encode`; ``parameter`` is a lambda of the ladder."""
        plane = check_plane(self.name, plane, self.peak, self.dtype)
        index = self._index.get(self.check_parameter(parameter))
        if index is None:
            available = ", ".join(f"{lmbda:g}" for lmbda in self._index)
            raise CodecError(
                f"{self.name}: no model for lambda {parameter!r}; available are {available}"
            )
        return self._model(index).encode(plane / 256.0)

    def decode(self, bitstream: Bitstream, shape: tuple[int, int]) -> np.ndarray:
        """See :meth:`Codec.decode`; returns uint8."""
        bitstream = check_bitstream(self.name, bitstream)
        if not bitstream or bitstream[0] >= len(self._weights):
            raise CodecError(f"{self.name}: the bitstream refers to no model of {self.models}")
        plane = self._model(bitstream[0]).decode(bitstream, shape)
        return np.clip(np.rint(plane * 256.0), 0, 255).astype(np.uint8)

    def version(self) -> dict[str, str]:
        return {
            "encoder": f"cfqa-data {version('cfqa-data')} scale hyperprior",
            "models": self.models,
            "entropy coder": f"constriction {version('constriction')}",
        }

    def _model(self, index: int) -> Hyperprior:
        if index not in self._loaded:
            self._loaded[index] = _make_model(self.models, self._weights[index], index)
        return self._loaded[index]


class MultiTask(HyperpriorCodec):
    """One ladder for all tasks.

    Args:
        models: Path or URI of the ladder; the shipped one if not given.
    """

    name = "hyperprior_multi_task"
    title = "scale hyperprior, one ladder for all tasks"

    def __init__(self, models: str | Path | None = None) -> None:
        super().__init__(*self.weights({"models": models}))

    @classmethod
    def weights(cls, options: Mapping[str, Any]) -> list[str]:
        return [str(options.get("models") or SHIPPED.format(cls.name))]


class TaskSpecific(HyperpriorCodec):
    """A ladder for each task.

    Args:
        models: Path or URI of the ladder.
        task: The task whose shipped ladder is used if ``models`` is not given.
    """

    name = "hyperprior_task_specific"
    title = "scale hyperprior, a ladder for each task"

    def __init__(self, models: str | Path | None = None, task: str | None = None) -> None:
        super().__init__(*self.weights({"models": models, "task": task}))

    @classmethod
    def weights(cls, options: Mapping[str, Any]) -> list[str]:
        models, task = options.get("models"), options.get("task")
        if not models and task is None:
            raise CodecError(f"{cls.name}: needs models=FILE or task='cls'|'seg'|'dpt'")
        return [str(models or SHIPPED.format(f"{cls.name}-{task}"))]


def load_hyperprior(path: str | Path, lmbda: float | None = None) -> Hyperprior:
    """Return a model from a ladder file or a CompressAI checkpoint.

    Args:
        path: A ladder file (``.safetensors``, see :mod:`cfqa_data.codecs.hyperprior.weights`), or a
            checkpoint of CompressAI, alone or inside a saved training state.
        lmbda: The lambda of the model; optional if the ladder has only one model.

    Raises:
        CodecError: If the file is neither, or the ladder has no such model.
    """
    path = absolute_path(path)
    if path.suffix != ".safetensors":
        return _make_model(path, read_checkpoint(path), 0)
    _, ladder = read_ladder(path)
    matches = [i for i, (value, _) in enumerate(ladder) if lmbda is None or value == lmbda]
    if len(matches) != 1:
        available = ", ".join(f"{value:g}" for value, _ in ladder)
        raise CodecError(f"{path}: name one lambda out of {available}")
    return _make_model(path, ladder[matches[0]][1], matches[0])


def _make_model(path: str | Path, weights: HyperpriorWeights, index: int) -> Hyperprior:
    with prefixed(path, CodecError, CodecError):
        return Hyperprior(weights, index)


def _varint(value: int) -> bytes:
    """Return 7 bits per byte, the lowest first; the top bit is set if more bytes follow."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _make_network(state: Mapping[str, np.ndarray], name: str, arithmetic: Arithmetic) -> Network:
    """Return the layers of a network: convolutions at even positions, GDN or ReLU between them."""
    layers: list[Layer] = []
    hyper, indices = name[0] == "h", range(0, 32, 2)
    for index in indices[:3] if hyper else [i for i in indices if f"{name}.{i}.weight" in state]:
        if index and hyper:
            layers.append(ReLU())
        elif index:
            key = f"{name}.{index - 1}"
            beta, gamma = (state[f"{key}.{part}"].astype(np.float64) for part in ("beta", "gamma"))
            beta = np.maximum(beta, np.sqrt(1e-6 + PEDESTAL)) ** 2 - PEDESTAL
            gamma = np.maximum(gamma, np.sqrt(PEDESTAL)) ** 2 - PEDESTAL
            layers.append(GDN(key, beta, gamma, name == "g_s", arithmetic))
        key = f"{name}.{index}"
        stride = 1 if key in ("h_a.0", "h_s.4") else 2
        weights = key, state[f"{key}.weight"], state[f"{key}.bias"]
        upsamples = name[2] == "s" and stride == 2
        layers.append(
            Deconv(*weights, arithmetic) if upsamples else Conv(*weights, stride, arithmetic)
        )
    return Network([*layers, ReLU()] if name == "h_s" else layers)
