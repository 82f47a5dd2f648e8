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
    "Unfit",
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

#: A training run starts this many images after that of the seed before it.
RUN = 50
_POOL_SEED = 20_250_607
_NAME = re.compile(r"[\w.-]+", re.ASCII)
#: Options of a source that name files or folders.
_PATHS = ("root", "list", "labels", "train", "train_labels")

T = TypeVar("T")


class Unfit(BuildError):
    """An image that cannot be a sample: skipped by default, an error if a list names it."""


@dataclass(frozen=True)
class Entry:
    """One image of a source.

    Attributes:
        name: source id; letters, digits, dots, dashes and underscores.
        image: where its pixels are.
        truth: where its truth is, or the truth.
        group: of samples that belong together; None where it is its own.
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
    """Return the sorted names of what a folder holds, but for what tools leave in any.

    Nothing where there is no such folder.

    Raises:
        BuildError: it may not be listed.
    """
    return sorted(name for name in _listed(folder) if not is_tool_file(name))


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last of a NUL in its name
        return []
    except OSError as error:
        raise BuildError(f"{folder}: cannot be listed ({error.strerror})") from None


def require(paths: Iterable[Any], offered: str, notes: Mapping[Path, str] | None = None) -> None:
    """Check that all files and folders are there.

    Args:
        paths: of the files and folders; what is no path is passed over.
        offered: where the owner of the data offers it.
        notes: what to say behind a path.

    Raises:
        BuildError: naming every path that is not there.
    """
    wanted = dict.fromkeys(path for path in paths if isinstance(path, Path))
    held = {folder: frozenset(_listed(folder)) for folder in {path.parent for path in wanted}}
    missing = [
        f"{path}{(notes or {}).get(path, '')}"
        for path in wanted
        if path.name not in held[path.parent]
    ]
    if missing:
        raise BuildError(f"missing: {'; '.join(missing)}; {offered}")


def reason(error: Exception, path: Path | None = None) -> str:
    """Return in one line what a file is that Git keeps elsewhere, or else what an error says."""
    if path is not None and (kind := pointer_at(path)):
        return kind
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Say of a damaged file, of which readers raise all kinds of errors, what it is not."""
    try:
        yield
    except BuildError:
        raise
    except Exception as error:
        raise BuildError(f"{path}: not {what} ({reason(error, path)})") from None


def read_list(path: Path) -> list[tuple[int, str]]:
    """Return the lines of a text file that say something, with their numbers from 1.

    A line about what a tool left is none: lists are made by listing folders.

    Raises:
        BuildError: it cannot be read as UTF-8 text.
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
    """Return what a function makes of each line of a text file, see `read_list`.

    Raises:
        BuildError: naming the line that the function refuses.
    """
    found = []
    for number, line in read_list(path):
        with prefixed(f"{path}, line {number}", BuildError, BuildError):
            found.append(parse(line))
    return found


def by_name(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Return entries by their names, in their order.

    Raises:
        BuildError: two have the same name.
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
        path: the list.
        resolve: gives the entry of a line, or raises a BuildError that says why there is none.

    Raises:
        BuildError: naming the line that says nothing known, or again what another said.
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
    """Samples of images in files, by name.

    A subclass is a dataclass whose fields are the options; `root`, `list`, `labels`, `train` and
    `train_labels` are paths. It says which images there are (`find`), and how inputs and truth are
    read.

    Attributes:
        kind: name of the source, for messages.
        serves: the task that it serves; None for any.
        offered: where the owner offers the data, for messages.
        paths: the options that are paths, where they lie.
        known: the images that may be samples.
        entries: those that are.
        deciding: files, but for the images, that decide which images there are, and their truth.
    """

    kind: ClassVar[str]
    serves: ClassVar[str | None] = None
    offered: ClassVar[str] = ""

    task: str
    seed: int
    root: str

    def __post_init__(self) -> None:
        if self.serves not in (None, self.task):
            raise BuildError(
                f"source {self.kind} does not support task '{self.task}', only {self.serves}"
            )
        if self.seed < 0:
            message = f"source {self.kind}: the seed must be a whole number from 0, not {self.seed}"
            raise BuildError(message)
        given = {name: getattr(self, name, None) for name in _PATHS}
        self.paths = {name: locate(text) for name, text in given.items() if text is not None}
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
        """Whether the images come from a list, whose order is kept."""
        return "list" in self.paths

    def required(self) -> Iterable[Path]:
        """The files and folders without which nothing can be found."""
        return self.paths.values()

    def find(self) -> dict[str, Entry]:
        """Return the images that may be samples, and note in `deciding` what decided that."""
        raise NotImplementedError

    def candidates(self) -> dict[str, Entry]:
        """Return the images that are samples where no list says so."""
        return self.known

    def named(self, line: str) -> Entry:
        """Return the image that a line of a list names."""
        raise NotImplementedError

    def check(self, entries: Iterable[Entry]) -> None:
        """Check that the files of images are there."""
        require((path for e in entries for path in (e.image, e.truth)), self.offered)

    def samples(self) -> Iterator[Sample]:
        """Samples in the order of the list, or in the seed's random order of all names.

        Raises:
            BuildError: an image is damaged, or one that a list names cannot be in a dataset.
        """
        names = [*self.entries]
        if not self.listed:
            names = shuffled(sorted(names), self.seed)
        for name in names:
            try:
                sample = self.sample(name)
            except Unfit:
                if self.listed:
                    raise
                continue
            yield sample

    def sample(self, source_id: str) -> Sample:
        """One sample by its name.

        Raises:
            BuildError: no such image, or it is damaged or cannot be in a dataset.
        """
        check_known(f"{self.kind} image", source_id, self.entries, BuildError)
        entry = self.entries[source_id]
        return Sample(source_id, self.inputs(entry), self.truth(entry), entry.group)

    def training_inputs(self, count: int, seed: int) -> Iterator[Any]:
        """Yield the inputs of images that are no samples.

        The pool has one order; a seed's run starts 50 images after that of the seed before it and
        goes round, so runs of up to 50 images with successive seeds share none until the pool is
        used up.

        Raises:
            BuildError: the pool is too small, or shares an image with the samples.
        """
        pool = self._pool
        if count > len(pool):
            raise BuildError(
                f"{self.kind}: {count} training images are requested and there are only {len(pool)}"
            )
        return (self.inputs(pool[(seed * RUN + index) % len(pool)]) for index in range(count))

    def training_samples(self, seed: int) -> Iterator[Sample]:
        """Yield the images that are no samples, from where the inputs for training of a seed start.

        Raises:
            BuildError: the pool shares an image with the samples, or is empty.
        """
        pool = self._pool
        if not pool:
            raise BuildError(f"{self.kind}: there are no training images")
        for index in range(len(pool)):
            entry = pool[(seed * RUN + index) % len(pool)]
            yield Sample(entry.name, self.inputs(entry), self.truth(entry), entry.group)

    def decides(self) -> tuple[Sequence[Path], Any]:
        """Return the lists, and the names of the images with their labels."""
        labels = [
            [name, entry.truth if isinstance(entry.truth, int) else None]
            for name, entry in self.entries.items()
        ]
        return tuple(self.deciding), labels

    @cached_property
    def _pool(self) -> list[Entry]:
        found = by_name(self.training())
        if shared := sorted(found.keys() & self.entries.keys()):
            raise BuildError(
                f"{self.kind}: '{shared[0]}' is for training and for the dataset ({len(shared)} "
                "such images); take them out of one of the lists"
            )
        fitting = [found[name] for name in sorted(found) if self.fits(found[name])]
        return shuffled(fitting, _POOL_SEED)

    def inputs(self, entry: Entry) -> Any:
        """Inputs of an entry, such as normalised views, float32 (N, 3, H, W)."""
        raise NotImplementedError

    def truth(self, entry: Entry) -> np.ndarray | None:
        """Truth of an entry."""
        return None if entry.truth is None else np.array(entry.truth)

    def training(self) -> Iterable[Entry]:
        """The entries to train on, in any order."""
        raise NotImplementedError

    def training_list(self, path: Path, resolve: Callable[[str], Entry]) -> Iterable[Entry]:
        """The entries that a list of training images names; they need no truth."""
        require([path], self.offered)
        entries = choose(path, resolve).values()
        require((entry.image for entry in entries), self.offered)
        return entries

    def fits(self, entry: Entry) -> bool:
        """Whether a training entry has the task's number of views."""
        return True


def shuffled(values: Sequence[T], seed: int) -> list[T]:
    """Return values in the random order of a seed."""
    return [values[place] for place in np.random.default_rng(seed).permutation(len(values))]
