from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mock_dataset import write_mock_dataset
from safetensors.numpy import load_file, save_file

from cfqa_data import load
from cfqa_data.builders.sharing.hub_limits import check_limits
from cfqa_data.cli import main
from cfqa_data.errors import CfqaError, FormatError
from cfqa_data.integrity.difference import Difference, difference_text, differences
from cfqa_data.integrity.verify import Fault, verify

GB = 10**9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mock_dataset(tmp_path_factory.mktemp("verify") / "cfqa", sources=2)


class Counted:
    """A progress listener that counts."""

    done = 0

    def start(self, stage: str, total: int, unit: str) -> None:
        self.stage, self.total, self.unit = stage, total, unit

    def advance(self, n: int = 1) -> None:
        self.done += n

    def finish(self) -> None:
        assert self.done == self.total


@pytest.mark.parametrize("workers", [None, 1, 4])
def test_a_folder_as_it_was_written_has_no_faults(folder: Path, workers: int | None) -> None:
    listener = Counted()
    found = verify(folder, workers=workers, progress=listener)
    assert (found.faults, found.unlisted) == ((), ())
    found.require()
    on_disk = [path for path in folder.rglob("*") if path.is_file()]
    assert listener.total == len(on_disk) - 1
    assert found.size == sum(p.stat().st_size for p in on_disk if p.name != "manifest.json")


def test_every_fault_is_listed(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    first, second, third = (copy / "labels" / f"{task}.parquet" for task in ("cls", "dpt", "seg"))
    size = first.stat().st_size
    first.write_bytes(first.read_bytes()[:-4])
    content = bytearray(second.read_bytes())
    content[100] ^= 1
    second.write_bytes(content)
    third.unlink()
    (copy / "new.txt").write_text("x")
    found = verify(copy)
    assert found.faults == (
        Fault("labels/cls.parquet", f"has {size - 4} bytes, the manifest says {size}"),
        Fault("labels/dpt.parquet", "its SHA-256 differs from the manifest's"),
        Fault("labels/seg.parquet", "missing"),
    )
    assert found.unlisted == ("new.txt",)
    with pytest.raises(FormatError, match=r"labels/cls\.parquet: has \d+ bytes.* \(and 2 more\)"):
        found.require()


def test_what_is_no_dataset_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not a CFQA dataset folder"):
        verify(tmp_path)


def test_a_hub_takes_files_up_to_its_limits() -> None:
    files = {f"a/{number}": 50 * GB if number == 7 else 1 for number in range(9_999)}
    files |= {"a/b/c": 20 * GB, "README.md": 0}
    assert check_limits(files) == [
        "1 files are larger than the 20 GB that the Hub advises, first a/7"
    ]
    many = {f"{folder:02d}/{number}": 1 for folder in range(11) for number in range(10_000)}
    assert check_limits(many) == ["110000 files are more than the 100000 that the Hub advises"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/x.bin": 50 * GB + 1}, "a/x.bin: 50 GB, and the Hub takes files of up to 50 GB"),
        ({f"a/{n}": 1 for n in range(10_001)}, "a: 10001 files and folders in it"),
        ({f"{n}/x": 1 for n in range(10_001)}, "the folder itself: 10001 files and folders"),
        ({f"a/{n}/x": 1 for n in range(10_001)}, "a: 10001 files and folders"),
        ({"a/.git/x": 1}, "'.git' cannot be a step"),
        ({"a/../x": 1}, "'..' cannot be a step"),
        ({"a//x": 1}, "'' cannot be a step"),
        ({"/x": 1}, "'' cannot be a step"),
        ({"a/x ": 1}, "no outer spaces"),
        ({"a\\x": 1}, "backslashes"),
        ({"a\nx": 1}, r"a\nx: cannot be published"),
        ({"ö" * 128: 1}, "at most 255 bytes"),
    ],
)
def test_a_hub_does_not_take(files: dict[str, int], message: str) -> None:
    with pytest.raises(CfqaError) as caught:
        check_limits(files)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_of_any_script_are_taken() -> None:
    assert check_limits({"bilder/übung 1/图.parquet": 1}) == []


def test_another_tier_holds_the_same(folder: Path, tmp_path: Path) -> None:
    light = write_mock_dataset(tmp_path / "light", sources=2, tier="light")
    found = differences(load(light), load(folder))
    assert [one.codec for one in found[:3]] == [None, "x265", "vvenc"]
    assert {(one.lacking, one.labels, one.values, one.error) for one in found} == {(0, 0, 0, 0)}


def test_features_of_one_dataset_only_are_no_different_labels() -> None:
    equal = Difference("cls", "x265", 9, 2, 0, 0.0, 0.0, 0.0)
    assert difference_text([equal]).endswith("labels agree; 2 features are in one dataset only")
    unequal = replace(equal, lacking=0, labels=1)
    assert difference_text([unequal, unequal]).endswith("labels differ")


def test_what_differs_is_told_by_codec(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    table = pq.read_table(copy / "labels" / "dpt.parquet")
    columns = {name: table[name].to_numpy().copy() for name in ("distortion", "score", "loss")}
    chosen = np.flatnonzero(table["codec"].to_numpy(zero_copy_only=False) == "x265")[:2]
    columns["distortion"][chosen] += 0.25
    columns["score"][chosen] += 0.25
    columns["loss"][chosen[0]] = np.nan
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(values))
    pq.write_table(table, copy / "labels" / "dpt.parquet")
    path = copy / "originals" / "cls-00000-of-00001.safetensors"
    originals = load_file(path)
    first = originals[min(originals)]
    energy = sum(float(np.square(x, dtype=float).sum()) for x in originals.values())
    before = first.flat[0]
    first.flat[0] += 1
    save_file(originals, path)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"][path.relative_to(copy).as_posix()]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert main(["verify", str(copy), "--against", str(folder), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    off = {(one["task"], one["codec"]): one for one in told["parts"]}
    assert not told["agree"]
    depth = off.pop(("dpt", "x265"))
    assert (depth["labels"], depth["distortion"]) == (2, pytest.approx(0.25))
    cls = off.pop(("cls", None))
    count = sum(x.size for x in originals.values())
    assert cls["values"] == pytest.approx(1 / count)
    assert cls["error"] == pytest.approx((float(first.flat[0]) - float(before)) / energy**0.5)
    assert {(one["labels"], one["values"], one["lacking"]) for one in off.values()} == {(0, 0, 0)}
    assert main(["verify", str(folder), "--against", str(copy), "--tolerance", "1"]) == 1  # a NaN
    assert "labels differ" in capsys.readouterr().out
