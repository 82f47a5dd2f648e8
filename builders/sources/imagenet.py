"""ImageNet's validation images (ILSVRC 2012) as a source of classification."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cfqa_data.builders.sources.files import (
    Entry,
    FileSource,
    by_name,
    choose,
    names_in,
    read_list,
    require,
)
from cfqa_data.builders.sources.imagenet_labels import (
    SYNSET,
    class_lists,
    image_id,
    labels_file,
    order_synsets,
    read_labels,
    read_synsets,
    synset_of,
)
from cfqa_data.builders.sources.images import read_rgb
from cfqa_data.builders.sources.preprocessing import classification_view
from cfqa_data.errors import BuildError, unknown_name
from cfqa_data.format.facts import Terms
from cfqa_data.format.resources import locate

__all__ = ["ImageNet"]

_SUFFIXES = (".jpeg", ".jpg", ".png")
#: Where labels are looked for beside the folder of images.
_LABELS = ("ILSVRC2012_devkit_t12", "LOC_val_solution.csv", "val.txt")
#: So many images may lie where the others do not, or one in so many.
_ASTRAY = 10
_RESERVE_SEED, _RESERVED = 20_250_607, 10


class ImageNet(FileSource):
    """Validation images with labels 0..999 in the order of the sorted synsets.

    Without `train` and without `list`, a tenth of the images, the same for every seed, is kept for
    training and is never a candidate; with a list, all images that it does not name are.

    Args:
        task: "cls".
        seed: decides the order of the candidates that no list gives.
        root: folder with one folder per synset, or with all images. A synset at the end of an
            image's name, as in the Hub's archives, is its label and no part of its id.
        list: text file with one image per line, its name first; keeps its order.
        labels: for a folder per synset, or synsets in the names, a list of the synsets, needed
            where not all 1000 are there; else the labels of the images, see `read_labels`, or the
            development kit; by default what lies under its usual name beside `root`.
        train: folder of training images, in folders or not.

    Raises:
        BuildError: another task, or something is missing, unknown or damaged.
    """

    terms = Terms("other", "https://image-net.org/download.php", "ILSVRC 2012")
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
        folder = locate(root)
        given = {
            name: locate(value)
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

    def inputs(self, entry: Entry) -> np.ndarray:
        """The middle of the image, float32 (1, 3, 224, 224)."""
        return classification_view(read_rgb(entry.image), entry.image)

    def truth(self, entry: Entry) -> np.ndarray:
        """The label, int64 ()."""
        return np.array(entry.truth, np.int64)

    def training(self) -> Iterable[Entry]:
        """The images of `train`, or those that are no candidates."""
        if self._train:
            return (Entry(image_id(path.stem), path) for path in _images(self._train))
        there = {path.name for path in _images(self.root)}
        return (entry for entry in self._others if entry.image.name in there)


def _images(folder: Path) -> list[Path]:
    """Return the images in a folder or in the folders in it, sorted: wherever there are more."""
    names = names_in(folder)
    beside = [folder / name for name in names if name.lower().endswith(_SUFFIXES)]
    inside = [
        folder / name / image
        for name in names
        if not name.lower().endswith(_SUFFIXES)
        for image in names_in(folder / name)
        if image.lower().endswith(_SUFFIXES)
    ]
    return _most(beside, inside, f"{folder}: images in it and images in folders in it")


def _most(some: list[Path], others: list[Path], what: str) -> list[Path]:
    """Return the longer list of two; the shorter one holds a few that went astray.

    Raises:
        BuildError: It is too long for that.
    """
    more, fewer = (some, others) if len(some) > len(others) else (others, some)
    if len(fewer) > max(_ASTRAY, len(more) // _ASTRAY):
        raise BuildError(f"{what} ({len(some)} and {len(others)}): move away what is not meant")
    return more


def _labelled(root: Path, labels: Path | None) -> tuple[dict[str, Entry], list[Path]]:
    """Return all images with their labels, and the files that give those.

    The images' files may be missing where a list gives labels.
    """
    found = _images(root)
    if found and found[0].parent != root:
        if odd := next((p.parent for p in found if not SYNSET.fullmatch(p.parent.name)), None):
            raise BuildError(f"{odd}: not the folder of a synset such as n01440764")
        in_folders = {path: path.parent.name for path in found}
        return _by_synset(in_folders, root, labels), [labels] if labels else []
    usual = (root.with_name(name) for name in _LABELS)
    labels = labels or next((labels_file(path) for path in usual if path.exists()), None)
    if labels is None or _lists_synsets(labels):
        known = {path: synset for path in found if (synset := synset_of(path.stem))}
        others = [path for path in found if path not in known]
        told = f"{root}: images with and images without a synset at the end of the name"
        if known and _most([*known], others, told) != others:
            return _by_synset(known, root, labels), [labels] if labels else []
    if labels is None:
        raise BuildError(
            f"{root}: no folders of synsets with images; for images in one folder give 'labels', "
            f"or put {_LABELS[0]} beside it; {ImageNet.offered}"
        )
    images = by_name(Entry(image_id(path.stem), path) for path in found)
    named = by_name(
        Entry(name, images[name].image if name in images else root / f"{name}.JPEG", label)
        for name, label in read_labels(labels).items()
    )
    return named, [labels, *class_lists(labels)]


def _by_synset(synsets: dict[Path, str], root: Path, labels: Path | None) -> dict[str, Entry]:
    """Return images with their labels, by the synset of each."""
    order = order_synsets(synsets.values(), root) if labels is None else read_synsets(labels)
    for path, synset in synsets.items():
        if synset not in order:
            raise BuildError(f"{path}: its synset {synset} is not in {labels}")
    return by_name(
        Entry(image_id(path.stem), path, order[synset]) for path, synset in synsets.items()
    )


def _lists_synsets(labels: Path) -> bool:
    """Whether a file of labels lists synsets: each line begins with one."""
    return all(SYNSET.fullmatch(line.split()[0]) for _, line in read_list(labels))


def _named(known: dict[str, Entry], line: str, root: Path) -> Entry:
    name = Path(line.split()[0]).name
    name = name[: -len(Path(name).suffix)] if name.lower().endswith(_SUFFIXES) else name
    if (name := image_id(name)) not in known:
        raise BuildError(f"{root}: {unknown_name('image', name, known)}")
    return known[name]
