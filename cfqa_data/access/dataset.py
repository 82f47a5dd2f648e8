"""Open a dataset folder and read pairs of original and compressed features with their labels.

Both tiers are read through the same interface: where the codes are not stored, the bitstream is
decoded on access, with the same result. Files are opened on first use and features are read one at
a time. Open files are not pickled; an unpickled dataset opens them again.
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
    """Keyword arguments of :func:`load`, for functions that pass them on."""

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
    """A compressed feature with its original and its label.

    Attributes:
        original: Original feature, float32 (N, C, T, D).
        compressed: Decoded feature, float32 (N, C, T, D).
        label: Row of the label table: column -> value. The columns are those of
            :data:`cfqa_data.format.schema.LABEL_COLUMNS`.
    """

    original: np.ndarray
    compressed: np.ndarray
    label: dict[str, Any]

    def _summary(self, rows: bool) -> Summary:
        label = self.label
        title = f"FeaturePair {label['source_id']} by {label['codec']}, level {label['level']}"
        values = {
            name: label.get(name)
            for name in ("bpfp", "score", "reference_score", "distortion", "loss", "mse")
        }
        facts = {name: f"{value:.4g}" for name, value in values.items() if isinstance(value, float)}
        shape = f"{self.original.dtype} {self.original.shape}"
        return Summary(title, {"task": label.get("task"), "each": shape, **facts})


class Dataset(Described, Sequence[FeaturePair]):
    """A sequence of the compressed features in a dataset folder, in the order of :attr:`labels`.

    An integer index reads a :class:`FeaturePair`; a slice returns a dataset of those rows without
    reading features. Use :func:`load` to open a folder.
    """

    def __init__(self, folder: Folder, labels: pa.Table) -> None:
        self._folder = folder
        self._labels = labels

    @property
    def location(self) -> str:
        """Location of the folder: a path, or an ``hf://`` URL."""
        return self._folder.files.location

    @property
    def path(self) -> Path | None:
        """Path of the folder; None if it is on the Hub or in memory."""
        return self._folder.files.root

    @property
    def manifest(self) -> Manifest:
        """Manifest of the folder: its recipe, tasks, codecs, files and software versions."""
        return self._folder.manifest

    @property
    def untrusted(self) -> bool:
        """Whether bitstreams are decoded in sandboxed child processes."""
        return self._folder.untrusted

    @property
    def plugins(self) -> tuple[str | type, ...]:
        """Codec classes given by the caller, as classes or as names with their module."""
        return self._folder.plugins

    @property
    def follow_links(self) -> bool:
        """Whether symbolic links that lead out of the folder are followed."""
        return self._folder.files.follow_links

    @property
    def labels(self) -> pa.Table:
        """Label table with one row per compressed feature.

        Its schema is :func:`cfqa_data.format.schema.label_schema`.
        """
        return self._labels

    @property
    def source_ids(self) -> list[str]:
        """Distinct source ids of :attr:`labels`, in order of first appearance."""
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
        columns = [self._labels[name].to_numpy() for name in ("task", "source_id", "codec")]
        for task in dict.fromkeys(columns[0].tolist()):
            _, sources, codecs = (column[columns[0] == task].tolist() for column in columns)
            table.append((task, len(set(sources)), ", ".join(dict.fromkeys(codecs)), len(codecs)))
        facts = {"summary": self.manifest.summary, "tier": self.manifest.tier, "holds": count}
        return Summary(title, facts, table)

    def original(self, source_id: str, **part: Unpack[Part]) -> np.ndarray:
        """Return an original feature, or a part of it, float32 (N, C, T, D).

        Args:
            source_id: Id of the source.
            part: ``views``, ``layers`` and ``tokens``: an index or slice along N, C and T
                (None for the whole axis). An integer keeps the axis, with length 1. If the task
                has a class token, it is token 0.

        Raises:
            CfqaError: If an index is out of range or is not an integer, or a slice is empty.
            FormatError: If the source does not exist, or its file is missing or damaged.
        """
        return self._folder.original(source_id, **part)

    def compressed(
        self, source_id: str, codec: str, level: int, **part: Unpack[Part]
    ) -> np.ndarray:
        """Return a compressed feature, or a part of it, float32 (N, C, T, D).

        Every feature of the folder can be read, not only those of :attr:`labels`. Only the selected
        views and layers of stored codes are read; a bitstream is always decoded whole.

        Args:
            source_id: Id of the source.
            codec: Name of the codec.
            level: Level of the codec, from 0 (best).
            part: Selection of views, layers and tokens, as for :meth:`original`.

        Raises:
            CfqaError: If an index is out of range or is not an integer, or a slice is empty.
            FormatError: If the feature does not exist, or its file is missing or damaged.
        """
        return self._folder.compressed(source_id, codec, level, **part)

    def codes(self, source_id: str, codec: str, level: int, **part: Unpack[Part]) -> Codes:
        """Return a compressed feature as integer codes with their table of values.

        Codes take a quarter or half of the memory of float32, so they are cheaper to move to a
        GPU. The arguments are those of :meth:`compressed`.

        Raises:
            CfqaError: If an index is out of range or is not an integer, or a slice is empty.
            FormatError: If the feature does not exist or has no codes, or its file is missing or
                damaged.
        """
        return self._folder.codes(source_id, codec, level, **part)

    def bitstream(self, source_id: str, codec: str, level: int) -> bytes:
        """Return the bitstream of a compressed feature; its length is the rate in the labels.

        Raises:
            FormatError: If the feature does not exist or has no bitstream, or its file is missing
                or damaged.
        """
        return self._folder.bitstream(source_id, codec, level)

    def gallery(self, task: str) -> dict[str, np.ndarray]:
        """Return the gallery that the features of a task are scored against: name -> array.

        Raises:
            CfqaError: If the task does not exist.
            FormatError: If the task has no gallery, or its file is missing or damaged.
        """
        return self._folder.gallery(task)

    def truth(self, source_id: str) -> np.ndarray:
        """Return the ground truth of a source, against which the output of its task is scored.

        Raises:
            FormatError: If the source does not exist, or the folder has no ground truth for it.
        """
        return self._folder.truth(source_id)

    def image(self, source_id: str) -> Image:
        """Return the image that a source's feature was extracted from, 8-bit RGB.

        Folders do not contain images: the source class of the recipe renders the image again, or
        reads it below the folder named by the environment variable CFQA_ROOT (``root://``). Views
        that are crops of one image are joined.

        Raises:
            CfqaError: If the source does not exist, or its image is not available.
            MissingDependencyError: If Pillow is not installed.
        """
        from cfqa_data import source_image

        return source_image(self, source_id)

    def grid(self, task: str) -> TokenGrid | None:
        """Return the grid that maps the tokens of a task to image patches; None without a grid.

        Raises:
            CfqaError: If the task does not exist.
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
        """Show a source: its input, and the output of its task for each compressed feature.

        The figure also has the ground truth, the output for the original feature, the error and the
        principal components of the tokens, the labels, and the scores of metrics.

        Args:
            source_id: Id of the source.
            codec: Codec or codecs to show; all if None.
            level: Level or levels to show; all if None.
            metrics: Names, functions or `Metric` objects; the metrics in the labels if None.
            evaluation: Evaluation to take the scores from; `metrics` then names some of its
                metrics.

        Returns:
            An object that notebooks display and whose `save` writes an HTML page or a picture.

        Raises:
            CfqaError: If a source, codec, level or metric does not exist, or this dataset has no
                row of them.
            FormatError: If a file is missing or damaged.
            MissingDependencyError: If a package that draws the figure is not installed.
        """
        from cfqa_data import show

        chosen = {"codec": codec, "level": level, "source": source_id}
        labels = _select_rows(self._labels, self.manifest.tasks, self.location, **chosen)
        return show(Dataset(self._folder, labels), source_id, metrics, evaluation)


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
    """Open a local dataset folder, or a dataset repo on the Hugging Face Hub.

    Args:
        path: Path of a folder; or "org/name" or "hf://datasets/org/name[@revision]" for a repo on
            the Hub. A path that exists locally is always the folder.
        task: Select the rows of this task; all tasks if None.
        codec: Select the rows of this codec or these codecs.
        level: Select the rows of this level or these levels.
        source: Select the rows of this source id or these source ids.
        fold: Select the rows of the sources in this fold or these folds.
        revision: Branch, tag or commit of a repo; its main branch if None.
        cache: For a repo: download whole files into `huggingface_hub`'s cache (or the folder given
            here) and read them from there, instead of requesting the needed bytes on each access.
        untrusted: Decode bitstreams in sandboxed child processes, for a dataset from an untrusted
            source. The decoded features are the same.
        follow_links: Follow symbolic links that lead out of the folder, as DVC and git-annex
            create them; only for a folder you trust. By default, links are followed only within
            the folder and, in a cache of the Hub, to the files of that cache.
        plugins: Codec classes that are not installed, as classes or `module:Class`, to decode
            their bitstreams. Classes that only the manifest names are never imported.

    Returns:
        The selected compressed features with their originals and labels.

    Raises:
        CfqaError: If a task, codec, level, source or fold does not exist.
        FormatError: If the path is not a dataset folder, or a table in it is missing, damaged or
            incomplete.
        HubError: If the repo does not exist, may not be read, or cannot be reached.
        MissingDependencyError: If a repo is opened, and `huggingface_hub` is not installed.
    """
    folder = Folder(open_files(path, revision, cache, follow_links), untrusted, plugins or ())
    tasks = folder.manifest.tasks
    if task is not None:
        tasks = {task: tasks[check_known("task", task, tasks, CfqaError, path)]}
    sources = chosen = None if source is None else _as_list(source)
    known = {one for entry in tasks.values() for one in entry.sources}
    if fold is not None or not all(isinstance(one, str) and one in known for one in chosen or ()):
        chosen = None  # read all rows: the errors for an unknown source or fold are raised below
    labels = pa.concat_tables([folder.labels(name, chosen) for name in tasks])
    labels = _select_rows(labels, tasks, path, codec=codec, level=level, source=sources, fold=fold)
    return Dataset(folder, labels)


def _select_rows(
    labels: pa.Table,
    tasks: Mapping[str, TaskEntry],
    where: object,
    *,
    codec: Any = None,
    level: Any = None,
    source: Any = None,
    fold: Any = None,
) -> pa.Table:
    """Return the label rows selected by arguments of :func:`load`.

    Raises:
        CfqaError: If a codec, level, source or fold does not exist.
    """
    sources = {source: None for entry in tasks.values() for source in entry.sources}
    codecs = [codec for entry in tasks.values() for codec in entry.codecs.values()]
    one_of = partial(check_known, error=CfqaError, where=where)
    chosen = None if codec is None else _as_list(codec)
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
            values = [check(value) for value in _as_list(selected)]
            allowed = pa.array(values, labels.schema.field(column).type)
            labels = labels.filter(pc.is_in(labels[column], value_set=allowed))
    return labels


def opened(dataset: str | Path | Dataset, **options: Any) -> Dataset:
    """Return a dataset unchanged, or open the one at a path.

    Raises:
        CfqaError: If options of :func:`load` are given for a dataset that is already open.
    """
    if not isinstance(dataset, Dataset):
        return load(dataset, **options)
    passed = [
        name
        for name, value in options.items()
        if value is not None and value is not False and (name != "plugins" or value)
    ]
    if passed:
        raise CfqaError(
            f"{' and '.join(passed)} can be given only with a path; pass them to load(), since "
            "this dataset is already open"
        )
    return dataset


def _as_list(selected: Any) -> list[Any]:
    """Return one value or several values as a list."""
    if isinstance(selected, str | bytes):
        return [selected]
    try:
        return selected.to_pylist() if hasattr(selected, "to_pylist") else list(selected)
    except TypeError:
        return [selected]
