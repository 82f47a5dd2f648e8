"""Sources for the user's own data: a folder of images, and features extracted elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cfqa_data.builders.sources.files import (
    Entry,
    FileSource,
    by_name,
    names_in,
    reading,
    shuffled,
)
from cfqa_data.builders.sources.images import images_below, read_rgb
from cfqa_data.builders.sources.preprocessing import classification_view
from cfqa_data.errors import BuildError

__all__ = ["Features", "ImageFolder", "read_truths"]

_HELD_OUT_SEED = 20_261_129


def read_truths(path: Path) -> dict[str, tuple[Any, str | None]]:
    """Return truth and group of each sample by id, in the order of a table.

    Args:
        path: CSV or Parquet table with the columns `source_id`, `truth` and optionally `group`.

    Raises:
        BuildError: If the file is not such a table, a truth is not a number, or an id occurs twice.
    """
    from pyarrow import csv, parquet

    read = parquet.read_table if path.suffix == ".parquet" else csv.read_csv
    with reading(path, "a CSV or Parquet table with the columns source_id and truth"):
        table = read(path)
        ids = [str(value) for value in table["source_id"].to_pylist()]
        truths = table["truth"].to_pylist()
    groups = table["group"].to_pylist() if "group" in table.column_names else [None] * len(ids)
    samples: dict[str, tuple[Any, str | None]] = {}
    for source_id, truth, group in zip(ids, truths, groups, strict=True):
        try:
            kind = np.asarray(truth).dtype.kind
        except ValueError:  # lists of different lengths
            kind = "O"
        if kind not in "biuf":
            raise BuildError(f"{path}: the truth of {source_id} is {truth!r}, not a number")
        if source_id in samples:
            raise BuildError(f"{path}: '{source_id}' occurs twice")
        samples[source_id] = truth, None if group is None else str(group)
    return samples


@dataclass(eq=False)
class _UserData(FileSource):
    """Base class of sources for the user's own data, with optional tables of truths."""

    labels: str | None = None
    train: str | None = None
    train_labels: str | None = None

    def with_truths(self, entries: Iterable[Entry], table: str = "labels") -> dict[str, Entry]:
        """Return the entries that a table of truths names, with these; without a table, all."""
        named, labels = by_name(entries), self.paths.get(table)
        if labels is None:
            return named
        if table == "labels":
            self.deciding.append(labels)
        truths, holder = read_truths(labels), "root" if table == "labels" else "training folder"
        if missing := next((name for name in truths if name not in named), None):
            raise BuildError(f"{labels}: '{missing}' is not in the {holder}")
        return {
            name: Entry(name, named[name].image, truth, group)
            for name, (truth, group) in truths.items()
        }

    def decides(self) -> tuple[Sequence[Path], Any]:
        """Return the tables, and the names of the samples with their labels."""
        files, values = super().decides()
        tables = [self.paths["train_labels"]] if "train_labels" in self.paths else []
        return (*files, *tables), values


@dataclass(eq=False)
class ImageFolder(_UserData):
    """Images for classification: a folder per class, or one folder and a table of truths.

    Args:
        task: Name of the task.
        seed: Seed of the order of the samples.
        root: Folder with a subfolder of images per class. Classes are numbered in the sorted order
            of the subfolders; an id consists of the names of folder and file. With `labels`, or
            for a task that needs no truths, the images may also be in one folder.
        labels: CSV or Parquet table with `source_id` (a file's name without its suffix), `truth`
            and optionally `group`, instead of the classes of folders; other images are not used.
        train: Folder of training images, with or without subfolders.
        train_labels: Table of their truths, like `labels`. Without it, the truth of a training
            image is the class of its folder. Only the calibration of levels uses these truths.
        held_out: Without `train`, the number of images of the root that are used for training and
            are never samples; they are the same for every seed.
        truths: Whether the task needs truths of the source.

    Raises:
        BuildError: If data are missing, unknown or damaged.
    """

    held_out: int = 0
    truths: bool = True

    kind, offered = "image_folder", "give their paths"

    def find(self) -> dict[str, Entry]:
        """Return all images, or those that the table names."""
        root = self.paths["root"]
        images = images_below(root)
        flat = self.labels is not None or any(path.parent == root for path in images)
        if flat and self.labels is None and self.truths:
            raise BuildError(f"{root}: images that are not in a class folder; give 'labels'")
        self._classes = sorted({path.parent.name for path in images})
        self.classes = self._classes if not flat else ()
        return self.with_truths(map(self._entry, images))

    def _entry(self, image: Path) -> Entry:
        """Return the entry of an image, with its class if its folder is that of a class."""
        folder, classes = image.parent.name, self._classes
        known = self.labels is None and folder in classes
        return Entry(self._name(image), image, classes.index(folder) if known else None)

    def _name(self, image: Path) -> str:
        """Return the id of an image, which includes its class folder unless a table has the ids."""
        bare = self.labels is not None or image.parent == self.paths["root"]
        return image.stem if bare else f"{image.parent.name}_{image.stem}"

    def candidates(self) -> dict[str, Entry]:
        """Return all images except those that are held out."""
        if self.train is not None or not self.held_out:
            return self.known
        if not 0 < self.held_out < len(self.known):
            what = f"held_out is {self.held_out}, of {len(self.known)} image(s)"
            raise BuildError(f"{self.paths['root']}: {what}: some must remain for the dataset")
        names = shuffled(sorted(self.known), _HELD_OUT_SEED)
        return {name: self.known[name] for name in names[: -self.held_out]}

    def truth(self, entry: Entry) -> np.ndarray | None:
        """Return the class, if the task needs one."""
        return super().truth(entry) if self.truths else None

    def inputs(self, entry: Entry) -> np.ndarray:
        """Return the centre crop of the image, float32 (1, 3, 224, 224)."""
        return classification_view(read_rgb(entry.image), entry.image)

    def training(self) -> Iterable[Entry]:
        """Return the images of `train`, or those that are held out."""
        if self.train is None:
            return [self.known[name] for name in self.known.keys() - self.entries.keys()]
        images = images_below(self.paths["train"])
        entries = self.with_truths(map(self._entry, images), "train_labels").values()
        samples = {entry.image.resolve() for entry in self.entries.values()}
        # A training image such as train/cat/1.png may have the name of another image's sample.
        return [
            entry
            if entry.image.resolve() in samples
            else replace(entry, name=f"train_{entry.name}")
            for entry in entries
        ]


@dataclass(frozen=True)
class _Arrays:
    """Named arrays in a folder of `.npy` files or in a `.safetensors` file."""

    path: Path

    def names(self) -> list[str]:
        """Return the sorted names of the arrays."""
        if self.path.is_dir():
            return [n.removesuffix(".npy") for n in names_in(self.path) if n.endswith(".npy")]
        return self._read(lambda file: sorted(file.keys()))

    def __call__(self, name: str) -> np.ndarray:
        """Return the array of a name."""
        if not self.path.is_dir():
            return self._read(lambda file: file.get_tensor(name))
        path = self.path / f"{name}.npy"
        with reading(path, "an array"):
            return np.load(path, allow_pickle=False)

    def _read(self, get: Any) -> Any:
        from safetensors import safe_open

        with (
            reading(self.path, "a file of arrays"),
            safe_open(self.path, framework="numpy") as file,
        ):
            return get(file)

    def entries(self) -> Iterable[Entry]:
        """Return an entry for each array."""
        return (Entry(name, (self, name)) for name in self.names())


@dataclass(eq=False)
class Features(_UserData):
    """Features of any model that were extracted beforehand; for the backbone `stored`.

    An array has the shape (N, C, T, D); missing leading axes have length 1.

    Args:
        task: Name of the task.
        seed: Seed of the order of the samples.
        root: Folder of `.npy` files, or `.safetensors` file, whose names are the samples' ids.
        labels: Truths: a CSV or Parquet table with `source_id`, `truth` and optionally `group`, or
            arrays with the same names as in `root`. Omit it for tasks without truths.
        train: Training features, in a folder or file like `root`.
        train_labels: Table of their truths; if `labels` are arrays, these include the truths.
            Only the calibration of levels uses them.

    Raises:
        BuildError: If data are missing, unknown or damaged.
    """

    kind = "features"
    offered = "give folders of .npy files, or .safetensors files"

    def find(self) -> dict[str, Entry]:
        """Return all arrays, or those that the table names."""
        labels, self._truths = self.paths.get("labels"), None
        if labels and (labels.is_dir() or labels.suffix == ".safetensors"):
            self._truths = _Arrays(self.paths.pop("labels"))
            self.deciding += [labels] if labels.is_file() else []
        return self.with_truths(_Arrays(self.paths["root"]).entries())

    def inputs(self, entry: Entry) -> np.ndarray:
        """Return the feature, (N, C, T, D)."""
        arrays, name = entry.image
        feature = arrays(name)
        if not 1 <= feature.ndim <= 4 or feature.dtype.kind != "f":
            raise BuildError(
                f"{arrays.path}: {name} is {feature.dtype} {feature.shape}, not floating point "
                "(N, C, T, D)"
            )
        return feature.reshape((1,) * (4 - feature.ndim) + feature.shape)

    def truth(self, entry: Entry) -> np.ndarray | None:
        """Return the truth as it is stored."""
        return self._truths(entry.name) if self._truths else super().truth(entry)

    def training(self) -> Iterable[Entry]:
        """Return the features of `train`."""
        entries = _Arrays(self.paths["train"]).entries() if self.train is not None else ()
        return self.with_truths(entries, "train_labels").values()
