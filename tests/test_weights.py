"""Hashes over all files of weights, and weights that are found by their hash."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from damaged import edit_manifest
from mock_dataset import toy_recipe_dict, write_mock_dataset

from cfqa_data.access.files import LocalFiles
from cfqa_data.access.weights import (
    find_below_root,
    find_weights,
    hash_weights,
    remember,
    remembered,
    resolve_weights,
)
from cfqa_data.codecs.hyperprior.weights import read_ladder, write_ladder
from cfqa_data.errors import BuildError, RecipeError
from cfqa_data.format.manifest import hash_file
from cfqa_data.format.resources import ROOT_VARIABLE, WEIGHTS_VARIABLE, resolve
from cfqa_data.format.storage import write_tensors
from cfqa_data.integrity.verify import verify
from cfqa_data.recipe.load import Recipe

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def sharded(folder: Path, value: float = 0.0) -> Path:
    """Write two shards, the second with a value, and their index; return the index."""
    for number in (1, 2):
        shard = folder / f"model-0000{number}-of-00002.safetensors"
        write_tensors(shard, {f"t{number}": np.full(3, value * (number - 1))})
    places = {f"t{number}": f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    return folder / INDEX


def test_a_file_has_its_own_hash_and_several_that_of_their_sums(tmp_path: Path) -> None:
    index = sharded(tmp_path / "w")
    sums = [f"{hash_file(path)}  {path.name}\n" for path in sorted((tmp_path / "w").iterdir())]
    assert len(sums) == 3
    digest = hashlib.sha256("".join(sums).encode()).hexdigest()
    assert hash_weights(index) == hash_weights(tmp_path / "w") == digest
    single = tmp_path / "w" / "model-00001-of-00002.safetensors"
    assert hash_weights(single) == hash_file(single)
    sharded(tmp_path / "other", 1.0)
    assert (tmp_path / "other" / INDEX).read_bytes() == index.read_bytes()
    assert hash_weights(tmp_path / "other") != digest  # the same index with another shard
    single.unlink()
    with pytest.raises(BuildError, match=r"the shard model-00001-of-00002\.safetensors is missing"):
        hash_weights(index)


def test_a_folder_names_what_is_in_it(tmp_path: Path) -> None:
    index = sharded(tmp_path / "w")
    assert resolve_weights(str(tmp_path / "w")) == resolve_weights(str(index)) == index
    with pytest.raises(BuildError, match=r"contains neither model\.safetensors nor"):
        resolve_weights(str(tmp_path))
    with pytest.raises(RecipeError, match="no such file"):
        resolve_weights(str(tmp_path / "none.pth"))


PLACES = {
    "where the URI says": ("named/models.safetensors", "named"),
    "in the folder itself": ("ds/models.safetensors", ""),
    "in the folder's weights": ("ds/weights/other-name.safetensors", ""),
    "in the root": ("data/models.safetensors", ""),
    "in a folder in the root": ("data/mine/renamed.safetensors", ""),
    "as a file": ("far/away/given.bin", "given"),
    "in a folder that is given": ("far/away/models.safetensors", "given folder"),
    "where it was built": ("maker/models.safetensors", "remembered"),
}


@pytest.mark.parametrize("case", PLACES)
def test_weights_are_found_by_their_hash(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, how = PLACES[case]
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_bytes(case.encode())
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "a.safetensors").write_bytes(b"another file of the kind")
    (tmp_path / "ds").mkdir(exist_ok=True)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "data"))
    digest, uri = hash_file(path), "/home/maker/models.safetensors"
    if how == "named":
        uri = str(path)
    elif how == "remembered":
        remember(digest, path)
    elif how:
        given = path if how == "given" else path.parent
        monkeypatch.setenv(WEIGHTS_VARIABLE, str(given))
    files = LocalFiles(tmp_path / "ds")
    assert find_weights(uri, digest, files) == path
    if name.startswith("ds/"):  # weights in an untrusted folder are ignored
        with pytest.raises(RecipeError, match="no file of SHA-256"):
            find_weights(uri, digest, files, own=False)
        with pytest.raises(RecipeError, match="no file of SHA-256"):
            find_weights(str(path), digest, files, own=False)
    if how == "named":  # a path in an untrusted manifest is not opened
        opened = []
        monkeypatch.setattr("cfqa_data.access.weights.hash_weights", opened.append)
        with pytest.raises(RecipeError, match="no file of SHA-256"):
            find_weights(uri, digest, files, own=False)
        assert path not in opened
        monkeypatch.undo()
        monkeypatch.setenv(ROOT_VARIABLE, str(path.parent))
        assert find_weights(f"root://{path.name}", digest, files, own=False) == path
    path.write_bytes(b"changed since")
    with pytest.raises(RecipeError, match=f"no file of SHA-256 {digest}"):
        find_weights(uri, digest, files)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    facts = toy_recipe_dict(1)
    facts["tasks"] = {"cls": facts["tasks"]["cls"]}
    facts["tasks"]["cls"]["codecs"] = {"x265": facts["tasks"]["cls"]["codecs"]["x265"]}
    return write_mock_dataset(tmp_path / "cfqa", sources=1, recipe=Recipe.from_dict(facts))


OWN = {  # the file, index or folder that the weights are; what of it is moved, and a link to that
    "file": ("renamed.pth", {}),
    "file in weights": ("weights/renamed.pth", {}),
    "shards": (INDEX, {}),
    "shards in weights": (f"weights/{INDEX}", {}),
    "folder": ("giant", {}),
    "linked file": ("renamed.pth", {"renamed.pth": "../x.pth"}),
    "linked weights": ("weights/x.pth", {"weights": "../store"}),
    "linked shards in weights": (f"weights/{INDEX}", {"weights": "../store"}),
    "linked folder": ("giant", {"giant": "../store"}),
    "one linked shard": (INDEX, {SHARDS[1]: f"../{SHARDS[1]}"}),
    "link within": ("weights/x.pth", {"weights": "mine"}),
}


@pytest.mark.parametrize("case", OWN)
def test_weights_that_a_dataset_brings_are_found_and_no_damage(case: str, dataset: Path) -> None:
    name, links = OWN[case]
    path = dataset / name
    if name.endswith(".pth"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"weights")
    else:
        sharded(path.parent if name.endswith(INDEX) else path)
    for link, target in links.items():
        shutil.move(dataset / link, dataset / target)
        (dataset / link).symlink_to(target)
    digest, uri = hash_weights(path), f"root://{path.name}"
    edit_manifest(dataset, weights={uri: digest})
    assert find_weights(uri, digest, LocalFiles(dataset, follow_links=True)) == path
    assert verify(dataset, follow_links=True).damage == ()
    if any(target.startswith("..") for target in links.values()):
        with pytest.raises(RecipeError, match="no file of SHA-256"):
            find_weights(uri, digest, LocalFiles(dataset))
        assert {fault.path for fault in verify(dataset).damage} >= links.keys()
    else:
        assert find_weights(uri, digest, LocalFiles(dataset)) == path
        assert verify(dataset).damage == ()
    edit_manifest(dataset, weights={uri: "0" * 64})
    put = name.startswith("weights/") and case != "link within"
    assert (verify(dataset, follow_links=True).damage == ()) is put


def test_shards_are_found_with_their_index_and_a_folder_by_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = sharded(tmp_path / "data" / "giant")
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "data"))
    digest = hash_weights(index)
    assert find_weights(f"root://x/{INDEX}", digest) == index
    assert find_weights("root://elsewhere", digest) == index.parent
    sharded(index.parent, 1.0)
    with pytest.raises(RecipeError, match=f"no file of SHA-256 {digest}"):
        find_weights(f"root://x/{INDEX}", digest)


def test_weights_of_the_package_are_found_under_any_name() -> None:
    path = resolve("package://cfqa_data.builders/weights/head_seg.safetensors")
    assert find_weights("root://seg.safetensors", hash_file(path)) == path


def test_one_line_says_what_is_looked_for_where_and_how_to_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    (tmp_path / "x.pth").write_bytes(b"")
    with pytest.raises(RecipeError) as caught:
        find_weights("root://x.pth", "0" * 64, LocalFiles(tmp_path / "ds"))
    assert str(caught.value) == (
        f"root://x.pth: {tmp_path}/x.pth is a different file, and no file of SHA-256 "
        f"{'0' * 64} is in {tmp_path}/ds, this package, CFQA_ROOT ({tmp_path}); "
        "put it into one of these, or set CFQA_WEIGHTS=FILE"
    )
    monkeypatch.delenv(ROOT_VARIABLE)
    with pytest.raises(RecipeError, match=r"CFQA_ROOT \(not set\)"):
        find_weights("root://y.pth", "0" * 64)
    for digest in (None, "", "0" * 63, "../../x", "/dev/zero"):
        with pytest.raises(RecipeError, match="the manifest has no SHA-256 of it"):
            find_weights("root://y.pth", digest)
        assert remembered(str(digest)) is None


def test_folders_of_images_are_found_by_the_end_of_their_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "VOCdevkit").mkdir(parents=True)
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    assert find_below_root("/home/maker/VOCdevkit") is None
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "data"))
    for uri in ("/home/maker/VOCdevkit", "root://maker/VOCdevkit", "D:\\sets\\VOCdevkit"):
        assert find_below_root(uri) == tmp_path / "data" / "VOCdevkit"
    assert find_below_root("root://VOC2012") is None


def test_a_ladder_of_transposed_arrays_comes_back_as_it_was(tmp_path: Path) -> None:
    path = resolve("package://cfqa_data.codecs/weights/hyperprior_task_specific-cls.safetensors")
    _, models = read_ladder(path)
    lmbda, weights = models[0]
    state = {name: np.asfortranarray(value) for name, value in weights.state.items()}
    assert sum(not value.flags.c_contiguous for value in state.values()) > 20
    write_ladder(tmp_path / "x.safetensors", "x", [(lmbda, replace(weights, state=state))])
    _, [(_, again)] = read_ladder(tmp_path / "x.safetensors")
    for name, value in weights.state.items():
        np.testing.assert_array_equal(again.state[name], value)


def test_all_safetensors_are_written_by_one_function() -> None:
    """That function makes C order; the library's own writer scrambles Fortran order (0.8.0)."""
    root = Path(__file__).parents[1]
    pattern = re.compile(r"save_file|safetensors\.\w+ import .*\bsave\b|\.serialize(_file)?\(")
    found = [
        path.relative_to(root).as_posix()
        for folder in ("cfqa_data", "builders", "eval", "loaders")
        for path in sorted((root / folder).rglob("*.py"))
        if pattern.search(path.read_text())
    ]
    assert found == ["cfqa_data/format/storage.py"]
