"""A part of the fuzzing, and the fuzzer itself; see docs/untrusted.md."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import mutations
import pytest
from fuzz import fuzz
from fuzz_streams import CODECS
from fuzzing import Session, Target, load_targets, message_fault

from cfqa_data.errors import FormatError

FILES = {
    "manifest": 40,
    "folder": 6,
    "labels": 25,
    "tensors": 30,
    "ranges": 25,
    "zarr": 25,
    "shards": 25,
    "checkpoints": 25,
    "checkpoints-old": 25,
    "weights": 40,
    "weights-index": 40,
    "compressai": 6,
    "ladders": 20,
    "release": 40,
    "recipe": 10,
    "scores": 8,
    "logs": 50,
    "hub": 10,
}
"""Cases per target."""

STREAMS = {
    f"{codec}{where}": 20 // cost
    for codec, (_, cost) in CODECS.items()
    for where, cost in (("", cost), ("-isolated", 2 * cost))
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux tells it")


def test_every_target_has_its_share() -> None:
    assert load_targets().keys() - {"hub-cache"} == {*FILES, *STREAMS}


def test_a_share_of_the_fuzz() -> None:
    """In one child, which loads everything once."""
    cases = STREAMS | FILES
    for result in fuzz(cases, cases, seed=1):
        assert not result.faults, result.faults
        assert result.cases > result.outcomes["ok"], result


# What the fuzzer must see: each of these is against the law.


def _read(name: str, data: bytes, folder: Path) -> object:
    if data == b"\0":
        return None
    match name:
        case "exception":
            raise KeyError(name)
        case "lines":
            error = FormatError("x")
            error.__class__ = type("Lines", (FormatError,), {"__str__": lambda _: "a\nb"})
            raise error
        case "memory":
            return bytearray(b"x") * (100 << 20)
        case "room":
            return bytearray(10**12)
        case "outside":
            return open("/etc/hostname").close()
        case "written":
            return (folder / "new").write_text("x")
        case "started":
            return subprocess.run(["true"], check=False)
        case "code":
            return eval(compile("1 + 1", "<stranger>", "eval"))
    raise AssertionError


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("exception", "KeyError"),
        ("lines", "no printable line"),
        ("memory", "MiB"),
        ("room", "MemoryError"),
        ("outside", "outside the folder: '/etc/hostname'"),
        ("written", "open changes"),
        ("started", "subprocess.Popen"),
        ("code", "<stranger>"),
    ],
)
def test_what_is_against_the_law_is_seen(tmp_path: Path, name: str, said: str) -> None:
    def other(*_: object) -> bytes:
        return b"\1"

    session = Session(Target("x", lambda _: {name: b"\0"}, _read, (other,)), tmp_path)
    assert said in session.run(0, 0)[1]


def test_a_case_is_the_same_again(tmp_path: Path) -> None:
    target = Target("x", lambda _: {"a": bytes(100), "b": b"x" * 100}, lambda *_: None)
    cases = [Session(target, tmp_path).case(3, number) for number in range(50)]
    assert cases == [Session(target, tmp_path).case(3, number) for number in range(50)]
    assert len(set(cases)) > 40


def test_structured_mutations_are_hostile_and_mostly_well_formed() -> None:
    data = b'{"a": [1, 2.5, {"b": "x"}], "c": null}'
    found = {mutations.in_json(random.Random(n), data, [data]) for n in range(300)}
    assert len(found) > 150
    assert any(b"/etc/passwd" in text for text in found)
    assert any(mutations.NESTED.encode() in text for text in found)


def test_a_message_is_looked_at() -> None:
    assert message_fault("a: is not b") == ""
    assert message_fault("")
    assert message_fault("a\x1b[2J")
    assert message_fault("a" * 10_000)


def test_a_child_that_dies_or_hangs_is_told_of_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "fuzz_dying.py").write_text(
        "import os, time\n"
        "from fuzzing import TARGETS, Target, register\n"
        "def other(rng, data, others): return bytes([1 + rng.randrange(2)])\n"
        "def read(name, data, folder):\n"
        "    if data == b'\\1': os.abort()\n"
        "    if data == b'\\2': time.sleep(60)\n"
        "register(Target('dying', lambda _: {'a': b'\\0'}, read, (other,), seconds=0.5))\n"
    )
    tests = str(Path(__file__).parent)
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        f"sys.path[:0] = [{tests!r}, {str(tmp_path)!r}]\n"
        "import fuzzing, fuzz, importlib\n"
        "def load_targets():\n"
        "    importlib.import_module('fuzz_dying')\n"
        "    return fuzzing.TARGETS\n"
        "fuzz.load_targets = load_targets\n"
        "if __name__ == '__main__':\n"
        "    result, = fuzz.fuzz(['dying'], 4, 0)\n"
        "    print(result.cases, len(result.faults), *(fault for _, fault in result.faults))\n"
    )
    told = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    ).stdout
    assert told.startswith("4 4 "), told
    assert "ended by -6" in told
    assert "took more than 0.5 s" in told
