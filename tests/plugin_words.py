"""User-defined classes for a dataset of texts, without images and video codecs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.builders.backbones.base import Backbone
from cfqa_data.builders.sources.base import Sample, Source
from cfqa_data.builders.tasks.base import Task
from cfqa_data.codecs.base import Codec, FeatureCodec, InputCodec
from cfqa_data.errors import BuildError, CodecError
from cfqa_data.format.facts import Layer, Parameter, Score, TaskFacts, Terms, Truth

__all__ = ["Bag", "Drop", "Length", "Lines", "Round", "Shift", "Vowels"]

WORDS = ("the", "feature", "of", "a", "text", "has", "as", "many", "tokens", "as", "words")
DIM = 6


class Lines(Source):
    """A source of lines of words, two per page; the ground truth is the number of words."""

    def __init__(
        self, task: str, seed: int, single: bool = False, lexicon: Path | None = None
    ) -> None:
        self.task, self.seed, self.single, self.lexicon = task, seed, single, lexicon
        self.words = lexicon.read_text().split() if lexicon else WORDS
        self.terms = Terms("cc0-1.0", inputs=True, truths=True)

    def samples(self) -> Iterator[Sample]:
        for number in range(40):
            yield self.sample(f"{self.task}-{number:02d}")

    def sample(self, source_id: str) -> Sample:
        number = int(source_id.rpartition("-")[2])
        words = self._line(number)
        group = None if self.single else f"page {number // 2}"
        return Sample(source_id, words, np.array(len(words), np.int64), group)

    def training_inputs(self, count: int, seed: int) -> Iterator[list[str]]:
        return (self._line(1000 + number) for number in range(count))

    def training_samples(self, seed: int) -> Iterator[Sample]:
        for number in range(2000, 2100):
            yield self.sample(f"{self.task}-{number}")

    def decides(self) -> tuple[Sequence[Path], Any]:
        return ([self.lexicon] if self.lexicon else []), [self.seed, self.single]

    def _line(self, number: int) -> list[str]:
        rng = np.random.default_rng([self.seed, number])
        return rng.choice(self.words, 1 if self.single else int(rng.integers(1, 6))).tolist()


class Bag(Backbone):
    """A backbone whose tokens are hashes of words, shifted by the layer."""

    name, width, layers = "bag", DIM, 9

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def extract(self, inputs: list[str], layers: Sequence[int]) -> np.ndarray:
        rows = [[zlib.crc32(f"{word}{d}".encode()) % 97 for d in range(DIM)] for word in inputs]
        tokens = np.array(rows, np.float32) / 97 * self.scale
        return np.stack([tokens + layer for layer in layers])[None]

    def layer(self, index: int) -> Layer:
        return Layer(f"hash {index}")


class Length(Task):
    """A task whose score is the error of the number of words, taken from the sum of the feature."""

    facts = TaskFacts("length", "length of a text", Score("error", True), truth=Truth("int64", 0))

    def __init__(self, least: int = 0) -> None:
        self.least = least

    def score(self, feature: np.ndarray, truth: np.ndarray) -> tuple[float, None]:
        return abs(float(feature[0, 0].sum(dtype=np.float64)) - int(truth)), None

    def accepts(
        self, feature: Callable[[], np.ndarray], sample: Sample, accepted: Sequence[Sample]
    ) -> str | None:
        return "too short" if len(sample.inputs) < self.least else None


class Shift(Codec):
    """A codec on planes that drops the lowest bits."""

    name, title = "shift", "drops bits"
    parameter = Parameter("bits", "lower", whole=True, lowest=0, highest=7)
    dtype, peak = np.dtype(np.uint8), 255

    def encode(self, plane: np.ndarray, parameter: float) -> bytes:
        return bytes([int(parameter)]) + zlib.compress((plane >> int(parameter)).tobytes())

    def decode(self, bitstream: bytes, shape: tuple[int, int]) -> np.ndarray:
        try:
            data = np.frombuffer(zlib.decompress(bytes(bitstream[1:])), np.uint8).reshape(shape)
        except (ValueError, zlib.error) as error:
            raise CodecError(f"shift: {error}") from None
        return data << bitstream[0]

    def version(self) -> dict[str, str]:
        return {"encoder": "1"}


class Round(FeatureCodec):
    """A codec on features that rounds the difference from the training mean; states its bits."""

    name, title, bits = "round", "rounds", "stated"
    parameter = Parameter("digits", "higher", lowest=0)

    def __init__(self, tables: Mapping[str, np.ndarray] | None = None) -> None:
        self._mean = tables["mean"] if tables else np.zeros(DIM, np.float32)

    def fit(self, items: Any, seed: int) -> None:
        self._mean = np.concatenate([f.reshape(-1, DIM) for f in items]).mean(0)

    def tables(self) -> dict[str, np.ndarray]:
        return {"mean": self._mean}

    def encode(self, feature: np.ndarray, parameter: float) -> bytes:
        scale = np.float32(10**parameter)
        codes = np.rint((feature - self._mean) * scale).astype(np.int32)
        return scale.tobytes() + codes.tobytes()

    def decode(self, bitstream: bytes, shape: tuple[int, ...]) -> np.ndarray:
        scale = np.frombuffer(bitstream[:4], np.float32)
        codes = np.frombuffer(bitstream[4:], np.int32).reshape(shape)
        return codes.astype(np.float32) / scale + self._mean

    def stated_bits(self, bitstream: bytes, what: Any) -> int:
        return 7 * int(np.prod(what))

    def version(self) -> dict[str, str]:
        return {}


class Drop(Round):
    """Like `Round`, with an unknown rate."""

    name, title, bits = "drop", "rounds, at an unknown rate", "unknown"


class Vowels(InputCodec):
    """A codec on inputs that keeps the first letters of each word."""

    name, title = "letters", "keeps the first letters"
    parameter = Parameter("letters", "higher", whole=True, lowest=1)

    def encode(self, inputs: list[str], parameter: float) -> bytes:
        return " ".join(word[: int(parameter)] for word in inputs).encode()

    def decode(self, bitstream: bytes) -> list[str]:
        return bytes(bitstream).decode().split()

    def version(self) -> dict[str, str]:
        return {"encoder": "letters 1"}


class Ragged(Bag):
    """A backbone with layers of different widths."""

    def extract(self, inputs: list[str], layers: Sequence[int]) -> Any:
        return [np.zeros((len(inputs), DIM + layer), np.float32) for layer in layers]


class Infinite(Bag):
    """A backbone with infinite values."""

    def extract(self, inputs: list[str], layers: Sequence[int]) -> np.ndarray:
        return np.full_like(super().extract(inputs, layers), np.inf)


class Undecided(Length):
    """A task whose score is NaN."""

    def score(self, feature: np.ndarray, truth: np.ndarray) -> tuple[float, None]:
        return float("nan"), None


class Refusing(Length):
    """A task whose constructor raises an error."""

    def __init__(self) -> None:
        raise BuildError("not today")


class Searching(Length):
    """A task whose gallery has NaN."""

    def gallery(self) -> Mapping[str, np.ndarray]:
        return {"keys": np.array([1.0, np.nan])}
