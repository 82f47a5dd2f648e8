"""Paths of the files in a dataset folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

__all__ = ["ALL", "NAMES", "TOP_NAMES", "Layout", "is_tool_file", "is_tool_path"]

TOOLS = {
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
"""Files and folders that desktops, storage and editors put into any folder, in lower case."""

PATTERNS = (
    "._*",
    "*~",
    ".~*",
    ".*.swp",
    ".nfs*",
    ".fuse_hidden*",
    ".trash-*",
    ".syncthing.*",
    "*.dvc",
)
"""The same, where only a part of the name is known."""

TOP = {
    ".build",
    ".repair",
    ".cache",
    ".git",
    ".gitattributes",
    ".datalad",
    ".dvc",
    ".dvcignore",
    "croissant.json",
}
"""What stands at the top of a folder and belongs to what made, fetched or keeps it."""


@dataclass(frozen=True)
class Layout:
    """Paths in the dataset folder ``root``; nothing here touches the disk."""

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))

    @property
    def card(self) -> Path:
        """The dataset card, whose YAML head `load_dataset` reads."""
        return self.root / "README.md"

    @property
    def manifest(self) -> Path:
        """The manifest: how the dataset was made, and the hash of every file."""
        return self.root / "manifest.json"

    @property
    def work(self) -> Path:
        """State of a build that is not finished; gone at its end."""
        return self.root / ".build"

    @property
    def originals_table(self) -> Path:
        """One row per original, all tasks."""
        return self.root / "labels" / "originals.parquet"

    @property
    def previews(self) -> Path:
        """The table of originals with pictures; only where there are any to give."""
        return self.root / "previews" / "originals.parquet"

    @property
    def hero(self) -> Path:
        """The card's picture: a few rows of that table."""
        return self.root / "previews" / "hero.webp"

    def labels(self, task: str) -> Path:
        """One row per compressed feature."""
        return self.root / "labels" / f"{task}.parquet"

    def originals(self, task: str, shard: int, shards: int) -> Path:
        """Original features, float32 (N, C, T, D) under their source id."""
        return self.root / "originals" / f"{task}-{_shard(shard, shards)}.safetensors"

    def compressed(self, task: str, codec: str) -> Path:
        """Codes of every compressed feature of a codec, as one Zarr array."""
        return self.root / "compressed" / task / f"{codec}.zarr"

    def bitstreams(self, task: str, codec: str, shard: int, shards: int) -> Path:
        """Bitstreams, uint8 (bytes,) under "source_id/level": what the rate counts."""
        return self.root / "bitstreams" / f"{task}-{codec}-{_shard(shard, shards)}.safetensors"

    def truth(self, task: str) -> Path:
        """Ground truth, under the source id."""
        return self.root / "truth" / f"{task}.safetensors"

    def gallery(self, name: str) -> Path:
        """The gallery that all sources of a task are scored against; its entry names it."""
        return self.root / "truth" / name

    def tables(self, name: str) -> Path:
        """Tables that a codec's decoder needs; named by the codec's entry."""
        return self.root / "tables" / name

    def shards(self, count: int, path: Callable[..., Path], *of: str) -> list[str]:
        """Return the relative names of all shards of a task's originals or bitstreams.

        Args:
            count: Of shards.
            path: :meth:`originals` or :meth:`bitstreams`.
            of: The task, and the codec.
        """
        return [self.relative(path(*of, number, count)) for number in range(count)]

    def relative(self, path: Path) -> str:
        """Return a path in the folder as tables and the manifest name it: relative, with ``/``."""
        return path.relative_to(self.root).as_posix()


NAMES = Layout(Path())
"""Names in a folder, relative to it."""

ALL = "all"
"""What `load_dataset` calls the labels of all tasks, where there are several."""

TOP_NAMES = {
    *("README.md", "manifest.json"),
    *("labels", "originals", "previews", "compressed", "bitstreams", "truth", "tables"),
}
"""What stands at the top of a folder and is the dataset."""


def is_tool_file(name: str) -> bool:
    """Whether a file or folder of that name, in whatever folder, is what tools leave behind.

    No reader takes it for data: neither images nor releases, lists, logs or datasets.
    """
    name = name.lower()
    return name in TOOLS or any(fnmatchcase(name, pattern) for pattern in PATTERNS)


def is_tool_path(name: str) -> bool:
    """Whether a path relative to the folder is what tools put there, and no part of a dataset."""
    parts = PurePosixPath(name).parts
    return parts[0] in TOP or any(map(is_tool_file, parts))


def _shard(shard: int, shards: int) -> str:
    if not 0 <= shard < shards <= 99999:
        raise ValueError(f"no shard {shard} of {shards}")
    return f"{shard:05d}-of-{shards:05d}"
