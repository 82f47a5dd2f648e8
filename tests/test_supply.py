"""What is installed with the package: the lock, lower bounds, and licences."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from email.message import Message
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from cfqa_data.codecs.h26x.vvc import ffmpeg_path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11.0", "3.12.0", "3.13.0", "3.14.0")
EXTRA = "dev"  # the others are within it
OUTSIDE = ("timm", "transformers")  # but these, whose libraries the tests have stand-ins for

ACCEPTED = {
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-CMU",
    "MPL-2.0",  # copyleft for its own files only, which nobody here changes
    "PSF-2.0",
    "Zlib",
}
"""SPDX ids under which a dependency may be used. What wheels carry besides: docs/supply.md."""

EXCEPTIONS = {"LLVM-exception"}

BY_HAND = {
    "docutils": {"BSD-3-Clause", "GNU General Public License (GPL)", "Public Domain"},
    "mlcroissant": {"none told"},
}
"""What the metadata of tools for development says, whose licences docs/supply.md tells of."""

SPELLED = {
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
"""What older metadata writes -> SPDX id."""


CUDA = re.compile(r"(nvidia|cuda)-|triton$")
"""Names of packages that only torch's CUDA build requires, as `.ci/lock` leaves them out."""


def read_lock(text: str) -> dict[str, str]:
    """Name -> version of a lock, whose lines must all be `name==version`."""
    pins = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, version = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9a-z.]*)", line).groups()  # type: ignore[union-attr]
            assert canonicalize_name(name) not in pins, name
            pins[canonicalize_name(name)] = version
    return pins


def closure(name: str, extra: str) -> dict[str, Distribution]:
    """Every distribution that is installed for an extra, without the one that asks for it.

    What only torch's CUDA build requires is left out: the lock is of the build without CUDA.
    """
    found: dict[str, Distribution] = {}
    seen = set()
    todo = [(name, frozenset({extra}))]
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found[name] = distribution(name)
        for text in found[name].requires or []:
            needed = Requirement(text)
            marker = needed.marker
            # PyPI's torch for Linux requires these; the build without CUDA, which CI has, does not.
            if name == "torch" and CUDA.match(canonicalize_name(needed.name)):
                continue
            if marker is None or any(marker.evaluate({"extra": e}) for e in {"", *extras}):
                todo.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    del found["cfqa-data"]
    return found


def licences(metadata: Message) -> set[str]:
    """SPDX ids of a distribution, or how it calls them where that is not known."""
    told = metadata.get("License-Expression")
    if told is None:
        classifiers = [c.split(" :: ") for c in metadata.get_all("Classifier", [])]
        names = {parts[-1] for parts in classifiers if parts[0] == "License"}
        if names:
            return {SPELLED.get(name, name) for name in names}
        told = metadata.get("License", "")
    told = SPELLED.get(told, told)
    return set(re.split(r" AND | OR | WITH |[()]", told)) - {""} or {"none told"}


LOCK = (ROOT / "constraints.txt").read_text()
PINS = read_lock(LOCK)
CLOSURE = closure("cfqa-data", EXTRA)


def test_the_lock_holds_everything_that_is_installed() -> None:
    assert len(CLOSURE) > 70
    assert set(CLOSURE) - set(PINS) == set()


def test_the_lock_is_sorted_and_says_why_it_is_there() -> None:
    assert LOCK.startswith("# The versions that the tests")
    names = [line.partition("==")[0].lower() for line in LOCK.splitlines() if line[0] != "#"]
    assert names == sorted(names)
    assert "/" not in "".join(names)


def test_what_only_torchs_cuda_build_requires_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Made(Distribution):
        def __init__(self, *needed: str) -> None:
            self.needed = list(needed)

        requires = property(lambda self: self.needed)  # type: ignore[assignment]

        def read_text(self, filename: str) -> None:
            return None

        def locate_file(self, path: object) -> Path:
            return Path(str(path))

    made = {
        "cfqa-data": Made("torch>=2", "sympy"),
        "torch": Made("nvidia-cublas-cu12==1", "cuda-bindings", "triton==3; extra == ''", "sympy"),
        "sympy": Made(),
    }
    monkeypatch.setattr(f"{__name__}.distribution", made.__getitem__)
    assert set(closure("cfqa-data", EXTRA)) == {"torch", "sympy"}


def test_the_lock_leaves_out_the_same() -> None:
    assert [name for name in PINS if CUDA.match(name)] == []
    script = (ROOT / ".ci" / "lock").read_text()
    sed = re.search(r"sed -E '(.*)'", script)
    assert sed is not None
    frozen = "cuda-bindings==1\nnvidia_nccl_cu12==2\ntorch==2.13.0+cpu\ntriton==3\nzarr==3\n"
    told = subprocess.run(["sed", "-E", sed[1]], input=frozen, capture_output=True, text=True)
    assert told.stdout == "torch==2.13.0\nzarr==3\n"


@pytest.mark.parametrize(
    "line", ["numpy>=2", "numpy", "-r other", "x @ file:///x", "x==1+cpu", "--index-url y"]
)
def test_the_lock_takes_nothing_but_exact_versions(line: str) -> None:
    with pytest.raises(AttributeError):
        read_lock(f"# why\nzarr==3.1.6\n{line}\n")


def test_each_lower_bound_lets_the_locked_version_in() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lists = [project["dependencies"], *(extras[name] for name in extras if name not in OUTSIDE)]
    needed = [Requirement(text) for texts in lists for text in texts]
    others = [each for each in needed if each.name != "cfqa-data"]
    assert len(others) > 20
    for each in others:
        assert {s.operator for s in each.specifier} == {">="}, f"{each}: no bound, or an upper one"
        assert PINS[canonicalize_name(each.name)] in each.specifier, each


def test_locked_versions_run_on_every_python_that_is_promised() -> None:
    for name, found in CLOSURE.items():
        if found.version.partition("+")[0] == PINS[name]:
            allowed = SpecifierSet(found.metadata.get("Requires-Python", ""))
            assert [v for v in PYTHONS if v not in allowed] == [], name


@pytest.mark.skipif("CI" not in os.environ, reason="elsewhere other versions may be installed")
def test_ci_runs_with_the_locked_versions() -> None:
    installed = {name: Version(found.version).public for name, found in CLOSURE.items()}
    assert installed == {name: PINS[name] for name in installed}


def test_licences_of_all_dependencies_are_accepted() -> None:
    told = {name: licences(found.metadata) for name, found in CLOSURE.items()}
    known = ACCEPTED | EXCEPTIONS
    assert {name: ids for name, ids in told.items() if not ids <= known} == BY_HAND


@pytest.mark.parametrize(
    ("fields", "ids"),
    [
        ({"License-Expression": "MIT AND (GPL-3.0-only OR BSD-3-Clause)"}, {"GPL-3.0-only"}),
        ({"Classifier": "License :: OSI Approved :: GNU Affero General Public License v3"}, None),
        ({"License": "proprietary"}, {"proprietary"}),
        ({}, {"none told"}),
    ],
)
def test_licences_that_are_not_accepted_are_seen(
    fields: dict[str, str], ids: set[str] | None
) -> None:
    metadata = Message()
    for name, value in fields.items():
        metadata[name] = value
    found = licences(metadata) - ACCEPTED
    assert found == ids if ids else len(found) == 1


def test_the_gpl_parts_of_two_wheels_are_as_documented() -> None:
    page = (ROOT / "docs" / "supply.md").read_text()
    assert "`imageio-ffmpeg`" in page
    assert "`av`" in page
    told = subprocess.run([ffmpeg_path(), "-hide_banner", "-L"], capture_output=True, text=True)
    words = " ".join(told.stdout.split())
    assert "GNU General Public License" in words
    assert "either version 3 of the License" in words
