"""Read weights files safely: locate them, load tensors without running code, and validate them."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_STORED, ZipFile, is_zipfile

from cfqa_data.errors import BuildError
from cfqa_data.format.limits import LARGEST_JSON, parse_json, pointer_at, read_limited
from cfqa_data.paths import absolute_path

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "check_tensors",
    "find_network",
    "load_plain",
    "load_tensors",
    "read_tensors",
    "required_tensor",
    "shard_index",
    "state_of",
    "weight_files",
]

NESTED = ("state_dict", "model", "network", "net", "teacher", "student")
"""Keys under which checkpoints nest their weights, in order of preference."""

# Parts of names that PyTorch's module wrappers add, for several devices or when compiling.
WRAPPERS = frozenset(
    ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
)
HUB_FILE = "model.safetensors"
HUB_INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"[\w.-]{1,200}\.safetensors", re.ASCII)
_FLOATS = ("float32", "float16", "bfloat16", "float64")


def weight_files(path: str | Path) -> tuple[Path, ...]:
    """Return the files with the weights at a path: the path itself, or an index and its shards.

    Args:
        path: A file, an index ``*.index.json``, or a folder with ``model.safetensors`` or
            ``model.safetensors.index.json``.

    Raises:
        BuildError: If there are no weights, or the index is invalid or refers to another folder.
    """
    path = absolute_path(path)
    if path.is_dir():
        files = [path / name for name in (HUB_INDEX, HUB_FILE) if (path / name).is_file()]
        if not files:
            raise BuildError(f"{path}: the folder contains neither {HUB_FILE} nor {HUB_INDEX}")
        path = files[0]
    if not os.path.isfile(path):
        raise BuildError(f"{path}: {pointer_at(path) or 'no such weights file'}")
    if path.suffix != ".json":
        return (path,)
    shards = dict.fromkeys(path.parent / shard for shard in shard_index(path).values())
    for shard in shards:
        if not shard.is_file():
            raise BuildError(f"{path}: the shard {shard.name} is missing")
    return (path, *shards)


def shard_index(path: Path) -> dict[str, str]:
    """Return the shard of each tensor, from the index of a sharded checkpoint.

    Raises:
        BuildError: If the index is invalid or refers to another folder.
    """
    try:
        weight_map = parse_json(read_limited(path, LARGEST_JSON))["weight_map"]
        shards = set(weight_map.values())
    except Exception as error:
        detail = pointer_at(path) or "not an index of safetensors shards"
        raise BuildError(f"{path}: {detail}") from error
    for shard in shards:
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            raise BuildError(f"{path}: {shard!r} is not the name of a shard next to the index")
    return dict(weight_map)


def load_tensors(
    path_or_dict: str | Path | Mapping[str, Any], what: str
) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a weights file or a loaded state dict, and their origin."""
    if isinstance(path_or_dict, Mapping):
        return state_of(path_or_dict, what), what
    return read_tensors(path_or_dict), str(path_or_dict)


def required_tensor(
    tensors: Mapping[str, Tensor], name: str, ndim: int, origin: str, what: str
) -> Tensor:
    """Return a tensor that determines the size of a network, after checking it.

    Raises:
        BuildError: If it is missing, empty, or has another number of axes.
    """
    tensor = tensors.get(name)
    if tensor is None:
        raise BuildError(f"{origin}: tensor '{name}' is missing, so this is not a {what}")
    if tensor.ndim != ndim or not tensor.numel():
        raise BuildError(f"{origin}: tensor '{name}' has the wrong shape: {tuple(tensor.shape)}")
    return tensor


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str, what: str
) -> None:
    """Check that tensors are exactly those of a network, with its shapes and suitable dtypes.

    Raises:
        BuildError: If a tensor is missing, has another shape or dtype, or is unexpected; the
            message names the first.
    """
    for name, tensor in expected.items():
        if name not in tensors:
            raise BuildError(f"{origin}: tensor '{name}' is missing")
        actual = tensors[name]
        if actual.shape != tensor.shape:
            shapes = f"{tuple(actual.shape)}, not {tuple(tensor.shape)}"
            raise BuildError(f"{origin}: tensor '{name}' is {shapes}")
        kind = _kind(actual)
        if tensor.is_floating_point() and kind not in _FLOATS:
            raise BuildError(f"{origin}: tensor '{name}' is {kind}, not dense floating point")
        if not tensor.is_floating_point() and kind not in (*_FLOATS, "int64"):
            raise BuildError(f"{origin}: tensor '{name}' is {kind}, not a whole number")
    for name in tensors:
        if name not in expected:
            raise BuildError(f"{origin}: tensor '{name}' does not belong to a {what}")


def _kind(tensor: Tensor) -> str:
    """Return the dtype of a dense tensor, or the reason why it is not dense."""
    import torch

    if tensor.is_meta:
        return "without data"
    if tensor.layout != torch.strided:
        return str(tensor.layout).split(".")[-1]
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.itemsize:
        return "one value repeated"  # a small file could ask for any amount of memory
    return str(tensor.dtype).split(".")[-1]


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from a PyTorch checkpoint with weights only.

    Tensors are memory-mapped where the format supports it, so that unused ones take no memory.

    Args:
        path: File, index or folder as of `weight_files`. A file that ends in neither
            ``.safetensors`` nor ``.json`` is read as a PyTorch checkpoint.

    Returns:
        Name -> tensor, as of `state_of`.

    Raises:
        BuildError: If the file is missing or invalid, or a shard does not match its index.
    """
    first, *shards = weight_files(path)
    if first.suffix != ".json":
        return state_of(_read_file(first), str(first))
    weight_map, tensors = shard_index(first), {}
    for shard in shards:
        for name, tensor in _read_file(shard).items():
            if weight_map.get(name) != shard.name:
                raise BuildError(f"{shard}: tensor '{name}' is not listed for it in {first.name}")
            tensors[name] = tensor
    for name, shard_name in weight_map.items():
        if name not in tensors:
            raise BuildError(f"{first.parent / shard_name}: tensor '{name}' is missing")
    return state_of(tensors, str(first))


class _NumpyStandIn:
    """Replaces NumPy scalars of a checkpoint when it is unpickled, so that no NumPy code runs."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


# mmcv stores scores beside the weights, as NumPy scalars; the names are those before and after
# NumPy 2.
_NUMPY_STAND_INS: list[Any] = [
    (_NumpyStandIn, f"numpy.{name}")
    for name in ("core.multiarray.scalar", "_core.multiarray.scalar", "dtype")
]


def _read_file(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return load_plain(path)
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:
        raise _unreadable(path, error) from error


def load_plain(path: Path, mmap: bool = True) -> Any:
    """Load a file of `torch.save` with tensors and plain values only; no code in it is run.

    Args:
        path: The file.
        mmap: Whether to memory-map the tensors; the file must then not change.

    Raises:
        BuildError: If the file is missing, damaged, or contains anything else.
    """
    import torch

    try:
        # Files older than PyTorch 1.6 are no archives, and cannot be memory-mapped.
        archive = is_zipfile(path)
        if archive:
            _check_stored(path)
        with torch.serialization.safe_globals(_NUMPY_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # problems raise BuildError instead
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive and mmap)
    except BuildError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> BuildError:
    return BuildError(f"{path}: not a readable weights file ({_reason(path, error)})")


def _check_stored(path: Path) -> None:
    """Check that the records of an archive are stored uncompressed.

    If memory-mapped, compressed bytes would be taken as weights; if decompressed, a small record
    could fill the memory.

    Raises:
        BuildError: If a record is compressed.
    """
    with ZipFile(path) as archive:
        records = archive.infolist()
    compressed = [info.filename for info in records if info.compress_type != ZIP_STORED]
    if compressed:
        raise BuildError(
            f"{path}: its record {compressed[0]} is compressed; torch.save stores records as "
            "they are: download the file again, or load it and save it again"
        )


def state_of(loaded: object, origin: str) -> dict[str, Tensor]:
    """Return the tensors by name in a loaded checkpoint.

    They are searched under the keys of `NESTED`; parts of names that PyTorch's wrappers add are
    removed. Other values are ignored.

    Raises:
        BuildError: If there are no tensors, or two have the same name.
    """
    from torch import Tensor

    while isinstance(loaded, Mapping):
        inner = next((loaded[k] for k in NESTED if isinstance(loaded.get(k), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping):
        raise BuildError(
            f"{origin}: contains no state dict of tensors, but a {type(loaded).__name__}"
        )
    tensors = {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors or not all(isinstance(k, str) and not v.is_nested for k, v in tensors.items()):
        has = ", ".join(str(key) for key in list(loaded)[:8]) or "nothing"
        nested = ", ".join(NESTED)
        raise BuildError(
            f"{origin}: contains no state dict of tensors, alone or under {nested}: has {has}"
        )
    state: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in state:
            raise BuildError(f"{origin}: has two tensors '{name}', one of them '{key}'")
        state[name] = tensor
    return state


def find_network(
    state: Mapping[str, Tensor], markers: tuple[str, ...], origin: str
) -> tuple[dict[str, Tensor], str]:
    """Find the tensors of one network in the state dict of a model that contains it.

    Args:
        state: The state dict.
        markers: Ends of names of tensors that the network has once.
        origin: Origin of the state dict, for messages.

    Returns:
        The tensors of the network, under their full names, and the prefix of these names. All
        tensors and "" if no marker is found.

    Raises:
        BuildError: If there are several such networks, and not exactly one is a teacher's.
    """
    matches: dict[str, str] = {}
    for marker in markers:
        for name in state:
            if name == marker or name.endswith(f".{marker}"):
                matches.setdefault(name.removesuffix(marker), name)
    prefixes = [prefix for prefix in matches if "teacher" in prefix.split(".")] or [*matches]
    if len(prefixes) > 1:
        detail = ", ".join(f"'{matches[prefix]}'" for prefix in prefixes)
        raise BuildError(f"{origin}: contains several networks ({detail}); give the tensors of one")
    prefix = prefixes[0] if prefixes else ""
    return {name: tensor for name, tensor in state.items() if name.startswith(prefix)}, prefix


def _reason(path: Path, error: Exception) -> str:
    """Return a library's error about a file as one sentence."""
    if kind := pointer_at(path):
        return kind
    text = str(error)
    if match := re.search(r"GLOBAL (\S+)", text):
        return f"it contains {match[1]}; only tensors and plain values are loaded"
    if "WeightsUnpickler error" in text:
        return "neither tensors nor plain values saved by torch.save"
    return re.split(r"\.\s|\n", text.strip())[0] or type(error).__name__
