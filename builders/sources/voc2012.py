"""PASCAL VOC 2012's segmentation images as a source for segmentation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfqa_data.builders.sources.files import Entry, FileSource, Unsuitable, choose
from cfqa_data.builders.sources.geometry import IGNORE
from cfqa_data.builders.sources.images import read_mask, read_rgb, read_size
from cfqa_data.builders.sources.preprocessing import segmentation_views, two_windows
from cfqa_data.errors import BuildError, check_known
from cfqa_data.format.format_1 import TERMS

__all__ = ["Voc2012"]


@dataclass(eq=False)
class Voc2012(FileSource):
    """Validation images of the segmentation challenge and their masks.

    Images that do not give exactly two windows, and images whose mask has no valid pixel, are
    skipped; if a list names one, it is an error.

    Args:
        task: Must be "seg".
        seed: Seed of the order of samples without a list.
        root: The folder VOC2012, or one that contains it or VOCdevkit.
        list: Text file with one image of the validation set per line; the order is kept.
        train: Text file with one training image per line; that of the development kit if None.

    Raises:
        BuildError: If the task is not "seg", or data are missing, unknown or damaged.
    """

    terms = TERMS["voc2012"]
    kind, supported_task = "voc2012", "seg"
    classes = (
        *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
        *("chair", "cow", "dining table", "dog", "horse", "motorbike", "person", "potted plant"),
        *("sheep", "sofa", "train", "TV monitor"),
    )
    offered = "VOCtrainval_11-May-2012.tar is at http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"

    list: str | None = None
    train: str | None = None

    def required(self) -> Iterable[Path]:
        """Return the folders of images and masks, the validation set, and the lists."""
        root = self.paths["root"]
        inner = (root / "VOCdevkit" / "VOC2012", root / "VOC2012")
        self._kit = next((folder for folder in inner if folder.is_dir()), root)
        self._sets = self._kit / "ImageSets" / "Segmentation"
        parts = self._kit / "JPEGImages", self._kit / "SegmentationClass", self._sets / "val.txt"
        return *parts, *(path for name, path in self.paths.items() if name != "root")

    def find(self) -> dict[str, Entry]:
        """Return the images of the validation set."""
        self.deciding.append(self._sets / "val.txt")
        return choose(self._sets / "val.txt", self._entry)

    def named(self, line: str) -> Entry:
        """Return the image of the validation set that a line names."""
        name = _stem(line)
        check_known("image of the validation set", name, self.known, BuildError)
        return self.known[name]

    def _entry(self, line: str) -> Entry:
        name = _stem(line)
        image = self._kit / "JPEGImages" / f"{name}.jpg"
        return Entry(name, image, self._kit / "SegmentationClass" / f"{name}.png")

    def inputs(self, entry: Entry) -> np.ndarray:
        """Return the two windows, float32 (2, 3, 518, 518).

        Raises:
            Unsuitable: If the image gives another number of windows.
        """
        image = read_rgb(entry.image)
        if not two_windows(image.height, image.width):
            raise Unsuitable(
                f"{entry.image}: {image.width}x{image.height} is too small for two windows"
            )
        return segmentation_views(np.asarray(image))

    def truth(self, entry: Entry) -> np.ndarray:
        """Return the mask, uint8 (H, W), with 255 for ignored pixels.

        Raises:
            Unsuitable: If no pixel is valid.
            BuildError: If the mask has another size than the image, or an unknown class.
        """
        mask, (height, width) = read_mask(entry.truth), read_size(entry.image)
        if mask.shape != (height, width):
            size = f"{mask.shape[1]}x{mask.shape[0]}"
            raise BuildError(f"{entry.truth}: {size}, and the image is {width}x{height}")
        counted = mask[mask != IGNORE]
        if not counted.size:
            raise Unsuitable(f"{entry.truth}: the mask has no valid pixel")
        if counted.max() >= len(self.classes):
            raise BuildError(
                f"{entry.truth}: class {counted.max()} is not in 0..{len(self.classes) - 1}"
            )
        return mask

    def training(self) -> Iterable[Entry]:
        """Return the images of the training list."""
        return self.training_list(self.paths.get("train", self._sets / "train.txt"), self._entry)

    def fits(self, entry: Entry) -> bool:
        """Whether the image gives two windows."""
        return two_windows(*read_size(entry.image))


def _stem(line: str) -> str:
    return Path(line.split()[0]).name.removesuffix(".jpg")
