"""Exported features, read with the libraries of the formats, equal those of `load` bit for bit."""

from __future__ import annotations

import gc
import hashlib
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from mock_dataset import MockCodec, write_mock_dataset
from safetensors.numpy import load_file

import cfqa_data
from cfqa_data.access.dataset import Dataset
from cfqa_data.builders.sharing.export import export
from cfqa_data.builders.sharing.export_formats import FORMATS, ExportFile
from cfqa_data.cli import main
from cfqa_data.errors import CfqaError, FormatError
from cfqa_data.format.storage import write_tensors

ODD_BITS = [0x80000000, 0x7FC00000, 0x7FC00001, 0xFF800000, 0x00000001, 0x807FFFFF, 0x7F7FFFFF]
"""-0, two NaNs, -infinity, the smallest numbers on both sides of the normal ones, the largest."""

kinds = pytest.mark.parametrize("kind", FORMATS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with an original that has the float32 bits of `ODD_BITS`."""
    root = write_mock_dataset(tmp_path_factory.mktemp("export") / "cfqa", sources=2)
    shard = root / "originals" / "dpt-00000-of-00001.safetensors"
    tensors = load_file(shard)
    tensors["dpt-001"].reshape(-1)[: len(ODD_BITS)] = np.array(ODD_BITS, "<u4").view("<f4")
    write_tensors(shard, tensors)
    return root


def read(kind: str, out: Path, place: dict[str, Any], part: str = "") -> np.ndarray:
    """Read a feature by its row of the index with the library of the format, without a shape."""
    file = out / place[f"{part}file"]
    if kind == "npy":
        feature = np.load(file, allow_pickle=False)
    elif kind == "safetensors":
        feature = load_file(file)[place[f"{part}key"]]
    elif kind == "zarr":
        names = [f"{part}source_index", *([] if part else ["level_index"])]
        feature = np.asarray(zarr.open_array(str(file), mode="r")[tuple(place[n] for n in names)])
    else:
        row = pandas.read_parquet(file).iloc[place[f"{part}row"]]
        feature = row["feature"].reshape(row["shape"])
    assert isinstance(feature, np.ndarray)
    return feature


def same_bits(x: np.ndarray, y: np.ndarray) -> bool:
    assert x.dtype == y.dtype == np.float32
    return x.shape == y.shape and np.array_equal(x.view(np.uint32), y.view(np.uint32))


def hashes(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@kinds
def test_plain_libraries_read_back_every_bit(kind: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = export(folder, out, kind, codec=["vvenc", "hyperprior_multi_task"], level=[7, 0, 9])
    assert told.features == 3 * (2 + 2 * 2 * 3)
    dataset = cfqa_data.load(folder, codec=["vvenc", "hyperprior_multi_task"], level=[0, 7, 9])
    index = pq.read_table(out / "index.parquet")
    labels = dataset.labels.drop_columns(["array", "index"])
    keys = ["task", "source_id", "codec", "level"]
    order = [(key, "ascending") for key in keys]
    assert index.select(labels.column_names).sort_by(order).equals(labels.sort_by(order))
    odd = 0
    for row in index.to_pylist():
        task, source, codec, level = (row[key] for key in keys)
        assert same_bits(read(kind, out, row), dataset.compressed(source, codec, level))
        original = read(kind, out, row, "original_")
        assert same_bits(original, dataset.original(source))
        odd += original.reshape(-1).view(np.uint32)[: len(ODD_BITS)].tolist() == ODD_BITS
        assert row["file"].startswith(f"{task}/{codec}")
    assert odd == 6  # the rows of one source


@kinds
def test_a_light_folder_gives_the_same_files(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    light = write_mock_dataset(tmp_path / "light", sources=2, tier="light")
    full = write_mock_dataset(tmp_path / "full", sources=2)
    monkeypatch.setattr("cfqa_data.codecs.get_codec", lambda name, **_: MockCodec(np.dtype("<u2")))
    for root in (light, full):
        export(root, tmp_path / f"{root.name}-out", kind, task="cls", codec="x265")
    marker = "export.json"
    a, b = hashes(tmp_path / "light-out"), hashes(tmp_path / "full-out")
    assert a.pop(marker) != b.pop(marker)
    assert a == b


def test_the_arrays_say_what_their_axes_are(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "out", "zarr", task="seg", codec="x265", level=[9, 2])
    array = zarr.open_array(str(tmp_path / "out" / "seg" / "x265.zarr"), mode="r")
    assert (array.shape, array.dtype) == ((2, 2, 2, 1, 9, 16), np.float32)
    assert array.metadata.dimension_names == ("source", "level", "N", "C", "T", "D")
    assert dict(array.attrs) == {"source_ids": ["seg-000", "seg-001"], "levels": [2, 9]}


def test_parquet_holds_the_labels_beside_the_features(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "out", "parquet", task="dpt", codec="x265")
    table = pq.read_table(tmp_path / "out" / "dpt" / "x265.parquet")
    assert table.schema.field("feature").type == pa.list_(pa.float32(), 2 * 4 * 9 * 16)
    expected = cfqa_data.load(folder, "dpt", codec="x265").labels
    for column in ("source_id", "level", "distortion", "bits"):
        assert table[column].to_pylist() == expected[column].to_pylist()


@kinds
def test_a_folder_may_be_named_as_an_address_is(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = ["--format", kind, "--task", "cls", "--codec", "x265", "--level", "0", "--fold", "1"]
    assert main(["export", str(folder), "--out", "s3:/name", *chosen]) == 0
    index = pq.read_table(tmp_path / "s3:" / "name" / "index.parquet")
    assert index["fold"].to_pylist() == [1]


def test_originals_are_left_out_on_request(folder: Path, tmp_path: Path) -> None:
    told = export(folder, tmp_path / "out", "npy", task="cls", codec="x265", originals=False)
    assert told.features == 20
    assert not (tmp_path / "out" / "cls" / "original").exists()
    columns = pq.read_schema(tmp_path / "out" / "index.parquet").names
    assert "file" in columns
    assert "original_file" not in columns


@kinds
def test_goes_on_where_it_was_stopped(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"task": "cls", "codec": ["x265", "vvenc"], "level": [0, 1]}
    export(folder, tmp_path / "whole", kind, **chosen)
    done = []
    real = Dataset.compressed

    def stop(self: Dataset, *which: Any) -> np.ndarray:
        done.append(which)
        if len(done) == 6:
            raise KeyboardInterrupt
        return real(self, *which)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "compressed", stop)
        with pytest.raises(KeyboardInterrupt):
            export(folder, out, kind, **chosen)
    assert not list(out.rglob("*.partial"))
    whole = hashes(tmp_path / "whole")
    left = hashes(out)
    assert left.items() < whole.items()
    assert "index.parquet" not in left
    # What a kill leaves is cleared, be it a file or a folder.
    (out / "cls" / "x.npy.1.partial").write_bytes(b"half")
    (out / "cls" / "x.zarr.1.partial" / "c").mkdir(parents=True)
    (out / "cls" / "x.zarr.1.partial" / "c" / "0").write_bytes(b"half")
    told = export(folder, out, kind, **chosen)
    assert told.kept > 0
    assert told.written > 0
    assert hashes(out) == whole
    again = export(folder, out, kind, **chosen)
    assert (again.written, again.kept) == (0, told.kept + told.written)
    assert hashes(out) == whole


@kinds
def test_a_feature_that_cannot_be_read_leaves_no_half_file(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(self: Dataset, source: str) -> np.ndarray:
        raise FormatError(f"{source}: damaged")

    monkeypatch.setattr(Dataset, "original", damaged)
    with pytest.raises(FormatError, match="damaged"):
        export(folder, tmp_path / "out", kind, task="cls")
    assert list(hashes(tmp_path / "out")) == ["export.json"]


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.release if k in ("npy", "zarr") else ()) for k in FORMATS],
)
def test_memory_holds_one_feature_at_a_time(kind: str, tmp_path: Path) -> None:
    shape, count = (1, 4, 64, 1024), 10  # 1 MiB each
    rows = pa.table(
        {
            "task": ["cls"] * count,
            "source_id": [f"s{i}" for i in range(count)],
            "codec": ["x265"] * count,
            "level": pa.array([0] * count, pa.int8()),
        }
    )
    if kind == "npy":
        rows, count = rows.slice(0, 1), 1
    alive: list[weakref.ref[np.ndarray]] = []
    most = arrow = 0
    before = pa.total_allocated_bytes()

    def features() -> Iterator[np.ndarray]:
        nonlocal most, arrow
        rng = np.random.default_rng(0)
        for _ in range(count):
            gc.collect()
            most = max(most, sum(ref() is not None for ref in alive))
            arrow = max(arrow, pa.total_allocated_bytes() - before)
            feature = rng.standard_normal(shape, np.float32)
            alive.append(weakref.ref(feature))
            yield feature
            del feature

    FORMATS[kind].write(tmp_path / "x", ExportFile("x", shape, rows), features())
    assert most <= 1
    assert arrow < 5 * 2**20  # the buffers of a Parquet page and its compression


def test_names_of_sources_never_become_paths() -> None:
    for form in FORMATS.values():
        for number in range(5):
            stem = form.name("cls", "x265", 3, number).removesuffix(form.suffix)
            assert set(stem.replace("/", "")) <= set("clsx265-level01234")
    names = [FORMATS["npy"].name("cls", "x265", 3, number) for number in range(2)]
    assert names == ["cls/x265/level-3/00000.npy", "cls/x265/level-3/00001.npy"]


def test_a_folder_that_holds_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    before = hashes(folder)
    for inside in (folder, folder / "plain"):
        with pytest.raises(CfqaError, match="is inside the dataset folder"):
            export(folder, inside, "npy")
    assert hashes(folder) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CfqaError, match="exists and is not a folder"):
        export(folder, tmp_path / "file", "npy")
    with pytest.raises(CfqaError, match="is not empty"):
        export(folder, tmp_path, "npy")
    out = tmp_path / "out"
    export(folder, out, "npy", task="cls", codec="x265", level=0)
    for other in ({"level": 1}, {"originals": False}, {"codec": "vvenc"}, {"fold": 1}):
        chosen = {"task": "cls", "codec": "x265", "level": 0} | other
        with pytest.raises(CfqaError, match="contains another export"):
            export(folder, out, "npy", **chosen)  # type: ignore[arg-type]
    with pytest.raises(CfqaError, match="contains another export"):
        export(folder, out, "parquet", task="cls", codec="x265", level=0)
    (out / "export.json").write_text("[" * 100_000)
    with pytest.raises(CfqaError, match="contains another export"):
        export(folder, out, "npy", task="cls", codec="x265", level=0)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_is_taken(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").touch()
    assert export(folder, tmp_path / "out", "npy", task="cls", codec="x265", level=0).written == 4


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    command = ["export", str(folder), "--out", out, "--format", "safetensors", "--task", "cls"]
    command += ["--codec", "x265", "--level", "0", "--level", "9", "--no-originals"]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    size = 4 * 4 * 144
    counts = {"written": 2, "kept": 0, "features": 4, "size": size, "notes": []}
    assert told == {"root": out} | counts
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{out}: 4 features, 2.3 kB of float32\n")
    assert "export: 4 features" in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}"], "Missing option '--format'"),
        (["{folder}", "--format", "hdf5"], "'hdf5'"),
        (["{folder}", "--format", "npy", "--task", "clss"], "unknown task 'clss'"),
        (["{folder}", "--format", "npy", "--codec", "jpeg"], "unknown codec 'jpeg'"),
        (["{folder}", "--format", "npy", "--codec", "hm"], "unknown codec 'hm': known: x265"),
        (["{folder}", "--format", "npy", "--level", "10"], "there is no level 10"),
        (["{folder}/nowhere", "--format", "npy"], "not a CFQA dataset folder"),
    ],
)
def test_bad_use_is_one_line(
    arguments: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [argument.replace("{folder}", str(folder)) for argument in arguments]
    assert main(["export", *given, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_interrupt_says_that_it_can_go_on(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object) -> np.ndarray:
        raise KeyboardInterrupt

    monkeypatch.setattr(Dataset, "original", stop)
    assert main(["export", str(folder), "--out", str(tmp_path / "o"), "--format", "npy"]) == 130
    assert "run the same command again to resume" in capsys.readouterr().err
