"""The soak test, shortened: it passes correct code, and detects leaks and wrong results."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mock_dataset import toy_recipe_dict, write_mock_dataset
from pipeline_toy import QPS, toy_recipe, write_networks, write_toml

from cfqa_data.access.folder import Folder
from cfqa_data.recipe.load import Recipe

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import growth  # noqa: E402
import soak  # noqa: E402

kept: list[Any] = []
"""Objects that the leaks below keep alive."""


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    yield
    for thing in kept:
        if isinstance(thing, subprocess.Popen):
            thing.kill()
            thing.wait()
        elif isinstance(thing, threading.Event):
            thing.set()
        elif hasattr(thing, "close"):
            thing.close()
    kept.clear()


def write_small(root: Path, seed: int = 0) -> Path:
    """A mock dataset of one task and two codecs."""
    recipe = toy_recipe_dict()
    cls = recipe["tasks"]["cls"]
    cls["codecs"] = {name: cls["codecs"][name] for name in ("x265", "hyperprior_multi_task")}
    return write_mock_dataset(
        root, seed=seed, recipe=Recipe.from_dict(recipe | {"tasks": {"cls": cls}})
    )


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("soak") / "full")


def start_thread(_: Path) -> None:
    kept.append(threading.Event())
    threading.Thread(target=kept[-1].wait, daemon=True).start()


LEAKS: dict[str, Callable[[Path], Any]] = {
    "memory": lambda _: kept.append(np.ones(2**22)),  # 32 MiB, a limit a round
    "files": lambda _: kept.append(os.fdopen(os.open(os.devnull, os.O_RDONLY))),
    "threads": start_thread,
    "processes": lambda _: kept.append(subprocess.Popen(["sleep", "60"])),
    "temporary": lambda folder: tempfile.mkstemp(dir=folder)[0] and None,
}


def test_each_leak_is_seen(tmp_path: Path) -> None:
    def work(number: int) -> Iterator[str]:
        for leak in LEAKS.values():
            leak(tmp_path)
        yield ""

    found = growth.Soak("leaky").run(work, 6, tmp_path)
    grown = found.growth()
    assert [name for name, limit in growth.LIMITS.items() if grown[name] < limit] == [], grown
    for name, fault in zip(LEAKS, found.faults(), strict=True):
        assert f"leaky: {name} grew" in fault


def test_the_line_is_through_the_rounds_after_the_warm_up() -> None:
    found = growth.Soak("x")
    found.rounds = [dict.fromkeys(growth.LIMITS, 1000.0)] * 3
    found.rounds += [dict.fromkeys(growth.LIMITS, 2.0 + 0.5 * n) for n in range(7)]
    assert list(found.growth().values()) == pytest.approx([3.0] * 5)
    assert [fault.split()[1] for fault in found.faults()] == [*growth.LIMITS][1:]
    assert growth.Soak("x").growth() == dict.fromkeys(growth.LIMITS, 0.0)


def test_reading_is_compared_with_what_other_readers_read(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "READ_ROUNDS", 4)
    digests = soak.reference(full)
    assert len(digests) == 3 * 2 * 10

    def found() -> growth.Soak:
        pool = ThreadPoolExecutor(4)
        return soak.soak_reading("pairs", [full, full], digests, 80, pool, tmp_path)

    sound = found()
    assert (sound.checked, sound.faults()) == (80, [])
    read = Folder.compressed

    def leaking(self: Folder, *key: Any) -> np.ndarray:
        kept.append((full / "manifest.json").open())
        return read(self, *key)

    monkeypatch.setattr(Folder, "compressed", leaking)
    assert any("files grew" in fault for fault in found().faults())

    def wrong(self: Folder, *key: Any) -> np.ndarray:
        array = read(self, *key).copy()
        array[0, 0, 0, 0] = np.nextafter(array[0, 0, 0, 0], np.float32(9))
        return array

    monkeypatch.setattr(Folder, "compressed", wrong)
    assert len(found().wrong) == 80


def test_other_bytes_and_other_tables_are_told(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(recipe: str, out: Path, workers: int) -> None:
        write_small(out, seed=int(out.name == "build-1"))

    monkeypatch.setattr(soak, "build", build)
    found = soak.soak_building("mock", 3, full, tmp_path, command=False)
    assert [told[:8] for told in found.wrong] == ["round 1:"]
    assert "labels/cls.parquet" in found.wrong[0]
    monkeypatch.setattr(soak, "CFQA", (sys.executable, "-c", "import sys; sys.exit('no disk')"))
    refused = soak.soak_building("mock", 1, full, tmp_path, command=True)
    assert refused.wrong[0] == "round 0: no disk\n"

    labels = soak.cfqa_data.load(full).labels
    assert soak.same_table(labels, labels, 0)
    moved = labels.set_column(
        labels.column_names.index("mse"),
        labels.schema.field("mse"),
        [np.asarray(labels["mse"]) * (1 + 1e-9)],
    )
    assert not soak.same_table(moved, labels, soak.CLOSE)
    assert not soak.same_table(labels.slice(1), labels, soak.CLOSE)


@pytest.mark.release
def test_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_networks(tmp_path)
    recipe = toy_recipe(tmp_path, {"x265": QPS}).to_dict()
    recipe["tasks"] = {"cls": recipe["tasks"]["cls"]}
    path = write_toml(Recipe.from_dict(recipe), tmp_path / "toy.toml")
    monkeypatch.setattr(soak, "READ_ROUNDS", 3)
    before = tempfile.gettempdir()
    counts = ["--builds=2", "--commands=0", "--evaluations=2", "--pairs=60", "--readers=1"]
    options = ["--recipe", str(path), "--folder", str(tmp_path), "--metric", "mse"]
    monkeypatch.setitem(growth.LIMITS, "memory", 1e4)  # so short a run is all warm-up
    monkeypatch.setitem(growth.LIMITS, "threads", 10.0)
    monkeypatch.setitem(growth.LIMITS, "files", 10.0)
    status = soak.main([*counts, *options])
    told = capsys.readouterr()
    assert (status, told.err) == (0, "")
    assert [line.split("  ")[0] for line in told.out.splitlines()[1:-1]] == [
        "pairs, 1 threads",
        "pairs, 1 processes",
        "evaluate()",
        "build()",
    ]
    assert tempfile.gettempdir() == before
    assert not list(tmp_path.glob("tmp*"))
