"""Shared parts of file-based sources: list files, missing files, sample order, training pool."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, TypeVar

import numpy as np

from cfqa_data.builders.sources.base import Sample, Source
from cfqa_data.errors import BuildError, check_known, prefixed
from cfqa_data.format.layout import is_tool_file
from cfqa_data.format.limits import pointer_at
from cfqa_data.format.resources import locate

__all__ = [
    "Entry",
    "FileSource",
    "Unsuitable",
    "by_name",
    "choose",
    "names_in",
    "parse_lines",
    "read_list",
    "reading",
    "reason",
    "require",
    "shuffled",
]

RUN = 50
"""Offset in the training pool between the first images of successive seeds."""

_POOL_SEED = 20_250_607
_NAME = re.compile(r"[\w.-]+", re.ASCII)
#: Options of a source that name files or folders.
_PATHS = ("root", "list", "labels", "train", "train_labels")

T = TypeVar("T")


class Unsuitable(BuildError):
    """An image is unsuitable as a sample: it is skipped, unless a list names it."""


@dataclass(frozen=True)
class Entry:
    """One image of a source.

    Attributes:
        name: Source id; letters, digits, dots, dashes and underscores.
        image: Location of its pixels.
        truth: Location of its truth, or the truth itself.
        group: Group of related samples; None if the image is its own group.
    """

    name: str
    image: Any
    truth: Any = None
    group: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise BuildError(
                f"{self.image}: '{self.name}' cannot be a source id; rename the file or its "
                "folder using letters, digits, '.', '-' and '_'"
            )


def names_in(folder: Path) -> list[str]:
    """Return the sorted names in a folder, except files of the operating system and other tools.

    A folder that does not exist gives an empty list.

    Raises:
        BuildError: If the folder cannot be listed.
    """
    return sorted(name for name in _listed(folder) if not is_tool_file(name))


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: NUL in the path
        return []
    except OSError as error:
        raise BuildError(f"{folder}: cannot be listed ({error.strerror})") from None


def require(paths: Iterable[Any], offered: str, notes: Mapping[Path, str] | None = None) -> None:
    """Check that all files and folders exist.

    Args:
        paths: Paths of files and folders; other objects are ignored.
        offered: Where the data can be obtained, for the error message.
        notes: Path -> text that follows it in the error message.

    Raises:
        BuildError: If some do not exist; the message names all of them.
    """
    required = dict.fromkeys(path for path in paths if isinstance(path, Path))
    names = {folder: frozenset(_listed(folder)) for folder in {path.parent for path in required}}
    missing = [
        f"{path}{(notes or {}).get(path, '')}"
        for path in required
        if path.name not in names[path.parent]
    ]
    if missing:
        raise BuildError(f"missing: {'; '.join(missing)}; {offered}")


def reason(error: Exception, path: Path | None = None) -> str:
    """Return an error in one line, or what the file at `path` is if Git stores it elsewhere."""
    if path is not None and (kind := pointer_at(path)):
        return kind
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn any error of a file's reader into a BuildError that names the expected content."""
    try:
        yield
    except BuildError:
        raise
    except Exception as error:
        raise BuildError(f"{path}: not {what} ({reason(error, path)})") from None


def read_list(path: Path) -> list[tuple[int, str]]:
    """Return the lines of a text file with their numbers from 1, without blanks and comments.

    Lines that name a file of the operating system or of a tool, such as ``.DS_Store``, are left
    out too, since lists are often produced by listing folders.

    Raises:
        BuildError: If the file cannot be read as UTF-8 text.
    """
    if kind := pointer_at(path):
        raise BuildError(f"{path}: {kind}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        message = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise BuildError(f"{path}: cannot be read ({message})") from None
    return [
        (number, line)
        for number, line in enumerate(map(str.strip, text.splitlines()), start=1)
        if line
        and not line.startswith("#")
        and not any(map(is_tool_file, PurePosixPath(line.split()[0]).parts))
    ]


def parse_lines(path: Path, parse: Callable[[str], T]) -> list[T]:
    """Apply a function to each line of a text file (see `read_list`) and return the results.

    Raises:
        BuildError: If the function rejects a line, which the message names.
    """
    results = []
    for number, line in read_list(path):
        with prefixed(f"{path}, line {number}", BuildError, BuildError):
            results.append(parse(line))
    return results


def by_name(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Return entries by name, in their order.

    Raises:
        BuildError: If two entries have the same name.
    """
    named: dict[str, Entry] = {}
    for entry in entries:
        if (other := named.setdefault(entry.name, entry)) is not entry:
            message = f"{entry.image} and {other.image} have the same id '{entry.name}'"
            raise BuildError(f"{message}: keep one of them")
    return named


def choose(path: Path, resolve: Callable[[str], Entry]) -> dict[str, Entry]:
    """Return the entries that a list file names, in its order.

    Args:
        path: Path of the list.
        resolve: Function that returns the entry of a line, or raises a BuildError.

    Raises:
        BuildError: If a line names no entry, or one that an earlier line names; or the list is
            empty.
    """
    chosen: dict[str, Entry] = {}

    def add(line: str) -> None:
        entry = resolve(line)
        if entry.name in chosen:
            raise BuildError(f"'{entry.name}' occurs twice")
        chosen[entry.name] = entry

    parse_lines(path, add)
    if not chosen:
        raise BuildError(f"{path}: lists no images")
    return chosen


@dataclass(eq=False)
class FileSource(Source):
    """Base class of sources whose samples are files.

    A subclass is a dataclass whose fields are the options; `root`, `list`, `labels`, `train` and
    `train_labels` are paths. It implements `find` and how inputs and truths are read.

    Attributes:
        kind: Name of the source, for messages.
        supported_task: The only task that it supports; None for any.
        offered: Where the data can be obtained, for messages.
        paths: Option -> path, for the options that are paths.
        known: All images that may be samples, by name.
        entries: The images that are samples, by name.
        deciding: Files other than the images that decide which images exist, and their truth.
    """

    kind: ClassVar[str]
    supported_task: ClassVar[str | None] = None
    offered: ClassVar[str] = ""

    task: str
    seed: int
    root: str

    def __post_init__(self) -> None:
        if (only := self.supported_task) not in (None, self.task):
            raise BuildError(f"source {self.kind} does not support task '{self.task}', only {only}")
        if self.seed < 0:
            message = f"source {self.kind}: the seed must be a whole number from 0, not {self.seed}"
            raise BuildError(message)
        options = {name: getattr(self, name, None) for name in _PATHS}
        self.paths = {name: locate(text) for name, text in options.items() if text is not None}
        require(self.required(), self.offered)
        self.deciding: list[Path] = []
        self.known = self.find()
        if self.listed:
            self.entries = choose(self.paths["list"], self.named)
            self.deciding.append(self.paths["list"])
        else:
            self.entries = self.candidates()
        self.check((self.entries if self.listed else self.known).values())

    @property
    def listed(self) -> bool:
        """Whether a list names the samples; its order is kept."""
        return "list" in self.paths

    def required(self) -> Iterable[Path]:
        """Return the files and folders that must exist before images are searched for."""
        return self.paths.values()

    def find(self) -> dict[str, Entry]:
        """Return the images that may be samples, and add the files that decide to `deciding`."""
        raise NotImplementedError

    def candidates(self) -> dict[str, Entry]:
        """Return the images that are samples if no list names them."""
        return self.known

    def named(self, line: str) -> Entry:
        """Return the image that a line of a list names."""
        raise NotImplementedError

    def check(self, entries: Iterable[Entry]) -> None:
        """Check that the files of images and truths exist."""
        require((path for e in entries for path in (e.image, e.truth)), self.offered)

    def samples(self) -> Iterator[Sample]:
        """Yield samples in the order of the list, or in the seed's random order of all names.

        Raises:
            BuildError: If an image is damaged, or one that a list names is unsuitable.
        """
        names = [*self.entries]
        if not self.listed:
            names = shuffled(sorted(names), self.seed)
        for name in names:
            try:
                sample = self.sample(name)
            except Unsuitable:
                if self.listed:
                    raise
                continue
            yield sample

    def sample(self, source_id: str) -> Sample:
        """Return one sample by its id.

        Raises:
            BuildError: If there is no such image, or it is damaged or unsuitable.
        """
        check_known(f"{self.kind} image", source_id, self.entries, BuildError)
        entry = self.entries[source_id]
        return Sample(source_id, self.inputs(entry), self.truth(entry), entry.group)

    def training_inputs(self, count: int, seed: int) -> Iterator[Any]:
        """Yield the inputs of images that are not samples.

        The training pool has a fixed order. The images of a seed start at `RUN * seed`, modulo the
        size of the pool, so that up to 50 images of successive seeds are disjoint until the pool
        is exhausted.

        Raises:
            BuildError: If the pool is too small, or shares an image with the samples.
        """
        pool = self._pool
        if count > len(pool):
            raise BuildError(
                f"{self.kind}: {count} training images are requested and there are only {len(pool)}"
            )
        return (self.inputs(pool[(seed * RUN + index) % len(pool)]) for index in range(count))

    def training_samples(self, seed: int) -> Iterator[Sample]:
        """Yield all images of the training pool, in the same order as :meth:`training_inputs`.

        Raises:
            BuildError: If the pool shares an image with the samples, or is empty.
        """
        pool = self._pool
        if not pool:
            raise BuildError(f"{self.kind}: there are no training images")
        for index in range(len(pool)):
            entry = pool[(seed * RUN + index) % len(pool)]
            yield Sample(entry.name, self.inputs(entry), self.truth(entry), entry.group)

    def decides(self) -> tuple[Sequence[Path], Any]:
        """Return the deciding files, and the names of the images with their labels."""
        labels = [
            [name, entry.truth if isinstance(entry.truth, int) else None]
            for name, entry in self.entries.items()
        ]
        return tuple(self.deciding), labels

    @cached_property
    def _pool(self) -> list[Entry]:
        """The training images, in a fixed random order."""
        entries = by_name(self.training())
        if shared := sorted(entries.keys() & self.entries.keys()):
            raise BuildError(
                f"{self.kind}: '{shared[0]}' is for training and for the dataset ({len(shared)} "
                "such images); take them out of one of the lists"
            )
        suitable = [entries[name] for name in sorted(entries) if self.fits(entries[name])]
        return shuffled(suitable, _POOL_SEED)

    def inputs(self, entry: Entry) -> Any:
        """Return the inputs of an entry, such as normalised views, float32 (N, 3, H, W)."""
        raise NotImplementedError

    def truth(self, entry: Entry) -> np.ndarray | None:
        """Return the truth of an entry."""
        return None if entry.truth is None else np.array(entry.truth)

    def training(self) -> Iterable[Entry]:
        """Return the training entries, in any order."""
        raise NotImplementedError

    def training_list(self, path: Path, resolve: Callable[[str], Entry]) -> Iterable[Entry]:
        """Return the entries that a list of training images names; their truths may be missing."""
        require([path], self.offered)
        entries = choose(path, resolve).values()
        require((entry.image for entry in entries), self.offered)
        return entries

    def fits(self, entry: Entry) -> bool:
        """Whether a training image gives the number of views that the task needs."""
        return True


def shuffled(values: Sequence[T], seed: int) -> list[T]:
    """Return values in a random order that `seed` determines."""
    return [values[index] for index in np.random.default_rng(seed).permutation(len(values))]
