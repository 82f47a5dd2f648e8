"""Imports make no connections and leave no files; builds and evaluations need no network.

Each test is a child process with an audit hook, which Python calls before it connects, looks up a
name, starts a process or opens a file, whatever library asks for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

WATCH = """
import json, os, socket, subprocess, sys, tempfile, threading

tempfile.gettempdir()  # dill, which datasets imports, asks this, and Python tries the folder out
NET = ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
       "socket.gethostbyname", "socket.gethostbyaddr")
STARTS = ("subprocess.Popen", "os.system", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec")
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.truncate")
seen, watched = [], True

def hook(event, arguments):
    if not watched:
        return
    if event in NET:
        seen.append([event, repr(arguments[1:])])
        raise PermissionError(f"{event}: no net here")
    if event in STARTS or event in CHANGES:
        seen.append([event, repr(arguments)])
    if event == "open" and isinstance(arguments[2], int):
        path, _, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and path != os.devnull:
            seen.append([event, repr(path)])

sys.addaudithook(hook)
before = set(threading.enumerate())
"""

IMPORTS = """
from importlib import import_module

for name in json.loads(sys.argv[1]):
    import_module(name)
"""

LOOK = """
watched = False
import psutil
seen += [["thread", repr(thread)] for thread in set(threading.enumerate()) - before]
seen += [["process", repr(other)] for other in psutil.Process().children(recursive=True)]
imported, watched = list(seen), True
"""

TELL = f"""{LOOK}
watched = False
print(json.dumps(imported))
sys.stdout.flush()
for other in psutil.Process().children():
    other.kill()
"""


def child(code: str, *arguments: str, home: Path) -> Any:
    """Run watched code; return the JSON of its last line."""
    environment = dict(os.environ, HOME=str(home), XDG_CONFIG_HOME=str(home), HF_HOME=str(home))
    for name in ("PYTHONPATH", "MPLCONFIGDIR", "COVERAGE_PROCESS_START"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-B", "-c", WATCH + code, *arguments],
        env=environment | {"PYTHONPATH": str(ROOT / "tests")},
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def modules() -> list[str]:
    """Return the import names of all modules of the project."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    names = set()
    for package, folder in setuptools["package-dir"].items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            names.add(".".join([package, *parts]).removesuffix(".__init__"))
    return sorted(names)


@pytest.mark.parametrize(
    ("code", "event"),
    [
        ("socket.create_connection(('127.0.0.1', 9))", "socket.getaddrinfo"),
        ("socket.socket().connect(('127.0.0.1', 9))", "socket.connect"),
        ("subprocess.run('true')", "subprocess.Popen"),
        ("open('left', 'w').close()", "open"),
        ("os.mkdir('left')", "os.mkdir"),
        ("threading.Thread(target=threading.Event().wait, daemon=True).start()", "thread"),
        ("child = subprocess.Popen(['sleep', '60'])", "process"),
    ],
)
def test_the_watch_sees_it(tmp_path: Path, code: str, event: str) -> None:
    seen = child(f"try:\n    {code}\nexcept PermissionError:\n    pass\n{TELL}", home=tmp_path)
    assert event in {name for name, _ in seen}


BUILD = """
from pathlib import Path
import cfqa_data
from cfqa_data.builders.pipeline import build
from cfqa_data.recipe.load import Recipe
from pipeline_toy import QPS, toy_recipe, write_networks

folder = Path(sys.argv[2])
write_networks(folder)
whole = toy_recipe(folder, {"x265": QPS}, sources_per_task=1)
recipe = Recipe.from_dict(whole.to_dict() | {"tasks": {"cls": whole.tasks["cls"].to_dict()}})
out = build(recipe, folder / "light", workers=0, tier="light")
found = cfqa_data.evaluate(out, ["mse"])  # reads and decodes every pair
assert not found.failures and len(found.scores) == 4
print(json.dumps([imported, [event for event, _ in seen if event in NET]]))
"""


def test_importing_everything_leaves_nothing_and_a_build_and_an_evaluation_need_no_net(
    tmp_path: Path,
) -> None:
    names = modules()
    assert len(names) > 120
    assert "cfqa_data.eval.report" in names
    home, folder = tmp_path / "home", tmp_path / "built"
    home.mkdir()
    folder.mkdir()
    imported, net = child(IMPORTS + LOOK + BUILD, json.dumps(names), str(folder), home=home)
    assert (imported, net) == ([], [])
    assert list(home.iterdir()) == []
