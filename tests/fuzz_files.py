"""Targets of the fuzzer: the files of a dataset folder, read locally and in ranges."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from fuzzing import Target, register
from mock_dataset import TOY_SHAPES, toy_recipe_dict, write_mock_dataset
from mutations import in_header, in_json, in_shard, of_bytes

import cfqa_data
from cfqa_data.access.files import LocalFiles
from cfqa_data.access.folder import Folder
from cfqa_data.errors import CfqaError
from cfqa_data.format.manifest import parse_manifest, read_manifest
from cfqa_data.format.schema import originals_schema
from cfqa_data.format.storage import read_table
from cfqa_data.integrity.summary import summarise
from cfqa_data.integrity.verify import verify
from cfqa_data.recipe.load import Recipe

__all__ = ["InRanges", "small_dataset"]

PARTS = (
    {},
    {"views": 0},
    {"layers": slice(0, 1), "tokens": 0},
    {"tokens": slice(None, None, -3)},
)


def small_dataset(folder: Path, tier: str = "full") -> Path:
    """Write a dataset of two tasks with one codec and two sources each."""
    recipe = toy_recipe_dict(2)
    tasks = recipe["tasks"]
    recipe["tasks"] = {"seg": tasks["seg"], "dpt": tasks["dpt"]}
    for task, codec in (("seg", "hyperprior_multi_task"), ("dpt", "x265")):
        tasks[task]["codecs"] = {codec: tasks[task]["codecs"][codec]}
    recipe["group_size"] = 1
    return write_mock_dataset(folder, sources=2, tier=tier, recipe=Recipe.from_dict(recipe))


class InRanges(LocalFiles):
    """A local folder that is read in ranges, like a remote one."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.folder, self.root = root, None  # type: ignore[assignment]

    def path(self, name: str) -> None:  # type: ignore[override]
        return None

    def exists(self, name: str) -> bool:
        return (self.folder / name).exists()

    def where(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def read(self, name: str) -> bytes:
        return LocalFiles(self.folder).read(name)

    def read_manifest(self):  # type: ignore[no-untyped-def]
        return read_manifest(self.folder)

    def open(self, name: str):  # type: ignore[no-untyped-def]
        return LocalFiles(self.folder).open(name)


def _files(*patterns: str):  # type: ignore[no-untyped-def]
    """Return a function that creates samples: the files of a dataset that match patterns."""

    def make(folder: Path) -> dict[str, bytes]:
        small_dataset(folder)
        paths = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}

    return make


def _each(*reads) -> None:  # type: ignore[no-untyped-def]
    """Call all functions, and raise the last error."""
    last = None
    for read in reads:
        try:
            read()
        except CfqaError as error:
            last = error
    if last:
        raise last


def _read_manifest(name: str, data: bytes, folder: Path) -> object:
    return parse_manifest(data, name)


def _read_folder(name: str, data: bytes, folder: Path) -> None:
    """Read all kinds of files of a folder with a modified manifest."""
    dataset = cfqa_data.load(folder)
    row = dataset.labels.slice(0, 1).to_pylist()[0]
    key = row["source_id"], row["codec"], row["level"]
    _each(
        lambda: dataset[0],
        lambda: dataset.truth(key[0]),
        lambda: dataset.bitstream(*key),
        lambda: verify(folder, workers=1),
        lambda: summarise(folder),
    )


def _read_labels(name: str, data: bytes, folder: Path) -> None:
    if name == "labels/originals.parquet":
        read_table(folder / name, originals_schema())
    else:
        cfqa_data.load(folder, Path(name).stem)


def _arrays(files: LocalFiles, name: str) -> None:
    kind, rest = name.split("/", 1)
    task = next(task for task in TOY_SHAPES if rest.startswith(task))
    folder = Folder(files)
    with suppress(KeyError):
        sources = folder.manifest.tasks[task].sources
        codec = next(iter(folder.manifest.tasks[task].codecs))
        for source in sources:
            if kind == "originals":
                _each(*(lambda p=p: folder.original(source, **p) for p in PARTS))  # noqa: B023
            elif kind == "truth":
                folder.truth(source)
            elif kind == "bitstreams":
                _each(*(lambda n=n: folder.bitstream(source, codec, n) for n in (0, 9)))  # noqa: B023
            else:
                for part in PARTS:
                    folder.compressed(source, codec, 9, **part)


def _read_local(name: str, data: bytes, folder: Path) -> None:
    _arrays(LocalFiles(folder), name)


def _read_ranges(name: str, data: bytes, folder: Path) -> None:
    _arrays(InRanges(folder), name)


TENSORS = _files("originals/*", "truth/*", "bitstreams/*")
FOUR = (in_json, in_json, in_json, of_bytes)
for target in (
    Target("manifest", _files("manifest.json"), _read_manifest, FOUR),
    Target("folder", _files("manifest.json"), _read_folder, FOUR, in_place=True, cost=10),
    Target("labels", _files("labels/*.parquet"), _read_labels, in_place=True, cost=2),
    Target("tensors", TENSORS, _read_local, (in_header, of_bytes), in_place=True, cost=2),
    Target("ranges", TENSORS, _read_ranges, (in_header, of_bytes), in_place=True, cost=2),
    Target("zarr", _files("compressed/*/*/zarr.json"), _read_local, FOUR, in_place=True, cost=2),
    Target(
        *("shards", _files("compressed/*/*/c/*/0/0/0/0/0"), _read_local, (in_shard, of_bytes)),
        in_place=True,
        cost=2,
    ),
):
    register(target)
