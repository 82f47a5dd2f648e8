"""Builds resumed after kills, power cuts and full disks equal an undisturbed build exactly."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mock_dataset import write_mock_dataset
from pipeline_toy import QPS, toy_recipe, tree, write_networks, write_toml

from cfqa_data.builders.sharing.export_formats import FORMATS
from cfqa_data.cli import main
from cfqa_data.recipe.load import Recipe

PROGRAM = Path(__file__).with_name("pipeline_faults.py")
PLACES = (
    "inside a shard",
    "between shard and marker",
    "no space for label rows",
    "power cut at the end",
)


@pytest.fixture(scope="module")
def faults() -> dict[str, Any]:
    """Results of builds with one fault of each kind; `.ci/release` runs many more."""
    options = ["--count", "0", "--events", "--named", *PLACES]
    done = subprocess.run(
        [sys.executable, PROGRAM, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_a_build_that_is_stopped_anyhow_ends_with_the_same_bytes(faults: dict[str, Any]) -> None:
    assert faults["cases"] == len(PLACES)
    hits = {end.split()[0] for end in faults["ends"] if end.endswith("hit")}
    assert hits == {"kill", "half", "power", "short"}


def test_no_file_has_its_name_before_it_is_whole_and_synced(faults: dict[str, Any]) -> None:
    synced: set[str] = set()
    renamed: dict[str, str] = {}  # what has its name, but not yet for good -> its folder
    named = []
    for event in faults["what"]:
        what, _, path = event.partition(" ")
        if what == "open" and path != "/.build/lock":
            assert re.search(r"\.partial$", path), event
            synced.discard(path)
        elif what == "os.chmod":
            synced.discard(path)
        elif what == "os.fsync":
            synced.add(path)
            renamed = {name: folder for name, folder in renamed.items() if folder != path}
        elif what == "os.rename":
            assert path in synced, f"{path} gets its name before it is synced"
            assert not renamed, f"{path} may be there without {renamed}"
            folder, _, partial = path.rpartition("/")
            name = re.sub(r"\.\d+-[0-9a-f]+\.partial$", "", partial)
            renamed[f"{folder}/{name}"] = folder
            named.append(f"{folder}/{name}")
    assert named[0] == "/.build/plan.json"
    assert named[-1] == "/manifest.json"
    assert named.index("/compressed/cls/x265.zarr/c/0/0/0/0/0/0") < len(named) - 1
    assert not renamed


def test_new_folders_and_before_the_manifest_all_are_synced(faults: dict[str, Any]) -> None:
    events = faults["what"]
    made = {
        event.removeprefix("os.mkdir "): number
        for number, event in enumerate(events)
        if event.startswith("os.mkdir /")
    }
    assert {"/.build", "/compressed/cls/x265.zarr/c/1/0/0/0/0"} < set(made)
    begun = next(n for n, event in enumerate(events) if event.startswith("open /manifest.json"))
    last = max(n for n in range(begun) if events[n].startswith("os.rename"))
    for path, number in made.items():
        assert events[number + 1] == f"os.fsync {path.rpartition('/')[0]}"
        if path != "/.build/streams/cls-x265-00000" and path != "/.build/streams/cls-x265-00001":
            assert f"os.fsync {path}" in events[last:begun]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("networks")
    write_networks(folder)
    whole = toy_recipe(folder, {"x265": QPS}, sources_per_task=1)
    return Recipe.from_dict(whole.to_dict() | {"tasks": {"cls": whole.tasks["cls"].to_dict()}})


def no_room(monkeypatch: pytest.MonkeyPatch, from_sync: int) -> None:
    """Simulate a disk that is full from the n-th file on."""
    sync, seen = os.fsync, iter(range(1000))

    def fsync(handle: int) -> None:
        if next(seen) >= from_sync:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)


def goes_on(
    run: Callable[[Path], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at: int,
) -> None:
    """Check that a command reports a full disk in one line, and can be resumed."""
    plain, out = tmp_path / "plain", tmp_path / "out"
    assert main(run(plain)) == 0
    with monkeypatch.context() as patch:
        no_room(patch, at)
        capsys.readouterr()
        assert main(run(out)) == 2
    (told,) = [
        x for x in capsys.readouterr().err.splitlines() if not re.match(r"\w+: (\d|done)", x)
    ]
    assert re.fullmatch(rf"cfqa: .*no space left at {out}\S*; finished work is kept: .*", told)
    assert ".partial" not in told
    assert not list(out.rglob("*.partial"))
    left = {name for name in tree(out) if not name.startswith(".build")}
    assert main(run(out)) == 0
    assert left <= set(tree(plain))
    assert tree(out) == tree(plain)


@pytest.mark.parametrize("at", [1, 30])
def test_a_full_disk_ends_a_build_in_one_line(
    at: int,
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    toml = str(write_toml(recipe, tmp_path / "toy.toml"))
    command = ["build", toml, "--workers", "1", "--out"]
    goes_on(lambda out: [*command, str(out)], tmp_path, monkeypatch, capsys, at)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_full_disk_ends_an_export_in_one_line(
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = str(write_mock_dataset(tmp_path / "data", sources=1))
    command = ["export", data, "--format", kind, "--task", "seg", "--codec", "x265", "--out"]
    goes_on(lambda out: [*command, str(out)], tmp_path, monkeypatch, capsys, 9)
