"""Scan a downloaded release of the published benchmark and classify its files.

The layout follows its README and the paths in its code::

    org_feat/{task}/{name}.npy
    compressed_feat/{hm,vtm}/{task}/QP{qp}/{name}.bin
    compressed_feat/{hyperprior_...}/{task}/lambda{lambda}.../{name}.npy   and optionally .bin

Only the names of files and the headers of originals are read here.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from cfqa_data.console.text import counted
from cfqa_data.errors import BuildError, FormatError, prefixed
from cfqa_data.eval.paper_logs import level_of
from cfqa_data.format.format_1 import CODECS, LAYERS, LEVELS, TASKS, VIEWS
from cfqa_data.format.invariants import check_source_ids
from cfqa_data.format.layout import is_tool_path
from cfqa_data.format.limits import pointer_at
from cfqa_data.paths import real_path

__all__ = ["CodecFiles", "Release", "Unplaced", "load_feature", "scan_release"]

RELEASE_CODECS = ("hm", "vtm", "hyperprior_multi_task", "hyperprior_task_specific")

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Unplaced:
    """A file of the release that is not in the dataset.

    Attributes:
        path: Path relative to the release.
        why: Reason, in a few words.
    """

    path: str
    why: str


@dataclass(frozen=True)
class CodecFiles:
    """The files of one codec on one task in a release: every level of every original.

    Attributes:
        codec: Name of the codec.
        task: Name of the task.
        levels: Parameters of the codec, QPs or lambdas, best first.
        files: (source, level) -> bitstream of HM or VTM, or feature of a hyperprior.
        streams: (source, level) -> bitstream of a hyperprior; empty unless all exist.
    """

    codec: str
    task: str
    levels: tuple[float, ...]
    files: Mapping[tuple[str, int], Path]
    streams: Mapping[tuple[str, int], Path] = field(default_factory=dict)

    @property
    def is_video(self) -> bool:
        """Whether the files are bitstreams of HM or VTM."""
        return CODECS[self.codec].parameter.name == "qp"


@dataclass
class Release:
    """A release's files, classified into those to import and those left out.

    Attributes:
        root: Folder that contains `org_feat`.
        originals: Task -> source -> path of its original, in order.
        shapes: Task -> (N, C, T, D).
        codec_files: (task, codec) -> files of the codec.
        unplaced: Files that are left out.
    """

    root: Path
    originals: dict[str, dict[str, Path]] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    codec_files: dict[tuple[str, str], CodecFiles] = field(default_factory=dict)
    unplaced: list[Unplaced] = field(default_factory=list)

    def leave_out(self, path: Path, why: str) -> None:
        """Record a file that is left out."""
        self.unplaced.append(Unplaced(path.relative_to(self.root).as_posix(), why))

    def leave_out_codec(self, task: str, codec: str, why: str) -> None:
        """Leave out the files of a codec on a task."""
        ladder = self.codec_files.pop((task, codec))
        for path in [*ladder.files.values(), *ladder.streams.values()]:
            self.leave_out(path, why)

    def drop_tasks_without_codecs(self) -> None:
        """Leave out the originals of tasks without a codec."""
        for task in [name for name in self.originals if not self.codecs(name)]:
            for path in self.originals.pop(task).values():
                self.leave_out(path, f"no codec of {task} is complete")

    def check_ids(self) -> None:
        """Check that no two originals of any tasks have the same name.

        Raises:
            BuildError: If two originals have; the message names them and their tasks.
        """
        with prefixed(self.root / "org_feat", BuildError, FormatError):
            check_source_ids({task: list(files) for task, files in self.originals.items()})

    def codecs(self, task: str) -> list[str]:
        """Return the codecs of a task."""
        return [codec for codec in RELEASE_CODECS if (task, codec) in self.codec_files]


def scan_release(source: Path | str) -> Release:
    """Scan a release and classify its files.

    Args:
        source: The folder `cfqa_dataset`, or the folder that contains it.

    Raises:
        BuildError: If the folder is not a release, a file is only a pointer to Git LFS or
            git-annex, or an original is not a feature of its task.
    """
    root = real_path(source)
    if (root / "cfqa_dataset").is_dir():
        root = root / "cfqa_dataset"
    if not (root / "org_feat").is_dir():
        raise BuildError(
            f"{source}: contains no folder org_feat, so it is not a release of the benchmark"
        )
    release = Release(root)
    compressed: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(_all_files(root)):
        parts = path.relative_to(root).parts
        if parts[0] in ("org_feat", "compressed_feat") and (kind := pointer_at(path)):
            raise BuildError(f"{path}: {kind}")
        match parts:
            case _ if is_tool_path(path.relative_to(root).as_posix()):
                release.leave_out(path, "a leftover of a tool")
            case _ if not path.is_file():
                linked = "links to folders are not followed: copy the folder here"
                release.leave_out(path, linked if path.is_dir() else "not a readable file")
            case (*_, name) if not name.isprintable():
                release.leave_out(path, "a name with unprintable characters")
            case ("org_feat", task, name) if task in TASKS and name.endswith(".npy"):
                release.originals.setdefault(task, {})[path.stem] = path
            case ("compressed_feat", codec, task, _, *_) if (
                task in TASKS and codec in RELEASE_CODECS
            ):
                compressed.setdefault((task, codec), []).append(path)
            case _:
                release.leave_out(path, "not part of the release's layout")
    release.originals = {
        task: release.originals[task] for task in TASKS if task in release.originals
    }
    for task in release.originals:
        release.shapes[task] = _check_originals(task, release.originals[task])
    for (task, codec), paths in sorted(compressed.items()):
        _add_codec(release, task, codec, paths)
    release.drop_tasks_without_codecs()
    return release


def _all_files(root: Path) -> Iterator[Path]:
    """Yield all files below a folder, and links to folders, which are not followed."""

    def refuse(error: OSError) -> None:
        raise BuildError(f"{error.filename}: cannot be listed ({error.strerror})")

    for directory, folders, files in os.walk(root, onerror=refuse):
        folder = Path(directory)
        yield from (folder / name for name in files)
        yield from (folder / name for name in folders if (folder / name).is_symlink())


def open_feature(path: Path, shape: Shape | None = None) -> np.ndarray:
    """Memory-map a float32 (N, C, T, D) array, without checking its values.

    Raises:
        BuildError: If the file is not such an array, or its shape is not `shape`.
    """
    try:
        # `np.load` would also open pickles and archives.
        with warnings.catch_warnings(action="ignore"):
            feature: np.ndarray = open_memmap(path, mode="r")
    except Exception as error:  # the header is parsed as Python literals, which may raise anything
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BuildError(f"{path}: not a readable .npy array: {detail}") from None
    if feature.dtype != np.float32 or feature.ndim != 4 or 0 in feature.shape:
        raise BuildError(
            f"{path}: {feature.dtype} {feature.shape}, not a float32 feature (N, C, T, D)"
        )
    if shape is not None and feature.shape != shape:
        raise BuildError(f"{path}: shape {feature.shape}, the task's features have {shape}")
    return feature


def load_feature(path: Path, shape: Shape) -> np.ndarray:
    """Read a feature into memory, float32 (N, C, T, D).

    Raises:
        BuildError: See :func:`open_feature`; or a value is NaN or infinite.
    """
    feature = np.array(open_feature(path, shape), order="C")
    if not np.isfinite(feature).all():
        where = tuple(int(axis) for axis in np.argwhere(~np.isfinite(feature))[0])
        raise BuildError(f"{path}: holds NaN or infinity, first at {where}")
    return feature


def _check_originals(task: str, originals: Mapping[str, Path]) -> Shape:
    """Check that the originals of a task have the same valid shape, and return it."""
    shapes = {path: open_feature(path).shape for path in originals.values()}
    (first, shape), *others = shapes.items()
    expected = (len(VIEWS[task]), LAYERS[task])
    if shape[:2] != expected:
        raise BuildError(f"{first}: {shape[0]} views of {shape[1]} layers; {task} has {expected}")
    for path, other in others:
        if other != shape:
            raise BuildError(f"{path}: shape {other}, but {first.name} has {shape}")
    return (*shape[:2], *shape[2:])


def _add_codec(release: Release, task: str, codec: str, paths: list[Path]) -> None:
    """Add the files of one codec on one task, or leave all of them out with the reason."""
    video, names = CODECS[codec].parameter.name == "qp", list(release.originals.get(task, {}))
    suffixes = (".bin",) if video else (".npy", ".bin")
    by_suffix: dict[str, dict[tuple[str, float], Path]] = {".npy": {}, ".bin": {}}
    for path in paths:
        folders = path.relative_to(release.root).parts[3:-1]
        level = next(filter(None, map(level_of, reversed(folders))), None)
        if path.suffix not in suffixes:
            why = f"{codec} has {' or '.join(suffixes)} files"
        elif path.stem not in names:
            why = f"no org_feat/{task}/{path.stem}.npy"
        elif level is None:
            why = "in no folder QP{qp} or lambda{lambda}"
        elif (before := by_suffix[path.suffix].setdefault((path.stem, level), path)) != path:
            why = f"{before.relative_to(release.root)} has the same level"
        else:
            continue
        release.leave_out(path, why)
    files, streams = by_suffix[suffixes[0]], {} if video else by_suffix[".bin"]
    levels = sorted({level for _, level in files}, reverse=not video)
    keys = {(name, level): (name, n) for name in names for n, level in enumerate(levels)}
    complete = keys.keys() <= streams.keys()
    release.codec_files[task, codec] = CodecFiles(
        codec,
        task,
        tuple(levels),
        {keys[key]: path for key, path in files.items()},
        {keys[key]: streams[key] for key in keys} if complete else {},
    )
    if len(levels) != LEVELS:
        why = f"{codec} on {task} has {counted(len(levels), 'levels')}; a dataset has {LEVELS}"
    elif missing := [key for key in keys if key not in files]:
        why = f"{codec} on {task} lacks {missing[0][0]} at level {missing[0][1]:g}"
    else:
        why = ""
    for path in streams.values() if not complete else ():
        release.leave_out(path, why or "not every feature next to it has its bitstream")
    if why:
        release.leave_out_codec(task, codec, why)
