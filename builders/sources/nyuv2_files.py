"""NYUv2 in single files: `scene/rgb_*.jpg` with `scene/sync_depth_*.png`, 16 bits, millimetres."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from cfqa_data.builders.sources.files import Entry, by_name, choose, names_in, require
from cfqa_data.builders.sources.images import read_depth, read_rgb
from cfqa_data.errors import BuildError, unknown_name

__all__ = ["TEST", "SplitFiles"]

TEST, _TRAIN = "nyu_test.txt", "nyu_train.txt"


class SplitFiles:
    """Images and depth maps in files of their own.

    `nyu_test.txt` in the folder says which are for testing; where it is not there, all pairs in
    the scenes' folders are that no training list names.

    Args:
        root: the folder.
        train: list of images for training; `nyu_train.txt` in the folder if None.
        listed: whether a list says which images are wanted.
        offered: where the owner offers the data.

    Raises:
        BuildError: there are no images.
    """

    def __init__(self, root: Path, train: Path | None, listed: bool, offered: str) -> None:
        self.root, self._offered = root, offered
        self._sure = (root / TEST).is_file()
        self.deciding = [root / TEST] if self._sure else []
        if self._sure:
            self.test = choose(root / TEST, self._pair)
            return
        self.test = by_name(_scan(root))
        if not self.test and not listed:
            require(
                [root / TEST],
                offered,
                {root / TEST: " (or folders of scenes with rgb_*.jpg and sync_depth_*.png)"},
            )
        trained = train or root / _TRAIN
        if trained.is_file():
            self.deciding = [trained]
            for name in choose(trained, self._pair):
                self.test.pop(name, None)

    def named(self, line: str) -> Entry:
        """The test image of a line as in `nyu_test.txt`, or of a source id."""
        first = line.split()[0]
        entry = self._pair(line) if "/" in first else self.test.get(first)
        if entry is None:
            raise BuildError(unknown_name("image", first, self.test))
        if self._sure and entry.name not in self.test:
            raise BuildError(f"'{entry.name}' is not in {self.root / TEST}")
        return entry

    def training(self, path: Path | None) -> Iterable[Entry]:
        """The images that a list names, `nyu_train.txt` if None; they need no depth."""
        path = path or self.root / _TRAIN
        require([path], self._offered)
        entries = choose(path, self._pair).values()
        require((entry.image for entry in entries), self._offered)
        return entries

    def check(self, entries: Iterable[Entry]) -> None:
        """See that every image has its depth map and every depth map its image."""
        notes, files = {}, []
        for entry in entries:
            files += [entry.image, entry.truth]
            notes[entry.image] = f" (the image of {entry.truth.name})"
            notes[entry.truth] = f" (the depth of {entry.image.name})"
        require(files, self._offered, notes)

    def image(self, entry: Entry) -> np.ndarray:
        """RGB of an entry, uint8 (H, W, 3)."""
        return np.asarray(read_rgb(entry.image))

    def depth(self, entry: Entry) -> np.ndarray:
        """Depth of an entry in millimetres, uint16 (H, W)."""
        return read_depth(entry.truth)

    def _pair(self, line: str) -> Entry:
        """The entry of a line `scene/rgb_00045.jpg [scene/sync_depth_00045.png] [focal length]`."""
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
        images: dict[str, Path] = {}
        depths: dict[str, Path] = {}
        for name in names_in(scene):
            stem, suffix = os.path.splitext(name)
            if stem.startswith("rgb_") and suffix.lower() in (".jpg", ".jpeg", ".png"):
                found, key = images, stem.removeprefix("rgb_")
            elif stem.startswith("sync_depth_") and suffix.lower() == ".png":
                found, key = depths, stem.removeprefix("sync_depth_")
            else:
                continue
            if (other := found.setdefault(key, scene / name)) != scene / name:
                raise BuildError(f"{scene / name} and {other} are both '{stem}': keep one of them")
        for key in sorted(images.keys() | depths.keys()):
            image = images.get(key, scene / f"rgb_{key}.jpg")
            depth = depths.get(key, scene / f"sync_depth_{key}.png")
            yield Entry(f"{scene.name}_{image.stem}", image, depth)
