from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mock_dataset import toy_recipe

from cfqa_data.errors import FormatError
from cfqa_data.format.format_1 import read_tasks
from cfqa_data.format.manifest import (
    Manifest,
    hash_files,
    package_versions,
    read_manifest,
    write_manifest,
)


def manifest() -> Manifest:
    return Manifest(
        name="toy",
        tier="light",
        recipe=toy_recipe().to_dict(),
        tasks=read_tasks(
            toy_recipe().to_dict(),
            {
                "cls": {"shape": [1, 1, 9, 16], "sources": ["a", "b"]},
                "seg": {"shape": [2, 1, 9, 16], "sources": ["c"]},
                "dpt": {"shape": [2, 4, 9, 16], "sources": ["d"]},
            },
        ),
        versions={"python": "3.11"},
        weights={"package://cfqa_data.codecs/weights/x": "0" * 64},
        health=({"task": "cls", "changing": 0.1},),
    )


def test_a_manifest_comes_back_with_every_file_hashed(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/cls.parquet").write_bytes(b"abc")
    (tmp_path / ".build").mkdir()
    (tmp_path / ".build/state").write_bytes(b"no part of it")
    path = write_manifest(tmp_path, manifest())
    files = {"labels/cls.parquet": {"size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}}
    assert hash_files(tmp_path) == files
    again = read_manifest(tmp_path)
    assert again.files == files
    assert again == Manifest(**(manifest().__dict__ | {"files": files}))
    first = path.read_bytes()
    write_manifest(tmp_path, again)
    assert path.read_bytes() == first


def test_a_folder_without_one_is_no_dataset(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FormatError, match="not a CFQA dataset folder"):
            read_manifest(folder)


def _task(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data["tasks"]["cls"].update(changes)


def _file(name: str, **entry: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data["files"].update({name: entry})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format=3), "version 3, .* reads 1 and 2; update cfqa-data"),
        (
            lambda data: data.update(format=0),
            "version 0, .* 1 and 2; build or fetch the dataset",
        ),
        (lambda data: data.update(name=1), "name"),
        (lambda data: data.update(tier="heavy"), "light, full"),
        (lambda data: data["recipe"].update(group_size=0), "recipe: group_size"),
        (lambda data: data.pop("recipe"), "recipe"),
        (lambda data: data.update(versions={"numpy": 2}), "versions"),
        (lambda data: data.update(weights=[]), "weights"),
        (lambda data: data.update(health={}), "health"),
        (lambda data: data.update(tasks=[]), "tasks is not a table"),
        (lambda data: data["tasks"].pop("dpt"), "tasks are not the recipe's"),
        (_task(shape=[1, 1, 9]), "tasks.cls.shape must be"),
        (_task(shape=[1, 1, -9, 16]), "tasks.cls.shape must be"),
        (_task(shape=[1, 4, 9, 16]), "layers are 1, the shape has 4"),
        (_task(shape=[1, 1, 10**6, 10**6]), "has more than 268,435,456 elements"),
        (_task(shape=[1, 1, 10**400, 1]), "a number of more than 64 bits"),
        (_task(shape=[1, 1, 10**19, 10**19]), "has more than 268,435,456 elements"),
        (
            _task(sources=["a\0b"]),
            r"cls: 'a\\x00b' is not a valid id: it has unprintable characters",
        ),
        (_task(sources=["\ud800"]), "it has unprintable characters"),
        (_task(sources=["a" * 1025]), "is not a valid id: a text of 1 to 1024 characters"),
        (_task(sources=["a", ""]), "cls: '' is not a valid id: a text of 1 to 1024 characters"),
        (_task(sources=["a", "b", "a"]), "'a' is the id of two sources of cls: ids are unique"),
        (_task(sources=["b", "d"]), "'d' is the id of a source of cls and of one of dpt: ids are"),
        (_task(sources=[]), "tasks.cls.sources must be a list, got"),
        (_task(sources=[1]), "cls: 1 is not a valid id"),
        (lambda data: data.update(files=None), "files must be a table"),
        (_file("../../etc/passwd", size=1, sha256="0" * 64), "not a path inside the folder"),
        (_file("/etc/passwd", size=1, sha256="0" * 64), "not a path inside the folder"),
        (_file("..\\x", size=1, sha256="0" * 64), "not a path inside the folder"),
        (_file("", size=1, sha256="0" * 64), "not a path inside the folder"),
        (_file("x", size=-1, sha256="0" * 64), "lacks its size"),
        (_file("a\0b", size=1, sha256="0" * 64), "not a path inside the folder"),
        (_file("a\ud800", size=1, sha256="0" * 64), "not a path inside the folder"),
        (_file("a/./b", size=1, sha256="0" * 64), "not a path inside the folder"),
        (_file(".", size=1, sha256="0" * 64), "not a path inside the folder"),
        (_file("x", size=True, sha256="0" * 64), "lacks its size"),
        (_file("x", size=1 << 63, sha256="0" * 64), "lacks its size"),
        (_file("x", size=1, sha256="no"), "lacks its size"),
        (_file("x", size=1, sha256="\n" * 64), "lacks its size"),
        (lambda data: data["health"].append({"x": float("nan")}), "NaN is not a finite number"),
    ],
)
def test_a_manifest_from_anywhere_is_checked(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = write_manifest(tmp_path, manifest())
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(FormatError, match=message) as error:
        read_manifest(tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", "\ud800", "[" * 100_000, "9" * 5000, "1e999"])
def test_what_is_not_a_json_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(FormatError, match=r"manifest.json: (cannot be read|is not a table)"):
        read_manifest(tmp_path)


def test_versions_name_what_is_installed_and_nothing_else() -> None:
    versions = package_versions(("numpy", "no-such-package"))
    assert list(versions) == ["python", "numpy"]
