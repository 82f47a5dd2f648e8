"""The plan contains the hash of every file that the bytes of a dataset depend on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damaged import edit_manifest
from mock_dataset import write_mock_dataset
from pipeline_toy import LAMBDAS, TEN_QPS, toy_recipe, write_networks

from cfqa_data.builders.pipeline.check import hash_sources, hash_uris, weights_of
from cfqa_data.builders.pipeline.plan import Plan
from cfqa_data.builders.pipeline.workspace import status
from cfqa_data.builders.sources import get_source
from cfqa_data.errors import BuildError, RecipeError
from cfqa_data.format.manifest import hash_file
from cfqa_data.format.resources import ROOT_VARIABLE, resolve
from cfqa_data.format.storage import write_tensors
from cfqa_data.recipe.load import Recipe, load_recipe
from cfqa_data.recipe.portable import portable, portable_names, replace_path

SHIPPED = "package://cfqa_data.codecs/weights/hyperprior_"
SYNSETS = [f"n{1_440_764 + index:08d}" for index in range(1000)]


def test_models_that_no_recipe_names_are_hashed_all_the_same(tmp_path: Path) -> None:
    learned: dict[str, Any] = {"parameter_name": "lambda", "levels": list(LAMBDAS)}
    codecs = {
        "hyperprior_multi_task": learned,
        "hyperprior_task_specific": learned | {"options": {"task": "seg"}},
    }
    recipe = toy_recipe(tmp_path, codecs)
    uris = {f"{SHIPPED}{name}.safetensors" for name in ("multi_task", "task_specific-seg")}
    assert {uri for uri in weights_of(recipe) if uri.startswith("package")} == uris
    assert hash_uris(uris) == {uri: hash_file(resolve(uri)) for uri in uris}
    with pytest.raises(RecipeError, match="models is a key of the codec, not one of its options"):
        toy_recipe(tmp_path, {"hyperprior_multi_task": learned | {"options": {"models": "x"}}})


def test_another_table_of_centres_is_another_plan(tmp_path: Path) -> None:
    quantizer = '{ kind = "kmeans", bits = 8, centers = "k.safetensors" }'
    text = f'extends = "nano"\n[tasks.cls.codecs.x265]\nquantizer = {quantizer}\n'
    path = lines(tmp_path / "r.toml", text)
    digests = set()
    for step in (1, 2):
        centres = np.arange(256, dtype=np.float32)[None] * step
        write_tensors(tmp_path / "k.safetensors", {"cls": centres})
        digests.add(Plan(load_recipe(path)).digest())
    assert len(digests) == 2


def lines(path: Path, *text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in text))
    return path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def kit(folder: Path) -> dict[str, str]:
    """ImageNet in one folder, with the development kit beside it."""
    touch(folder / "val", *(f"ILSVRC2012_val_{number:08d}.JPEG" for number in (1, 2, 3)))
    data = folder / "ILSVRC2012_devkit_t12" / "data"
    lines(data / "ILSVRC2012_validation_ground_truth.txt", "1", "2", "3")
    lines(data / "map_clsloc.txt", *(f"{s} {i} x" for i, s in enumerate(SYNSETS, start=1)))
    return {"root": "val"}


def synsets(folder: Path) -> dict[str, str]:
    """ImageNet in a folder per synset, with the list of all and one of images."""
    touch(folder / "val", *(f"{synset}/{synset}_1.JPEG" for synset in SYNSETS[:3]))
    lines(folder / "synset_words.txt", *SYNSETS)
    lines(folder / "mine.txt", f"{SYNSETS[1]}_1")
    return {"root": "val", "labels": "synset_words.txt", "list": "mine.txt"}


def voc(folder: Path) -> dict[str, str]:
    inner = folder / "VOCdevkit" / "VOC2012"
    touch(
        inner, *(f"JPEGImages/{n}.jpg" for n in "ab"), *(f"SegmentationClass/{n}.png" for n in "ab")
    )
    lines(inner / "ImageSets" / "Segmentation" / "val.txt", "a", "b")
    lines(folder / "mine.txt", "b")
    return {"root": "VOCdevkit", "list": "mine.txt"}


def nyu(folder: Path) -> dict[str, str]:
    pairs = [f"den/rgb_0000{n}.jpg den/sync_depth_0000{n}.png" for n in (1, 2)]
    touch(folder / "nyu", *(name for pair in pairs for name in pair.split()))
    lines(folder / "nyu" / "nyu_test.txt", *pairs)
    return {"root": "nyu"}


def nyu_by_training(folder: Path) -> dict[str, str]:
    options = nyu(folder)
    test = folder / "nyu" / "nyu_test.txt"
    lines(test.with_name("nyu_train.txt"), test.read_text().splitlines()[0])
    test.unlink()
    return options


VAL = "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
KIT = "ILSVRC2012_devkit_t12/data/"
SOURCES: dict[str, tuple[str, Callable[[Path], dict[str, str]], set[str], str]] = {
    "kit": (
        "imagenet",
        kit,
        {f"{KIT}ILSVRC2012_validation_ground_truth.txt", f"{KIT}map_clsloc.txt"},
        "",
    ),
    "synsets": ("imagenet", synsets, {"synset_words.txt", "mine.txt"}, ""),
    "voc": ("voc2012", voc, {VAL, "mine.txt"}, ""),
    "nyu": ("nyuv2", nyu, {"nyu/nyu_test.txt"}, ""),
    "nyu by training": ("nyuv2", nyu_by_training, {"nyu/nyu_train.txt"}, "nyu/den/{}_00003.{}"),
}


@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize("case", SOURCES)
def test_what_chooses_and_labels_images_is_hashed(
    case: str, below: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, make, files, more = SOURCES[case]
    task = {"imagenet": "cls", "voc2012": "seg", "nyuv2": "dpt"}[kind]
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    start = "root://" if below else f"{tmp_path}/"
    options = {key: start + value for key, value in make(tmp_path).items()}
    data = toy_recipe(tmp_path, {"x265": TEN_QPS}).to_dict()
    data["tasks"][task]["source"] = {"kind": kind, "seed": 0, "options": options}
    recipe = Recipe.from_dict(data)

    def hashes() -> dict[str, str]:
        return hash_sources(recipe, {task: get_source(kind)(task, seed=0, **options)})

    before = hashes()
    assert before.keys() == {start + name for name in files} | {options["root"]}
    assert before == hashes()
    for name in files:
        path = tmp_path / name
        path.write_text(path.read_text() + "# another byte\n")
        after = hashes()
        assert {key for key in after if after[key] != before[key]} == {start + name}
        before = after
    if more:
        touch(tmp_path, more.format("rgb", "jpg"), more.format("sync_depth", "png"))
        after = hashes()
        assert {key for key in after if after[key] != before[key]} == {options["root"]}


def test_a_root_of_several_tasks_is_hashed_with_the_images_of_all(tmp_path: Path) -> None:
    root = str(tmp_path)
    voc(tmp_path)
    nyu(tmp_path / "x")
    (tmp_path / "x" / "nyu").rename(tmp_path / "nyu")
    for path in (tmp_path / "nyu").iterdir():
        path.rename(tmp_path / path.name)
    data = toy_recipe(tmp_path, {"x265": TEN_QPS}).to_dict()
    kinds = {"seg": "voc2012", "dpt": "nyuv2"}
    for task, kind in kinds.items():
        options = {"root": root}
        data["tasks"][task]["source"] = {"kind": kind, "seed": 0, "options": options}
    recipe = Recipe.from_dict(data)

    def of(*tasks: str) -> str:
        made = {task: get_source(kinds[task])(task, seed=0, root=root) for task in tasks}
        return hash_sources(recipe, made)[root]

    alone, both = {of("seg"), of("dpt")}, of("seg", "dpt")
    assert both not in alone
    images = tmp_path / "VOCdevkit" / "VOC2012"
    touch(images, "JPEGImages/c.jpg", "SegmentationClass/c.png")
    lines(images / "ImageSets" / "Segmentation" / "val.txt", "a", "b", "c")
    first = of("seg", "dpt")
    touch(tmp_path, "den/rgb_00003.jpg", "den/sync_depth_00003.png")
    test = tmp_path / "nyu_test.txt"
    lines(test, *test.read_text().splitlines(), "den/rgb_00003.jpg den/sync_depth_00003.png")
    assert len({both, first, of("seg", "dpt")}) == 3


def test_a_finished_dataset_of_other_lists_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFQA_ROOT", "/nowhere")
    write_networks(tmp_path)
    data = toy_recipe(tmp_path, {"x265": TEN_QPS}).to_dict()
    data["tasks"] = {"seg": data["tasks"]["seg"]}
    options = {key: f"{tmp_path}/{name}" for key, name in voc(tmp_path).items()}
    data["tasks"]["seg"]["source"] = {"kind": "voc2012", "seed": 0, "options": options}
    recipe = Recipe.from_dict(data)
    names, sources = portable_names(recipe), {"seg": get_source("voc2012")("seg", 0, **options)}
    hashed = hash_uris(weights_of(recipe)) | hash_sources(recipe, sources)
    folder = write_mock_dataset(tmp_path / "cfqa", sources=1, recipe=portable(recipe))
    edit_manifest(folder, weights={replace_path(uri, names): told for uri, told in hashed.items()})
    assert status(recipe, folder) == "finished"
    lines(tmp_path / "mine.txt", "a")
    with pytest.raises(BuildError, match=r"dataset of other weights or lists \(root://"):
        status(recipe, folder)
    (tmp_path / "mine.txt").unlink()
    with pytest.raises(BuildError, match=r"recipe 'toy': missing: .*mine\.txt"):
        status(recipe, folder)
