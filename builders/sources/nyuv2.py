"""NYUv2's test images as a source for depth, from single files or the labelled MATLAB file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cfqa_data.builders.sources.files import (
    Entry,
    FileSource,
    Unsuitable,
    by_name,
    choose,
    names_in,
    reading,
    require,
)
from cfqa_data.builders.sources.geometry import DEPTH_RANGE, DepthGeometry
from cfqa_data.builders.sources.images import read_depth, read_rgb
from cfqa_data.builders.sources.preprocessing import depth_views
from cfqa_data.errors import BuildError, check_known
from cfqa_data.extras import extras
from cfqa_data.format.format_1 import TERMS

__all__ = ["LabelledMat", "Nyuv2", "SplitFiles", "read_splits"]

_GEOMETRY = DepthGeometry()
_SHAPE = (_GEOMETRY.height, _GEOMETRY.width)

TEST, _TRAIN = "nyu_test.txt", "nyu_train.txt"
MAT, _SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
OFFERED = (
    "nyu_depth_v2_labeled.mat and splits.mat are at "
    "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html"
)

#: Names of images and depth maps of a scene; the second group is common to both of a pair.
_FILES = re.compile(r"(?:(rgb)|sync_depth)_(.*)\.(?i:png|(?(1)jpe?g|png))")
#: Rows and columns of an image that the script behind the split files keeps; the rest is black.
_KEPT = (slice(7, 474), slice(7, 632))


@dataclass(eq=False)
class Nyuv2(FileSource):
    """Test images of 480 x 640 pixels and their depth.

    Images without a valid depth in the scored crop are skipped; in a list, they are an error.

    Args:
        task: Must be "dpt".
        seed: Seed of the order of samples without a list.
        root: Folder of `scene/rgb_*.jpg` with `scene/sync_depth_*.png`; or
            `nyu_depth_v2_labeled.mat`, or the folder that contains it.
        list: Text file with one image per line, as in `nyu_test.txt`, by its source id or, for the
            MATLAB file, by its index from 1; the order is kept.
        train: Text file of the same kind with the training images.
        converted: Convert the MATLAB file like the script of the split files, see `LabelledMat`.

    Raises:
        BuildError: If the task is not "dpt", or data are missing, unknown or damaged.
    """

    terms = TERMS["nyuv2"]
    kind, supported_task, offered = "nyuv2", "dpt", OFFERED

    list: str | None = None
    train: str | None = None
    converted: bool = False

    def find(self) -> dict[str, Entry]:
        """Return the test images."""
        root = self.paths["root"]
        self._store: LabelledMat | SplitFiles
        mat = root if root.is_file() else root / MAT
        if mat.is_file() and not (root / TEST).is_file():
            self._store = LabelledMat(mat, self.converted, self.listed)
        elif self.converted:
            raise BuildError(f"{root}: 'converted' is for {MAT}")
        else:
            self._store = SplitFiles(root, self.paths.get("train"), self.listed)
        self.deciding += self._store.deciding
        return self._store.test

    def named(self, line: str) -> Entry:
        """Return the test image that a line names."""
        entry = self._store.pick(line)
        if self._store.split and entry.name not in self.known:
            raise BuildError(f"'{entry.name}' is not in the test set of {self._store.split}")
        return entry

    def check(self, entries: Iterable[Entry]) -> None:
        """Check that every image has its depth map and every depth map its image."""
        pairs = [entry for entry in entries if isinstance(entry.image, Path)]
        notes = {entry.image: f" (the image of {entry.truth.name})" for entry in pairs}
        notes |= {entry.truth: f" (the depth of {entry.image.name})" for entry in pairs}
        require((path for e in pairs for path in (e.image, e.truth)), OFFERED, notes)

    def inputs(self, entry: Entry) -> np.ndarray:
        """Return the image and its mirror image, float32 (2, 3, 490, 644)."""
        image = self._store.image(entry)
        _check_shape(entry.image, image.shape[:2])
        return depth_views(image)

    def truth(self, entry: Entry) -> np.ndarray:
        """Return the depth in millimetres, uint16 (480, 640).

        Raises:
            Unsuitable: If no depth in the scored crop is valid.
            BuildError: If the depth map has another size.
        """
        depth = self._store.depth(entry)
        _check_shape(entry.truth, depth.shape)
        scored = depth[slice(*_GEOMETRY.rows), slice(*_GEOMETRY.columns)] / 1000.0
        if not ((scored > DEPTH_RANGE[0]) & (scored < DEPTH_RANGE[1])).any():
            raise Unsuitable(f"{entry.name}: its depth map has no valid pixel ({entry.truth})")
        return depth

    def training(self) -> Iterable[Entry]:
        """Return the images of `train`, `nyu_train.txt`, or the training set of `splits.mat`."""
        if path := self.paths.get("train", self._store.train):
            return self.training_list(path, self._store.pick)
        return self._store.trained()


def _check_shape(where: object, shape: tuple[int, ...]) -> None:
    if shape != _SHAPE:
        size = "x".join(map(str, shape[::-1]))
        raise BuildError(f"{where}: {size} pixels, must be {_SHAPE[1]}x{_SHAPE[0]}")


class SplitFiles:
    """Images and depth maps in single files.

    `nyu_test.txt` in the folder names the test images. Without it, these are all pairs in the
    scenes' folders that no training list names.

    Args:
        root: Folder of the scenes.
        train: List of training images; `nyu_train.txt` in the folder if None.
        listed: Whether a list names the samples.

    Attributes:
        test: The test images, by name.
        split: The file that names them; None if there is none.
        train: List of training images.
        deciding: Files that decide which images are for testing.

    Raises:
        BuildError: If there are no images.
    """

    def __init__(self, root: Path, train: Path | None, listed: bool) -> None:
        self.root, self.train = root, train or root / _TRAIN
        self.split = root / TEST if (root / TEST).is_file() else None
        self.deciding = [path for path in (self.split or self.train,) if path.is_file()]
        if self.split:
            self.test = choose(self.split, self._pair)
            return
        self.test = by_name(_scan(root))
        if not self.test and not listed:
            note = " (or folders of scenes with rgb_*.jpg and sync_depth_*.png)"
            require([root / TEST], OFFERED, {root / TEST: note})
        for path in self.deciding:
            for name in choose(path, self._pair):
                self.test.pop(name, None)

    def pick(self, line: str) -> Entry:
        """Return the image of a line as in `nyu_test.txt`, or of a test image's source id."""
        first = line.split()[0]
        if "/" in first:
            return self._pair(line)
        check_known("image", first, self.test, BuildError)
        return self.test[first]

    def trained(self) -> Iterable[Entry]:
        """Return no images, since a list names the training images."""
        return ()

    def image(self, entry: Entry) -> np.ndarray:
        """Return the RGB image of an entry, uint8 (H, W, 3)."""
        return np.asarray(read_rgb(entry.image))

    def depth(self, entry: Entry) -> np.ndarray:
        """Return the depth of an entry in millimetres, uint16 (H, W)."""
        return read_depth(entry.truth)

    def _pair(self, line: str) -> Entry:
        """Parse a line ``scene/rgb_00045.jpg [scene/sync_depth_00045.png] [focal length]``."""
        words = [word.lstrip("/") for word in line.split()]
        image = PurePosixPath(words[0])
        if len(image.parts) < 2 or ".." in image.parts:
            raise BuildError(f"'{words[0]}' is not scene/rgb_*.jpg")
        depth = image.with_name(image.stem.replace("rgb_", "sync_depth_", 1) + ".png")
        if len(words) > 1 and "/" in words[1]:
            depth = PurePosixPath(words[1])
        if ".." in depth.parts:
            raise BuildError(f"'{words[1]}' is not scene/sync_depth_*.png")
        name = f"{image.parent.name}_{image.stem}"
        return Entry(name, self.root / image, self.root / depth)


def _scan(root: Path) -> Iterator[Entry]:
    """Yield a pair for each image and each depth map in the scenes' folders; one may be missing."""
    for scene in (root / name for name in names_in(root)):
        pairs: dict[str, list[Path | None]] = {}
        for match in filter(None, map(_FILES.fullmatch, names_in(scene))):
            index, path = 0 if match[1] else 1, scene / match[0]
            pair = pairs.setdefault(match[2], [None, None])
            if other := pair[index]:
                raise BuildError(
                    f"{path} and {other} have the same id '{path.stem}': keep one of them"
                )
            pair[index] = path
        for key, (image, depth) in sorted(pairs.items()):
            image = image or scene / f"rgb_{key}.jpg"
            depth = depth or scene / f"sync_depth_{key}.png"
            yield Entry(f"{scene.name}_{image.stem}", image, depth)


def read_splits(path: Path) -> tuple[list[int], list[int]]:
    """Return the indices, from 0, of the training and the test images in `splits.mat`.

    Raises:
        BuildError: If the file is not `splits.mat`.
    """
    from scipy.io import loadmat

    with reading(path, "the splits.mat of NYUv2"):
        read = loadmat(path, variable_names=["trainNdxs", "testNdxs"])
        train, test = (read[key].astype(np.int64).ravel() - 1 for key in ("trainNdxs", "testNdxs"))
    return train.tolist(), test.tolist()


class LabelledMat:
    """`nyu_depth_v2_labeled.mat`: images uint8 (N, 3, W, H), depths float32 (N, W, H) in metres.

    The id of an image consists of its type of scene and its index from 0, as in the split files.
    `splits.mat` beside the file names the test images; without it, a list must.

    Args:
        path: Path of the file.
        converted: Convert it like the script that made the split files: with a black border, raw
            instead of filled depths, and millimetres truncated instead of rounded.
        listed: Whether a list names the samples.

    Attributes:
        test, split, deciding: See `SplitFiles`.
        train: None, since no list names the training images.

    Raises:
        BuildError: If the file is damaged or of another layout, or `splits.mat` is needed and
            missing.
        MissingDependencyError: If h5py is not installed.
    """

    train = None

    def __init__(self, path: Path, converted: bool, listed: bool) -> None:
        self.path, self.converted = path, converted
        self._depths = "rawDepths" if converted else "depths"
        splits = path.with_name(_SPLITS)
        require([path] if listed else [path, splits], OFFERED)
        entries = self._read_entries()
        self._every = by_name(entries) | {str(entry.image + 1): entry for entry in entries}
        self.split = splits if splits.is_file() else None
        self.deciding = [path, *filter(None, [self.split])]
        train, test = read_splits(splits) if self.split else ([], range(len(entries)))
        if not all(0 <= index < len(entries) for index in (*train, *test)):
            raise BuildError(f"{splits}: names an image beyond the {len(entries)} of {path}")
        self._training = [entries[index] for index in train]
        self.test = by_name(entries[index] for index in test)

    def pick(self, line: str) -> Entry:
        """Return the image of a line: an index from 1, an id, or a path as in `nyu_test.txt`."""
        path = PurePosixPath(line.split()[0].lstrip("/"))
        key = f"{path.parent.name}_{path.stem}" if path.parent.name else path.name
        check_known("image", key, self._every, BuildError)
        return self._every[key]

    def trained(self) -> Iterable[Entry]:
        """Return the training set of `splits.mat`."""
        if not self._training:
            raise BuildError(f"{self.path}: training images need {_SPLITS} or a 'train' list")
        return self._training

    def _read_entries(self) -> list[Entry]:
        with self._file() as file:
            count = len(file["images"])
            for key, shape, kind in (
                ("images", (count, 3, *_SHAPE[::-1]), "uint8"),
                (self._depths, (count, *_SHAPE[::-1]), "float32"),
            ):
                data = file[key]
                if data.shape != shape or data.dtype != kind:
                    raise BuildError(
                        f"{self.path}: '{key}' is {data.dtype} {data.shape}, not {kind} {shape}"
                    )
            scenes = ["nyu"] * count
            if "sceneTypes" in file:
                texts = (file[reference] for reference in np.ravel(file["sceneTypes"][()]))
                scenes = ["".join(map(chr, np.ravel(text[()]).tolist())) for text in texts]
            if len(scenes) != count:
                raise BuildError(f"{self.path}: {count} images and {len(scenes)} scene types")
        try:
            names = (f"{scene}_rgb_{index:05d}" for index, scene in enumerate(scenes))
            return [Entry(name, index, index) for index, name in enumerate(names)]
        except BuildError as error:
            raise BuildError(f"{self.path}: image {error}") from None

    def image(self, entry: Entry) -> np.ndarray:
        """Return the RGB image of an entry, uint8 (480, 640, 3)."""
        image = self._read("images", entry.image).transpose(2, 1, 0)
        if not self.converted:
            return np.ascontiguousarray(image)
        framed = np.zeros_like(image, order="C")
        framed[_KEPT] = image[_KEPT]
        return framed

    def depth(self, entry: Entry) -> np.ndarray:
        """Return the depth of an entry in millimetres, uint16 (480, 640)."""
        metres = self._read(self._depths, entry.truth).astype(np.float32).T
        # The script truncates float32 millimetres.
        millimetres = metres * 1000.0 if self.converted else np.rint(metres.astype(float) * 1000.0)
        if not ((millimetres >= 0) & (millimetres < 65536)).all():
            raise BuildError(f"{self.path}: depth {entry.truth + 1} is not within 0..65.5 m")
        return np.ascontiguousarray(millimetres.astype(np.uint16))

    def _read(self, key: str, index: int) -> np.ndarray:
        with self._file() as file:
            return np.asarray(file[key][index])

    @contextmanager
    def _file(self) -> Iterator[Any]:
        with extras():
            import h5py
        with reading(self.path, "the labelled NYUv2 file"), h5py.File(self.path, "r") as file:
            yield file
