"""Weights files: where they lie, read by memory map and without running them, and checked."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch
from torch import Tensor

from ..errors import BuildError
from ..limits import LARGEST_JSON, parse_json, read_limited
from ..paths import absolute_path
from ..pointers import pointer_at

__all__ = ["check_tensors", "read_tensors", "state_of", "weight_files"]

HUB_FILE = "model.safetensors"
HUB_INDEX = "model.safetensors.index.json"
_FLOATS = ("float32", "float16", "bfloat16", "float64")
_SHARD = re.compile(r"[\w.-]{1,200}\.safetensors", re.ASCII)


def check_tensors(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str, what: str
) -> None:
    """Raise BuildError naming the first tensor that is missing, misshapen or left over.

    Where numbers with a fraction are expected, so they must be found, and every one of them.
    """
    for name, tensor in expected.items():
        if name not in found:
            raise BuildError(f"{origin}: tensor '{name}' is missing")
        has = found[name]
        if has.shape != tensor.shape:
            shapes = f"{tuple(has.shape)}, not {tuple(tensor.shape)}"
            raise BuildError(f"{origin}: tensor '{name}' is {shapes}")
        kind = _kind(has)
        if tensor.is_floating_point() and kind not in _FLOATS:
            raise BuildError(f"{origin}: tensor '{name}' is {kind}, not dense floating point")
        if not tensor.is_floating_point() and kind not in (*_FLOATS, "int64"):
            raise BuildError(f"{origin}: tensor '{name}' is {kind}, not a whole number")
    for name in found:
        if name not in expected:
            raise BuildError(f"{origin}: tensor '{name}' does not belong to a {what}")


def _kind(tensor: Tensor) -> str:
    """A dense tensor's dtype, or what is in the way of one."""
    if tensor.is_meta:
        return "without data"
    if tensor.layout != torch.strided:
        return str(tensor.layout).split(".")[-1]
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.itemsize:
        return "one value repeated"  # a small file could ask for any amount of memory
    return str(tensor.dtype).split(".")[-1]


def weight_files(path: str | Path) -> tuple[Path, ...]:
    """Files that hold the weights at a path: the path itself, or the Hub's index and its shards.

    Args:
        path: a file, an index ``*.index.json``, or a folder with ``model.safetensors`` or
            ``model.safetensors.index.json``.

    Raises:
        BuildError: there are no weights, or the index is none or leads out of its folder.
    """
    path = absolute_path(path)
    if path.is_dir():
        found = [path / name for name in (HUB_INDEX, HUB_FILE) if (path / name).is_file()]
        if not found:
            raise BuildError(f"{path}: the folder has neither {HUB_FILE} nor {HUB_INDEX}")
        path = found[0]
    if not path.is_file():
        raise BuildError(f"{path}: {pointer_at(path) or 'no such weights file'}")
    if path.suffix != ".json":
        return (path,)
    shards = dict.fromkeys(path.parent / shard for shard in _index(path).values())
    for shard in shards:
        if not shard.is_file():
            raise BuildError(f"{path}: the shard {shard.name} is missing")
    return (path, *shards)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from a PyTorch checkpoint with weights only.

    The tensors are views of the mapped file: memory is taken as they are used.

    Args:
        path: file, index or folder as of `weight_files`; what ends in neither ``.safetensors``
            nor ``.json`` is read as a PyTorch checkpoint.

    Returns:
        Name -> tensor; one level of ``state_dict`` nesting is undone.

    Raises:
        BuildError: the file is missing or is not such a file, or a shard does not hold what its
            index says.
    """
    first, *shards = weight_files(path)
    if first.suffix != ".json":
        return _read_file(first)
    places, tensors = _index(first), {}
    for shard in shards:
        for name, tensor in _read_file(shard).items():
            if places.get(name) != shard.name:
                raise BuildError(f"{shard}: tensor '{name}' is not listed for it in {first.name}")
            tensors[name] = tensor
    for name, shard_name in places.items():
        if name not in tensors:
            raise BuildError(f"{first.parent / shard_name}: tensor '{name}' is missing")
    return tensors


def _index(path: Path) -> dict[str, str]:
    """Tensor -> name of the shard beside the index that holds it."""
    try:
        places = parse_json(read_limited(path, LARGEST_JSON))["weight_map"]
        shards = set(places.values())
    except Exception as error:
        told = pointer_at(path) or "not an index of safetensors shards"
        raise BuildError(f"{path}: {told}") from error
    for shard in shards:
        if not isinstance(shard, str) or not re.fullmatch(
            r"[\w.-]{1,200}\.safetensors", shard, re.A
        ):
            raise BuildError(f"{path}: {shard!r} is not the name of a shard beside the index")
    return dict(places)


class _Note:
    """Stands for a NumPy number in a checkpoint's notes; nothing of NumPy runs on the bytes."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


#: mmcv keeps scores beside the weights, as NumPy scalars; the names before and after NumPy 2.
_NOTES: list[Any] = [
    (_Note, f"numpy.{name}") for name in ("core.multiarray.scalar", "_core.multiarray.scalar")
] + [(_Note, "numpy.dtype")]


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # Files older than PyTorch 1.6 are no archives, and cannot be mapped.
        archive = is_zipfile(path)
        if archive:
            _check_stored(path)
        with torch.serialization.safe_globals(_NOTES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong with a file is told in one line
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except BuildError:
        raise
    except Exception as error:
        raise BuildError(f"{path}: not a readable weights file ({_reason(path, error)})") from error
    return state_of(loaded, str(path))


def _check_stored(path: Path) -> None:
    """See that the records of an archive lie in it as they are.

    Mapped, a packed record would give its packed bytes as weights; unpacked, a small one may fill
    the memory.

    Raises:
        BuildError: one is packed.
    """
    with ZipFile(path) as archive:
        packed = [info for info in archive.infolist() if info.compress_type != ZIP_STORED]
    if packed:
        raise BuildError(
            f"{path}: its record {packed[0].filename} is compressed; torch.save stores records as "
            "they are: download the file again, or load it and save it anew"
        )


def state_of(loaded: object, origin: str) -> dict[str, Tensor]:
    """The state dict in what was loaded: the mapping itself, or that under ``state_dict``.

    Raises:
        BuildError: it holds anything but tensors by name.
    """
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) and not v.is_nested for k, v in loaded.items()
    ):
        raise BuildError(f"{origin}: holds no state dict of tensors")
    return dict(loaded)


def _reason(path: Path, error: Exception) -> str:
    """What a library says about a file, in one sentence."""
    if kind := pointer_at(path):
        return kind
    text = str(error)
    if found := re.search(r"GLOBAL (\S+)", text):
        return f"it holds {found[1]}, which is not loaded: only tensors and plain values are"
    if "WeightsUnpickler error" in text:
        return "neither tensors nor plain values saved by torch.save"
    return re.split(r"\.\s|\n", text.strip())[0] or type(error).__name__
