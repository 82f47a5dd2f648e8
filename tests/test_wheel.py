"""A wheel, and one made of a source distribution, hold every file of the packages and no other."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
TOP = ("pyproject.toml", "README.md", "LICENSE")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info", ".*")

BUILD = """
import sys
from setuptools import build_meta
print(build_meta.build_sdist(sys.argv[1]) if sys.argv[2] == "sdist"
      else build_meta.build_wheel(sys.argv[1]))
"""


def build(kind: str, tree: Path, out: Path) -> Path:
    """Build with the setuptools that is installed, as offline as possible; return the file."""
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD, str(out), kind]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def expected() -> set[str]:
    """Where every file of the package folders must lie in a wheel."""
    names = set()
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            below = path.relative_to(ROOT / folder)
            if path.is_file() and not any(p.startswith((".", "__pycache__")) for p in below.parts):
                names.add(f"{package.replace('.', '/')}/{below.as_posix()}")
    return names


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packed: setuptools writes beside it."""
    copy = tmp_path_factory.mktemp("source")
    for name in TOP:
        shutil.copy(ROOT / name, copy)
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, copy / folder, ignore=LEFT_OUT)
    return copy


def files(wheel: Path) -> set[str]:
    """Names in a wheel, without its metadata."""
    names = set(zipfile.ZipFile(wheel).namelist())
    return {name for name in names if ".dist-info/" not in name}


def test_the_wheel_holds_every_file(tree: Path) -> None:
    wheel = build("wheel", tree, tree / "out")
    assert wheel.name == f"cfqa_data-{PROJECT['project']['version']}-py3-none-any.whl"
    assert files(wheel) == expected()
    told = {name.rpartition("/")[2] for name in zipfile.ZipFile(wheel).namelist()}
    assert {"py.typed", "mini.toml", "dataset_card.md", "LICENSE", "entry_points.txt"} <= told


@pytest.mark.release
def test_the_source_distribution_builds_the_same(tree: Path, tmp_path: Path) -> None:
    packed = build("sdist", tree, tmp_path / "out")
    with tarfile.open(packed) as archive:
        # Python 3.11.0 to 3.11.3 have no filters; it is our own archive.
        archive.extractall(
            tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
        )
    (unpacked,) = tmp_path.glob("cfqa_data-*")
    assert files(build("wheel", unpacked, tmp_path / "out")) == expected()
