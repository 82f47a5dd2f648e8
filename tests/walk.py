"""Helpers for tests of all command-line options: a sandbox, bad values, and the error contract."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from mock_dataset import toy_recipe_dict, write_mock_dataset
from PIL import Image
from release_samples import write_logs, write_release

from cfqa_data.cli import main
from cfqa_data.eval import evaluate
from cfqa_data.recipe.load import Recipe

__all__ = ["PROGRESS", "Sandbox", "contract_faults", "run", "without_root_rights"]

PROGRESS = re.compile(r"[a-z ]+: (\d.*|done in .*)")


class Sandbox:
    """A folder of valid and invalid inputs; tests use its subfolder `work` as working directory.

    Attributes:
        names: Values of the placeholders `{name}` in arguments.
        bad: Kind of value -> description of a bad value -> the value.
    """

    def __init__(self, root: Path) -> None:
        self.root, things = root, root / "things"
        (root / "work").mkdir()
        things.mkdir()
        (things / "file").write_text("no dataset, no recipe and no scores\n")
        (things / "file.toml").write_text("no = 'recipe'\n")
        (things / "file.parquet").write_text("no scores\n")
        (things / "empty").mkdir()
        (things / "other").mkdir()
        (things / "other" / "thesis.tex").write_text("the only copy\n")
        (things / "loop").symlink_to("loop")
        (things / "dangling").symlink_to("nowhere")
        os.mkfifo(things / "fifo")
        os.mkfifo(things / "fifo.toml")
        os.mkfifo(things / "fifo.parquet")
        os.mkfifo(things / "fifo.html")
        pq.write_table(pa.table({"value": [1.0]}), things / "table.parquet")
        recipe = toy_recipe_dict(2)
        recipe["tasks"] = {"cls": recipe["tasks"]["cls"]}
        data = write_mock_dataset(root / "data", sources=2, recipe=Recipe.from_dict(recipe))
        release = write_release(root / "release", tasks=("cls",))
        logs = write_logs(
            root / "logs",
            {
                ("hyperprior_multi_task", "cls", name, value): 0.5
                for name in ("ILSVRC2012_val_00000293", "ILSVRC2012_val_00002138")
                for value in (0.015, 0.01, 0.007, 0.006, 0.005, 0.004, 0.003, 0.0025, 0.001, 0.0005)
            },
        )
        evaluate(data, ["mse"], task="cls", codec="x265", out=root / "scores.parquet")
        for name in ("cat", "dog"):
            (root / "images" / name).mkdir(parents=True)
            Image.new("RGB", (30, 20)).save(root / "images" / name / "1.png")
        self.names = {
            "data": str(data),
            "release": str(release),
            "logs": str(logs),
            "scores": str(root / "scores.parquet"),
            "images": str(root / "images"),
        }
        nowhere = {
            "missing": things / "no" / "thing",
            "below a file": things / "file" / "thing",
            "below a loop": things / "loop" / "thing",
            "a name too long": "x" * 300,
            "a path too long": str(things) + "/x" * 3000,
            "a NUL": "a\0b",
            "nothing": "",
            "web address": "http://127.0.0.1:9/x",
            "bucket": "s3://bucket/x",
            "up and away": "../" * 40 + "no/such/place",
        }
        unreadable = nowhere | {
            "loop": things / "loop",
            "dangling link": things / "dangling",
            "FIFO": things / "fifo",
            "device": "/dev/null",
            "endless device": "/dev/zero",
            "nobody's home": "~nobody-of-that-name/x",
            "looks like a bucket": "s3:/x",
            "looks like an address": "http:/x",
            "newline": "a\nb",
            "escape": "\x1b[31mred",
            "no UTF-8": os.fsdecode(b"\xff\xfe"),
            "unicode": "数据/ü",
            "spaces": "  ",
        }
        self.bad: dict[str, dict[str, object]] = {
            "dataset": unreadable | {"a file": things / "file", "empty": things / "empty"},
            "release": unreadable | {"a file": things / "file", "empty": things / "empty"},
            "logs": unreadable | {"a file": things / "file", "empty": things / "empty"},
            "folder": unreadable | {"a file": things / "file"},
            "file": unreadable | {"a folder": things / "empty"},
            "recipe": unreadable
            | {kind: f"{path}.toml" for kind, path in unreadable.items() if path}
            | {"a folder": things / "empty", "no recipe": things / "file.toml"},
            "scores": unreadable
            | {
                "a folder": things / "empty",
                "no table": things / "file.parquet",
                "another table": things / "table.parquet",
                "a FIFO": things / "fifo.parquet",
            },
            "out folder": {k: p for k, p in nowhere.items() if k not in ("missing", "up and away")}
            | {
                "not even root's": "/proc/no/place",
                "a file": things / "file",
                "FIFO": things / "fifo",
                "device": "/dev/null",
                "loop": things / "loop",
                "holds something else": things / "other",
            },
            "report": nowhere
            | {
                "a file": things / "file",
                "FIFO": things / "fifo",
                "FIFO as a page": things / "fifo.html",
                "device": "/dev/null",
                "not even root's": "/proc/no",
                "no folder to make it in": "s3:/x",
            },
            "out file": nowhere
            | {
                "a folder": things / "empty",
                "FIFO": things / "fifo.html",
                "device": "/dev/null",
                "other ending": "out.docx",
                "looks like a bucket": "s3:/x.html",
            },
            "name": {
                "unknown": "no-such-thing",
                "nothing": "",
                "a NUL": "a\0b",
                "newline": "a\nb",
                "blank": " ",
                "up": "../x",
                "long": "x" * 5000,
                "no UTF-8": os.fsdecode(b"\xff\xfe"),
                "escape": "\x1b[31mred",
                "address": "http://127.0.0.1:9/x",
            },
            "tag": {
                "nothing": "",
                "a NUL": "a\0b",
                "newline": "a\nb",
                "blank": " ",
                "up": "../x",
                "long": "x" * 5000,
                "no UTF-8": os.fsdecode(b"\xff\xfe"),
                "address": "http://127.0.0.1:9/x",
            },
            "link": {"no address": "no-such-thing", "blank": " ", "a NUL": "http://a\0b"},
            "text": {"blank": " ", "newline": "a\nb", "escape": "\x1b[31mred", "long": "x" * 5000},
            "scheduler": {"nothing": "", "a NUL": "tcp://a\0b"},
            "choice": {"unknown": "no-such-thing", "nothing": "", "long": "x" * 5000},
            "number": {"word": "many", "half": "1.5", "nothing": "", "huge": "9" * 5000},
        }

    def fill(self, words: Sequence[str]) -> list[str]:
        """Return arguments with their placeholders replaced."""
        return [word.format(**self.names) if "{" in word else word for word in words]

    def state(self) -> dict[str, object]:
        """Return the state of all files and folders, which a failing command must not change."""
        state: dict[str, object] = {}
        for folder, folders, files in os.walk(self.root):
            for name in folders:
                state[os.path.join(folder, name)] = "folder"
            for name in files:
                path = os.path.join(folder, name)
                known = os.lstat(path)
                state[path] = (known.st_mode, known.st_size, known.st_mtime_ns, known.st_ino)
        return state


def run(words: Sequence[str]) -> tuple[int, str, list[str]]:
    """Run the command line in this process; return its status, stdout and stderr's lines."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(words))
    lines = err.getvalue().split("\n")
    assert lines.pop() == ""
    return status, out.getvalue(), lines


def contract_faults(sandbox: Sandbox, words: Sequence[str], *said: str) -> str:
    """Return how a failing command violates the error contract; empty if it does not.

    The contract is exit status 2, one line on stderr that begins with `cfqa: `, nothing on stdout,
    and no change of any file or folder.

    Args:
        sandbox: The sandbox.
        words: Arguments of the command.
        said: Texts that the line must contain.
    """
    before = sandbox.state()
    try:
        status, out, lines = run(words)
    except Exception as error:
        return f"{[word[:80] for word in words]}: {type(error).__name__}: {error}"
    lines = [line for line in lines if not PROGRESS.fullmatch(line)]
    after = sandbox.state()
    faults = [
        f"status {status}" if status != 2 else "",
        f"stdout {out[:80]!r}" if out else "",
        f"stderr {lines}" if len(lines) != 1 or not lines[0].startswith("cfqa: ") else "",
        f"{sorted(after.keys() - before.keys())} left" if after.keys() - before.keys() else "",
        f"{[p for p in before if after.get(p) != before[p]]} lost" if before != after else "",
        *(f"not {part!r} in {lines}" for part in said if part not in "".join(lines)),
    ]
    if any(not character.isprintable() for character in "".join(lines)):
        faults.append("characters that are not printable")
    faults = [fault for fault in faults if fault]
    return f"{[word[:80] for word in words]}: {'; '.join(faults)}" if faults else ""


@contextlib.contextmanager
def without_root_rights() -> Iterator[None]:
    """Enforce file permissions in this thread, even if root runs the tests.

    Two capabilities let root ignore permissions; a thread can drop them temporarily (capset(2)).
    """
    if os.geteuid() != 0:
        yield
        return
    assert sys.platform == "linux", "as root the modes of files can be tested on Linux only"
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    kept, fewer = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, kept) == 0
    fewer[:] = kept[:]
    fewer[0] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, effective
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, kept) == 0
