"""Small versions of ImageNet's layouts and label files; training and candidates are disjoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from cfqa_data.builders.sources import Source, get_source
from cfqa_data.builders.sources.imagenet import ImageNet
from cfqa_data.builders.sources.preprocessing import classification_view
from cfqa_data.errors import BuildError
from cfqa_data.testing.sources import SourceSuite

#: A thousand synsets, sorted, and the ids that a development kit could give them.
SYNSETS = [f"n{1_440_764 + 1357 * index:08d}" for index in range(1000)]
KIT_IDS = {SYNSETS[label]: (label * 7 + 118) % 1000 + 1 for label in range(1000)}


def name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}"


def picture(path: Path, seed: int, size: tuple[int, int] = (9, 7)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")


def folders(root: Path, images: int = 20) -> dict[str, int]:
    """A folder per synset, images in some of them; return the labels by name."""
    for synset in SYNSETS:
        (root / synset).mkdir(parents=True)
    labels = {}
    for number in range(1, images + 1):
        label = number * 331 % 1000
        picture(root / SYNSETS[label] / f"{name(number)}.JPEG", number)
        labels[name(number)] = label
    return labels


def flat(root: Path, images: int = 20) -> dict[str, int]:
    for number in range(1, images + 1):
        picture(root / f"{name(number)}.JPEG", number, ((9, 7), (7, 12))[number % 2])
    return {name(number): number * 331 % 1000 for number in range(1, images + 1)}


def write(path: Path, *lines: object) -> str:
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def synset_list(folder: Path) -> str:
    return write(folder / "LOC_synset_mapping.txt", *(f"{synset} a, b" for synset in SYNSETS))


def source(root: Path, seed: int = 0, **options: str) -> Source:
    return get_source("imagenet")("cls", seed, root=str(root), **options)


def found(source: Source) -> dict[str, int]:
    labels = {}
    for sample in source.samples():
        assert sample.inputs.shape == (1, 3, 224, 224)
        assert (sample.truth.dtype, sample.truth.shape) == (np.int64, ())
        labels[sample.source_id] = int(sample.truth)
    return labels


def test_folders_of_synsets_give_labels_in_sorted_order(tmp_path: Path) -> None:
    labels = folders(tmp_path / "val")
    mapping = synset_list(tmp_path)
    got = found(source(tmp_path / "val", labels=mapping))
    assert got == {key: labels[key] for key in got}
    assert len(got) == 18  # a tenth is kept for training


LEFT_OVERS = [
    *("._NAME.JPEG", ".ipynb_checkpoints/NAME-checkpoint.JPEG", "@eaDir/NAME.JPEG/SYNO_1.jpg"),
    *("Thumbs.db", ".DS_Store", "desktop.ini", ".directory", "NAME.JPEG~", "__MACOSX/NAME.JPEG"),
    ".thumbnails/NAME.png",
]


@pytest.mark.parametrize("layout", [folders, flat])
def test_what_tools_leave_is_no_candidate(tmp_path: Path, layout: Callable[[Path], Any]) -> None:
    layout(tmp_path / "val")
    labels = synset_list(tmp_path)
    if layout is flat:
        lines = [f"{name(n)}.JPEG {n}" for n in range(1, 21)]
        labels = write(tmp_path / "val.txt", *lines)
    before = found(source(tmp_path / "val", labels=labels))
    pool = list(source(tmp_path / "val", labels=labels).training_inputs(2, 0))
    for where in {tmp_path / "val", *(p.parent for p in (tmp_path / "val").rglob("*[15].JPEG"))}:
        for left in LEFT_OVERS:
            path = where / left.replace("NAME", name(7))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no picture")
    if layout is flat:  # the list was made by listing the folder
        write(tmp_path / "val.txt", f"._{name(7)}.JPEG 0", ".DS_Store 0", *lines)
    of = source(tmp_path / "val", labels=labels)
    assert found(of) == before
    assert np.array_equal(list(of.training_inputs(2, 0)), pool)


def test_a_few_pictures_that_went_astray_change_no_layout(tmp_path: Path) -> None:
    folders(tmp_path / "val")
    mapping = synset_list(tmp_path)
    before = found(source(tmp_path / "val", labels=mapping))
    picture(tmp_path / "val" / "sample.jpg", 0)
    assert found(source(tmp_path / "val", labels=mapping)) == before
    for number in range(10):
        picture(tmp_path / "val" / f"{name(100 + number)}.JPEG", 0)
    with pytest.raises(
        BuildError, match=r"val: images in it and .* in folders in it \(11 and 20\)"
    ):
        source(tmp_path / "val", labels=mapping)
    flat(tmp_path / "flat")
    picture(tmp_path / "flat" / SYNSETS[0] / "x.JPEG", 0)
    labels = write(tmp_path / "labels.txt", *(f"{name(n)} {n}" for n in range(1, 21)))
    assert len(found(source(tmp_path / "flat", labels=labels))) == 18


@pytest.mark.parametrize("kind", ["all 1000", "synset list", "caffe"])
def test_names_of_the_hubs_archives_say_their_labels(tmp_path: Path, kind: str) -> None:
    """The ids are those of every other layout, whose names end before the synset."""
    expected = {name(n): n * 331 % 1000 for n in range(1, 21)}
    for key, label in expected.items():
        picture(tmp_path / "val" / f"{key}_{SYNSETS[label]}.JPEG", label)
    (tmp_path / "val" / "sample.jpg").touch()
    options = {}
    if kind == "all 1000":
        for label in set(range(1000)) - set(expected.values()):
            key = f"ILSVRC2012_val_{90_000 + label}_{SYNSETS[label]}.JPEG"
            (tmp_path / "val" / key).touch()
    elif kind == "synset list":
        options["labels"] = synset_list(tmp_path)
    else:
        write(tmp_path / "val.txt", *(f"{key}.JPEG {label}" for key, label in expected.items()))
        (tmp_path / "val" / "sample.jpg").unlink()
    keys = list(expected)
    lines = [f"{keys[4]}_{SYNSETS[expected[keys[4]]]}.JPEG", keys[2]]
    of = source(tmp_path / "val", list=write(tmp_path / "list.txt", *lines), **options)
    assert found(of) == {key: expected[key] for key in (keys[4], keys[2])}
    for number in range(3):
        synset = SYNSETS[number]
        picture(tmp_path / "train" / f"{synset}_{number}_{synset}.JPEG", number)
    options |= {"train": str(tmp_path / "train")}
    of = source(tmp_path / "val", list=write(tmp_path / "list.txt", keys[0]), **options)
    assert len(list(of.training_inputs(3, 0))) == 3


def test_a_list_of_synsets_is_needed_for_less_than_a_thousand(tmp_path: Path) -> None:
    picture(tmp_path / "val" / f"{name(1)}_{SYNSETS[3]}.JPEG", 0)
    with pytest.raises(BuildError, match="1 synsets where labels need all 1000; give a list"):
        source(tmp_path / "val")


@pytest.mark.parametrize("other", [f"{name(2)}.png", f"{name(2)}_{SYNSETS[0]}.JPEG"])
def test_twins_are_told_in_one_line(tmp_path: Path, other: str) -> None:
    flat(tmp_path / "val")
    labels = write(tmp_path / "labels.txt", *(f"{name(n)} {n}" for n in range(1, 21)))
    (tmp_path / "val" / other).touch()
    with pytest.raises(BuildError, match=f"have the same id '{name(2)}': keep one of them$"):
        source(tmp_path / "val", labels=labels)


def test_too_few_folders_need_the_list_of_synsets(tmp_path: Path) -> None:
    folders(tmp_path)
    with pytest.raises(BuildError, match="20 synsets where labels need all 1000"):
        source(tmp_path)


def test_a_thousand_folders_need_no_list(tmp_path: Path) -> None:
    for number, synset in enumerate(SYNSETS[::-1], start=1):
        (tmp_path / synset).mkdir()
        (tmp_path / synset / f"{name(number)}.JPEG").touch()
    picture(tmp_path / SYNSETS[417] / f"{name(583)}.JPEG", 0)
    chosen = write(tmp_path / "list.txt", name(583))
    assert found(source(tmp_path, list=chosen)) == {name(583): 417}


def test_a_sample_is_the_preprocessed_file(tmp_path: Path) -> None:
    flat(tmp_path / "val")
    labels = write(tmp_path / "val.txt", *(f"{name(n)}.JPEG {n}" for n in range(1, 21)))
    of = source(tmp_path / "val", labels=labels)
    sample = next(iter(of.samples()))
    path = tmp_path / "val" / f"{sample.source_id}.JPEG"
    with Image.open(path) as image:
        assert np.array_equal(sample.inputs, classification_view(image.convert("RGB"), path))
    again = of.sample(sample.source_id)
    assert np.array_equal(again.inputs, sample.inputs)
    assert int(again.truth) == int(sample.truth) == int(sample.source_id[-2:])


def kit(folder: Path, labels: dict[str, int], with_meta: bool) -> Path:
    """A development kit: ids by image number; meta.mat, or the list of ids beside it."""
    data = folder / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    ids = [KIT_IDS[SYNSETS[label]] for label in labels.values()]
    write(data / "ILSVRC2012_validation_ground_truth.txt", *ids)
    order = sorted(KIT_IDS, key=KIT_IDS.__getitem__)
    if with_meta:
        # Beside the thousand there are synsets above them, with higher ids.
        rows = [(number, synset, "words") for number, synset in enumerate(order, start=1)]
        rows += [(1001, "n00001740", "entity"), (1002, "n99999999", "last")]
        kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
        savemat(data / "meta.mat", {"synsets": np.array(rows, kinds)[:, None]})
    else:
        write(data / "map_clsloc.txt", *(f"{s} {i} w" for i, s in enumerate(order, start=1)))
    return data


@pytest.mark.parametrize("kind", ["caffe", "kaggle", "synsets", "meta", "ids", "kit"])
def test_labels_come_in_many_files(tmp_path: Path, kind: str) -> None:
    expected = flat(tmp_path / "val")
    labels = tmp_path / "labels.txt"
    if kind == "caffe":
        write(labels, *(f"{key}.JPEG {value}" for key, value in expected.items()))
    elif kind == "kaggle":
        synset_list(tmp_path)
        lines = [f"{key},{SYNSETS[value]} 1 2 3 4 " for key, value in expected.items()]
        write(labels, "ImageId,PredictionString", *lines[::-1])
    elif kind == "synsets":
        synset_list(tmp_path)
        write(labels, *(SYNSETS[value] for value in expected.values()))
    else:
        data = kit(tmp_path, expected, with_meta=kind != "ids")
        labels = data / "ILSVRC2012_validation_ground_truth.txt"
        labels = data.parent if kind == "kit" else labels
    chosen = write(tmp_path / "list.txt", *expected)
    got = found(source(tmp_path / "val", labels=str(labels), list=chosen))
    assert list(got.items()) == list(expected.items())


def test_a_full_list_of_synsets_orders_itself(tmp_path: Path) -> None:
    flat(tmp_path / "val", 2)
    labels = write(tmp_path / "l.csv", *(f"{name(n + 1)},{SYNSETS[999 - n]}" for n in range(1000)))
    chosen = write(tmp_path / "list.txt", f"{name(2)}.JPEG", name(1))
    assert found(source(tmp_path / "val", labels=labels, list=chosen)) == {
        name(2): 998,
        name(1): 999,
    }


def test_ids_of_the_kit_need_what_says_their_order(tmp_path: Path) -> None:
    data = kit(tmp_path, flat(tmp_path / "val"), with_meta=True)
    (data / "meta.mat").unlink()
    synset_list(data)  # sorted: it says nothing about ids
    with pytest.raises(
        BuildError, match=r"missing: .*meta\.mat \(or .*map_clsloc\.txt\).* https://image-net\.org"
    ):
        source(tmp_path / "val", labels=str(data.parent))
    (data / "meta.mat").write_bytes(b"MATLAB 5.0 MAT-file" + b"\0" * 200)
    with pytest.raises(BuildError, match=r"not the meta\.mat of ILSVRC 2012"):
        source(tmp_path / "val", labels=str(data.parent))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a 3", "b 1000"], r"line 2: '1000' is neither a label 0\.\.999"),
        (["a 3", "b -1"], "line 2: '-1' is neither"),
        (["a 3", "b"], "line 2: differs in kind from the first"),
        (["a 3", "a.JPEG 4"], "line 2: 'a' has a different label above"),
        ([], "has no labels"),
        (["n01440764", "n01443537"], "2 synsets where labels need all 1000"),
        (["a/../b? 3"], "cannot be a source"),
    ],
)
def test_labels_that_say_something_else_are_named(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    flat(tmp_path / "val", 3)
    with pytest.raises(BuildError, match=message):
        source(tmp_path / "val", labels=write(tmp_path / "labels.txt", *lines))


def test_images_in_one_folder_need_labels(tmp_path: Path) -> None:
    flat(tmp_path)
    for root in (tmp_path, tmp_path / f"{name(1)}.JPEG"):
        told = "for images in one folder give 'labels'.*https://image-net\\.org/download"
        with pytest.raises(BuildError, match=told):
            source(root)


@pytest.mark.parametrize("kind", ["kit", "LOC_val_solution.csv", "val.txt"])
def test_labels_are_found_under_their_usual_names_beside_the_images(
    tmp_path: Path, kind: str
) -> None:
    expected = flat(tmp_path / "val", 8)
    if kind == "kit":
        kit(tmp_path, expected, with_meta=True)
    else:
        write(tmp_path / kind, *(f"{key} {value}" for key, value in expected.items()))
    got = found(source(tmp_path / "val"))
    assert len(got) == 7
    assert got == {key: expected[key] for key in got}


def test_the_seed_decides_the_order_and_nothing_else(tmp_path: Path) -> None:
    labels = write(tmp_path / "l.txt", *(f"{key} {value}" for key, value in flat(tmp_path).items()))
    orders = [list(found(source(tmp_path, seed, labels=labels))) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
    assert orders[0] != sorted(orders[0])


def views_of(paths: list[Path]) -> set[bytes]:
    views = set()
    for path in paths:
        with Image.open(path) as image:
            views.add(classification_view(image, path).tobytes())
    return views


def test_training_never_sees_a_candidate_of_any_seed(tmp_path: Path) -> None:
    names = flat(tmp_path, 30)
    labels = write(tmp_path / "l.txt", *(f"{key} {value}" for key, value in names.items()))
    used = {key for seed in range(3) for key in found(source(tmp_path, seed, labels=labels))}
    assert len(used) == 27
    kept = views_of([tmp_path / f"{key}.JPEG" for key in set(names) - used])
    runs = [list(source(tmp_path, s, labels=labels).training_inputs(3, 5)) for s in (0, 1)]
    assert np.array_equal(runs[0], runs[1])
    assert np.stack(runs[0]).shape == (3, 1, 3, 224, 224)
    assert {views.tobytes() for views in runs[0]} == kept
    with pytest.raises(BuildError, match="4 training images are requested and there are only 3"):
        list(source(tmp_path, labels=labels).training_inputs(4, 0))


def test_with_a_list_training_sees_what_it_does_not_name(tmp_path: Path) -> None:
    names = list(flat(tmp_path, 8))
    labels = write(tmp_path / "l.txt", *(f"{key} 1" for key in names))
    chosen = write(tmp_path / "list.txt", *(f"{key} 7" for key in names[:3]))
    views = list(source(tmp_path, labels=labels, list=chosen).training_inputs(5, 2))
    expected = views_of([tmp_path / f"{key}.JPEG" for key in names[3:]])
    assert {view.tobytes() for view in views} == expected


def test_a_training_folder_leaves_all_images_as_candidates(tmp_path: Path) -> None:
    names = flat(tmp_path / "val", 10)
    labels = write(tmp_path / "l.txt", *(f"{key} {value}" for key, value in names.items()))
    for number in range(60):
        picture(tmp_path / "train" / SYNSETS[number % 3] / f"{number}.JPEG", 100 + number)
    of = source(tmp_path / "val", labels=labels, train=str(tmp_path / "train"))
    assert found(of) == names
    every = views_of(list((tmp_path / "train").rglob("*.JPEG")))
    first, second = ({v.tobytes() for v in list(of.training_inputs(10, seed))} for seed in (0, 1))
    assert len(first) == len(second) == 10
    assert first.isdisjoint(second)
    assert first | second < every
    assert {v.tobytes() for v in list(of.training_inputs(60, 3))} == every


def test_a_training_folder_with_a_candidate_in_it_is_refused(tmp_path: Path) -> None:
    flat(tmp_path / "val", 10)
    labels = write(tmp_path / "l.txt", *(f"{name(n)} 1" for n in range(1, 11)))
    picture(tmp_path / "train" / "x" / f"{name(4)}.JPEG", 3)
    of = source(tmp_path / "val", labels=labels, train=str(tmp_path / "train"))
    with pytest.raises(BuildError, match=f"'{name(4)}' is for training and for the dataset"):
        list(of.training_inputs(1, 0))


def test_a_list_keeps_its_order_and_names_its_mistakes(tmp_path: Path) -> None:
    names = list(flat(tmp_path, 9))
    labels = write(tmp_path / "l.txt", *(f"{key} 1" for key in names))
    path = tmp_path / "list.txt"
    chosen = write(path, "# as published", names[4], "", f"{SYNSETS[1]}/{names[2]}.JPEG", names[8])
    assert list(found(source(tmp_path, labels=labels, list=chosen))) == [
        names[4],
        names[2],
        names[8],
    ]
    for lines, message in (
        ([names[0], "ILSVRC2012_val_0000000"], r"list\.txt, line 2: .*unknown image"),
        ([names[0], names[1], names[0]], r"line 3: .* occurs twice"),
        (["# nothing"], "lists no images"),
    ):
        with pytest.raises(BuildError, match=message):
            source(tmp_path, labels=labels, list=write(path, *lines))


def test_missing_files_are_named_together_and_where_they_are_offered(tmp_path: Path) -> None:
    with pytest.raises(BuildError) as error:
        source(tmp_path / "no", labels=str(tmp_path / "l"), train=str(tmp_path / "t"))
    told = str(error.value)
    assert all(f"{tmp_path / key}" in told for key in ("no", "l", "t"))
    assert "https://image-net.org" in told
    assert "\n" not in told
    flat(tmp_path / "val", 4)
    labels = write(tmp_path / "labels.txt", *(f"{name(n)} 1" for n in range(1, 7)))
    with pytest.raises(BuildError) as error:
        source(tmp_path / "val", labels=labels)
    assert f"missing: {tmp_path}/val/{name(5)}.JPEG; {tmp_path}/val/{name(6)}.JPEG; " in str(
        error.value
    )
    chosen = write(tmp_path / "list.txt", name(2))
    of = source(tmp_path / "val", labels=labels, list=chosen)
    assert list(found(of)) == [name(2)]
    assert len(list(of.training_inputs(3, 0))) == 3


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    flat(tmp_path, 3)
    (tmp_path / f"{name(2)}.JPEG").write_bytes(b"\xff\xd8\xff")
    labels = write(tmp_path / "l.txt", *(f"{name(n)} 1" for n in range(1, 4)))
    of = source(tmp_path, labels=labels, list=write(tmp_path / "list.txt", name(2)))
    with pytest.raises(BuildError, match=f"{name(2)}.JPEG"):
        next(of.samples())
    with pytest.raises(BuildError, match="unknown imagenet image 'x'"):
        of.sample("x")


def test_other_tasks_seeds_and_options_are_refused(tmp_path: Path) -> None:
    make = get_source("imagenet")
    with pytest.raises(BuildError, match="imagenet does not support task 'seg', only cls"):
        make("seg", 0, root=str(tmp_path))
    with pytest.raises(BuildError, match="seed must be a whole number from 0, not -1"):
        make("cls", -1, root=str(tmp_path))
    with pytest.raises(BuildError, match="source imagenet: option root cannot be 5"):
        make("cls", 0, root=5)
    with pytest.raises(BuildError, match="source imagenet: unknown option 'colour'"):
        make("cls", 0, root=str(tmp_path), colour="red")


def test_the_root_may_be_a_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = flat(tmp_path / "imagenet" / "val", 10)
    write(tmp_path / "imagenet" / "val.txt", *(f"{key} 3" for key in names))
    write(tmp_path / "imagenet" / "list.txt", *names)
    monkeypatch.setenv("CFQA_ROOT", str(tmp_path))
    of = get_source("imagenet")(
        "cls",
        0,
        root="root://imagenet/val",
        labels="root://imagenet/val.txt",
        list="root://imagenet/list.txt",
    )
    assert list(found(of)) == list(names)


class TestImageNet(SourceSuite):
    source, task, training = ImageNet, "cls", 1

    @pytest.fixture(autouse=True)
    def data(self, tmp_path: Path) -> None:
        names = flat(tmp_path / "val", 8)
        labels = write(tmp_path / "labels.txt", *(f"{key} {name}" for key, name in names.items()))
        self.options = {"root": str(tmp_path / "val"), "labels": labels}
