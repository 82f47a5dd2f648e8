"""ImageNet's validation images (ILSVRC 2012) as a source of classification.

Labels are 0..999 in the order of the sorted synsets. The development kit numbers the synsets
otherwise: its ids 1..1000 (`ILSVRC2012_ID` in `meta.mat`) start with n02119789, and the sorted
synsets with n01440764. The lists `synset_words.txt` and `LOC_synset_mapping.txt` are sorted,
so a line's place in them is a label and not an id of the kit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from cfqa_data.builders.sources.files import (
    Entry,
    FileSource,
    by_name,
    choose,
    read_list,
    reason,
    require,
)
from cfqa_data.builders.sources.images import SUFFIXES, images_below, most, read_rgb
from cfqa_data.builders.sources.preprocessing import classification_view
from cfqa_data.errors import BuildError, unknown_name
from cfqa_data.format.facts import Terms

__all__ = ["ImageNet"]

CLASSES = 1000
SYNSET = re.compile(r"n\d{8}")

_WITH_SYNSET = re.compile(rf"(.+)_({SYNSET.pattern})")
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_META, _ID_LIST, _MAPPING = "meta.mat", "map_clsloc.txt", "LOC_synset_mapping.txt"

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
        folder, (list_path, labels_path, self._train) = self.located(
            task, seed, root, list, labels, train
        )
        labels_path = labels_path and labels_file(labels_path)
        require([folder, list_path, labels_path, self._train], self.offered)
        self.root = folder
        known, deciding = _labelled(folder, labels_path)
        if list_path:
            chosen = choose(list_path, lambda line: _named(known, line, folder))
        elif self._train:
            chosen = known
        else:
            names = sorted(known)
            order = np.random.default_rng(_RESERVE_SEED).permutation(len(names))
            candidates = len(names) - -(-len(names) // _RESERVED)
            chosen = {names[index]: known[names[index]] for index in order[:candidates]}
        require((entry.image for entry in (chosen if list_path else known).values()), self.offered)
        self._others = [entry for name, entry in known.items() if name not in chosen]
        super().__init__(seed, chosen, list_path is not None, [*deciding, list_path])

    def inputs(self, entry: Entry) -> np.ndarray:
        """The middle of the image, float32 (1, 3, 224, 224)."""
        return classification_view(read_rgb(entry.image), entry.image)

    def training(self) -> Iterable[Entry]:
        """The images of `train`, or those that are no candidates."""
        if self._train:
            return (Entry(image_id(path.stem), path) for path in images_below(self._train))
        present = {path.name for path in images_below(self.root)}
        return (entry for entry in self._others if entry.image.name in present)


def _labelled(root: Path, labels: Path | None) -> tuple[dict[str, Entry], list[Path]]:
    """Return all images with their labels, and the files that give those.

    The images' files may be missing where a list gives labels.
    """
    found = images_below(root)
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
        mixed = f"{root}: images with and images without a synset at the end of the name"
        if known and most([*known], others, mixed) != others:
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
    name = name[: -len(Path(name).suffix)] if name.lower().endswith(SUFFIXES) else name
    if (name := image_id(name)) not in known:
        raise BuildError(f"{root}: {unknown_name('image', name, known)}")
    return known[name]


def synset_of(stem: str) -> str | None:
    """Return the synset that a name ends with, as in the Hub's archives, or None.

    Their names are "ILSVRC2012_val_00000001_n01751748" and "n01440764_10026_n01440764".
    """
    match = _WITH_SYNSET.fullmatch(stem)
    return match[2] if match else None


def image_id(stem: str) -> str:
    """Return the name of an image as ILSVRC has it, without the synset that the Hub's adds."""
    match = _WITH_SYNSET.fullmatch(stem)
    return match[1] if match else stem


def labels_file(path: Path) -> Path:
    """Return the file of labels: `path`, or the ground truth where it is the development kit."""
    inner = path / "data"
    return (inner if inner.is_dir() else path) / _GROUND_TRUTH if path.is_dir() else path


def class_lists(path: Path) -> list[Path]:
    """Return the files beside one of labels that may order its classes."""
    beside = (path.with_name(name) for name in (_META, _ID_LIST, _MAPPING))
    return [found for found in beside if found.is_file()]


def order_synsets(synsets: Iterable[str], origin: object) -> dict[str, int]:
    """Return the label of each synset.

    Raises:
        BuildError: they are not 1000, so that a synset's place says nothing.
    """
    names = sorted(set(synsets))
    if len(names) != CLASSES:
        raise BuildError(
            f"{origin}: {len(names)} synsets where labels need all {CLASSES}; give a list of them "
            f"({_MAPPING}, synset_words.txt) as labels"
        )
    return {name: label for label, name in enumerate(names)}


def read_synsets(path: Path) -> dict[str, int]:
    """Return the label of each synset from a text with one synset at the start of each line.

    Raises:
        BuildError: a line starts otherwise, or there are not 1000 synsets.
    """
    found = []
    for number, line in read_list(path):
        if not SYNSET.fullmatch(first := line.split()[0]):
            raise BuildError(f"{path}, line {number}: '{first}' is not a synset such as n01440764")
        found.append(first)
    return order_synsets(found, path)


def read_labels(path: Path) -> dict[str, int]:
    """Return the label of each image by its name without a suffix, in the order of the file.

    Taken are lines of a name and a label 0..999 (Caffe's val.txt), of a name and a synset (Kaggle's
    LOC_val_solution.csv), of a synset, and of an id of the development kit, the last two one line
    per validation image, with the kit's meta.mat or map_clsloc.txt beside the file for ids.

    Raises:
        BuildError: a line is of another kind, or the file that orders the classes is not there.
    """
    lines = [(number, re.split(r"[\s,]+", line)) for number, line in read_list(path)]
    if lines and lines[0][1][0] == "ImageId":
        lines = lines[1:]
    if not lines:
        raise BuildError(f"{path}: has no labels")
    columns = min(len(lines[0][1]), 2)
    for number, words in lines:
        if min(len(words), 2) != columns:
            raise BuildError(f"{path}, line {number}: is of another kind than the first line")
    if columns == 1:
        names = [f"ILSVRC2012_val_{place:08d}" for place in range(1, len(lines) + 1)]
    else:
        names = [image_id(PurePosixPath(words[0]).stem) for _, words in lines]
    values = [words[columns - 1] for _, words in lines]
    known = _known(path, values, ids=columns == 1)
    labels: dict[str, int] = {}
    for (number, _), name, value in zip(lines, names, values, strict=True):
        if value not in known:
            what = "an id of the development kit, 1..1000" if columns == 1 else "a label 0..999"
            raise BuildError(f"{path}, line {number}: '{value}' is neither {what}, nor a synset")
        if labels.setdefault(name, known[value]) != known[value]:
            raise BuildError(f"{path}, line {number}: '{name}' has another label before")
    return labels


def _known(path: Path, values: list[str], ids: bool) -> dict[str, int]:
    """Return the label of each text that may stand for one in a file."""
    if SYNSET.fullmatch(values[0]):
        mapping = path.with_name(_MAPPING)
        if len(set(values)) < CLASSES and mapping.is_file():
            return read_synsets(mapping)
        return order_synsets(values, path)
    if not ids:
        return {str(label): label for label in range(CLASSES)}
    numbered = _kit_ids(path)
    labels = order_synsets(numbered.values(), path.with_name(_META))
    return {str(number): labels[synset] for number, synset in numbered.items()}


def _kit_ids(path: Path) -> dict[int, str]:
    """Return the synset of each id 1..1000 of the development kit."""
    meta, listed = path.with_name(_META), path.with_name(_ID_LIST)
    if meta.is_file():
        pairs = _read_meta(meta)
    elif listed.is_file():
        pairs = []
        for number, line in read_list(listed):
            words = line.split()
            if len(words) < 2 or not SYNSET.fullmatch(words[0]) or not words[1].isdecimal():
                raise BuildError(f"{listed}, line {number}: must be a synset and its id")
            pairs.append((int(words[1]), words[0]))
    else:
        raise BuildError(
            f"missing: {meta} (or {listed}), which says what the ids in {path.name} are; lists of "
            f"sorted synsets do not; {_META} is in the development kit at "
            "https://image-net.org/download.php"
        )
    return {number: synset for number, synset in pairs if 1 <= number <= CLASSES}


def _read_meta(path: Path) -> list[tuple[int, str]]:
    from scipy.io import loadmat

    try:
        synsets = loadmat(path, squeeze_me=True, variable_names=["synsets"])["synsets"]
        return [(int(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in synsets]
    except Exception as error:  # the reader raises all kinds on damaged files
        raise BuildError(
            f"{path}: not the meta.mat of ILSVRC 2012 ({reason(error, path)})"
        ) from None
