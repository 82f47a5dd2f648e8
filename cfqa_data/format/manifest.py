"""The manifest: what a dataset folder was made from and with, and the hash of every file in it.

It holds nothing that changes from one run to the next, so equal folders have equal manifests.
A manifest that is read may come from anywhere: every part is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from cfqa_data.errors import FormatError, FormatVersionError
from cfqa_data.format import first
from cfqa_data.format.facts import MOST_TASKS, TaskEntry
from cfqa_data.format.invariants import check_source_ids
from cfqa_data.format.layout import Layout, of_tools
from cfqa_data.format.limits import LARGEST_JSON, parse_json, read_limited
from cfqa_data.format.pointers import pointer
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


@dataclass(frozen=True)
class Manifest:
    """What a dataset folder was made from and with.

    Attributes:
        name: name of the dataset, its recipe's.
        tier: "light" (bitstreams) or "full" (and the codes of every compressed feature).
        recipe: the whole recipe as plain data, for building again; readers go by `tasks`.
        tasks: what there is per task, in the order that tables show them.
        versions: program or library -> version, of everything that had a part in it.
        weights: URI in the recipe -> SHA-256 of the file, as hex.
        health: the rows of :func:`cfqa_data.integrity.health.health`.
        files: path relative to the folder -> {"size": bytes, "sha256": hex}.
        packages: package beside this one that had a part in it -> {"version", "sha256"}.
        format: 1 or 2, as it was read; where it is left out, 1 if that format can say the same.
    """

    name: str
    tier: str
    recipe: Mapping[str, Any]
    tasks: Mapping[str, TaskEntry]
    versions: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    health: tuple[Mapping[str, Any], ...] = ()
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    packages: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    format: int = 0

    def __post_init__(self) -> None:
        if not self.format:
            plain = not self.packages and first.fits(self.recipe, self.tasks)
            object.__setattr__(self, "format", 1 if plain else 2)

    @property
    def summary(self) -> str:
        """What the dataset is, in a line of its recipe; empty if that has none."""
        return str(self.recipe.get("summary", ""))

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON-safe data."""
        tasks: dict[str, Any] = {
            name: {"shape": list(entry.shape), "sources": list(entry.sources)}
            if self.format == 1
            else entry.to_dict()
            for name, entry in self.tasks.items()
        }
        packages = {name: dict(self.packages[name]) for name in sorted(self.packages)}
        return {
            "format": self.format,
            "name": self.name,
            "tier": self.tier,
            "recipe": self.recipe,
            "tasks": tasks,
            "versions": dict(sorted(self.versions.items())),
            "weights": dict(sorted(self.weights.items())),
            **({} if self.format == 1 else {"packages": packages}),
            "health": [dict(row) for row in self.health],
            "files": {path: dict(self.files[path]) for path in sorted(self.files)},
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
        newer = isinstance(version, int) and version > max(FORMATS)
        remedy = "update cfqa-data" if newer else "build or fetch the dataset again"
        if type(version) is not int or version not in FORMATS:
            raise FormatVersionError(
                f"format version {version!r}, this cfqa-data reads 1 and 2; {remedy}"
            )
        _require(isinstance(data.get("name"), str), "the name is not a text")
        _require(data.get("tier") in TIERS, f"the tier is not one of {', '.join(TIERS)}")
        _require(isinstance(data.get("recipe"), dict), "the recipe is not a table")
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
        if version == 1:
            tasks, packages = first.read_tasks(data["recipe"], data.get("tasks")), {}
        else:
            tasks, packages = _tasks(data.get("tasks")), _packages(data.get("packages"))
        check_source_ids({name: entry.sources for name, entry in tasks.items()})
        return cls(
            name=data["name"],
            tier=data["tier"],
            recipe=data["recipe"],
            tasks=tasks,
            versions=data["versions"],
            weights=data["weights"],
            health=tuple(data["health"]),
            files=_files(data.get("files")),
            packages=packages,
            format=version,
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
    ordered = manifest.format > 1  # tasks and codecs stand in the order of tables
    return json.dumps(manifest.to_dict(), indent=1, sort_keys=not ordered, allow_nan=False) + "\n"


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


def _tasks(data: object) -> dict[str, TaskEntry]:
    _require(
        isinstance(data, dict) and 1 <= len(data) <= MOST_TASKS,
        f"tasks is not a table of 1 to {MOST_TASKS}",
    )
    assert isinstance(data, dict)
    return {name: TaskEntry.from_dict(name, entry) for name, entry in data.items()}


def _packages(data: object) -> dict[str, dict[str, str]]:
    _require(
        isinstance(data, dict)
        and all(
            isinstance(entry, dict)
            and entry.keys() == {"version", "sha256"}
            and all(isinstance(text, str) for text in entry.values())
            for entry in data.values()
        ),
        "packages is not a table of version and sha256",
    )
    assert isinstance(data, dict)
    return data


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
