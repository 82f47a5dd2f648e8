"""Every command with every kind of bad argument: one line, exit status 2, and no change."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer
from walk import PROGRESS, Sandbox, contract_faults, run, without_root_rights

from cfqa_data.builders.pipeline import build
from cfqa_data.cli import app

pytestmark = pytest.mark.usefixtures("quick_statistics")


@dataclass(frozen=True)
class Walked:
    """A command as it is walked.

    Attributes:
        good: Arguments with which it does its work; `{data}` and the like are the sandbox's.
        kinds: Of each parameter that takes a value, the kind of its bad ones.
        needs: Of a parameter, arguments in place of the good ones, without the parameter itself.
    """

    good: tuple[str, ...]
    kinds: dict[str, str]
    needs: dict[str, tuple[str, ...]] = field(default_factory=dict)


SELECTED = ("--task", "cls", "--codec", "x265")
COMMANDS = {
    "build": Walked(
        ("nano", "--out", "out", "--workers", "1"),
        {
            "recipe": "recipe",
            "out": "out folder",
            "workers": "number",
            "tier": "choice",
            "scheduler": "scheduler",
            "root": "folder",
            "hm_encoder": "file",
            "hm_config": "file",
            "vtm_encoder": "file",
            "vtm_config": "file",
        },
    ),
    "import-release": Walked(
        ("{release}", "--out", "out", "--logs", "{logs}"),
        {
            "source": "release",
            "out": "out folder",
            "logs": "logs",
            "recipe": "recipe",
            "root": "folder",
        },
    ),
    "info": Walked(("{data}",), {"folder": "dataset", "plugin": "name"}),
    "verify": Walked(
        ("{data}",),
        {
            "folder": "dataset",
            "against": "dataset",
            "tolerance": "number",
            "sample": "number",
            "seed": "number",
            "workers": "number",
            "root": "folder",
            "plugin": "name",
        },
        needs={"tolerance": ("{data}", "--against", "{data}")},
    ),
    "repair": Walked(
        ("{data}", "--dry-run"),
        {"folder": "dataset", "workers": "number", "root": "folder", "plugin": "name"},
    ),
    "eval": Walked(
        ("{data}", *SELECTED, "--metric", "mse"),
        {
            "folder": "dataset",
            "metric": "name",
            "task": "name",
            "codec": "name",
            "fold": "number",
            "max_sources": "number",
            "target": "choice",
            "leave_out": "choice",
            "device": "name",
            "precision": "choice",
            "workers": "number",
            "scheduler": "scheduler",
            "out": "out file",
            "report": "report",
            "table": "choice",
            "figure": "name",
            "against": "name",
            "paper_logs": "logs",
            "plugin": "name",
        },
        {"paper_logs": ()},
    ),
    "report": Walked(
        ("{data}", "{scores}", "--out", "out.html"),
        {
            "folder": "dataset",
            "scores": "scores",
            "out": "out file",
            "table": "choice",
            "figure": "name",
            "target": "choice",
            "against": "name",
        },
        needs={"figure": ("{data}", "{scores}", "--table", "csv")},
    ),
    "metrics": Walked((), {"family": "name"}),
    "leaderboard": Walked(
        ("{scores}",),
        {"results": "scores", "dataset": "dataset", "target": "choice", "out": "out file"},
    ),
    "extend": Walked(
        ("{data}", "--codec", "x265", "--name", "again", "--levels", "30", "--out", "out"),
        {
            "folder": "dataset",
            "codec": "name",
            "levels": "number",
            "out": "out folder",
            "name": "name",
            "task": "name",
            "quantizer": "name",
            "models": "name",
            "option": "name",
            "plugin": "name",
            "workers": "number",
            "root": "folder",
        },
    ),
    "fit-head": Walked(
        ("mini", "{images}", "--task", "cls", "--out", "out.safetensors", "--workers", "1"),
        {
            "recipe": "recipe",
            "images": "folder",
            "out": "out file",
            "task": "name",
            "kind": "choice",
            "dims": "number",
            "workers": "number",
            "root": "folder",
        },
    ),
    "label": Walked(
        ("{data}", "{data}", "--out", "out.csv"),
        {"folder": "dataset", "features": "dataset", "out": "out file", "plugin": "name"},
    ),
    "show": Walked(
        ("{data}", "cls-000", "--level", "9"),
        {
            "folder": "dataset",
            "source": "name",
            "codec": "name",
            "level": "number",
            "metric": "name",
            "scores": "scores",
            "out": "out file",
            "root": "folder",
            "plugin": "name",
        },
    ),
    "gallery": Walked(
        ("{data}", "--out", "out.html", "--sources", "1", "--level", "9"),
        {
            "folder": "dataset",
            "out": "out file",
            "task": "name",
            "codec": "name",
            "level": "number",
            "sources": "number",
            "metric": "name",
            "scores": "scores",
            "root": "folder",
            "plugin": "name",
        },
    ),
    "curves": Walked(
        ("{data}", "--json"),
        {
            "folder": "dataset",
            "anchor": "name",
            "quality": "name",
            "task": "name",
            "scores": "scores",
            "out": "out file",
            "figure": "out file",
        },
    ),
    "export": Walked(
        ("{data}", "--out", "out", "--format", "npy", *SELECTED, "--level", "0"),
        {
            "folder": "dataset",
            "out": "out folder",
            "format": "choice",
            "task": "name",
            "codec": "name",
            "level": "number",
            "fold": "number",
            "plugin": "name",
        },
    ),
    "publish": Walked(
        ("{data}", "org/name", "--dry-run", "--licence", "cc0-1.0"),
        {
            "folder": "dataset",
            "repo": "name",
            "tier": "choice",
            "revision": "tag",
            "tag": "tag",
            "licence": "tag",
            "licence_link": "link",
            "attribution": "text",
        },
    ),
}

KNOWN: Any = typer.main.get_command(app)
PARAMETERS = [
    (command, parameter.name)
    for command, known in KNOWN.commands.items()
    for parameter in known.params
    if parameter.param_type_name == "argument" or not parameter.is_flag
]
SHARES = 3
"""Number of shares of a kind's bad values; each parameter of the kind is tested with one share."""


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    return Sandbox(tmp_path_factory.mktemp("walk"))


def begun(*_: Any) -> None:
    """Replaces the first slow step of a build."""
    raise AssertionError("the build began")


@pytest.fixture(autouse=True)
def as_before(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in the sandbox; what a command sets in this process is taken back.

    The command line is put together once: that takes longer than most of what is refused.
    """
    monkeypatch.chdir(sandbox.root / "work")
    environment, path = dict(os.environ), list(sys.path)
    monkeypatch.setattr(sys.modules[build.__module__], "make_plan", begun)
    monkeypatch.setattr(typer.main, "get_command", lambda _: KNOWN)
    yield
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path


def parameter_of(command: str, name: str) -> Any:
    return next(p for p in KNOWN.commands[command].params if p.name == name)


def with_value(command: str, name: str, value: str) -> list[str]:
    """Return the valid arguments of a command with another value of one parameter."""
    walked, parameter = COMMANDS[command], parameter_of(command, name)
    words = list(walked.needs.get(name, walked.good))
    if parameter.param_type_name == "argument":
        arguments = [p.name for p in KNOWN.commands[command].params if p.opts[0][0] != "-"]
        words[arguments.index(name)] = "\a"
        return [command, *words]
    for option in parameter.opts:
        while option in words:
            del words[words.index(option) : words.index(option) + 2]
    return [command, *words, parameter.opts[0], "\a"]


def test_every_command_and_every_parameter_is_walked() -> None:
    assert set(COMMANDS) == set(KNOWN.commands)
    walked = {(command, name) for command, entry in COMMANDS.items() for name in entry.kinds}
    assert walked == set(PARAMETERS)


@pytest.mark.parametrize("most", [SHARES, pytest.param(1, marks=pytest.mark.release)])
@pytest.mark.parametrize("command", COMMANDS)
def test_bad_values(command: str, most: int, sandbox: Sandbox) -> None:
    found = []
    for name, kind in COMMANDS[command].kinds.items():
        alike = [key for key in PARAMETERS if COMMANDS[key[0]].kinds.get(key[1]) == kind]
        shares = min(most, len(alike))
        template = sandbox.fill(with_value(command, name, ""))
        first = alike.index((command, name)) % shares
        for value in list(sandbox.bad[kind].values())[first::shares]:
            words = [str(value) if word == "\a" else word for word in template]
            found.append(contract_faults(sandbox, words))
    assert [fault for fault in found if fault] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_options_without_their_value(command: str, sandbox: Sandbox) -> None:
    found = []
    for name in COMMANDS[command].kinds:
        parameter = parameter_of(command, name)
        words = sandbox.fill(with_value(command, name, ""))
        if parameter.param_type_name == "option":
            found += [
                contract_faults(sandbox, words[:-1], "requires an argument", f"{command} --help"),
                contract_faults(sandbox, [*words[:-2], f"{parameter.opts[0]}="], "is empty"),
            ]
        elif parameter.required:
            rest = words[words.index("\a") + 2 :]
            found.append(contract_faults(sandbox, [command, *rest], "issing"))
    assert [fault for fault in found if fault] == []


SCHEDULED = [command for command, name in PARAMETERS if name == "scheduler"]


@pytest.mark.parametrize("command", SCHEDULED)
def test_workers_and_a_scheduler_exclude_each_other(command: str, sandbox: Sandbox) -> None:
    words = sandbox.fill(with_value(command, "workers", ""))
    words = [*words[:-1], "2", "--scheduler", "tcp://127.0.0.1:9"]
    assert contract_faults(sandbox, words, "give one of them, not both") == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_options_that_there_are_not(command: str, sandbox: Sandbox) -> None:
    good = sandbox.fill(COMMANDS[command].good)
    several = any(parameter.nargs == -1 for parameter in KNOWN.commands[command].params)
    for words in (
        ["--no-such-option"],
        ["--no-such-option=3"],
        ["-Z"],
        ["--"],
        ["too", "many", "arguments"],
        ["\udcff"],
    ):
        files = several and not words[0].startswith("-")
        if words != ["--"]:
            said = "no such file" if files else f"cfqa {command} --help"
            assert contract_faults(sandbox, [command, *good, *words], said) == ""
    assert contract_faults(sandbox, ["no-such-command", *good], "cfqa --help") == ""
    assert contract_faults(sandbox, ["--no-such-option", command, *good], "cfqa --help") == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_take_no_value(command: str, sandbox: Sandbox) -> None:
    good = sandbox.fill(COMMANDS[command].good)
    options = [p for p in KNOWN.commands[command].params if p.param_type_name == "option"]
    flags = [p.opts[0] for p in options if p.is_flag and p.opts[0] != "--help"]
    found = [contract_faults(sandbox, [command, *good, f"{flag}=yes"], flag) for flag in flags]
    assert [fault for fault in found if fault] == []


# Valid arguments, also with files that may not be read or written.


GOOD = {"verify": (0, 1)}
"""Exit statuses of valid arguments that are not 0, because the mock dataset has faults."""


@pytest.mark.parametrize(
    "command", [name for name in COMMANDS if name not in ("build", "extend", "label")]
)
def test_the_good_arguments_are_good(
    command: str, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, lines = run([command, *sandbox.fill(COMMANDS[command].good)])
    assert out
    assert status in GOOD.get(command, (0,)), lines


@pytest.mark.parametrize("command", COMMANDS)
def test_files_that_may_not_be_read(command: str, sandbox: Sandbox, tmp_path: Path) -> None:
    words = [command, *sandbox.fill(COMMANDS[command].good)]
    data = Path(sandbox.names["data"])
    closed = {
        "info": [data, data / "manifest.json", data / "labels" / "cls.parquet"],
        "eval": [data, data / "manifest.json", data / "labels" / "cls.parquet"],
        "report": [data / "manifest.json", Path(sandbox.names["scores"])],
        "leaderboard": [Path(sandbox.names["scores"])],
        "metrics": [],
        "export": [data, data / "labels" / "cls.parquet", data / "compressed"],
        "publish": [data, data / "README.md"],
        "import-release": [Path(sandbox.names["release"]), Path(sandbox.names["logs"])],
        "build": [],
        "fit-head": [Path(sandbox.names["images"])],
    }
    for path in closed.get(command, [data]):
        mode = path.stat().st_mode
        path.chmod(0)
        try:
            with without_root_rights():
                status, out, lines = run(words)
        finally:
            path.chmod(mode)
        lines = [line for line in lines if not PROGRESS.fullmatch(line)]
        assert (status, out, len(lines)) == (2, "", 1), (path, lines)
        assert str(path) in lines[0]
        assert "ermission" in lines[0]
        shutil.rmtree("out", ignore_errors=True)


@pytest.mark.parametrize("command", ["build", "import-release", "eval", "report", "export"])
def test_folders_that_may_not_be_written_to(command: str, sandbox: Sandbox) -> None:
    closed = sandbox.root / "closed"
    closed.mkdir(exist_ok=True)
    closed.chmod(0o555)
    name = "scores.csv" if command == "eval" else "out.html" if command == "report" else "out"
    words = sandbox.fill(with_value(command, "out", ""))
    words = [str(closed / name) if word == "\a" else word for word in words]
    with without_root_rights():
        assert contract_faults(sandbox, words, str(closed), "Permission denied") == ""


@pytest.mark.parametrize("command", ["info", "verify", "eval", "report", "export", "publish"])
def test_a_dataset_that_may_only_be_read_is_enough(
    command: str, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(sandbox.names["data"])
    monkeypatch.chdir(tmp_path)
    everything = [data, *data.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sandbox.state()
    try:
        with without_root_rights():
            status, _, lines = run([command, *sandbox.fill(COMMANDS[command].good)])
        assert sandbox.state() == before
        assert status in GOOD.get(command, (0,)), lines
    finally:
        for path in everything:
            path.chmod(0o755 if path.is_dir() else 0o644)
