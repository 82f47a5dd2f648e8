"""The command as a process: signals, closed or full streams, and other encodings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cases import release
from mock_dataset import write_mock_dataset
from pipeline_toy import tree

import cfqa_data.console.terminal
from cfqa_data.cli import main, process

pytestmark = pytest.mark.usefixtures("quick_statistics")

CFQA = [sys.executable, "-c", "import sys; from cfqa_data.cli import main; sys.exit(main())"]
INTERRUPTED = "cfqa: interrupted; scores so far are kept, run the same command again to resume"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mock_dataset(tmp_path_factory.mktemp("process") / "cfqa", sources=2)


def shell(command: str, **environment: str) -> subprocess.Popen[str]:
    """Run a shell command in which "$@" is `cfqa`."""
    return subprocess.Popen(
        ["sh", "-c", command, "sh", *CFQA],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=os.environ | environment,
    )


STOPPED = """
import signal, sys
import cfqa_data.integrity.summary
from cfqa_data.cli import main, process
number = int(sys.argv.pop())
signal.signal(signal.SIGINT, signal.default_int_handler)
cfqa_data.integrity.summary.summarise = lambda *_, **__: signal.raise_signal(number)
sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_each_signal_ends_a_command_cleanly(number: int) -> None:
    # A shell ignores SIGINT in background jobs, and `nohup` ignores SIGHUP: both are set here.
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, "info", "cfqa", str(int(number))],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr == "cfqa: interrupted\n"


def test_a_python_without_docstrings_runs_a_command(folder: Path) -> None:
    command = [CFQA[0], "-OO", *CFQA[1:], "info", "--json", str(folder)]
    told = subprocess.run(command, capture_output=True, check=True).stdout
    assert json.loads(told)["tasks"]


def test_a_command_that_is_terminated_goes_on(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "stopper.py").write_text(
        "import os, signal\n"
        "calls = 0\n"
        "def stop(x, y):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls == 2 and 'STOP' in os.environ:\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    return (x - y).square().mean((1, 2, 3, 4))\n"
    )
    words = ["eval", str(folder), "--task", "cls", "--metric", "stopper:stop", "--metric", "mse"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.signal(signal.SIGTERM, process._stop)
    try:
        with monkeypatch.context() as patch:
            patch.setenv("STOP", "1")
            status = main([*words, "--out", "stopped.parquet"])
    finally:
        signal.signal(signal.SIGTERM, before)
    told = capsys.readouterr()
    assert (status, told.out) == (128 + signal.SIGTERM, "")
    assert told.err.splitlines()[-1] == INTERRUPTED
    assert not (tmp_path / "stopped.parquet").exists()
    assert (tmp_path / "stopped.parquet.unfinished").exists()
    for name in ("whole", "stopped"):
        assert main([*words, "--out", f"{name}.parquet"]) == 0
        assert capsys.readouterr().err.splitlines()[-1].startswith("evaluate: done")
    again = pq.read_table(tmp_path / "stopped.parquet")
    assert again.equals(pq.read_table(tmp_path / "whole.parquet"))
    assert not (tmp_path / "stopped.parquet.unfinished").exists()


class InterruptAfter:
    """A progress listener that raises KeyboardInterrupt at a step."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __enter__(self) -> InterruptAfter:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def start(self, stage: str, total: int, unit: str) -> None:
        self.advance()

    def advance(self, n: int = 1) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def finish(self) -> None:
        self.advance()


@pytest.mark.parametrize(
    "kind",
    [
        "zarr",
        "safetensors",
        *release("npy", "parquet"),
    ],
)
def test_an_export_that_is_interrupted_at_any_step_ends_as_another(
    kind: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["export", str(folder), "--format", kind, "--task", "cls", "--codec", "x265"]
    words += ["--level", "0", "--level", "9"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    stops = 0
    for at in range(12):
        capsys.readouterr()
        monkeypatch.setattr(
            cfqa_data.console.terminal, "show_progress", lambda at=at: InterruptAfter(at)
        )
        status = main([*words, "--out", str(tmp_path / "out")])
        if status == 0:
            break
        stops += 1
        told = capsys.readouterr()
        assert (status, told.out) == (130, "")
        assert told.err == (
            "cfqa: interrupted; finished work is kept, run the same command again to resume\n"
        )
        assert not list((tmp_path / "out").rglob("*.partial"))
    assert stops >= 5
    monkeypatch.undo()
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


STREAMS = {
    # Redirection -> exit status, whether stdout has output, and stderr.
    ">&-": (0, False, ""),
    "2>&-": (0, True, ""),
    "<&-": (0, True, ""),
    "<&- >&- 2>&-": (0, False, ""),
    "2>/dev/full": (0, True, ""),
    ">/dev/full": (
        2,
        False,
        "cfqa: stdout: No space left on device; the answer could not be written\n",
    ),
}


def test_streams_that_are_closed_or_full(folder: Path) -> None:
    running = {
        (words, unbuffered, after): shell(f'"$@" {words} {after}', PYTHONUNBUFFERED=unbuffered)
        for words, unbuffered, streams in (
            (f"info {folder}", "", (">/dev/full",)),
            ("--version", "", (">&-", "2>&-")),
            ("--version", "1", STREAMS),
        )
        for after in streams
    }
    for (*_, after), started in running.items():
        status, answers, said = STREAMS[after]
        out, err = started.communicate(timeout=120)
        assert (started.returncode, bool(out), err) == (status, answers, said), after
    for after in ("2>/dev/full", ">&- 2>&-"):
        refused = shell(f'"$@" info {folder}/nowhere {after}')
        assert (refused.communicate(timeout=60), refused.returncode) == (("", ""), 2)


def test_other_languages_and_terminals(folder: Path) -> None:
    posix = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    for environment in (
        posix,
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "no_SUCH", "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "1"},
    ):
        refused = shell('"$@" info n\u00f6 ', **environment)
        out, err = refused.communicate(timeout=60)
        assert (refused.returncode, out, err.count("\n")) == (2, "", 1), environment
        assert err.startswith(f"cfqa: {Path.cwd() / 'n'}"), environment
    helped = shell('"$@" eval --help', **environment)
    out, err = helped.communicate(timeout=60)
    assert (helped.returncode, err) == (0, "")
    assert "\x1b" not in out
    answered = shell(f'"$@" info {folder} --json', **posix)
    assert answered.communicate(timeout=60)[1] == ""
    assert answered.returncode == 0
