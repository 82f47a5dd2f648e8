"""Reading a dataset folder: pairs of original and compressed feature with their labels.

A folder of either tier reads alike: where the codes are not stored, the bitstream is decoded on
access and gives the same numbers. Files are opened on first use, features are read one at a time,
and a pickled dataset opens its files anew.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, TypedDict, Unpack, overload

import numpy as np

from cfqa_data.access.folder import Folder, check_level
from cfqa_data.access.grid import TokenGrid, token_grid
from cfqa_data.access.hub import open_files
from cfqa_data.access.selection import Part
from cfqa_data.arrow import pa, pc
from cfqa_data.console.summary import Described, Summary
from cfqa_data.console.text import counted
from cfqa_data.errors import CfqaError, check_known
from cfqa_data.format.codes import Codes
from cfqa_data.format.facts import TaskEntry
from cfqa_data.format.manifest import Manifest
from cfqa_data.registry import Plugins

if TYPE_CHECKING:
    from PIL.Image import Image

    from cfqa_data.builders.gallery.show import Shown
    from cfqa_data.eval import Evaluation

__all__ = ["Dataset", "FeaturePair", "LoadOptions", "load", "opened"]


class LoadOptions(TypedDict, total=False):
    """Options of :func:`load`, for what passes them on."""

    codec: str | Iterable[str] | None
    level: SupportsIndex | Iterable[SupportsIndex] | None
    source: str | Iterable[str] | None
    fold: SupportsIndex | Iterable[SupportsIndex] | None
    revision: str | None
    cache: bool | str | Path
    untrusted: bool
    follow_links: bool
    plugins: Plugins | None


@dataclass(frozen=True, eq=False, repr=False)
class FeaturePair(Described):
    """A compressed feature beside its original.

    Attributes:
        original: float32 (N, C, T, D).
        compressed: float32 (N, C, T, D), what the codec decoded to.
        label: its row of the labels, by column of :data:`cfqa_data.format.schema.LABEL_COLUMNS`.
    """

    original: np.ndarray
    compressed: np.ndarray
    label: dict[str, Any]

    def _summary(self, rows: bool) -> Summary:
        of = self.label
        title = f"FeaturePair {of['source_id']} by {of['codec']}, level {of['level']}"
        figures = {
            n: of.get(n) for n in ("bpfp", "score", "score_ref", "distortion", "loss", "mse")
        }
        facts = {n: f"{v:.4g}" for n, v in figures.items() if isinstance(v, float)}
        shape = f"{self.original.dtype} {self.original.shape}"
        return Summary(title, {"task": of.get("task"), "each": shape, **facts})


class Dataset(Described, Sequence[FeaturePair]):
    """The compressed features of a folder, in the order of :attr:`labels`.

    Made by :func:`load`; slicing gives a dataset of fewer rows over the same files.
    """

    def __init__(self, folder: Folder, labels: pa.Table) -> None:
        self._folder = folder
        self._labels = labels

    @property
    def location(self) -> str:
        """Where the folder is: a path, or an ``hf://`` address."""
        return self._folder.files.location

    @property
    def path(self) -> Path | None:
        """The folder, if it is one on this machine."""
        return self._folder.files.root

    @property
    def manifest(self) -> Manifest:
        """What the folder was made from and with."""
        return self._folder.manifest

    @property
    def untrusted(self) -> bool:
        """Whether bitstreams are decoded in child processes that can do nothing else."""
        return self._folder.untrusted

    @property
    def plugins(self) -> tuple[str | type, ...]:
        """Classes of codecs that are not installed and may decode, or the names of some."""
        return self._folder.plugins

    @property
    def follow_links(self) -> bool:
        """Whether links that lead out of the folder are followed."""
        return self._folder.files.follow_links

    @property
    def labels(self) -> pa.Table:
        """One row per compressed feature, of :func:`cfqa_data.format.schema.label_schema`."""
        return self._labels

    @property
    def source_ids(self) -> list[str]:
        """The sources that have a row here, in order of their first."""
        return list(dict.fromkeys(self._labels["source_id"].to_pylist()))

    def __len__(self) -> int:
        return int(self._labels.num_rows)

    @overload
    def __getitem__(self, index: SupportsIndex) -> FeaturePair: ...
    @overload
    def __getitem__(self, index: slice) -> Dataset: ...
    def __getitem__(self, index: SupportsIndex | slice) -> FeaturePair | Dataset:
        if isinstance(index, slice):
            return Dataset(self._folder, self._labels.take(np.arange(*index.indices(len(self)))))
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of a dataset of {len(self)} rows")
        label = self._labels.slice(index % len(self), 1).to_pylist()[0]
        source = label["source_id"]
        return FeaturePair(
            original=self.original(source),
            compressed=self.compressed(source, label["codec"], label["level"]),
            label=label,
        )

    def _summary(self, rows: bool) -> Summary:
        title = f"Dataset {self.manifest.name!r} at {self.location}"
        count = counted(len(self), "compressed features")
        if not rows:
            return Summary(f"{title}: {count}", {})
        table: list[Sequence[Any]] = [("task", "originals", "codecs", "compressed features")]
        names = [self._labels[name].to_numpy() for name in ("task", "source_id", "codec")]
        for task in dict.fromkeys(names[0].tolist()):
            of = [values[names[0] == task].tolist() for values in names]
            table.append((task, len(set(of[1])), ", ".join(dict.fromkeys(of[2])), len(of[0])))
        facts = {"summary": self.manifest.summary, "tier": self.manifest.tier, "holds": count}
        return Summary(title, facts, table)

    def original(self, source_id: str, **part: Unpack[Part]) -> np.ndarray:
        """Return an original feature, or a part of it, float32 (N, C, T, D).

        Args:
            source_id: which.
            part: ``views``, a place along N, or a slice of places; all if None. The axis stays.
                ``layers``, the same along C. ``tokens``, the same along T; the class token is 0.

        Raises:
            CfqaError: the part has no such place.
            FormatError: there is no such source, or its file is missing or damaged.
        """
        return self._folder.original(source_id, **part)

    def compressed(
        self, source_id: str, codec: str, level: int, **part: Unpack[Part]
    ) -> np.ndarray:
        """Return a compressed feature, float32 (N, C, T, D), whatever rows were asked for.

        Parts are asked for as of :meth:`original`. Of stored codes only the views and layers that
        are asked for are read; a bitstream is decoded whole.

        Raises:
            CfqaError: the part has no such place.
            FormatError: there is no such feature, or its file is missing or damaged.
        """
        return self._folder.compressed(source_id, codec, level, **part)

    def codes(self, source_id: str, codec: str, level: int, **part: Unpack[Part]) -> Codes:
        """Return a compressed feature as integers with the values that they stand for.

        A quarter or half of the bytes of the float32 that they stand for: what to send to a GPU.
        Parts are asked for as of :meth:`original`.

        Raises:
            CfqaError: the part has no such place.
            FormatError: there is no such feature, or its file is missing or damaged.
        """
        return self._folder.codes(source_id, codec, level, **part)

    def bitstream(self, source_id: str, codec: str, level: int) -> bytes:
        """Return what the rate of a compressed feature counts.

        Raises:
            FormatError: there is no such feature, or its file is missing or damaged.
        """
        return self._folder.bitstream(source_id, codec, level)

    def gallery(self, task: str) -> dict[str, np.ndarray]:
        """Return what the features of all sources of a task are scored against, by name.

        Raises:
            CfqaError: there is no task of that name.
            FormatError: the task has no gallery, or it is missing or damaged.
        """
        return self._folder.gallery(task)

    def truth(self, source_id: str) -> np.ndarray:
        """Return what the task's head is scored against for a source.

        Raises:
            FormatError: there is no such source, or the folder holds no truth for it.
        """
        return self._folder.truth(source_id)

    def image(self, source_id: str) -> Image:
        """Return the image that a source's feature was made from, 8-bit RGB.

        It is not in the folder: the dataset's source renders it again, or reads it from where
        ``root://`` is (the environment variable CFQA_ROOT). Several views of one image are put
        together again.

        Raises:
            CfqaError: there is no such source, or its image is not to be had here.
            MissingDependencyError: Pillow is not installed.
        """
        from cfqa_data import source_image

        return source_image(self, source_id)

    def grid(self, task: str) -> TokenGrid | None:
        """Return where the tokens of a task's views lie in the image; None where they have no grid.

        Raises:
            CfqaError: there is no task of that name.
        """
        check_known("task", task, self.manifest.tasks, CfqaError, self.location)
        return token_grid(self.manifest.tasks[task], self.manifest.format)

    def show(
        self,
        source_id: str,
        *,
        codec: str | Iterable[str] | None = None,
        level: SupportsIndex | Iterable[SupportsIndex] | None = None,
        metrics: Iterable[Any] | None = None,
        evaluation: Evaluation | None = None,
    ) -> Shown:
        """Show a source: its input, and what its task makes of its feature at each level.

        Beside the task's output from the original and from compressed features, and the ground
        truth, there are errors and principal components of tokens, labels, and scores of metrics.
        Of versions that have rows here, only those that are chosen are read.

        Args:
            source_id: which.
            codec: this codec, or these; all of them if None.
            level: this level, or these; all of them if None.
            metrics: names, functions or `Metric` objects; those that the labels hold if None.
            evaluation: holds the scores; `metrics` then names some of its metrics.

        Returns:
            What a notebook draws; its `save` writes a page or a picture.

        Raises:
            CfqaError: there is no such source, codec, level or metric, or no row of them here.
            FormatError: a file is missing or damaged.
            MissingDependencyError: what draws is not installed.
        """
        from cfqa_data import show

        chosen = _selected(
            self.location,
            self.manifest.tasks,
            self._labels,
            codec=codec,
            level=level,
            source=source_id,
        )
        return show(Dataset(self._folder, chosen), source_id, metrics, evaluation)


def load(
    path: str | Path,
    task: str | None = None,
    *,
    codec: str | Iterable[str] | None = None,
    level: SupportsIndex | Iterable[SupportsIndex] | None = None,
    source: str | Iterable[str] | None = None,
    fold: SupportsIndex | Iterable[SupportsIndex] | None = None,
    revision: str | None = None,
    cache: bool | str | Path = False,
    untrusted: bool = False,
    follow_links: bool = False,
    plugins: Plugins | None = None,
) -> Dataset:
    """Open a dataset folder, on this machine or in a dataset repo on the Hub.

    Args:
        path: the folder that `cfqa build` wrote; or "org/name" or
            "hf://datasets/org/name[@revision]". What exists on this machine is always the folder.
        task: keep the rows of this task; all of them if None.
        codec: keep the rows of this codec, or of these.
        level: keep the rows of this level, or of these.
        source: keep the rows of this source id, or of these.
        fold: keep the rows of the sources in this fold, or in these.
        revision: of a repo: branch, tag or commit; its main branch if None.
        cache: of a repo: fetch whole files into `huggingface_hub`'s cache (or the folder given
            here) and read them from there, instead of only the bytes that are needed each time.
        untrusted: decode bitstreams in child processes that can do nothing else, for a dataset
            that may come from anyone. The decoded features are the same.
        follow_links: of a folder of one's own: read what its links lead to, wherever that is, as
            DVC and git-annex have them. Otherwise they are followed within the folder, and where
            it is in the Hub's cache, to that cache's files.
        plugins: classes of codecs that are not installed, or `module:Class` of some; for decoding
            what they have made. Classes of a manifest's own choice are never run.

    Returns:
        The compressed features with their originals and labels.

    Raises:
        CfqaError: there is no task, codec, level, source or fold of that name.
        FormatError: the folder is not a dataset folder, or a table in it is missing, damaged or
            lacks a row that the manifest promises.
        HubError: the repo is not there, may not be read, or cannot be reached.
        MissingDependencyError: a repo is asked for, and `huggingface_hub` is not installed.
    """
    folder = Folder(open_files(path, revision, cache, follow_links), untrusted, plugins or ())
    held = folder.manifest.tasks
    if task is not None:
        check_known("task", task, held, CfqaError, path)
    tasks = {name: entry for name, entry in held.items() if task in (None, name)}
    sources = chosen = None if source is None else _several(source)
    known = {one for entry in tasks.values() for one in entry.sources}
    if fold is not None or not all(isinstance(one, str) and one in known for one in chosen or ()):
        chosen = None  # the folds that there are, and which source is not there, are told below
    labels = pa.concat_tables([folder.labels(name, chosen) for name in tasks])
    labels = _selected(path, tasks, labels, codec=codec, level=level, source=sources, fold=fold)
    return Dataset(folder, labels)


def _selected(
    where: object,
    tasks: Mapping[str, TaskEntry],
    labels: pa.Table,
    *,
    codec: Any = None,
    level: Any = None,
    source: Any = None,
    fold: Any = None,
) -> pa.Table:
    """Return the rows that options of :func:`load` choose.

    Raises:
        CfqaError: there is no codec, level, source or fold of that name.
    """
    sources = {source: None for entry in tasks.values() for source in entry.sources}
    codecs = [codec for entry in tasks.values() for codec in entry.codecs.values()]
    one_of = partial(check_known, error=CfqaError, where=where)
    chosen = None if codec is None else _several(codec)
    levels = max((len(c.levels) for c in codecs if chosen is None or c.name in chosen), default=1)
    folds = sorted(pc.unique(labels["fold"]).to_pylist())

    def one_fold(value: object) -> int:
        if not isinstance(value, SupportsIndex) or isinstance(value, bool) or value not in folds:
            available = ", ".join(map(str, folds))
            raise CfqaError(f"{where}: no source is in fold {value!r}: folds are {available}")
        return operator.index(value)

    for column, selected, check in (
        ("codec", chosen, partial(one_of, "codec", known={c.name: c for c in codecs})),
        ("level", level, partial(check_level, count=levels)),
        ("source_id", source, partial(one_of, "source", known=sources)),
        ("fold", fold, one_fold),
    ):
        if selected is not None:
            values = [check(value) for value in _several(selected)]
            allowed = pa.array(values, labels.schema.field(column).type)
            labels = labels.filter(pc.is_in(labels[column], value_set=allowed))
    return labels


def opened(dataset: str | Path | Dataset, **options: Any) -> Dataset:
    """Return an open dataset as it is, and that at a path opened.

    Raises:
        CfqaError: options of :func:`load` are given, and the dataset is open.
    """
    if not isinstance(dataset, Dataset):
        return load(dataset, **options)
    given = [
        name
        for name, value in options.items()
        if value is not None and value is not False and (name != "plugins" or value)
    ]
    if given:
        raise CfqaError(
            f"{' and '.join(given)} can be given only with a path; pass them to load(), since this "
            "dataset is already open"
        )
    return dataset


def _several(selected: Any) -> list[Any]:
    """Return what may be one thing or several as a list."""
    if isinstance(selected, str | bytes):
        return [selected]
    try:
        return selected.to_pylist() if hasattr(selected, "to_pylist") else list(selected)
    except TypeError:
        return [selected]
