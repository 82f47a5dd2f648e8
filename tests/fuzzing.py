"""The rules for reading untrusted bytes, and the targets that are tested against them.

A case is a mutated sample, determined by the target's name, the seed and the case's number. It
passes if reading succeeds or raises a `CfqaError` whose message is one printable line, and if the
process does not crash, stays within the target's limits of time and memory, opens no files outside
the case's folder (except installed libraries), writes nothing and runs no code.

Targets are registered by the modules `fuzz_*.py` in this folder, which `load_targets` imports.
"""

from __future__ import annotations

import importlib
import os
import random
import resource
import sys
import sysconfig
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mutations import Mutation, of_bytes

from cfqa_data.codecs.sandbox import child as isolated_child
from cfqa_data.errors import LONGEST_MESSAGE, CfqaError

__all__ = ["TARGETS", "Session", "Target", "load_targets", "register"]

TARGETS: dict[str, Target] = {}
ROOM = 1 << 30
"""Bytes of address space that a case may reserve."""


@dataclass(frozen=True)
class Target:
    """A reader of untrusted bytes.

    Attributes:
        name: Name of the target.
        samples: Function of a folder that returns valid bytes by name. It is called once, with an
            empty folder, in which it may create files that reading requires.
        read: Function (name, data, folder) that reads mutated bytes of a sample.
        mutations: Mutations of the bytes, equally likely.
        memory: Limit of the growth of resident memory, in bytes.
        seconds: Limit of the duration.
        writes: Whether reading may write into the folder.
        cost: Duration of a case relative to that of a cheap target. The runner divides its number
            of cases by it.
        connects: Whether reading may connect to a local address.
        in_place: Whether the samples are files of the folder, named relative to it. The mutated
            bytes then replace the file while it is read.
        isolates: Whether reading may start the processes of an isolated codec.
    """

    name: str
    samples: Callable[[Path], Mapping[str, bytes]]
    read: Callable[[str, bytes, Path], object]
    mutations: Sequence[Mutation] = (of_bytes,)
    memory: int = 64 << 20
    seconds: float = 10.0
    writes: bool = False
    cost: int = 1
    connects: bool = False
    in_place: bool = False
    isolates: bool = False


def register(target: Target) -> Target:
    """Register a target."""
    assert target.name not in TARGETS, target.name
    TARGETS[target.name] = target
    return target


def load_targets() -> dict[str, Target]:
    """Return all targets by name."""
    for path in sorted(Path(__file__).parent.glob("fuzz_*.py")):
        importlib.import_module(path.stem)
    return TARGETS


@dataclass
class Session:
    """A target with its samples, ready to run cases.

    Attributes:
        target: The target.
        folder: Folder of the target.
        samples: Valid bytes by name.
    """

    target: Target
    folder: Path
    samples: Mapping[str, bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        self.samples = dict(self.target.samples(self.folder))
        for name, data in self.samples.items():  # also makes the imports before any case
            self.target.read(name, data, self.folder)

    def case(self, seed: int, number: int) -> tuple[str, bytes]:
        """Return the name of the sample and the mutated bytes of a case."""
        rng = random.Random(f"{self.target.name}/{seed}/{number}")
        name = rng.choice(sorted(self.samples))
        mutation = rng.choice(self.target.mutations)
        return name, mutation(rng, self.samples[name], list(self.samples.values()))

    def run(self, seed: int, number: int) -> tuple[str, str]:
        """Read a case; return "ok" or the class of the error, and the broken rule or ""."""
        name, data = self.case(seed, number)
        before = _memory()
        if self.target.in_place:
            (self.folder / name).write_bytes(data)
        try:
            with _limited(), _watched(self.folder, self.target) as seen:
                outcome, fault = _outcome(self.target, name, data, self.folder)
        finally:
            if self.target.in_place:
                (self.folder / name).write_bytes(self.samples[name])
        grown = _peak() - before
        if not fault and seen:
            fault = f"{outcome}; {'; '.join(dict.fromkeys(seen))}"
        if not fault and grown > self.target.memory:
            fault = f"{outcome}; took {grown >> 20} MiB"
        return outcome, fault


def _outcome(target: Target, name: str, data: bytes, folder: Path) -> tuple[str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # bad bytes must not cause warnings
            target.read(name, data, folder)
    except CfqaError as error:
        return type(error).__name__, message_fault(str(error))
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        own = [f for f in traceback.extract_tb(error.__traceback__) if "cfqa" in f.filename]
        frame = (own or [where])[-1]
        location = f"{Path(frame.filename).name}:{frame.lineno}"
        return type(error).__name__, f"{type(error).__name__} at {location}: {str(error)[:200]!r}"
    return "ok", ""


def message_fault(message: str) -> str:
    """Return why a message is not one printable line of limited length, or ""."""
    if not message or not message.isprintable():
        return f"message is no printable line: {message[:300]!r}"
    if len(message) > LONGEST_MESSAGE:
        return f"message of {len(message)} characters: {message[:200]!r}"
    return ""


# Memory: the peak of the resident set, which Linux can reset.


def _memory() -> int:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(key))


@contextmanager
def _limited() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# Opened files, writes and started processes are watched by an audit hook, which cannot be removed.

_KNOWN = tuple(
    os.path.realpath(path)
    for path in {
        *(sysconfig.get_paths().values()),
        *(sys.prefix, sys.base_prefix, sys.exec_prefix),
        os.path.dirname(sys.modules["cfqa_data"].__file__ or ""),
        os.path.dirname(os.path.dirname(sys.modules["cfqa_data"].__file__ or "")),
        *("/proc", "/sys", "/usr/lib", "/usr/share/zoneinfo", "/etc/localtime", "/dev/null"),
    }
)
_CHANGES = {
    *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod"),
    *("os.truncate", "os.chown", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile"),
}
_STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen"}
_watch: tuple[str, Target, list[str]] | None = None
_hooked = False


@contextmanager
def _watched(folder: Path, target: Target) -> Iterator[list[str]]:
    global _watch, _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    seen: list[str] = []
    _watch = (str(folder), target, seen)
    try:
        yield seen
    finally:
        _watch = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    global _watch
    if _watch is None:
        return
    watch, _watch = _watch, None
    try:
        if fault := _violation(event, arguments, watch[0], watch[1]):
            watch[2].append(fault)
    finally:
        _watch = watch


def _violation(event: str, arguments: tuple[Any, ...], folder: str, target: Target) -> str:
    """Return the rule that an audit event breaks, or ""."""
    if event in ("open", "os.listdir", "os.scandir", *_CHANGES):
        path = arguments[1 if event == "os.symlink" else 0]  # the link, not its target
        if not isinstance(path, str | bytes | os.PathLike):
            return ""  # a descriptor of a file that was opened before
        real = os.path.realpath(os.fsdecode(path))
        isolated = os.path.join(os.path.realpath(tempfile.gettempdir()), "cfqa-decode-")
        if target.isolates and real.startswith(isolated):
            return ""  # the empty working directory of an isolated process
        inside = _below(real, folder)
        changes = event in _CHANGES or (
            event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        )
        if changes and not (inside and target.writes):
            return f"{event} changes {real[:200]!r}"
        if not inside and not any(_below(real, known) for known in _KNOWN):
            return f"{event} outside the folder: {real[:200]!r}"
    elif event == "subprocess.Popen" and target.isolates:
        return "" if isolated_child.__name__ in arguments[1] else f"{event} {arguments[1]}"
    elif event in _STARTS or event == "pickle.find_class":
        return f"{event} {str(arguments)[:200]}"
    elif event == "compile" and not _installed(arguments[1]):
        return f"compile {str(arguments)[:200]}"
    elif event == "exec" and not _installed(arguments[0].co_filename):
        return f"exec {arguments[0].co_filename[:200]!r}"
    elif event == "socket.connect" and not target.connects:
        return f"socket.connect {str(arguments[1])[:200]}"
    return ""


def _installed(name: str | bytes | None) -> bool:
    """Return whether code belongs to an installed module, or is a parsed literal ("<unknown>")."""
    text = os.fsdecode(name or "<unknown>")
    if text.startswith("<"):
        return text == "<unknown>" or text.startswith("<frozen ")
    return any(_below(os.path.realpath(text), known) for known in _KNOWN)


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
