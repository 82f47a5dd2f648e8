"""Only one process builds at a time; others get an error."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_toy import QPS, toy_recipe, tree, write_networks

from cfqa_data import evaluate, load
from cfqa_data.builders.pipeline import build, lock
from cfqa_data.builders.pipeline.lock import locked
from cfqa_data.builders.sharing.export import export
from cfqa_data.console.progress import Silent
from cfqa_data.errors import BuildError, FormatError
from cfqa_data.integrity.summary import summarise
from cfqa_data.integrity.verify import verify
from cfqa_data.recipe.load import Recipe

HERE = re.escape(f"(process {os.getpid()} on {socket.gethostname()})")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("networks")
    write_networks(folder)
    whole = toy_recipe(folder, {"x265": QPS}, sources_per_task=1)
    return Recipe.from_dict(whole.to_dict() | {"tasks": {"cls": whole.tasks["cls"].to_dict()}})


def leave(root: Path, text: str) -> Path:
    """Write the lock file of a killed build."""
    path = root / ".build" / "lock"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_the_holder_is_named_and_nothing_of_the_lock_stays(tmp_path: Path) -> None:
    with locked(tmp_path / "out"):
        path = tmp_path / "out" / ".build" / "lock"
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        assert json.loads(path.read_text()) == owner
        with pytest.raises(
            BuildError, match=f"^another build is running in {tmp_path}/out {HERE}$"
        ):
            locked(tmp_path / "out").__enter__()
        assert path.exists()  # who is refused takes nothing away
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("text", ["", '{"pid": 12', "[]", "\0" * 50])
def test_half_a_lock_is_taken_over_at_once(text: str, tmp_path: Path) -> None:
    leave(tmp_path, text)
    with locked(tmp_path):
        pass


def test_a_dead_builds_number_may_be_anothers_now(tmp_path: Path) -> None:
    leave(tmp_path, json.dumps({"pid": os.getppid(), "host": socket.gethostname()}))
    with locked(tmp_path):
        pass


def test_a_lock_of_another_machine_is_left_to_people(tmp_path: Path) -> None:
    path = leave(tmp_path, json.dumps({"pid": 1, "host": "another.example"}))
    with pytest.raises(BuildError, match=rf"\(process 1 on another.example\); .* delete {path}$"):
        locked(tmp_path).__enter__()
    path.unlink()
    with locked(tmp_path):
        pass


def test_without_locks_of_the_file_system_the_living_process_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "try_lock", lambda _: None)
    with (
        locked(tmp_path),
        pytest.raises(BuildError, match=f"another build is running in {tmp_path} {HERE}; .*delete"),
    ):
        locked(tmp_path).__enter__()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    leave(tmp_path, json.dumps({"pid": dead.pid, "host": socket.gethostname()}))
    with locked(tmp_path):
        pass


def test_who_lost_the_lock_file_does_not_take_anothers_away(tmp_path: Path) -> None:
    path = tmp_path / ".build" / "lock"
    with locked(tmp_path):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


def test_the_file_that_the_last_holder_removed_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kept, tries = tmp_path / ".build" / "lock", lock.try_lock, []

    def slow(handle: int) -> bool | None:
        """Open the lock file while it is held, and acquire it after it was removed."""
        tries.append(handle)
        if len(tries) == 1:
            path.unlink()
        return kept(handle)

    monkeypatch.setattr(lock, "try_lock", slow)
    with locked(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert len(tries) == 2


def test_of_many_that_come_at_once_one_gets_it(tmp_path: Path) -> None:
    program = Path(__file__).with_name("lock_takers.py")
    done = subprocess.run(
        [sys.executable, program, tmp_path, "6", "20"],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told["rounds"]) == 20
    for answers in told["rounds"]:
        (won,) = [answer.split()[1] for answer in answers if answer.startswith("won")]
        refused = (
            f"another build is running in {tmp_path} (process {won} on {socket.gethostname()})"
        )
        assert answers.count(refused) == 5
    assert told["met"] == 0


class Visit(Silent):
    """Calls `visit` at the first step of a build."""

    def __init__(self, visit: Callable[[], None]) -> None:
        self.visit, self.visits = visit, 0

    def advance(self, n: int = 1) -> None:
        self.visits += 1
        if self.visits == 1:
            self.visit()


READERS: dict[str, Callable[[Path], Any]] = {
    "load": lambda root: load(root, "cls"),
    "info": summarise,
    "verify": verify,
    "eval": evaluate,
    "export": lambda root: export(root, root.with_name("exported"), "npy"),
}


def test_visitors_of_a_folder_in_building(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def visit() -> None:
        assert (out / ".build" / "plan.json").exists()
        before = tree(out)
        with pytest.raises(BuildError, match=f"^another build is running in {out} {HERE}$"):
            build(recipe, out, workers=0)
        for name, read in READERS.items():
            with pytest.raises(
                FormatError, match=f"^{out}: not built yet: .* running .* resumes it"
            ):
                read(out)
            assert tree(out) == before, name

    progress = Visit(visit)
    build(recipe, out, workers=0, progress=progress)
    assert progress.visits > 1
    for read in READERS.values():
        read(out)


@pytest.mark.parametrize("name", [".build", ".build/lock"])
def test_nothing_is_written_through_a_link(name: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir() if name == ".build" else victim.write_text("mine")
    root = tmp_path / "root"
    (root / name).parent.mkdir(parents=True)
    (root / name).symlink_to(victim)
    with (
        pytest.raises(BuildError, match="is a link, not made by a build: remove it"),
        locked(root),
    ):
        pass
    assert list(victim.iterdir()) == [] if victim.is_dir() else victim.read_text() == "mine"


def test_a_pipe_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / ".build").mkdir()
    os.mkfifo(tmp_path / ".build" / "lock")
    with pytest.raises(BuildError, match="is not a file"), locked(tmp_path):
        pass
