"""Files that mutations do not produce: links, pipes, and files above the size limits."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from mock_dataset import write_mock_dataset

import cfqa_data
from cfqa_data.errors import FormatError, MetricError
from cfqa_data.eval.paper_logs import read_log
from cfqa_data.format.limits import open_regular, parse_json, read_limited
from cfqa_data.format.manifest import read_manifest

LABELS, SHARD = "labels/cls.parquet", "originals/cls-00000-of-00002.safetensors"
CODES = "compressed/cls/x265.zarr"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_mock_dataset(tmp_path / "home" / "cfqa")


def _read(folder: Path) -> None:
    dataset = cfqa_data.load(folder, "cls", codec="x265")
    for source in dataset.source_ids:
        dataset.original(source)
        dataset.truth(source)
        dataset.compressed(source, "x265", 0)


@pytest.mark.parametrize("name", [LABELS, SHARD, CODES, f"{CODES}/c/0/0/0/0/0/0", "truth"])
def test_a_link_that_leads_out_of_the_folder_is_not_followed(folder: Path, name: str) -> None:
    outside = folder.parent / "elsewhere"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(FormatError, match=r"leads out of the folder; .*--follow-links") as error:
        _read(folder)
    assert str(folder / name.split("/")[0]) in str(error.value)


def test_links_within_the_folder_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / SHARD).rename(folder / "here")
    (folder / SHARD).symlink_to("../here")
    _read(folder)
    (tmp_path / "link").symlink_to(folder)  # the folder may be named by one
    _read(tmp_path / "link")


@pytest.mark.parametrize("where", ["0123abc", "0123abc/nano", "0123abc/snapshots/nano"])
def test_a_snapshot_in_the_cache_of_the_hub_is_links_to_its_blobs(
    tmp_path: Path, where: str
) -> None:
    folder = write_mock_dataset(tmp_path / "repo" / "snapshots" / where)
    blobs = tmp_path / "repo" / "blobs"
    blobs.mkdir()
    for name in (LABELS, SHARD):
        target = blobs / Path(name).name
        (folder / name).rename(target)
        (folder / name).symlink_to(os.path.relpath(target, (folder / name).parent))
    _read(folder)
    foreign = tmp_path / "other" / "blobs" / target.name  # another repo's
    foreign.parent.mkdir(parents=True)
    target.rename(foreign)
    (folder / SHARD).unlink()
    (folder / SHARD).symlink_to(foreign)
    with pytest.raises(FormatError, match="leads out of the folder"):
        _read(folder)


def test_a_link_to_itself_is_no_file(folder: Path) -> None:
    (folder / SHARD).unlink()
    (folder / SHARD).symlink_to(Path(SHARD).name)
    with pytest.raises(FormatError, match=Path(SHARD).name):
        _read(folder)


@pytest.mark.parametrize(
    "name",
    [LABELS, SHARD, f"{CODES}/zarr.json", f"{CODES}/c/0/0/0/0/0/0", "truth/cls.safetensors"],
)
def test_a_pipe_keeps_nobody_waiting(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(FormatError, match="not a regular file"):
        _read(folder)


def test_a_manifest_is_a_plain_file_of_a_certain_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfqa_data.format.manifest.LARGEST_JSON", 100)
    with pytest.raises(FormatError, match="more than the 100 bytes"):
        read_manifest(folder)
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")
    with pytest.raises(FormatError, match="not a regular file"):
        read_manifest(folder)


def test_what_is_read_of_a_file_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_limited(path, 5) == b"12345"
    with pytest.raises(ValueError, match="more than the 4 bytes"):
        read_limited(path, 4)
    with pytest.raises(OSError, match="regular file"):
        open_regular(Path("/dev/zero"))


@pytest.mark.parametrize("text", [b"NaN", b"[1e999]", b"-Infinity", b"[" * 10**5, b"1" * 5000])
def test_json_has_finite_numbers_and_some_depth(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"finite|nested|64 bits"):
        parse_json(text)
    assert parse_json(b'{"a": [1.5, 2]}') == {"a": [1.5, 2]}


def test_an_open_folder_with_known_links_can_be_pickled(folder: Path) -> None:
    dataset = cfqa_data.load(folder, "cls")
    one = dataset.original(dataset.source_ids[0])
    again = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(again.original(dataset.source_ids[0]), one)


def test_files_that_are_read_whole_have_a_limit(folder: Path) -> None:
    os.truncate(folder / LABELS, 1 << 40)  # a sparse file, which takes no disk space
    with pytest.raises(FormatError, match=r"cls.parquet: cannot be read: more than the 268"):
        _read(folder)
    log = folder / "log.txt"
    log.write_text("x")
    os.truncate(log, 1 << 40)
    with pytest.raises(MetricError, match="more than the 16,777,216 bytes"):
        read_log(log)
