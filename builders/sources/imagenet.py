"""ImageNet's validation images (ILSVRC 2012) as a source of classification."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ...errors import BuildError, unknown_name
from .files import Entry, FileSource, by_name, choose, names_in, place, require
from .imagenet_labels import (
    SYNSET,
    class_lists,
    labels_file,
    order_synsets,
    read_labels,
    read_synsets,
)
from .images import read_rgb
from .preprocessing import classification_view

__all__ = ["ImageNet"]

_SUFFIXES = (".jpeg", ".jpg", ".png")
#: Where labels are looked for beside the folder of images.
_LABELS = ("ILSVRC2012_devkit_t12", "LOC_val_solution.csv", "val.txt")
_RESERVE_SEED, _RESERVED = 20_250_607, 10


class ImageNet(FileSource):
    """Validation images with labels 0..999 in the order of the sorted synsets.

    Without `train` and without `list`, a tenth of the images, the same for every seed, is kept for
    training and is never a candidate; with a list, all images that it does not name are.

    Args:
        task: "cls".
        seed: decides the order of the candidates that no list gives.
        root: folder with one folder per synset, or with all images.
        list: text file with one image per line, its name first; keeps its order.
        labels: for a folder per synset, a list of the synsets, needed where not all 1000 are there;
            else the labels of the images, see `read_labels`, or the development kit; by default
            what lies under its usual name beside `root`.
        train: folder of training images, in folders or not.

    Raises:
        BuildError: another task, or something is missing, unknown or damaged.
    """

    kind, serves = "imagenet", "cls"
    offered = (
        "ILSVRC 2012 validation images and development kit are at "
        "https://image-net.org/download.php, for registered users"
    )

    def __init__(
        self,
        task: str,
        seed: int,
        root: str,
        list: str | None = None,
        labels: str | None = None,
        train: str | None = None,
    ) -> None:
        self.check(task, seed)
        folder = place("root", root)
        given = {
            name: place(name, value)
            for name, value in (("list", list), ("labels", labels), ("train", train))
            if value is not None
        }
        if "labels" in given:
            given["labels"] = labels_file(given["labels"])
        require([folder, *given.values()], self.offered)
        self.root, self._train = folder, given.get("train")
        known, deciding = _labelled(folder, given.get("labels"))
        if "list" in given:
            chosen = choose(given["list"], lambda line: _named(known, line, folder))
        elif self._train:
            chosen = known
        else:
            names = sorted(known)
            order = np.random.default_rng(_RESERVE_SEED).permutation(len(names))
            kept = len(names) - -(-len(names) // _RESERVED)
            chosen = {names[index]: known[names[index]] for index in order[:kept]}
        required = chosen if "list" in given else known
        require((entry.image for entry in required.values()), self.offered)
        self._others = [entry for name, entry in known.items() if name not in chosen]
        super().__init__(seed, chosen, "list" in given, [*deciding, given.get("list")])

    def views(self, entry: Entry) -> np.ndarray:
        """The middle of the image, float32 (1, 3, 224, 224)."""
        return classification_view(read_rgb(entry.image), entry.image)

    def truth(self, entry: Entry) -> np.ndarray:
        """The label, int64 ()."""
        return np.array(entry.truth, np.int64)

    def training(self) -> Iterable[Entry]:
        """The images of `train`, or those that are no candidates."""
        if self._train:
            return (Entry(path.stem, path) for path in _images(self._train))
        there = {path.name for path in _images(self.root)}
        return (entry for entry in self._others if entry.image.name in there)


def _images(folder: Path) -> Iterator[Path]:
    """Yield the images in a folder and, where it has none, in the folders in it, sorted."""
    names = names_in(folder)
    found = [folder / name for name in names if name.lower().endswith(_SUFFIXES)]
    if found:
        yield from found
        return
    for name in names:
        for image in names_in(folder / name):
            if image.lower().endswith(_SUFFIXES):
                yield folder / name / image


def _labelled(root: Path, labels: Path | None) -> tuple[dict[str, Entry], list[Path]]:
    """Return all images with their labels, and the files that give those.

    The images' files may be missing where a list gives labels.
    """
    found = [*_images(root)]
    in_folders = [path for path in found if path.parent != root]
    if in_folders:
        if not all(SYNSET.fullmatch(path.parent.name) for path in in_folders):
            odd = next(p.parent for p in in_folders if not SYNSET.fullmatch(p.parent.name))
            raise BuildError(f"{odd}: not the folder of a synset such as n01440764")
        if labels is None:
            order = order_synsets((path.parent.name for path in in_folders), root)
        else:
            order = read_synsets(labels)
        if unknown := sorted({path.parent.name for path in in_folders} - order.keys()):
            raise BuildError(f"{root / unknown[0]}: this synset is not in {labels}")
        named = by_name(Entry(path.stem, path, order[path.parent.name]) for path in in_folders)
        return named, [labels] if labels else []
    usual = (root.with_name(name) for name in _LABELS)
    labels = labels or next((labels_file(path) for path in usual if path.exists()), None)
    if labels is None:
        raise BuildError(
            f"{root}: no folders of synsets with images; for images in one folder give 'labels', "
            f"or put {_LABELS[0]} beside it; {ImageNet.offered}"
        )
    paths = {path.stem: path for path in found}
    named = by_name(
        Entry(name, paths.get(name, root / f"{name}.JPEG"), label)
        for name, label in read_labels(labels).items()
    )
    return named, [labels, *class_lists(labels)]


def _named(known: dict[str, Entry], line: str, root: Path) -> Entry:
    name = Path(line.split()[0]).name
    name = name[: -len(Path(name).suffix)] if name.lower().endswith(_SUFFIXES) else name
    if name not in known:
        raise BuildError(f"{root}: {unknown_name('image', name, known)}")
    return known[name]
