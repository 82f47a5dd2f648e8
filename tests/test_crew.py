"""Processes that a script starts: what they give, and what it is told when they cannot."""

from __future__ import annotations

import multiprocessing
import operator
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cfqa_data.builders import spawning
from cfqa_data.builders.crew import each
from cfqa_data.builders.training.scenes import render_scenes
from cfqa_data.errors import BuildError

SCRIPT = """
import operator
from cfqa_data.builders.crew import each
from cfqa_data.errors import BuildError
try:
    print(list(each(operator.attrgetter, ("real",), [1, 2, 3], 2)))
except BuildError as error:
    print(error)
"""


def ends(status: int) -> None:
    os._exit(status)


def endless(_: int) -> object:
    return ends


def test_results_come_as_they_are_done() -> None:
    assert sorted(each(operator.attrgetter, ("real",), [1, 2, 3], 2)) == [1, 2, 3]
    assert spawning.MARK not in os.environ


def test_a_script_without_a_guard_is_told_so_and_its_workers_are_silent(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{spawning.GUARD}\n", "")


def test_a_killed_worker_is_no_missing_guard() -> None:
    with pytest.raises(BuildError, match="a worker was killed \\(out of memory"):
        list(each(endless, (0,), [1, 2], 2))


def test_what_starts_workers_ends_a_process_that_imports_its_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", end)
    process = multiprocessing.current_process()
    monkeypatch.setattr(process, "_inheriting", True, raising=False)
    with pytest.raises(SystemExit):  # of processes that are not ours nobody else tells
        render_scenes(tmp_path / "scenes", 0, 1)
    assert capsys.readouterr().err == f"cfqa: {spawning.GUARD}\n"
    monkeypatch.setenv(spawning.MARK, str(tmp_path / "mark"))
    with pytest.raises(SystemExit):
        list(each(operator.attrgetter, ("real",), [1, 2], 2))
    assert (tmp_path / "mark").exists()
    assert capsys.readouterr().err == ""
