"""The manifest: what a dataset folder was made from and with, and the hash of every file in it.

It holds nothing that changes from one run to the next, so equal folders have equal manifests.
A manifest that is read may come from anywhere: every part is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from cfqa_data.errors import FormatError, FormatVersionError, RecipeError
from cfqa_data.format.invariants import check_source_ids
from cfqa_data.format.layout import Layout, of_tools
from cfqa_data.format.limits import LARGEST_FEATURE, LARGEST_JSON, parse_json, read_limited
from cfqa_data.format.pointers import pointer
from cfqa_data.format.storage import sync_folders, write_text
from cfqa_data.format.tasks import TASKS
from cfqa_data.recipe.load import Recipe

__all__ = [
    "FORMAT_VERSION",
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

FORMAT_VERSION = 1
TIERS = ("light", "full")
PACKAGES = (
    *("cfqa-data", "numpy", "pyarrow", "safetensors", "zarr", "numcodecs"),
    *("torch", "av", "imageio-ffmpeg", "constriction"),
)


@dataclass(frozen=True)
class TaskEntry:
    """What a folder holds of one task.

    Attributes:
        shape: (N, C, T, D) of every feature.
        sources: the ids, in the order of the arrays' source axis.
    """

    shape: tuple[int, int, int, int]
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """What a dataset folder was made from and with.

    Attributes:
        name: name of the dataset, its recipe's.
        tier: "light" (bitstreams) or "full" (and the codes of every compressed feature).
        recipe: the whole recipe.
        tasks: what there is per task.
        versions: program or library -> version, of everything that had a part in it.
        weights: URI in the recipe -> SHA-256 of the file, as hex.
        health: the rows of :func:`cfqa_data.integrity.health.health`.
        files: path relative to the folder -> {"size": bytes, "sha256": hex}.
    """

    name: str
    tier: str
    recipe: Recipe
    tasks: Mapping[str, TaskEntry]
    versions: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    health: tuple[Mapping[str, Any], ...] = ()
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON-safe data."""
        return {
            "format": FORMAT_VERSION,
            "name": self.name,
            "tier": self.tier,
            "recipe": self.recipe.to_dict(),
            "tasks": {
                name: {"shape": list(entry.shape), "sources": list(entry.sources)}
                for name, entry in self.tasks.items()
            },
            "versions": dict(self.versions),
            "weights": dict(self.weights),
            "health": [dict(row) for row in self.health],
            "files": {path: dict(entry) for path, entry in self.files.items()},
        }

    @classmethod
    def from_dict(cls, data: object) -> Manifest:
        """Return the manifest that :meth:`to_dict` describes.

        Raises:
            FormatVersionError: it is of another version of the format.
            FormatError: a part is not what it must be.
        """
        _require(isinstance(data, dict), "is not a table")
        assert isinstance(data, dict)
        version = data.get("format")
        newer = isinstance(version, int) and version > FORMAT_VERSION
        remedy = "update cfqa-data" if newer else "build or fetch the dataset again"
        if version != FORMAT_VERSION:
            raise FormatVersionError(
                f"format version {version!r}, this cfqa-data reads {FORMAT_VERSION}; {remedy}"
            )
        _require(isinstance(data.get("name"), str), "the name is not a text")
        _require(data.get("tier") in TIERS, f"the tier is not one of {', '.join(TIERS)}")
        try:
            recipe = Recipe.from_dict(data.get("recipe"))
        except RecipeError as error:
            raise FormatError(f"recipe: {error}") from None
        for key in ("versions", "weights"):
            table = data.get(key)
            _require(
                isinstance(table, dict) and all(isinstance(v, str) for v in table.values()),
                f"{key} is not a table of texts",
            )
        health = data.get("health")
        _require(
            isinstance(health, list) and all(isinstance(row, dict) for row in health),
            "health is not a list of tables",
        )
        return cls(
            name=data["name"],
            tier=data["tier"],
            recipe=recipe,
            tasks=_tasks(data.get("tasks"), recipe),
            versions=data["versions"],
            weights=data["weights"],
            health=tuple(data["health"]),
            files=_files(data.get("files")),
        )


def write_manifest(root: Path, manifest: Manifest) -> Path:
    """Hash every file in the folder and write the manifest there; return its path.

    ``manifest.files`` is ignored and taken from the folder. Before the files are named, all folders
    are synced, whoever made them: a power cut then takes none that the manifest names.

    Raises:
        FormatError: two sources have the same id.
    """
    check_source_ids({name: entry.sources for name, entry in manifest.tasks.items()})
    layout = Layout(root)
    sync_folders(root)
    write_text(layout.manifest, manifest_text(replace(manifest, files=hash_files(root))))
    return layout.manifest


def manifest_text(manifest: Manifest) -> str:
    """Return a manifest as it stands in the folder; equal manifests are equal texts."""
    return json.dumps(manifest.to_dict(), indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_manifest(root: Path) -> Manifest:
    """Return the manifest of a dataset folder.

    Raises:
        FormatError: this is not a dataset folder, or its manifest is not valid.
    """
    layout = Layout(root)
    path = layout.manifest
    try:
        data = read_limited(path, LARGEST_JSON)
    except (FileNotFoundError, NotADirectoryError):
        if layout.work.is_dir():
            raise FormatError(
                f"{root}: not built yet: a build of it is under way or was stopped; the command "
                "that began it (`cfqa build` or `cfqa import-release`) goes on"
            ) from None
        raise FormatError(f"{root}: not a CFQA dataset folder (no {path.name} in it)") from None
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: cannot be read: {error}") from None
    return parse_manifest(data, str(path))


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Return the manifest that a file's content is.

    Args:
        data: the content.
        where: the file's name, for messages.

    Raises:
        FormatError: it is not valid.
    """
    if kind := pointer(data):
        raise FormatError(f"{where}: {kind}")
    try:
        facts = parse_json(data)
    except ValueError as error:
        raise FormatError(f"{where}: cannot be read: {error}") from None
    try:
        return Manifest.from_dict(facts)
    except FormatError as error:
        raise type(error)(f"{where}: {error}") from None


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file as hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(root: Path) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of every file in a dataset folder but its manifest.

    What tools put there does not count, nor the state of an unfinished build.
    """
    layout = Layout(root)
    files = {}
    for path in sorted(root.rglob("*")):
        name = layout.relative(path)
        if path == layout.manifest or of_tools(name) or not path.is_file():
            continue
        files[name] = {"size": path.stat().st_size, "sha256": hash_file(path)}
    return files


def package_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of those of ``packages`` that are installed."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _tasks(data: object, recipe: Recipe) -> dict[str, TaskEntry]:
    _require(isinstance(data, dict), "tasks is not a table")
    assert isinstance(data, dict)
    _require(set(data) == set(recipe.tasks), "tasks are not the recipe's")
    entries = {}
    for name in recipe.tasks:
        entry: dict[str, Any] = data[name] if isinstance(data[name], dict) else {}
        shape: Any = entry.get("shape")
        sources: Any = entry.get("sources")
        _require(
            isinstance(shape, list)
            and len(shape) == 4
            and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape),
            f"tasks.{name}.shape is not (N, C, T, D)",
        )
        _require(
            math.prod(shape) <= LARGEST_FEATURE,
            f"tasks.{name}.shape {shape} has more than {LARGEST_FEATURE:,} elements",
        )
        _require(
            shape[1] == TASKS[name].layers,
            f"tasks.{name}.shape has {shape[1]} layers, not the task's",
        )
        _require(
            isinstance(sources, list) and bool(sources),
            f"tasks.{name}.sources is not a list of ids",
        )
        entries[name] = TaskEntry(tuple(shape), tuple(sources))
    check_source_ids({name: entry.sources for name, entry in entries.items()})
    return entries


def _files(data: object) -> dict[str, dict[str, Any]]:
    _require(isinstance(data, dict), "files is not a table")
    assert isinstance(data, dict)
    for name, entry in data.items():
        path = PurePosixPath(name)
        _require(
            not path.is_absolute()
            and ".." not in path.parts
            and "\\" not in name
            and name.isprintable()
            and path.as_posix() == name != ".",
            f"files: {name!r} is not a path in the folder",
        )
        _require(
            isinstance(entry, dict)
            and type(entry.get("size")) is int
            and 0 <= entry["size"] < 1 << 63
            and isinstance(entry.get("sha256"), str)
            and re.fullmatch("[0-9a-f]{64}", entry["sha256"]) is not None,
            f"files: {name!r} lacks its size or SHA-256",
        )
    return data


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise FormatError(message)
