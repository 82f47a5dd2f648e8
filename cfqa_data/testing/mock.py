"""A small test dataset of format 2 with every case that a reader has to handle.

The package's writers create it in a fraction of a second, and it is the same every time:

| task | holds |
|---|---|
| `one` | a single token, three layers, no grid, no loss, no CKA, a gallery; 7 sources in 3 groups |
| `words` | 1 to 9 tokens; values of a codec on features, 3 levels, beside codes, 10 levels |
| `pictures` | no truths; a codec on inputs with tables; another whose rate is unknown |
| `cls` | what format 1 has, with the bitstreams of x265 |

The codecs that are not installed are classes of this module, for `plugins=`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.card.write import write_card
from cfqa_data.codecs.base import Bitstream, Codec, FeatureCodec, InputCodec, check_bitstream
from cfqa_data.errors import CodecError
from cfqa_data.format import format_1
from cfqa_data.format.codes import create_codes_array, find_centres, write_codes
from cfqa_data.format.facts import (
    CodecEntry,
    Layer,
    Loss,
    Origin,
    Parameter,
    Score,
    TaskEntry,
    TaskFacts,
    Terms,
    Truth,
)
from cfqa_data.format.invariants import folds_of, shard_of
from cfqa_data.format.layout import Layout
from cfqa_data.format.manifest import Manifest, package_versions, write_manifest
from cfqa_data.format.packing import pack, unpack
from cfqa_data.format.quantizers import UniformQuantizer
from cfqa_data.format.schema import label_schema, originals_schema
from cfqa_data.format.storage import write_table, write_tensors
from cfqa_data.integrity.health import health

__all__ = ["PLUGINS", "Picture", "Restored", "Rounded", "Stepped", "write_format_2_folder"]

PACKAGE = "mock-codecs"
SHA256 = "5" * 64


class Stepped(Codec):
    """Rounds the codes of a plane and compresses them with Deflate."""

    name = "stepped"
    title = "fewer codes, deflated"
    parameter = Parameter("step", "lower", whole=True, lowest=1, highest=64)
    dtype = np.dtype(np.uint8)
    peak = 255

    def encode(self, plane: np.ndarray, parameter: float) -> bytes:
        return zlib.compress((plane // int(parameter) * int(parameter)).tobytes())

    def decode(self, bitstream: Bitstream, shape: tuple[int, int]) -> np.ndarray:
        return _inflate(self.name, bitstream, self.dtype, shape)

    def version(self) -> dict[str, str]:
        return {"stepped": "1"}


class Rounded(FeatureCodec):
    """Rounds a feature to digits and applies Deflate; the stated rate counts nonzero values."""

    name = "rounded"
    title = "fewer digits, deflated"
    parameter = Parameter("digits", "higher", whole=True, lowest=0, highest=8)
    bits = "stated"

    def encode(self, feature: np.ndarray, parameter: float) -> bytes:
        return zlib.compress(feature.round(int(parameter)).tobytes())

    def decode(self, bitstream: Bitstream, shape: tuple[int, ...]) -> np.ndarray:
        return _inflate(self.name, bitstream, np.dtype(np.float32), shape)

    def stated_bits(self, bitstream: bytes, what: Any) -> int:
        return 1 + 32 * int(np.count_nonzero(self.decode(bitstream, what)))

    def version(self) -> dict[str, str]:
        return {"rounded": "1"}


class Restored(FeatureCodec):
    """Features restored by a network, without bitstreams and with an unknown rate."""

    name = "restored"
    title = "restored by a network"
    parameter = Parameter("strength", "lower", unit="%")
    bits = "unknown"

    def encode(self, feature: np.ndarray, parameter: float) -> bytes:
        raise CodecError("restored: has no bitstreams")

    def decode(self, bitstream: Bitstream, shape: tuple[int, ...]) -> np.ndarray:
        raise CodecError("restored: has no bitstreams")

    def version(self) -> dict[str, str]:
        return {"restored": "1"}


class Picture(InputCodec):
    """Reduces a picture to fewer grey levels, which are stored in a table, and applies Deflate."""

    name = "picture"
    title = "fewer grey levels, deflated"
    parameter = Parameter("quality", "higher", lowest=0.5, highest=100)

    def __init__(self, tables: dict[str, np.ndarray]) -> None:
        self.grey = tables["grey"]

    def tables(self) -> dict[str, np.ndarray]:
        return {"grey": self.grey}

    def encode(self, inputs: np.ndarray, parameter: float) -> bytes:
        step = max(1, round(64 / parameter))
        return zlib.compress(
            np.searchsorted(self.grey, inputs // step * step).astype("u1").tobytes()
        )

    def decode(self, bitstream: Bitstream) -> np.ndarray:
        indices = _inflate(self.name, bitstream, np.dtype(np.uint8), SIDES)
        return self.grey[np.minimum(indices, len(self.grey) - 1)]

    def version(self) -> dict[str, str]:
        return {"picture": "1"}


PLUGINS = tuple(f"{__name__}:{kind.__name__}" for kind in (Stepped, Rounded, Restored, Picture))
"""Value of `plugins=` for decoding in the light tier."""

SIDES = (9, 6)


def _inflate(
    name: str, bitstream: Bitstream, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> np.ndarray:
    try:
        data = bytearray(zlib.decompress(check_bitstream(name, bitstream)))
        return np.frombuffer(data, dtype).reshape(shape)
    except (zlib.error, ValueError) as error:
        raise CodecError(f"{name}: the bitstream is damaged ({error})") from None


def _codec_entry(kind: Any, levels: tuple[float, ...], **more: Any) -> CodecEntry:
    origin = Origin(kind.name, {}, PACKAGE, "1.0", SHA256)
    return CodecEntry(kind.facts(), levels, origin=origin, **more)


def _entries() -> dict[str, TaskEntry]:
    one = TaskEntry(
        facts=TaskFacts(
            name="one",
            title="finding a thing again",
            score=Score("place", lower_better=True, noticeable=1.0),
            truth=Truth("int64", 0),
        ),
        shape=(1, 3, 1, 8),
        sources=tuple(f"one-{n}" for n in range(7)),
        codecs={
            "stepped": _codec_entry(
                Stepped, (2, 8, 24, 64), quantizer=UniformQuantizer(8, (-4.0,) * 3, (4.0,) * 3)
            )
        },
        shard=3,
        layers=(Layer("block 1"), Layer("block 5"), Layer("output", "after")),
        views=("sound",),
        groups=("b", "a", "a", "b", "c", "c", "a"),
        gallery="one-gallery.safetensors",
        terms=Terms("cc-by-4.0", "https://example.org/one", "The One project", truths=True),
    )
    words = TaskEntry(
        facts=TaskFacts(
            name="words",
            title="marking words in a sentence",
            score=Score("accuracy", lower_better=False, unit="%", noticeable=0.5),
            loss=Loss("cross-entropy", "nats", 0.05),
            truth=Truth("uint8", 1),
        ),
        shape=(2, 1, 9, 6),
        sources=tuple(f"sentence {n}" for n in range(4)),
        codecs={
            "rounded": _codec_entry(Rounded, (4, 2, 0)),
            "stepped": _codec_entry(
                Stepped, tuple(range(2, 42, 4)), quantizer=UniformQuantizer(8, (-4.0,), (4.0,))
            ),
        },
        shard=2,
        tokens="varying",
        layers=(Layer("last hidden state", "after"),),
        views=("forwards", "backwards"),
    )
    pictures = TaskEntry(
        facts=TaskFacts(
            name="pictures",
            title="naming what is in a picture",
            score=Score("error", lower_better=True),
            loss=Loss("loss"),
        ),
        shape=(1, 2, 10, 6),
        sources=tuple(f"picture-{n}" for n in range(3)),
        codecs={
            "picture": _codec_entry(
                Picture, (80, 20.5, 5, 1), tables=("pictures-picture.safetensors",)
            ),
            "restored": _codec_entry(Restored, (10, 60)),
        },
        shard=8,
        prefix_tokens=1,
        grid=(3, 3),
        layers=(Layer("stage 1"), Layer("stage 2")),
        views=("picture",),
    )
    cls = TaskEntry(
        facts=format_1.TASKS["cls"],
        shape=(1, 1, 16, 16),
        sources=("cls-0", "cls-1"),
        codecs={
            "x265": CodecEntry(
                format_1.CODECS["x265"],
                tuple(range(5, 55, 5)),
                UniformQuantizer(10, (-4.0,), (4.0,)),
                origin=Origin("x265"),
            )
        },
        shard=2,
        prefix_tokens=1,
        grid=(3, 5),
        layers=(Layer("block 3", "before"),),
        views=("image",),
    )
    return {entry.name: entry for entry in (one, words, pictures, cls)}


def write_format_2_folder(root: Path | str, tier: str = "full") -> Path:
    """Write the dataset folder and return its path.

    Args:
        root: Path of the folder.
        tier: "full" or "light".
    """
    import pyarrow as pa

    layout, entries = Layout(Path(root)), _entries()
    tables, originals = [], []
    for number, entry in enumerate(entries.values()):
        task = _TaskWriter(layout, entry, tier, np.random.default_rng(number))
        originals += task.write_originals()
        rows = [row for codec in entry.codecs.values() for row in task.write_codec(codec)]
        rows.sort(key=lambda row: row["index"])  # by source, then codec and level
        tables.append(pa.Table.from_pylist(rows, schema=label_schema(2)))
        write_table(layout.labels(entry.name), tables[-1])
    table = pa.Table.from_pylist(originals, schema=originals_schema(2))
    write_table(layout.originals_table, table)
    manifest = Manifest(
        name="format-2",
        tier=tier,
        recipe={"name": "format-2", "summary": "Every case of format 2, in little."},
        tasks=entries,
        versions={**package_versions(("cfqa-data",)), "stepped": "1"},
        health=tuple(health(pa.concat_tables(tables))),
        packages={PACKAGE: {"version": "1.0", "sha256": SHA256}},
    )
    write_card(layout.root, manifest)
    write_manifest(layout.root, manifest)
    return layout.root


@dataclass
class _TaskWriter:
    """Writes the files of one task."""

    layout: Layout
    entry: TaskEntry
    tier: str
    rng: np.random.Generator

    def __post_init__(self) -> None:
        n, c, t, d = self.entry.shape
        tokens = (1, t, 4, 6) if self.entry.varying_tokens else [t] * len(self.entry.sources)
        self.tokens = dict(zip(self.entry.sources, tokens, strict=True))
        self.inputs = {
            source: self.rng.integers(0, 256, SIDES, np.uint8) for source in self.entry.sources
        }
        noise = {s: self.rng.standard_normal((n, c, t, d)) for s, t in self.tokens.items()}
        pictures = self.entry.name == "pictures"
        self.features = {
            source: self._extract(self.inputs[source])
            if pictures
            else noise[source].astype(np.float32)
            for source in self.entry.sources
        }

    def _extract(self, inputs: np.ndarray) -> np.ndarray:
        """Return the feature of a picture: the mean of its rows and the rows, in two layers."""
        tokens = np.concatenate([inputs.mean(0, keepdims=True), inputs]) / 64 - 2
        return np.stack([tokens, np.tanh(tokens)])[None].astype(np.float32)

    def shards(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the number and the sources of each shard."""
        size = self.entry.shard
        for shard in range(self.entry.shards):
            yield shard, list(self.entry.sources[shard * size : (shard + 1) * size])

    def write_originals(self) -> list[dict[str, Any]]:
        """Write originals, truths and the gallery; return the rows of the originals."""
        entry, layout = self.entry, self.layout
        for shard, ids in self.shards():
            path = layout.originals(entry.name, shard, entry.shards)
            write_tensors(path, {source: self.features[source] for source in ids})
        if truth := entry.facts.truth:
            truths = {
                source: np.full([self.tokens[source]] * truth.axes, n, truth.dtype)
                for n, source in enumerate(entry.sources)
            }
            write_tensors(layout.truth(entry.name), truths)
        if entry.gallery:
            gallery = np.stack([feature[0, -1, 0] for feature in self.features.values()])
            write_tensors(layout.gallery(entry.gallery), {"features": gallery})
        return [
            self._row(index)
            | {
                "array": layout.relative(
                    layout.originals(entry.name, shard_of(index, entry.shard), entry.shards)
                ),
                "key": source,
            }
            for index, source in enumerate(entry.sources)
        ]

    def _row(self, index: int) -> dict[str, Any]:
        """Return the columns that all rows of a source share."""
        entry, source = self.entry, self.entry.sources[index]
        return {
            "task": entry.name,
            "source_id": source,
            "fold": int(folds_of(entry)[index]),
            "reference_score": 1.0 + index,
            "reference_loss": 0.25 if entry.facts.loss else None,
            "tokens": self.tokens[source],
            "group": entry.group_of[index],
        }

    def write_codec(self, codec: CodecEntry) -> list[dict[str, Any]]:
        """Write a codec's tables, bitstreams and arrays; return its label rows."""
        entry, layout = self.entry, self.layout
        grey = {"grey": np.arange(0, 256, dtype=np.uint8)}
        for name in codec.tables:
            write_tensors(layout.tables(name), grey)
        versions_of = {
            s: [self._compress(codec, s, p) for p in codec.levels] for s in entry.sources
        }
        if codec.name != "restored":
            for shard, ids in self.shards():
                streams = {
                    f"{source}/{level}": np.frombuffer(stream, np.uint8)
                    for source in ids
                    for level, (stream, *_) in enumerate(versions_of[source])
                }
                write_tensors(
                    layout.bitstreams(entry.name, codec.name, shard, entry.shards), streams
                )
        array = layout.compressed(entry.name, codec.name)
        stored = self.tier == "full" or codec.facts.on == "inputs"
        if stored:
            codes = [[codes for _, codes, *_ in v] for v in versions_of.values()]
            self._write_array(codec, array, codes)
        readable = stored or codec.name != "restored"
        return [
            self._label(codec, index, level, bits, feature)
            | {"array": layout.relative(array) if readable else None}
            for index, versions in enumerate(versions_of.values())
            for level, (_, _, feature, bits) in enumerate(versions)
        ]

    def _compress(
        self, codec: CodecEntry, source: str, parameter: float
    ) -> tuple[bytes, np.ndarray, np.ndarray, int | None]:
        """Return the bitstream, the stored codes or values, the float32 feature, and the bits."""
        from cfqa_data.codecs import get_codec

        feature = self.features[source]
        if codec.name == "restored":
            restored = feature + np.float32(parameter / 400) * np.cos(7 * feature)
            return b"", restored, restored, None
        if codec.name == "picture":
            picture = Picture({"grey": np.arange(0, 256, dtype=np.uint8)})
            stream = picture.encode(self.inputs[source], parameter)
            decoded = self._extract(picture.decode(stream))
            return stream, decoded, decoded, 8 * len(stream)
        if codec.quantizer is None:
            rounded = Rounded()
            stream = rounded.encode(feature, parameter)
            decoded = rounded.decode(stream, feature.shape)
            return stream, decoded, decoded, rounded.stated_bits(stream, feature.shape)
        planes = Stepped() if codec.name == "stepped" else get_codec(codec.name)
        plane = pack(codec.quantizer.quantize(feature))
        stream = planes.encode(plane, parameter)
        codes = unpack(planes.decode(stream, plane.shape), feature.shape)
        return stream, codes, codec.quantizer.dequantize(codes), 8 * len(stream)

    def _write_array(self, codec: CodecEntry, path: Path, stored: list[list[np.ndarray]]) -> None:
        entry, quantizer = self.entry, codec.quantizer
        originals = np.concatenate(list(self.features.values()), axis=2)
        create_codes_array(
            path,
            sources=len(entry.sources),
            levels=len(codec.levels),
            shape=entry.shape,
            quantizer=quantizer,
            centres=find_centres(quantizer.quantize(originals)) if quantizer else (),
            source_ids=entry.sources,
        )
        for index, versions in enumerate(stored):
            write_codes(path, index, np.stack(versions))

    def _label(
        self, codec: CodecEntry, index: int, level: int, bits: int | None, feature: np.ndarray
    ) -> dict[str, Any]:
        row, score = self._row(index), self.entry.facts.score
        x = self.features[row["source_id"]].astype(np.float64)
        y = feature.astype(np.float64)
        mse = float(np.square(x - y).mean())
        distortion = round(mse, 6) * (1 + index / 8)
        value = row["reference_score"] + (distortion if score.lower_better else -distortion)
        norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
        return row | {
            "codec": codec.name,
            "level": level,
            "parameter_name": codec.facts.parameter.name,
            "parameter": float(codec.levels[level]),
            "bits": bits,
            "bpfp": float("nan") if bits is None else bits / x.size,
            "score": value,
            "distortion": score.distortion(value, row["reference_score"]),
            "loss": row["reference_loss"] + distortion if self.entry.facts.loss else None,
            "mse": mse,
            "cosine": float(((x * y).sum(-1) / norms).mean()) if norms.all() else None,
            "cka": _cka(x, y),
            "index": index,
        }


def _cka(x: np.ndarray, y: np.ndarray) -> float | None:
    """Return the mean linear CKA of slices; None if a slice has no variance, as with one token."""
    x, y = x - x.mean(-2, keepdims=True), y - y.mean(-2, keepdims=True)

    def inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.square(np.swapaxes(a, -1, -2) @ b).sum((-1, -2))

    scale = np.sqrt(inner(x, x) * inner(y, y))
    return float((inner(x, y) / scale).mean()) if scale.all() else None
