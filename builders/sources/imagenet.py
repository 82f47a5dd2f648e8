"""ImageNet's validation images (ILSVRC 2012) as a source for classification.

Labels are 0..999 in the order of the sorted synsets. The development kit numbers the synsets
differently: its ids 1..1000 (`ILSVRC2012_ID` in `meta.mat`) start with n02119789, the sorted
synsets with n01440764. The lists `synset_words.txt` and `LOC_synset_mapping.txt` are sorted, so
that the position of a line is a label and not an id of the kit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from cfqa_data.builders.sources.files import (
    Entry,
    FileSource,
    by_name,
    parse_lines,
    read_list,
    reading,
    shuffled,
)
from cfqa_data.builders.sources.images import SUFFIXES, images_below, most, read_rgb
from cfqa_data.builders.sources.preprocessing import classification_view
from cfqa_data.errors import BuildError, check_known
from cfqa_data.format.format_1 import TERMS

__all__ = ["ImageNet"]

CLASSES = 1000
SYNSET = re.compile(r"n\d{8}")

_WITH_SYNSET = re.compile(rf"(.+)_({SYNSET.pattern})")
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_META, _ID_LIST, _MAPPING = "meta.mat", "map_clsloc.txt", "LOC_synset_mapping.txt"

#: Files and folders beside the images that may contain the labels.
_LABELS = ("ILSVRC2012_devkit_t12", "LOC_val_solution.csv", "val.txt")
_RESERVE_SEED, _RESERVED = 20_250_607, 10


@dataclass(eq=False)
class ImageNet(FileSource):
    """Validation images with labels 0..999 in the order of the sorted synsets.

    Without `train`, other images of `root` are used for training: those that `list` does not name
    or, without a list, a fixed tenth of all images, which is never used for samples.

    Args:
        task: Must be "cls".
        seed: Seed of the order of samples without a list.
        root: Folder with one subfolder per synset, or with all images. A synset at the end of an
            image's name, as in the Hub's archives, is its label and not part of its id.
        list: Text file with one image per line, its name first; the order is kept.
        labels: If folders or names state the synsets, a list of all synsets, which is needed if
            not all 1000 occur. Otherwise the labels of the images (see `read_labels`) or the
            folder of the development kit; by default the one that is found beside `root`.
        train: Folder of training images, with or without subfolders.

    Raises:
        BuildError: If the task is not "cls", or data are missing, unknown or damaged.
    """

    terms = TERMS["imagenet"]
    kind, supported_task = "imagenet", "cls"
    offered = (
        "ILSVRC 2012 validation images and development kit are at "
        "https://image-net.org/download.php, for registered users"
    )

    list: str | None = None
    labels: str | None = None
    train: str | None = None

    def required(self) -> Iterable[Path]:
        """Return the paths of all options; for a development kit, the path of its labels."""
        if labels := self.paths.get("labels"):
            self.paths["labels"] = labels_file(labels)
        return self.paths.values()

    def find(self) -> dict[str, Entry]:
        """Return all images with their labels; images of a list of labels may not exist."""
        root, labels = self.paths["root"], self.paths.get("labels")
        images = images_below(root)
        if images and images[0].parent != root:
            synsets = {path: path.parent.name for path in images}
            if odd := next((p.parent for p in images if not SYNSET.fullmatch(p.parent.name)), None):
                raise BuildError(f"{odd}: not the folder of a synset such as n01440764")
        else:
            usual = (root.with_name(name) for name in _LABELS)
            labels = labels or next((labels_file(path) for path in usual if path.exists()), None)
            synsets = _synsets_in_names(images, root) if _takes_synsets(labels) else {}
        self.deciding += [labels] if labels else []
        if synsets:
            return _by_synset(synsets, root, labels)
        if labels is None:
            raise BuildError(
                f"{root}: no folders of synsets with images; for images in one folder give "
                f"'labels', or put {_LABELS[0]} next to it; {self.offered}"
            )
        self.deciding += class_lists(labels)
        paths = {name: e.image for name, e in by_name(map(_unlabelled, images)).items()}
        return {
            name: Entry(name, paths.get(name, root / f"{name}.JPEG"), label)
            for name, label in read_labels(labels).items()
        }

    def candidates(self) -> dict[str, Entry]:
        """Return all images, except the tenth that is reserved for training without `train`."""
        if self.train is not None:
            return self.known
        names = shuffled(sorted(self.known), _RESERVE_SEED)
        return {
            name: self.known[name] for name in names[: len(names) - -(-len(names) // _RESERVED)]
        }

    def named(self, line: str) -> Entry:
        """Return the image whose name is the first word of a line."""
        name = Path(line.split()[0]).name
        name = image_id(Path(name).stem if name.lower().endswith(SUFFIXES) else name)
        check_known("image", name, self.known, BuildError, self.paths["root"])
        return self.known[name]

    def inputs(self, entry: Entry) -> np.ndarray:
        """Return the centre crop of the image, float32 (1, 3, 224, 224)."""
        return classification_view(read_rgb(entry.image), entry.image)

    def training(self) -> Iterable[Entry]:
        """Return the images of `train`, or the existing images that are not samples."""
        if self.train is not None:
            return map(_unlabelled, images_below(self.paths["train"]))
        present = set(images_below(self.paths["root"]))
        others = (entry for name, entry in self.known.items() if name not in self.entries)
        return (entry for entry in others if entry.image in present)


def _unlabelled(path: Path) -> Entry:
    return Entry(image_id(path.stem), path)


def _takes_synsets(labels: Path | None) -> bool:
    """Whether labels are synsets: there is no file, or each of its lines begins with a synset."""
    return labels is None or all(SYNSET.fullmatch(line.split()[0]) for _, line in read_list(labels))


def _synsets_in_names(images: Sequence[Path], root: Path) -> dict[Path, str]:
    """Return the synset at the end of each image's name; empty if most names have none."""
    synsets = {path: match[2] for path in images if (match := _WITH_SYNSET.fullmatch(path.stem))}
    mixed = f"{root}: images with and images without a synset at the end of the name"
    others = [path for path in images if path not in synsets]
    return synsets if synsets and most([*synsets], others, mixed) != others else {}


def _by_synset(synsets: dict[Path, str], root: Path, labels: Path | None) -> dict[str, Entry]:
    """Return images with the labels of their synsets."""
    order = order_synsets(synsets.values(), root) if labels is None else read_synsets(labels)
    for path, synset in synsets.items():
        if synset not in order:
            raise BuildError(f"{path}: its synset {synset} is not in {labels}")
    return by_name(
        Entry(image_id(path.stem), path, order[synset]) for path, synset in synsets.items()
    )


def image_id(stem: str) -> str:
    """Return the name of an image in ILSVRC, without the synset that archives of the Hub append."""
    match = _WITH_SYNSET.fullmatch(stem)
    return match[1] if match else stem


def labels_file(path: Path) -> Path:
    """Return the file of labels: `path`, or the ground truth in it if it is a development kit."""
    inner = path / "data"
    return (inner if inner.is_dir() else path) / _GROUND_TRUTH if path.is_dir() else path


def class_lists(path: Path) -> list[Path]:
    """Return the files beside a file of labels that may define the order of its classes."""
    candidates = (path.with_name(name) for name in (_META, _ID_LIST, _MAPPING))
    return [candidate for candidate in candidates if candidate.is_file()]


def order_synsets(synsets: Iterable[str], origin: object) -> dict[str, int]:
    """Return the label of each synset, its position among the 1000 sorted synsets.

    Raises:
        BuildError: If there are not exactly 1000 distinct synsets.
    """
    names = sorted(set(synsets))
    if len(names) != CLASSES:
        raise BuildError(
            f"{origin}: {len(names)} synsets where labels need all {CLASSES}; give a list of them "
            f"({_MAPPING}, synset_words.txt) as labels"
        )
    return {name: label for label, name in enumerate(names)}


def read_synsets(path: Path) -> dict[str, int]:
    """Return the label of each synset from a text file with a synset at the start of each line.

    Raises:
        BuildError: If a line does not start with a synset, or there are not 1000 synsets.
    """

    def first(line: str) -> str:
        if not SYNSET.fullmatch(word := line.split()[0]):
            raise BuildError(f"'{word}' is not a synset such as n01440764")
        return word

    return order_synsets(parse_lines(path, first), path)


def read_labels(path: Path) -> dict[str, int]:
    """Return the label of each image by its name without a suffix, in the order of the file.

    A line may consist of a name and a label 0..999 (Caffe's val.txt), a name and a synset (Kaggle's
    LOC_val_solution.csv), a synset, or an id of the development kit. Files of the last two kinds
    have one line per validation image; ids need meta.mat or map_clsloc.txt beside the file.

    Raises:
        BuildError: If a line is of another kind, or the file that orders the classes is missing.
    """
    lines = [(number, re.split(r"[\s,]+", line)[:2]) for number, line in read_list(path)]
    if lines and lines[0][1][0] == "ImageId":
        lines = lines[1:]
    if not lines:
        raise BuildError(f"{path}: has no labels")
    columns = len(lines[0][1])
    for number, words in lines:
        if len(words) != columns:
            raise BuildError(f"{path}, line {number}: differs in kind from the first line")
    known = _labels_by_text(path, [words[-1] for _, words in lines], ids=columns == 1)
    what = "an id of the development kit, 1..1000" if columns == 1 else "a label 0..999"
    labels: dict[str, int] = {}
    for index, (number, (first, *rest)) in enumerate(lines, start=1):
        name = image_id(PurePosixPath(first).stem) if rest else f"ILSVRC2012_val_{index:08d}"
        value = rest[0] if rest else first
        if value not in known:
            raise BuildError(f"{path}, line {number}: '{value}' is neither {what}, nor a synset")
        if labels.setdefault(name, known[value]) != known[value]:
            raise BuildError(f"{path}, line {number}: '{name}' has a different label above")
    return labels


def _labels_by_text(path: Path, values: list[str], ids: bool) -> dict[str, int]:
    """Return the label of each valid text of a file: of synsets, ids or numbers."""
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
        pairs = parse_lines(listed, _id_of_synset)
    else:
        raise BuildError(
            f"missing: {meta} (or {listed}), which says what the ids in {path.name} are; lists of "
            f"sorted synsets do not; {_META} is in the development kit at "
            "https://image-net.org/download.php"
        )
    return {number: synset for number, synset in pairs if 1 <= number <= CLASSES}


def _id_of_synset(line: str) -> tuple[int, str]:
    words = line.split()
    if len(words) < 2 or not SYNSET.fullmatch(words[0]) or not words[1].isdecimal():
        raise BuildError("must be a synset and its id")
    return int(words[1]), words[0]


def _read_meta(path: Path) -> list[tuple[int, str]]:
    from scipy.io import loadmat

    with reading(path, "the meta.mat of ILSVRC 2012"):
        synsets = loadmat(path, squeeze_me=True, variable_names=["synsets"])["synsets"]
        return [(int(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in synsets]
