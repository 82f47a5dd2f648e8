"""The labelled images of NYUv2 in one MATLAB file of version 7.3, which is HDF5."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cfqa_data.builders.sources.files import Entry, by_name, choose, reason, require
from cfqa_data.errors import BuildError, unknown_name
from cfqa_data.extras import extras

__all__ = ["MAT", "LabelledMat", "read_splits"]

MAT, _SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"

_SHAPE = (480, 640)
#: Rows and columns that the script behind the split files keeps of an image; the rest is black.
_KEPT = (slice(7, 474), slice(7, 632))


def read_splits(path: Path) -> tuple[list[int], list[int]]:
    """Return the indices, from 0, of the training and the test images of `splits.mat`.

    Raises:
        BuildError: it is not that file.
    """
    from scipy.io import loadmat

    try:
        read = loadmat(path, variable_names=["trainNdxs", "testNdxs"])
        train, test = (read[key].astype(np.int64).ravel() - 1 for key in ("trainNdxs", "testNdxs"))
    except Exception as error:  # the reader raises all kinds on damaged files
        raise BuildError(f"{path}: not the splits.mat of NYUv2 ({reason(error, path)})") from None
    return train.tolist(), test.tolist()


class LabelledMat:
    """`nyu_depth_v2_labeled.mat`: images uint8 (N, 3, W, H), depths float32 (N, W, H) in metres.

    An image is called by its type of scene and its index from 0, as in the split files.
    `splits.mat` beside the file says which are for testing; where it is not there, a list must.

    Args:
        path: the file.
        converted: give what the script behind the split files makes of it: a black border, raw
            depths instead of filled ones, and millimetres cut off instead of rounded.
        listed: whether a list says which images are wanted.
        offered: where the owner offers the data.

    Raises:
        BuildError: it is damaged or of another layout, or `splits.mat` is wanted and not there.
        MissingDependencyError: h5py is not installed.
    """

    def __init__(self, path: Path, converted: bool, listed: bool, offered: str) -> None:
        self.path, self.converted = path, converted
        self._depths = "rawDepths" if converted else "depths"
        splits = path.with_name(_SPLITS)
        require([path] if listed else [path, splits], offered)
        entries = self._read_entries()
        self._every = by_name(entries) | {str(entry.image + 1): entry for entry in entries}
        self.deciding = [path for path in (path, splits) if path.is_file()]
        train, test = read_splits(splits) if splits.is_file() else ([], range(len(entries)))
        if not all(0 <= index < len(entries) for index in (*train, *test)):
            raise BuildError(f"{splits}: names an image beyond the {len(entries)} of {path}")
        self._training = [entries[index] for index in train]
        self.test = by_name(entries[index] for index in test)

    def named(self, line: str) -> Entry:
        """The test image of a line: index from 1, name, or path as in `nyu_test.txt`."""
        entry = self._pick(line)
        if entry.name not in self.test:
            raise BuildError(f"'{entry.name}' is not in the test set")
        return entry

    def training(self, path: Path | None) -> Iterable[Entry]:
        """The images that a list names, or the training set of `splits.mat`."""
        if path is not None:
            return choose(path, self._pick).values()
        if not self._training:
            raise BuildError(f"{self.path}: training images need {_SPLITS} or a 'train' list")
        return self._training

    def check(self, entries: Iterable[Entry]) -> None:
        """Nothing: all images are in the one file."""

    def _pick(self, line: str) -> Entry:
        path = PurePosixPath(line.split()[0].lstrip("/"))
        key = f"{path.parent.name}_{path.stem}" if path.parent.name else path.name
        if key not in self._every:
            raise BuildError(unknown_name("image", key, self._every))
        return self._every[key]

    def _read_entries(self) -> list[Entry]:
        with self._file() as file:
            count = len(file["images"])
            for key, shape, kind in (
                ("images", (count, 3, *_SHAPE[::-1]), "uint8"),
                (self._depths, (count, *_SHAPE[::-1]), "float32"),
            ):
                found = file[key]
                if found.shape != shape or found.dtype != kind:
                    raise BuildError(
                        f"{self.path}: '{key}' is {found.dtype} {found.shape}, not {kind} {shape}"
                    )
            scenes = ["nyu"] * count
            if "sceneTypes" in file:
                texts = (file[reference] for reference in np.ravel(file["sceneTypes"][()]))
                scenes = ["".join(map(chr, np.ravel(text[()]).tolist())) for text in texts]
            if len(scenes) != count:
                raise BuildError(f"{self.path}: {count} images and {len(scenes)} scene types")
        names = (f"{scene}_rgb_{index:05d}" for index, scene in enumerate(scenes))
        try:
            return [Entry(name, index, index) for index, name in enumerate(names)]
        except BuildError as error:
            raise BuildError(f"{self.path}: image {error}") from None

    def image(self, entry: Entry) -> np.ndarray:
        """RGB of an entry, uint8 (480, 640, 3)."""
        with self._file() as file:
            image = np.asarray(file["images"][entry.image]).transpose(2, 1, 0)
        if not self.converted:
            return np.ascontiguousarray(image)
        framed = np.zeros_like(image, order="C")
        framed[_KEPT] = image[_KEPT]
        return framed

    def depth(self, entry: Entry) -> np.ndarray:
        """Depth of an entry in millimetres, uint16 (480, 640)."""
        with self._file() as file:
            metres = np.asarray(file[self._depths][entry.truth], np.float32).T
        # In float32 where millimetres are cut off, as the script does.
        millimetres = metres * 1000.0 if self.converted else np.rint(metres.astype(float) * 1000.0)
        if not (np.isfinite(millimetres).all() and millimetres.min() >= 0) or (
            millimetres.max() >= 65536
        ):
            raise BuildError(f"{self.path}: depth {entry.truth + 1} is not within 0..65.5 m")
        return np.ascontiguousarray(millimetres.astype(np.uint16))

    @contextmanager
    def _file(self) -> Iterator[Any]:
        with extras():
            import h5py
        try:
            with h5py.File(self.path, "r") as file:
                yield file
        except BuildError:
            raise
        except Exception as error:  # h5py raises all kinds on damaged files
            raise BuildError(
                f"{self.path}: not the labelled NYUv2 file ({reason(error, self.path)})"
            ) from None
