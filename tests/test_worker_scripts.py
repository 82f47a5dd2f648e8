"""Worker processes started by scripts: results, and errors if they cannot start."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from pipeline_dies import Doubling

from cfqa_data.builders.training.scenes import render_scenes
from cfqa_data.errors import BuildError
from cfqa_data.processes import spawning
from cfqa_data.processes.executor import Executor

SCRIPT = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
from pipeline_dies import Doubling
from cfqa_data.processes.executor import Executor
from cfqa_data.errors import BuildError
try:
    with Executor(2) as two:
        print(list(two.run(Doubling(3), [0, 1, 2])))
except BuildError as error:
    print(error)
"""


def test_a_script_without_a_guard_is_told_so_and_its_workers_are_silent(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{spawning.GUARD}\n", "")


def test_a_process_of_somebody_else_without_a_guard_ends_with_all_that_it_was_sent(
    tmp_path: Path,
) -> None:
    """More data than a pipe holds, so that the parent would block while writing."""
    (tmp_path / "script.py").write_text(
        "import multiprocessing\n"
        "from cfqa_data.guard import check_guard\n"
        "check_guard()\n"
        "context = multiprocessing.get_context('spawn')\n"
        "process = context.Process(target=print, args=(['x' * 9] * 9, bytes(1_000_000)))\n"
        "process.start()\n"
        "process.join()\n"
        "print(process.exitcode)\n"
    )
    command = [sys.executable, tmp_path / "script.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("1\n", f"cfqa: {spawning.GUARD}\n")


def test_what_starts_workers_ends_a_process_that_imports_its_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", end)
    process = multiprocessing.current_process()
    monkeypatch.setattr(process, "_inheriting", True, raising=False)
    with pytest.raises(SystemExit):  # the parent is another library, so the child prints the error
        render_scenes(tmp_path / "scenes", 0, 1)
    assert capsys.readouterr().err.endswith(f"cfqa: {spawning.GUARD}\n")
    monkeypatch.setenv(spawning.MARK, str(tmp_path / "mark"))
    with pytest.raises(SystemExit), Executor(2) as two:
        list(two.run(Doubling(2), [0, 1]))
    assert (tmp_path / "mark").exists()
    assert capsys.readouterr().err == ""


MAINS = {
    "a pipe": ({"__file__": "<stdin>"}, False),
    "a script": ({"__file__": __file__}, True),
    "nothing": ({}, True),  # `python -c`, a notebook
    "a module": ({"__file__": "gone.py", "__spec__": types.SimpleNamespace(name="pytest")}, True),
}


@pytest.mark.parametrize("name", MAINS)
def test_workers_start_where_they_can_import_the_script(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, starts = MAINS[name]
    main = types.ModuleType("__main__")
    vars(main).update(facts)
    monkeypatch.setitem(sys.modules, "__main__", main)
    if starts:
        with spawning.spawning():
            Executor(2)
        return
    for start in (spawning.spawning().__enter__, lambda: Executor(2)):
        with pytest.raises(
            BuildError, match=r"^workers import .*, and <stdin> is not a file: save"
        ):
            start()
    Executor(1)
    Executor(1, "tcp://elsewhere:1")
    with spawning.spawning("fork"):
        pass


def test_a_daemonic_process_starts_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    for start in (spawning.spawning("fork").__enter__, lambda: Executor(2)):
        with pytest.raises(BuildError, match=r"^a daemonic process, such as a worker of "):
            start()
    Executor(1)
