"""The manifest: how a dataset was made, and the hash of every file in its folder.

It contains nothing that differs between runs, so equal folders have equal manifests. A manifest may
come from an untrusted source: every part is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from cfqa_data.console.summary import Described, Summary
from cfqa_data.errors import FormatError, FormatVersionError, prefixed
from cfqa_data.format import format_1
from cfqa_data.format.facts import MAX_TASKS, TaskEntry
from cfqa_data.format.fields import Checked
from cfqa_data.format.invariants import check_source_ids, check_task_names
from cfqa_data.format.layout import Layout, is_tool_path
from cfqa_data.format.limits import LARGEST_JSON, MAX_VALUES, parse_json, pointer, read_limited
from cfqa_data.format.storage import sync_folders, write_text

__all__ = [
    "FORMATS",
    "TIERS",
    "Manifest",
    "TaskEntry",
    "hash_file",
    "hash_files",
    "manifest_text",
    "package_versions",
    "parse_manifest",
    "read_manifest",
    "write_manifest",
]

FORMATS = (1, 2)
TIERS = ("light", "full")
PACKAGES = (
    *("cfqa-data", "numpy", "pyarrow", "safetensors", "zarr", "numcodecs"),
    *("torch", "av", "imageio-ffmpeg", "constriction"),
)


@dataclass(frozen=True, repr=False)
class Manifest(Described, Checked):
    """The manifest of a dataset folder.

    Attributes:
        name: Name of the dataset and its recipe.
        tier: "light" (bitstreams) or "full" (and the codes of every compressed feature).
        recipe: The complete recipe as plain data, for building again; readers use `tasks`.
        tasks: The tasks by name, in the order of tables.
        versions: Version of each program and library that was involved.
        weights: URI in the recipe -> SHA-256 of the file, as hex.
        health: The rows of :func:`cfqa_data.integrity.health.health`.
        files: Path relative to the folder -> {"size": bytes, "sha256": hex}.
        packages: Other package that was involved -> {"version", "sha256"}.
        format: 1 or 2; by default 1 if that format can represent the manifest, else 2.
    """

    name: str
    tier: str
    recipe: Mapping[str, Any]
    tasks: Mapping[str, TaskEntry]
    versions: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    health: tuple[Mapping[str, Any], ...] = ()
    files: Mapping[str, Any] = field(default_factory=dict)
    format: int = 0

    def _summary(self, rows: bool) -> Summary:
        facts = {"format": self.format, "tier": self.tier, "files": len(self.files)}
        codecs = dict.fromkeys(name for entry in self.tasks.values() for name in entry.codecs)
        facts |= {"tasks": ", ".join(self.tasks), "codecs": ", ".join(codecs)}
        made = {f"made with {name}": version for name, version in self.versions.items()}
        return Summary(f"Manifest of {self.name!r}", facts | (made if rows else {}))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("versions", "weights", "packages", "files"):
            object.__setattr__(self, name, dict(sorted(getattr(self, name).items())))
        valid = 1 <= len(self.tasks) <= MAX_TASKS
        self.require(valid, f".tasks is not a table of 1 to {MAX_TASKS}")
        check_task_names({name: entry.codecs for name, entry in self.tasks.items()})
        self.require(self.tier in TIERS, f".tier is not one of {', '.join(TIERS)}")
        codecs = (codec for entry in self.tasks.values() for codec in entry.codecs.values())
        values = sum(codec.quantizer.size for codec in codecs if codec.quantizer)
        message = f": its quantisers have {values:,} values; {MAX_VALUES:,} are read"
        self.require(values <= MAX_VALUES, message)
        for name, entry in self.packages.items():
            valid = isinstance(entry.get("version"), str) and isinstance(entry.get("sha256"), str)
            self.require(valid, f".packages: {name!r} lacks its version or SHA-256")
        if not self.format:
            is_format_1 = not self.packages and format_1.can_represent(self.recipe, self.tasks)
            object.__setattr__(self, "format", 1 if is_format_1 else 2)

    @property
    def summary(self) -> str:
        """The summary in the recipe, one line; empty if it has none."""
        return str(self.recipe.get("summary", ""))

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON-serialisable data."""
        table = {"format": self.format, **super().to_dict()}
        if self.format == 1:
            del table["packages"]
            for name, entry in table["tasks"].items():
                table["tasks"][name] = {key: entry[key] for key in ("shape", "sources")}
        return table

    @classmethod
    def from_dict(cls, data: object, name: str = "", where: str = "") -> Manifest:
        """Return the manifest that :meth:`to_dict` describes.

        Raises:
            FormatVersionError: If it has an unsupported version of the format.
            FormatError: If a part is invalid.
        """
        if not isinstance(data, dict):
            raise FormatError("is not a table")
        version = data.get("format")
        if type(version) is not int or version not in FORMATS:
            newer = isinstance(version, int) and version > max(FORMATS)
            remedy = "update cfqa-data" if newer else "build or fetch the dataset again"
            raise FormatVersionError(
                f"format version {version!r}, this cfqa-data reads 1 and 2; {remedy}"
            )
        table = {entry.name: data.get(entry.name) for entry in fields(cls)}
        table["packages"] = data.get("packages", {})
        if version == 1:
            table["tasks"] = format_1.read_tasks(data.get("recipe"), data.get("tasks"))
        manifest = super().from_dict(table)
        check_source_ids({name: entry.sources for name, entry in manifest.tasks.items()})
        _check_files(manifest.files)
        return manifest


def write_manifest(root: Path, manifest: Manifest) -> Path:
    """Hash every file in the folder and write the manifest there; return its path.

    ``manifest.files`` is replaced by the files of the folder. All folders are synced before,
    including those that other processes wrote, so that a power cut loses no file that the manifest
    lists.

    Raises:
        FormatError: If two sources have the same id.
    """
    check_source_ids({name: entry.sources for name, entry in manifest.tasks.items()})
    layout = Layout(root)
    sync_folders(root)
    write_text(layout.manifest, manifest_text(replace(manifest, files=hash_files(root))))
    return layout.manifest


def manifest_text(manifest: Manifest) -> str:
    """Return the content of a manifest's file; equal manifests have equal texts."""
    ordered = manifest.format > 1  # in format 2, tasks and codecs are in the order of tables
    return json.dumps(manifest.to_dict(), indent=1, sort_keys=not ordered, allow_nan=False) + "\n"


def read_manifest(root: Path) -> Manifest:
    """Return the manifest of a dataset folder.

    Raises:
        FormatError: If this is not a dataset folder, or its manifest is invalid.
    """
    layout = Layout(root)
    path = layout.manifest
    try:
        data = read_limited(path, LARGEST_JSON)
    except (FileNotFoundError, NotADirectoryError):
        if layout.work.is_dir():
            raise FormatError(
                f"{root}: not built yet: a build is running or was interrupted; the command that "
                "began it (`cfqa build` or `cfqa import-release`) resumes it"
            ) from None
        reason = f"no {path.name} in it" if path.parent.exists() else "it does not exist"
        raise FormatError(f"{root}: not a CFQA dataset folder ({reason})") from None
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: cannot be read: {error}") from None
    return parse_manifest(data, str(path))


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Parse the content of a manifest file.

    Args:
        data: Content of the file.
        where: Name of the file, for messages.

    Raises:
        FormatError: If it is invalid.
    """
    if kind := pointer(data):
        raise FormatError(f"{where}: {kind}")
    with prefixed(f"{where}: cannot be read", FormatError, ValueError):
        facts = parse_json(data)
    try:
        return Manifest.from_dict(facts)
    except FormatError as error:
        raise type(error)(f"{where}: {error}") from None


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file as hex, without reading it into memory as a whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(root: Path) -> dict[str, dict[str, Any]]:
    """Return the size and SHA-256 of every file in a dataset folder except its manifest.

    Files of tools and the state of an unfinished build are skipped.
    """
    layout = Layout(root)
    files = {}
    for path in sorted(root.rglob("*")):
        name = layout.relative(path)
        if path == layout.manifest or is_tool_path(name) or not path.is_file():
            continue
        files[name] = {"size": path.stat().st_size, "sha256": hash_file(path)}
    return files


def package_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of the installed ones of ``packages``."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _check_files(files: Mapping[str, Any]) -> None:
    for name, entry in files.items():
        path = PurePosixPath(name)
        if (
            path.is_absolute()
            or ".." in path.parts
            or "\\" in name
            or not name.isprintable()
            or not path.as_posix() == name != "."
        ):
            raise FormatError(f"files: {name!r} is not a path inside the folder")
        size, sha256 = map(entry.get, ("size", "sha256")) if isinstance(entry, dict) else (0, "")
        if type(size) is not int or not 0 <= size < 1 << 63 or not _is_hash(sha256):
            raise FormatError(f"files: {name!r} lacks its size or SHA-256")


def _is_hash(text: object) -> bool:
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None
