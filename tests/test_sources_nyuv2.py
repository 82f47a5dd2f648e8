"""Small versions of NYUv2 in files and in the labelled MATLAB file, with the same images."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from cfqa_data.builders.sources import Source, get_source
from cfqa_data.builders.sources.nyuv2 import Nyuv2
from cfqa_data.builders.sources.preprocessing import depth_views
from cfqa_data.errors import BuildError, MissingDependencyError
from cfqa_data.testing.sources import SourceSuite

SCENES = ["kitchen", "bathroom", "bathroom", "office", "kitchen"]
NAMES = [f"{scene}_rgb_{index:05d}" for index, scene in enumerate(SCENES)]
TEST, TRAIN = [1, 2, 4], [0, 3]  # from 0


def picture(index: int) -> np.ndarray:
    y, x, c = np.mgrid[0:480, 0:640, 0:3]
    return ((y * (index + 1) + x * 2 + c * 40) % 256).astype(np.uint8)


def millimetres(index: int) -> np.ndarray:
    y, x = np.mgrid[0:480, 0:640]
    return (700 + 13 * index + 5 * y + 3 * x).astype(np.uint16)


def write(path: Path, *lines: object) -> str:
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def line(index: int) -> str:
    scene = SCENES[index]
    return f"{scene}/rgb_{index:05d}.png {scene}/sync_depth_{index:05d}.png 518.8579"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files by scene; PNG, so that pixels are known."""
    root = tmp_path_factory.mktemp("nyu")
    for index, scene in enumerate(SCENES):
        (root / scene).mkdir(exist_ok=True)
        Image.fromarray(picture(index)).save(
            root / scene / f"rgb_{index:05d}.png", compress_level=1
        )
        depth = Image.fromarray(millimetres(index))
        depth.save(root / scene / f"sync_depth_{index:05d}.png", compress_level=1)
    return root


@pytest.fixture
def files(made: Path, tmp_path: Path) -> Path:
    """A folder of its own for each test, with links to the files."""
    root = tmp_path / "nyu"
    for path in made.rglob("*.png"):
        (root / path.parent.name).mkdir(parents=True, exist_ok=True)
        (root / path.parent.name / path.name).hardlink_to(path)
    write(root / "nyu_test.txt", *(line(index) for index in TEST))
    write(root / "nyu_train.txt", *(line(index) for index in TRAIN))
    return root


def test_what_tools_leave_is_no_pair_and_twins_are_told_of(files: Path) -> None:
    (files / "nyu_test.txt").unlink()
    before = list(get_source("nyuv2")("dpt", 0, root=str(files))._store.test)  # type: ignore[attr-defined]
    assert len(before) == 3
    for left in (".ipynb_checkpoints/rgb_9.png", "office/._rgb_00003.png", "@eaDir/rgb_9.jpg"):
        (files / left).parent.mkdir(exist_ok=True)
        (files / left).write_bytes(b"x")
    assert list(get_source("nyuv2")("dpt", 0, root=str(files))._store.test) == before  # type: ignore[attr-defined]
    (files / "bathroom" / "rgb_00001.jpg").write_bytes(b"x")
    with pytest.raises(BuildError, match="have the same id 'rgb_00001': keep one of them"):
        get_source("nyuv2")("dpt", 0, root=str(files))


@pytest.fixture(scope="module")
def mat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mat")
    depths = np.stack([millimetres(index).T for index in range(5)]) / np.float32(1000)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = np.stack([picture(index).transpose(2, 1, 0) for index in range(5)])
        file["depths"] = depths.astype(np.float32)
        raw = depths.astype(np.float32) + np.float32(0.0007)
        raw[:, :50] = 0
        file["rawDepths"] = raw
        types = file.create_dataset("sceneTypes", (1, 5), h5py.ref_dtype)
        for index, scene in enumerate(SCENES):
            text = np.array([[ord(letter)] for letter in scene], np.uint16)
            types[0, index] = file.create_dataset(f"#refs#/{index}", data=text).ref
    ndxs = {
        "trainNdxs": np.array(TRAIN)[:, None] + 1.0,
        "testNdxs": np.array(TEST, np.uint16)[:, None] + 1,
    }
    savemat(root / "splits.mat", ndxs)
    return root


def source(root: Path, seed: int = 0, **options: object) -> Source:
    return get_source("nyuv2")("dpt", seed, root=str(root), **options)


def ids(source: Source) -> list[str]:
    return [sample.source_id for sample in source.samples()]


def pool(source: Source, count: int) -> set[bytes]:
    return {views.tobytes() for views in list(source.training_inputs(count, 1))}


def views(*indices: int) -> set[bytes]:
    return {depth_views(picture(index)).tobytes() for index in indices}


@pytest.mark.parametrize("kind", ["files", "mat"])
def test_samples_of_either_layout_are_the_same(kind: str, request: pytest.FixtureRequest) -> None:
    of = source(request.getfixturevalue(kind))
    assert sorted(ids(of)) == sorted(NAMES[index] for index in TEST)
    for index in TEST:
        sample = of.sample(NAMES[index])
        assert (sample.inputs.shape, sample.inputs.dtype) == ((2, 3, 490, 644), np.float32)
        assert np.array_equal(sample.inputs, depth_views(picture(index)))
        assert sample.truth.dtype == np.uint16
        assert np.array_equal(sample.truth, millimetres(index))
    assert pool(of, 2) == views(*TRAIN)
    with pytest.raises(BuildError, match="3 training images are requested and there are only 2"):
        list(of.training_inputs(3, 0))
    with pytest.raises(BuildError, match=f"unknown nyuv2 image '{NAMES[0]}'"):
        of.sample(NAMES[0])


@pytest.mark.parametrize("kind", ["files", "mat"])
def test_a_list_keeps_its_order(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    chosen = write(tmp_path / "list.txt", f"/{line(4)}", NAMES[1])
    assert ids(source(request.getfixturevalue(kind), list=chosen)) == [NAMES[4], NAMES[1]]


@pytest.mark.parametrize("kind", ["files", "mat"])
@pytest.mark.parametrize("bad", [line(0), NAMES[0], "attic_rgb_00009", "attic/rgb_00009.jpg"])
def test_a_list_names_only_the_test_set(
    kind: str, bad: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    chosen = write(tmp_path / "list.txt", NAMES[1], bad)
    with pytest.raises(BuildError, match=r"list\.txt, line 2: "):
        source(request.getfixturevalue(kind), list=chosen)


def test_a_list_of_the_mat_file_may_count_from_1(mat: Path, tmp_path: Path) -> None:
    chosen = write(tmp_path / "list.txt", 5, 2)
    path = mat / "nyu_depth_v2_labeled.mat"
    assert ids(source(path, list=chosen)) == [NAMES[4], NAMES[1]]
    with pytest.raises(BuildError, match=r"line 1: .*unknown image '6'"):
        source(path, list=write(tmp_path / "list.txt", 6))


@pytest.mark.parametrize("kind", ["files", "mat"])
def test_training_never_shares_an_image_with_the_dataset(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root = request.getfixturevalue(kind)
    train = write(tmp_path / "train.txt", line(3))
    assert pool(source(root, train=train), 1) == views(3)
    train = write(tmp_path / "train.txt", line(3), line(4))
    with pytest.raises(BuildError, match=f"'{NAMES[4]}' is for training and for the dataset"):
        list(source(root, train=train).training_inputs(1, 0))


def test_without_a_test_list_all_pairs_count_that_are_not_for_training(files: Path) -> None:
    (files / "nyu_test.txt").unlink()
    assert sorted(ids(source(files))) == sorted(NAMES[index] for index in TEST)
    (files / "nyu_train.txt").unlink()
    of = source(files)
    assert sorted(ids(of)) == sorted(NAMES)
    with pytest.raises(BuildError, match=r"missing: .*nyu_train\.txt"):
        list(of.training_inputs(1, 0))


@pytest.mark.parametrize("listed", [True, False])
def test_an_image_without_depth_and_a_depth_without_image_are_named(
    files: Path, listed: bool
) -> None:
    if not listed:
        (files / "nyu_test.txt").unlink()
    (files / "bathroom" / "sync_depth_00001.png").unlink()
    (files / "kitchen" / "rgb_00004.png").unlink()
    with pytest.raises(BuildError) as error:
        source(files)
    told = str(error.value)
    assert f"{files}/bathroom/sync_depth_00001.png (the depth of rgb_00001.png)" in told
    suffix = "png" if listed else "jpg"
    assert f"{files}/kitchen/rgb_00004.{suffix} (the image of sync_depth_00004.png)" in told
    assert told.count("(the ") == 2
    assert "https://cs.nyu.edu" in told


def test_jpeg_images_with_their_depths_are_found(files: Path) -> None:
    (files / "nyu_test.txt").unlink()
    path = files / "office" / "rgb_00009.jpg"
    Image.fromarray(picture(9)).save(path)
    (files / "office" / "sync_depth_00009.png").hardlink_to(files / "office/sync_depth_00003.png")
    with Image.open(path) as image:
        expected = depth_views(np.asarray(image))
    assert np.array_equal(source(files).sample("office_rgb_00009").inputs, expected)


def test_an_empty_depth_is_passed_over_and_refused_in_a_list(files: Path, tmp_path: Path) -> None:
    path = files / "bathroom" / "sync_depth_00002.png"
    path.unlink()
    empty = np.full((480, 640), 10_000, np.uint16)  # ten metres do not count, nor what is outside
    empty[45:471, 41:600] = 1
    empty[:45] = 2000
    Image.fromarray(empty).save(path)
    assert sorted(ids(source(files))) == sorted([NAMES[1], NAMES[4]])
    of = source(files, list=write(tmp_path / "list.txt", NAMES[2]))
    with pytest.raises(BuildError, match=f"{NAMES[2]}: its depth map has no valid pixel"):
        next(of.samples())
    empty[470, 600] = 9999
    Image.fromarray(empty).save(path)
    assert ids(of) == [NAMES[2]]


@pytest.mark.parametrize("stem", ["rgb", "sync_depth"])
def test_another_size_is_named(files: Path, stem: str) -> None:
    path = files / "bathroom" / f"{stem}_00001.png"
    path.unlink()
    kind = np.uint8 if stem == "rgb" else np.uint16
    Image.fromarray(np.ones((481, 640), kind)).save(path)
    with pytest.raises(BuildError, match=rf"{stem}_00001\.png: 640x481 pixels, must be 640x480"):
        source(files).sample(NAMES[1])


@pytest.mark.parametrize(
    "bad", ["rgb_00045.jpg", "../a/rgb_1.jpg ../a/d.png", "a/r.jpg ../d/d.png"]
)
def test_lines_that_are_no_pairs_are_named(files: Path, bad: str) -> None:
    write(files / "nyu_test.txt", line(1), bad)
    with pytest.raises(BuildError, match=r"nyu_test\.txt, line 2: "):
        source(files)


@pytest.mark.parametrize("bad", ["a/rgb_1.jpg \0/d.png", "\0/a/rgb_1.jpg"])
def test_a_line_with_a_nul_names_no_file(files: Path, bad: str) -> None:
    write(files / "nyu_test.txt", line(1), bad)
    with pytest.raises(BuildError, match=r"missing: .*rgb_1"):
        source(files)


def test_converted_gives_what_the_split_files_are_made_from(mat: Path) -> None:
    sample = source(mat, converted=True).sample(NAMES[2])
    framed = np.zeros((480, 640, 3), np.uint8)
    framed[7:474, 7:632] = picture(2)[7:474, 7:632]
    assert np.array_equal(sample.inputs, depth_views(framed))
    assert not sample.truth[:, :50].any()
    # 0.7 mm more than a whole number, cut off; float32 may fall just short of it.
    less = millimetres(2)[:, 50:].astype(int) - sample.truth[:, 50:]
    assert set(np.unique(less)) <= {0}
    assert np.array_equal(source(mat).sample(NAMES[2]).truth, millimetres(2))


def test_converted_is_for_the_mat_file(files: Path) -> None:
    with pytest.raises(BuildError, match=r"'converted' is for nyu_depth_v2_labeled\.mat"):
        source(files, converted=True)
    with pytest.raises(BuildError, match="option converted cannot be 'false'"):
        source(files, converted="false")


def small_mat(folder: Path, **changes: object) -> Path:
    parts: dict[str, object] = {
        "images": np.zeros((1, 3, 640, 480), np.uint8),
        "depths": np.ones((1, 640, 480), np.float32),
    }
    path = folder / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "w") as file:
        for key, value in (parts | changes).items():
            if value is not None:
                file[key] = value
    return path


def test_a_mat_file_without_scenes_and_splits_needs_a_list(tmp_path: Path) -> None:
    path = small_mat(tmp_path)
    with pytest.raises(BuildError, match=rf"missing: {tmp_path}/splits\.mat"):
        source(path)
    of = source(path, list=write(tmp_path / "list.txt", 1))
    assert ids(of) == ["nyu_rgb_00000"]
    with pytest.raises(BuildError, match=r"training images need splits\.mat or a 'train' list"):
        list(of.training_inputs(1, 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((1, 640, 480, 3), np.uint8)}, r"'images' is uint8 \(1, 640, 480, 3\)"),
        ({"images": np.zeros((1, 3, 640, 480), np.int32)}, "'images' is int32"),
        ({"depths": np.zeros((2, 640, 480), np.float32)}, "'depths' is float32 .2, 640"),
        ({"depths": None}, "not the labelled NYUv2 file"),
        ({"depths": np.full((1, 640, 480), np.nan, np.float32)}, r"depth 1 is not within 0\.\.65"),
        ({"depths": np.full((1, 640, 480), 65.6, np.float32)}, r"depth 1 is not within 0\.\.65"),
        ({"depths": np.full((1, 640, 480), -1, np.float32)}, r"depth 1 is not within 0\.\.65"),
        ({"sceneTypes": np.zeros((1, 1), np.uint8)}, "not the labelled NYUv2 file"),
    ],
)
def test_a_mat_file_of_another_layout_is_named(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = small_mat(tmp_path, **changes)
    with pytest.raises(BuildError, match=message) as error:
        list(source(path, list=write(tmp_path / "list.txt", 1)).samples())
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_scene_that_cannot_be_a_name_is_told_with_its_file(tmp_path: Path) -> None:
    path = small_mat(tmp_path, text=np.array([ord(letter) for letter in "a/../b"], np.uint16))
    with h5py.File(path, "a") as file:
        file.create_dataset("sceneTypes", (1, 1), h5py.ref_dtype)[0, 0] = file["text"].ref
    with pytest.raises(BuildError, match=rf"^{path}: image 0: 'a/\.\./b_rgb_00000' cannot be"):
        source(path, list=write(tmp_path / "list.txt", 1))


@pytest.mark.parametrize("data", [b"", b"not HDF5", None])
def test_a_damaged_mat_file_is_named(tmp_path: Path, mat: Path, data: bytes | None) -> None:
    path = tmp_path / "nyu_depth_v2_labeled.mat"
    path.write_bytes((mat / path.name).read_bytes()[:100_000] if data is None else data)
    with pytest.raises(BuildError, match=r"labeled\.mat: not the labelled NYUv2 file"):
        source(path, list=write(tmp_path / "list.txt", 1))


@pytest.mark.parametrize("content", [{"testNdxs": [[7]], "trainNdxs": [[1]]}, {"other": 1}, None])
def test_damaged_splits_are_named(tmp_path: Path, content: dict[str, object] | None) -> None:
    path = small_mat(tmp_path)
    if content is None:
        (tmp_path / "splits.mat").write_bytes(b"nothing")
    else:
        savemat(tmp_path / "splits.mat", content)
    with pytest.raises(BuildError, match=r"splits\.mat"):
        source(path)


def test_without_h5py_the_extra_is_named(mat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'cfqa-data\[paper\]'"):
        source(mat)


def test_missing_files_are_named_together(tmp_path: Path) -> None:
    with pytest.raises(BuildError) as error:
        source(tmp_path / "no", list=str(tmp_path / "list"), train=str(tmp_path / "train"))
    assert all(f"{tmp_path / name}" in str(error.value) for name in ("no", "list", "train"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BuildError, match=r"missing: .*nyu_test\.txt \(or folders of scenes"):
        source(tmp_path / "empty")


def test_the_matlab_file_and_its_splits_decide(mat: Path) -> None:
    files = [mat / "nyu_depth_v2_labeled.mat", mat / "splits.mat"]
    assert list(get_source("nyuv2")("dpt", 0, root=str(mat)).deciding) == files


class TestNyuv2(SourceSuite):
    source, task, count, training = Nyuv2, "dpt", 2, 2

    @pytest.fixture(autouse=True, params=["files", "mat"])
    def data(self, request: pytest.FixtureRequest) -> None:
        self.options = {"root": str(request.getfixturevalue(request.param))}
