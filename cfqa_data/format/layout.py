"""Paths of the files in a dataset folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

__all__ = ["ALL", "NAMES", "TOP_NAMES", "Layout", "is_tool_file", "is_tool_path"]

TOOL_NAMES = {
    # macOS
    *(".ds_store", ".localized", "icon\r", "__macosx", ".appledouble", ".spotlight-v100"),
    *(".trashes", ".fseventsd", ".temporaryitems", ".documentrevisions-v100", ".apdisk"),
    # Windows
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    # Linux desktops, network storage
    *(".directory", ".thumbnails", ".sh_thumbnails", "lost+found", "@eadir", "#recycle"),
    # editors, notebooks, Python, Git and DVC
    *(".ipynb_checkpoints", "__pycache__", ".idea", ".vscode", ".gitignore"),
}
"""Names, in lower case, of files and folders that systems and editors create in any folder."""

TOOL_PATTERNS = (
    *("._*", "*~", ".~*", ".*.swp", ".nfs*", ".fuse_hidden*"),
    *(".trash-*", ".syncthing.*", "*.dvc"),
)
"""Patterns of further names of such files."""

TOP_TOOL_NAMES = {
    *(".build", ".repair", ".cache", "croissant.json"),
    *(".git", ".gitattributes", ".datalad", ".dvc", ".dvcignore"),
}
"""Names at the top of a folder that belong to this package, the Hub, or version control."""


@dataclass(frozen=True)
class Layout:
    """Paths in the dataset folder ``root``; no method accesses the disk."""

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))

    @property
    def card(self) -> Path:
        """The dataset card, whose YAML header `load_dataset` reads."""
        return self.root / "README.md"

    @property
    def manifest(self) -> Path:
        """The manifest: how the dataset was made, and the hash of every file."""
        return self.root / "manifest.json"

    @property
    def work(self) -> Path:
        """State of an unfinished build; removed at its end."""
        return self.root / ".build"

    @property
    def originals_table(self) -> Path:
        """Table with one row per original of all tasks."""
        return self.root / "labels" / "originals.parquet"

    @property
    def previews(self) -> Path:
        """Table of originals with pictures; missing if there are no pictures."""
        return self.root / "previews" / "originals.parquet"

    @property
    def hero(self) -> Path:
        """Picture of the card: a few rows of the table of previews."""
        return self.root / "previews" / "hero.webp"

    def labels(self, task: str) -> Path:
        """Return the path of a table with one row per compressed feature."""
        return self.root / "labels" / f"{task}.parquet"

    def originals(self, task: str, shard: int, shards: int) -> Path:
        """Return the path of original features, float32 (N, C, T, D) by source id."""
        return self.root / "originals" / f"{task}-{_shard(shard, shards)}.safetensors"

    def compressed(self, task: str, codec: str) -> Path:
        """Return the path of a Zarr array with the codes of all compressed features of a codec."""
        return self.root / "compressed" / task / f"{codec}.zarr"

    def bitstreams(self, task: str, codec: str, shard: int, shards: int) -> Path:
        """Return the path of bitstreams, uint8 (bytes,) by "source_id/level", without padding."""
        return self.root / "bitstreams" / f"{task}-{codec}-{_shard(shard, shards)}.safetensors"

    def truth(self, task: str) -> Path:
        """Return the path of ground truth, by source id."""
        return self.root / "truth" / f"{task}.safetensors"

    def gallery(self, name: str) -> Path:
        """Return the path of a gallery, whose name is in its task's entry."""
        return self.root / "truth" / name

    def tables(self, name: str) -> Path:
        """Return the path of a file of decoder tables, whose name is in its codec's entry."""
        return self.root / "tables" / name

    def shards(self, count: int, path: Callable[..., Path], *of: str) -> list[str]:
        """Return the relative names of all shards of a task's originals or bitstreams.

        Args:
            count: Number of shards.
            path: :meth:`originals` or :meth:`bitstreams`.
            of: The task, and for bitstreams the codec.
        """
        return [self.relative(path(*of, number, count)) for number in range(count)]

    def relative(self, path: Path) -> str:
        """Return a path relative to the folder, with ``/``, as in tables and the manifest."""
        return path.relative_to(self.root).as_posix()


NAMES = Layout(Path())
"""Paths relative to a dataset folder."""

ALL = "all"
"""Name of the labels of all tasks in `load_dataset`, if there are several tasks."""

TOP_NAMES = {
    *("README.md", "manifest.json"),
    *("labels", "originals", "previews", "compressed", "bitstreams", "truth", "tables"),
}
"""Names at the top of a folder that are part of the dataset."""


def is_tool_file(name: str) -> bool:
    """Return whether a file or folder name, in any folder, is one that systems and editors create.

    All readers of folders (images, releases, lists, logs, datasets) ignore these.
    """
    name = name.lower()
    return name in TOOL_NAMES or any(fnmatchcase(name, pattern) for pattern in TOOL_PATTERNS)


def is_tool_path(name: str) -> bool:
    """Return whether a path relative to a dataset folder is not part of the dataset."""
    parts = PurePosixPath(name).parts
    return parts[0] in TOP_TOOL_NAMES or any(map(is_tool_file, parts))


def _shard(shard: int, shards: int) -> str:
    if not 0 <= shard < shards <= 99999:
        raise ValueError(f"no shard {shard} of {shards}")
    return f"{shard:05d}-of-{shards:05d}"
