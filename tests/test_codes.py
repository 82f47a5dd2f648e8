from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, TransposeCodec

from cfqa_data.access.arrays import ArrayReader
from cfqa_data.access.files import LocalFiles
from cfqa_data.errors import CodecError, FormatError
from cfqa_data.format.codes import Codes, create_codes_array, find_centres, write_codes
from cfqa_data.format.quantizers import KMeansQuantizer, Quantizer, UniformQuantizer

SHAPE = (2, 2, 3, 5)
IDS = ["a", "b"]
UNIFORM = UniformQuantizer(10, (-3.0, -0.5), (1.0, 9.0))
KMEANS = KMeansQuantizer(8, tuple(map(tuple, np.sinh(np.linspace([-3, -4], [4, 3], 256)).T)))


def random_codes(quantizer: Quantizer, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 1 << quantizer.bits, (10, *SHAPE)).astype(quantizer.dtype)


def create(path: Path, quantizer: Quantizer = UNIFORM, centres: Any = (512, 7)) -> None:
    create_codes_array(
        path,
        sources=2,
        levels=10,
        shape=SHAPE,
        quantizer=quantizer,
        centres=centres,
        source_ids=IDS,
    )


def reader(path: Path, quantizer: Quantizer = UNIFORM) -> ArrayReader:
    files = LocalFiles(path.parent)
    return ArrayReader(
        files, path.name, source_ids=IDS, levels=10, shape=SHAPE, quantizer=quantizer
    )


def values(path: Path, source: int, level: int, quantizer: Quantizer = UNIFORM) -> np.ndarray:
    found = reader(path, quantizer).read(source, level)
    assert isinstance(found, Codes)
    return found.dequantize()


@settings(max_examples=25, deadline=None)
@given(
    quantizer=st.sampled_from([UNIFORM, KMEANS]),
    centres=st.tuples(st.integers(0, 255), st.integers(0, 255)),
    seed=st.integers(0, 2**32 - 1),
)
def test_reading_gives_what_the_codec_decoded_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    quantizer: Quantizer,
    centres: tuple[int, int],
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("codes") / "x.zarr"
    codes = random_codes(quantizer, seed)
    create(path, quantizer, centres)
    write_codes(path, 1, codes)
    for level in (0, 9):
        y = values(path, 1, level, quantizer)
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y, quantizer.dequantize(codes[level]))


@pytest.mark.parametrize("centre", [0, 100, 511, 512, 1023])
def test_stored_numbers_are_a_zigzag_around_the_centre(tmp_path: Path, centre: int) -> None:
    codes = np.full((10, *SHAPE), centre, np.uint16)
    near = [centre + step for step in (0, -1, 1, -2, 2) if 0 <= centre + step < 1024]
    codes.reshape(-1)[: len(near)] = near
    create(tmp_path / "x.zarr", centres=(centre, centre))
    write_codes(tmp_path / "x.zarr", 0, codes)
    stored = reader(tmp_path / "x.zarr").read(0, 0).indices
    np.testing.assert_array_equal(stored.reshape(-1)[: len(near)], range(len(near)))


def test_the_layout_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    create(path)
    write_codes(path, 0, random_codes(UNIFORM))
    write_codes(path, 1, np.full((10, *SHAPE), 512, np.uint16))
    files = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    assert files == ["c/0/0/0/0/0/0", "c/1/0/0/0/0/0", "zarr.json"]
    metadata = json.loads((path / "zarr.json").read_text())
    assert metadata["zarr_format"] == 3
    assert metadata["dimension_names"] == ["source", "level", "N", "C", "T", "D"]
    assert metadata["data_type"] == "uint16"
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [1, 10, *SHAPE]
    # Zarr's own codecs only: TensorStore refuses whatever is called numcodecs.*.
    assert "numcodecs" not in json.dumps(metadata)
    (sharding,) = metadata["codecs"]
    assert sharding["name"] == "sharding_indexed"
    assert sharding["configuration"]["chunk_shape"] == [1, 1, 1, 1, 3, 5]
    transpose, *_, blosc = (codec["configuration"] for codec in sharding["configuration"]["codecs"])
    assert transpose == {"order": [0, 1, 2, 3, 5, 4]}
    assert (blosc["cname"], blosc["clevel"], blosc["shuffle"]) == ("zstd", 5, "bitshuffle")
    assert metadata["attributes"] == {
        "quantizer": UNIFORM.to_dict(),
        "centres": [512, 7],
        "source_ids": IDS,
    }
    array = zarr.open_array(str(path), mode="r")
    assert (array.shape, array.dtype) == ((2, 10, *SHAPE), np.uint16)


def test_the_same_codes_give_the_same_bytes(tmp_path: Path) -> None:
    shards = []
    for name in ("x.zarr", "y.zarr"):
        create(tmp_path / name)
        write_codes(tmp_path / name, 0, random_codes(UNIFORM, seed=1))
        write_codes(tmp_path / name, 0, random_codes(UNIFORM))
        shards.append((tmp_path / name / "c/0/0/0/0/0/0").read_bytes())
        assert not list(tmp_path.rglob("*.partial"))
    assert shards[0] == shards[1]


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1, 4), (3, 5, 2, 1)])
@pytest.mark.parametrize("quantizer", [UNIFORM, None])
def test_a_shard_has_the_bytes_that_zarr_writes(
    shape: tuple[int, ...], quantizer: Quantizer | None, tmp_path: Path
) -> None:
    layers = shape[1]
    if quantizer is not None:
        quantizer = UniformQuantizer(10, (-3.0,) * layers, (1.0,) * layers)
    path, other = tmp_path / "x.zarr", tmp_path / "y.zarr"
    for folder in (path, other):
        create_codes_array(
            folder,
            sources=2,
            levels=7,
            shape=shape,
            quantizer=quantizer,
            centres=(0,) * layers if quantizer else (),
            source_ids=IDS,
        )
    rng = np.random.default_rng(0)
    values = rng.integers(0, 99, (7, *shape)).astype(quantizer.dtype if quantizer else np.float32)
    values[3] = 0  # chunks of nothing else
    write_codes(path, 1, values)
    stored = zarr.open_array(str(path), mode="r")[1]
    with zarr.config.set({"array.write_empty_chunks": True}):
        zarr.open_array(str(other), mode="r+")[1] = stored
    name = "c/1/0/0/0/0/0"
    made = zarr.create_array(
        str(tmp_path / "z.zarr"),
        shape=(2, 7, *shape),
        dtype=values.dtype,
        chunks=(1, 1, 1, 1, *shape[2:]),
        shards=(1, 7, *shape),
        filters=TransposeCodec(order=(0, 1, 2, 3, 5, 4)),
        compressors=BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),
        fill_value=0,
        dimension_names=["source", "level", "N", "C", "T", "D"],
        attributes=zarr.open_array(str(path), mode="r").attrs.asdict(),
    )
    assert made.shape == (2, 7, *shape)
    assert (path / "zarr.json").read_bytes() == (tmp_path / "z.zarr/zarr.json").read_bytes()
    assert (path / name).read_bytes() == (other / name).read_bytes()


def test_peaked_codes_are_stored_near_their_entropy(tmp_path: Path) -> None:
    path, shape = tmp_path / "x.zarr", (1, 1, 65, 192)
    quantizer = UniformQuantizer(10, (-1.0,), (1.0,))
    noise = np.random.default_rng(0).standard_normal((10, *shape))
    codes = np.rint(510 + 4 * noise).astype(np.uint16)
    centres = find_centres(codes)
    assert centres == (510,)
    create_codes_array(
        path,
        sources=1,
        levels=10,
        shape=shape,
        quantizer=quantizer,
        centres=centres,
        source_ids=["a"],
    )
    write_codes(path, 0, codes)
    share = np.unique(codes, return_counts=True)[1] / codes.size
    entropy = -(share * np.log2(share)).sum()
    bits = 8 * (path / "c/0/0/0/0/0/0").stat().st_size / codes.size
    assert bits < 1.25 * entropy


def test_an_array_that_is_there_is_kept_only_if_it_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    create(path)
    write_codes(path, 0, random_codes(UNIFORM))
    create(path)
    assert values(path, 0, 3).shape == SHAPE
    with pytest.raises(FormatError, match="contains a different array"):
        create(path, centres=(1, 1))


def test_writes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    with pytest.raises(FormatError, match="do not agree"):
        create(path, centres=(1,))
    create(path)
    codes = random_codes(UNIFORM)
    for index, wrong in ((0, codes[:9]), (0, codes.astype(np.uint8)), (2, codes), (-1, codes)):
        with pytest.raises(FormatError, match=r"x\.zarr: (does not accept|has no source)"):
            write_codes(path, index, wrong)


def test_a_feature_of_nothing_but_centres_is_a_shard_too(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    create(path)
    codes = random_codes(UNIFORM)
    codes[:, :, 0], codes[:, :, 1] = 512, 7
    write_codes(path, 0, codes)
    assert (path / "c/0/0/0/0/0/0").is_file()
    assert not reader(path).read(0, 9).indices.any()
    np.testing.assert_array_equal(values(path, 0, 9), UNIFORM.dequantize(codes[9]))


def test_a_reader_travels_to_another_process(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    create(path)
    write_codes(path, 0, random_codes(UNIFORM))
    codes = reader(path)
    expected = codes.read(0, 2).indices
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(codes)).read(0, 2).indices, expected)


def _edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = path / "zarr.json"
    metadata = json.loads(file.read_text())
    change(metadata)
    file.write_text(json.dumps(metadata))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(shape=[2, 10, 2, 2, 10**9, 10**9]), "the manifest says"),
        (lambda m: m.update(shape="big"), "the manifest says"),
        (lambda m: m["chunk_grid"]["configuration"].update(chunk_shape=[2, 10, *SHAPE]), "chunks"),
        (lambda m: m.update(data_type="uint32"), "dtype"),
        (lambda m: m.update(codecs=[]), "not a Zarr array|chunks"),
        (lambda m: m.pop("attributes"), "no attributes"),
        (lambda m: m["attributes"].update(centres=[1, 5000]), "centres"),
        (lambda m: m["attributes"].update(centres=None), "centres"),
        (
            lambda m: m["attributes"]["quantizer"].update(bits=40),
            "quantiser differs from the manifest's",
        ),
        (
            lambda m: m["attributes"].update(source_ids=["a", 1]),
            "sources differ from the manifest's",
        ),
    ],
)
def test_metadata_that_is_not_the_format_s_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = tmp_path / "x.zarr"
    create(path)
    write_codes(path, 0, random_codes(UNIFORM))
    _edit(path, change)
    with pytest.raises(FormatError, match=message):
        reader(path).read(0, 0)


def test_codes_beyond_the_quantiser_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    create(path, centres=(0, 0))  # stored as they are
    codes = np.full((10, *SHAPE), 511, np.uint16)
    codes[1, 1, 1, 2, 4] = 512
    codes[2] = 1023
    write_codes(path, 0, codes)
    _edit(path, lambda m: m["attributes"]["quantizer"].update(bits=9))
    nine = UniformQuantizer(9, UNIFORM.lo, UNIFORM.hi)
    np.testing.assert_array_equal(values(path, 0, 0, nine)[0, :, 0, 0], np.float32([1.0, 9.0]))
    for level in (1, 2):
        with pytest.raises(FormatError, match=r"c/0/0/0/0/0/0: damaged shard: a code out"):
            reader(path, nine).read(0, level)


@pytest.mark.parametrize("shape", [(1, 1, 3, 5), (2, 1, 3, 5), (2, 4, 3, 5), (1, 1, 0, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_dequantising_is_one_look_up_per_layer(shape: tuple[int, ...], dtype: type) -> None:
    rng = np.random.default_rng(0)
    tables = rng.standard_normal((shape[1], 200)).astype(np.float32)
    indices = rng.integers(0, 200, shape).astype(dtype)
    for places in (indices, np.asfortranarray(indices)):
        found = Codes(places, tables).dequantize()
        assert (found.dtype, found.shape) == (np.float32, shape)
        for place in np.ndindex(shape):
            assert found[place] == tables[place[1], indices[place]]
        found[...] = 0  # one's own
    if indices.size:
        indices[0, 0, 0, 0] = 200
        with pytest.raises(CodecError, match=r"^code 200 in tables of 200$"):
            Codes(indices, tables)
    with pytest.raises(CodecError, match="codes must be uint8 or uint16, not int64"):
        Codes(-indices.astype(np.int64), tables)  # they would be read from the tables' ends


def test_missing_and_damaged_shards_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    create(path)
    with pytest.raises(FormatError, match=r"c/1/0/0/0/0/0: missing shard"):
        reader(path).read(1, 0)
    write_codes(path, 0, random_codes(UNIFORM))
    shard = path / "c/0/0/0/0/0/0"
    content = shard.read_bytes()
    for damaged in (content[:20], b"", content[:-4] + b"0000", b"\xff" * len(content)):
        shard.write_bytes(damaged)
        with pytest.raises(FormatError, match=r"c/0/0/0/0/0/0: damaged shard"):
            reader(path).read(0, 0)
    (path / "zarr.json").write_text("{")
    with pytest.raises(FormatError, match=r"zarr.json: cannot be read"):
        reader(path).read(0, 0)
    (path / "zarr.json").unlink()
    with pytest.raises(FormatError, match=r"zarr.json: missing"):
        reader(path).read(0, 0)
