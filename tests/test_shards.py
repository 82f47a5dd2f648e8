"""The reader of shards against zarr-python, and on damaged bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cfqa_data.access.arrays import ShardReader
from cfqa_data.access.files import LocalFiles
from cfqa_data.access.selection import Selection
from cfqa_data.format.codes import create_codes_array, write_codes
from cfqa_data.format.quantizers import UniformQuantizer

LEVELS = 3


def write(path: Path, shape: tuple[int, int, int, int], bits: int, seed: int = 0) -> ShardReader:
    """Write one source's codes and return the reader for their shard."""
    layers = shape[1]
    quantizer = UniformQuantizer(bits, (-1.0,) * layers, (1.0,) * layers)
    centres = [1 << (bits - 1)] * layers
    create_codes_array(
        path,
        sources=1,
        levels=LEVELS,
        shape=shape,
        quantizer=quantizer,
        centres=centres,
        source_ids=["a"],
    )
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << bits, (LEVELS, *shape)).astype(quantizer.dtype)
    write_codes(path, 0, codes)
    return ShardReader(LEVELS, shape, np.dtype(quantizer.dtype))


def read(shards: ShardReader, file: Path, level: int) -> np.ndarray:
    """Read a whole feature."""
    with LocalFiles(file.parent).open(file.name) as blob:
        index = shards.read_index(blob)
        return shards.read(blob, index, level, Selection.of(shards.shape))


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 40), st.integers(1, 9)),
    bits=st.sampled_from([8, 10]),
    seed=st.integers(0, 99),
)
def test_what_is_read_is_what_zarr_reads(
    tmp_path_factory: pytest.TempPathFactory, shape: Any, bits: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("shards") / "x.zarr"
    shards = write(path, shape, bits, seed)
    assert shards.fits(json.loads((path / "zarr.json").read_text()))
    array = zarr.open_array(str(path), mode="r")
    for level in range(LEVELS):
        stored = read(shards, path / "c/0/0/0/0/0/0", level)
        expected = np.asarray(array[0, level])
        assert (stored.dtype, stored.flags.c_contiguous) == (expected.dtype, True)
        np.testing.assert_array_equal(stored, expected)


def test_a_chunk_that_was_not_written_is_zeros_as_with_zarr(tmp_path: Path) -> None:
    shape = (2, 2, 3, 5)
    shards = write(tmp_path / "x.zarr", shape, 10)
    array = zarr.open_array(str(tmp_path / "x.zarr"), mode="r+")  # leaves out what is all zeros
    stored = np.asarray(array[:])
    stored[0, 1, 1, 0] = 0
    array[:] = stored
    found = read(shards, tmp_path / "x.zarr/c/0/0/0/0/0/0", 1)
    assert not found[1, 0].any()
    np.testing.assert_array_equal(found, stored[0, 1])


def inside(metadata: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = metadata["codecs"][0]["configuration"]
    return found


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(zarr_format=2),
        lambda m: m.update(data_type="int16"),
        lambda m: m.update(fill_value=1),
        lambda m: m.update(storage_transformers=[{"name": "x"}]),
        lambda m: m.update(codecs=m["codecs"] * 2),
        lambda m: m.update(codecs=None),
        lambda m: m.pop("chunk_grid"),
        lambda m: m["chunk_key_encoding"]["configuration"].update(separator="."),
        lambda m: m["codecs"][0].update(name="x"),
        lambda m: inside(m).update(chunk_shape=[1, 1, 1, 2, 3, 5]),
        lambda m: inside(m).update(index_location="start"),
        lambda m: inside(m)["index_codecs"].pop(),
        lambda m: inside(m)["codecs"].reverse(),
        lambda m: inside(m)["codecs"].append({"name": "crc32c"}),
        lambda m: inside(m)["codecs"][0]["configuration"].update(order=[0, 1, 2, 3, 4, 5]),
        lambda m: inside(m)["codecs"][1]["configuration"].update(endian="big"),
        lambda m: inside(m)["codecs"][2].update(name="gzip"),
    ],
)
def test_an_array_laid_out_otherwise_does_not_fit(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    shards = write(tmp_path / "x.zarr", (2, 2, 3, 5), 10)
    metadata = json.loads((tmp_path / "x.zarr/zarr.json").read_text())
    changed = copy.deepcopy(metadata)
    change(changed)
    assert shards.fits(metadata)
    assert not shards.fits(changed)
    assert not ShardReader(LEVELS + 1, shards.shape, shards.dtype).fits(metadata)


def test_an_index_that_points_elsewhere_and_a_chunk_of_another_size_are_told(
    tmp_path: Path,
) -> None:
    shards = write(tmp_path / "x.zarr", (1, 1, 30, 20), 10)
    file = tmp_path / "x.zarr/c/0/0/0/0/0/0"
    content, take = file.read_bytes(), 16 * LEVELS
    index = np.frombuffer(content[-take - 4 : -4], "<u8").copy()

    def spoil(place: int, value: int) -> None:
        spoiled = index.copy()
        spoiled[place] = value
        raw = spoiled.tobytes()
        file.write_bytes(
            content[: -take - 4] + raw + google_crc32c.value(raw).to_bytes(4, "little")
        )

    spoil(0, 2**63)
    with pytest.raises(ValueError, match="a part ends at byte"):
        read(shards, file, 0)
    spoil(1, int(index[1]) - 1)
    with pytest.raises(ValueError, match="a chunk has the wrong size"):
        read(shards, file, 0)
    spoil(1, 3)
    with pytest.raises(ValueError, match="a chunk has the wrong size"):
        read(shards, file, 0)


def test_bytes_that_were_changed_give_an_error_or_numbers_but_nothing_worse(tmp_path: Path) -> None:
    shards = write(tmp_path / "x.zarr", (1, 2, 30, 20), 10)
    file = tmp_path / "x.zarr/c/0/0/0/0/0/0"
    content, rng, told = file.read_bytes(), np.random.default_rng(0), 0
    for _ in range(200):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 4):
            damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged[: int(rng.integers(1, len(content) + 1))])
        try:
            assert read(shards, file, 0).shape == shards.shape
        except (ValueError, OSError):
            told += 1
    assert told > 100
