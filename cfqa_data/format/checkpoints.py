"""Read weights files safely: find them, memory-map them without running code, and validate them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_STORED, ZipFile, is_zipfile

from cfqa_data.errors import BuildError
from cfqa_data.format.limits import LARGEST_JSON, parse_json, pointer_at, read_limited
from cfqa_data.paths import absolute_path, is_file

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "check_tensors",
    "known_tensor",
    "load_plain",
    "read_tensors",
    "shard_index",
    "state_of",
    "tensors_at",
    "weight_files",
    "without_prefix",
]

#: Under which of its keys a checkpoint has the weights; the first of these counts, again and again.
NESTED = ("state_dict", "model", "network", "net", "teacher", "student")
#: Parts of a name that PyTorch adds where it wraps a module: for several devices, or compiled.
WRAPPERS = frozenset(
    ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
)
HUB_FILE = "model.safetensors"
HUB_INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"[\w.-]{1,200}\.safetensors", re.ASCII)
_FLOATS = ("float32", "float16", "bfloat16", "float64")


def weight_files(path: str | Path) -> tuple[Path, ...]:
    """Files that hold the weights at a path: the path itself, or the Hub's index and its shards.

    Args:
        path: A file, an index ``*.index.json``, or a folder with ``model.safetensors`` or
            ``model.safetensors.index.json``.

    Raises:
        BuildError: If there are no weights, or the index is none or leads out of its folder.
    """
    path = absolute_path(path)
    if path.is_dir():
        found = [path / name for name in (HUB_INDEX, HUB_FILE) if (path / name).is_file()]
        if not found:
            raise BuildError(f"{path}: the folder contains neither {HUB_FILE} nor {HUB_INDEX}")
        path = found[0]
    if not is_file(path):
        raise BuildError(f"{path}: {pointer_at(path) or 'no such weights file'}")
    if path.suffix != ".json":
        return (path,)
    shards = dict.fromkeys(path.parent / shard for shard in shard_index(path).values())
    for shard in shards:
        if not shard.is_file():
            raise BuildError(f"{path}: the shard {shard.name} is missing")
    return (path, *shards)


def shard_index(path: Path) -> dict[str, str]:
    """Tensor -> name of the shard beside the index that holds it.

    Raises:
        BuildError: If it is no index, or leads out of its folder.
    """
    try:
        places = parse_json(read_limited(path, LARGEST_JSON))["weight_map"]
        shards = set(places.values())
    except Exception as error:
        detail = pointer_at(path) or "not an index of safetensors shards"
        raise BuildError(f"{path}: {detail}") from error
    for shard in shards:
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            raise BuildError(f"{path}: {shard!r} is not the name of a shard next to the index")
    return dict(places)


def tensors_at(
    path_or_dict: str | Path | Mapping[str, Any], what: str
) -> tuple[dict[str, Tensor], str]:
    """The tensors of a weights file, or of what one holds, and their origin for messages."""
    if isinstance(path_or_dict, Mapping):
        return state_of(path_or_dict, what), what
    return read_tensors(path_or_dict), str(path_or_dict)


def known_tensor(
    found: Mapping[str, Tensor], name: str, ndim: int, origin: str, what: str
) -> Tensor:
    """Return a tensor by which a network is known, which says how large the network is.

    Raises:
        BuildError: If it is missing, or has another number of axes.
    """
    if name not in found:
        raise BuildError(f"{origin}: tensor '{name}' is missing, so this is not a {what}")
    if found[name].ndim != ndim or not found[name].numel():
        raise BuildError(
            f"{origin}: tensor '{name}' has the wrong shape: {tuple(found[name].shape)}"
        )
    return found[name]


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

    The tensors are views of the mapped file: memory is taken as they are used.

    Args:
        path: File, index or folder as of `weight_files`; what ends in neither ``.safetensors``
            nor ``.json`` is read as a PyTorch checkpoint.

    Returns:
        Name -> tensor, as of `state_of`.

    Raises:
        BuildError: If the file is missing or is not such a file, or a shard does not hold what its
            index says.
    """
    first, *shards = weight_files(path)
    if first.suffix != ".json":
        return state_of(_read_file(first), str(first))
    places, tensors = shard_index(first), {}
    for shard in shards:
        for name, tensor in _read_file(shard).items():
            if places.get(name) != shard.name:
                raise BuildError(f"{shard}: tensor '{name}' is not listed for it in {first.name}")
            tensors[name] = tensor
    for name, shard_name in places.items():
        if name not in tensors:
            raise BuildError(f"{first.parent / shard_name}: tensor '{name}' is missing")
    return state_of(tensors, str(first))


class _Note:
    """Stands for a NumPy number in a checkpoint's notes; nothing of NumPy runs on the bytes."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


#: mmcv keeps scores beside the weights, as NumPy scalars; the names before and after NumPy 2.
_NOTES: list[Any] = [
    (_Note, f"numpy.{name}") for name in ("core.multiarray.scalar", "_core.multiarray.scalar")
] + [(_Note, "numpy.dtype")]


def _read_file(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return load_plain(path)
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:
        raise _unreadable(path, error) from error


def load_plain(path: Path, mapped: bool = True) -> Any:
    """Return what `torch.save` wrote, if that is tensors and plain values; nothing in it is run.

    Args:
        path: The file.
        mapped: Leave the tensors in the file, which must then not change.

    Raises:
        BuildError: If the file is missing, damaged, or holds anything else.
    """
    import torch

    try:
        # Files older than PyTorch 1.6 are no archives, and cannot be mapped.
        archive = is_zipfile(path)
        if archive:
            _check_stored(path)
        with torch.serialization.safe_globals(_NOTES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # problems are reported in one line
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive and mapped)
    except BuildError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> BuildError:
    return BuildError(f"{path}: not a readable weights file ({_reason(path, error)})")


def _check_stored(path: Path) -> None:
    """Check that the records of an archive are stored uncompressed.

    Mapped, a packed record would give its packed bytes as weights; unpacked, a small one may fill
    the memory.

    Raises:
        BuildError: If one is packed.
    """
    with ZipFile(path) as archive:
        packed = [info for info in archive.infolist() if info.compress_type != ZIP_STORED]
    if packed:
        raise BuildError(
            f"{path}: its record {packed[0].filename} is compressed; torch.save stores records as "
            "they are: download the file again, or load it and save it again"
        )


def state_of(loaded: object, origin: str) -> dict[str, Tensor]:
    """The tensors by name in what was loaded, wherever in it they are.

    They are taken from under the keys of `NESTED`, without what PyTorch's wrappers add to names;
    numbers and texts beside them are passed over.

    Raises:
        BuildError: If there are none, or two have one name.
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
    found = {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
    if not found or not all(isinstance(k, str) and not v.is_nested for k, v in found.items()):
        has = ", ".join(str(key) for key in list(loaded)[:8]) or "nothing"
        places = ", ".join(NESTED)
        raise BuildError(
            f"{origin}: contains no state dict of tensors, alone or under {places}: has {has}"
        )
    state: dict[str, Tensor] = {}
    for key, tensor in found.items():
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in state:
            raise BuildError(f"{origin}: has two tensors '{name}', one of them '{key}'")
        state[name] = tensor
    return state


def without_prefix(
    state: Mapping[str, Tensor], known_by: tuple[str, ...], origin: str
) -> tuple[dict[str, Tensor], str]:
    """The tensors of one network in a state dict of a model around it, and their prefix.

    Args:
        state: The state dict.
        known_by: Ends of names of tensors that the network has once.
        origin: Of the state dict, for messages.

    Returns:
        The tensors behind that prefix, by whole names; all of them where there is no prefix.

    Raises:
        BuildError: If there are several such networks, and not one of them is a teacher's.
    """
    found: dict[str, str] = {}
    for end in known_by:
        for name in state:
            if name == end or name.endswith(f".{end}"):
                found.setdefault(name.removesuffix(end), name)
    prefixes = [prefix for prefix in found if "teacher" in prefix.split(".")] or [*found]
    if len(prefixes) > 1:
        detail = ", ".join(f"'{found[prefix]}'" for prefix in prefixes)
        raise BuildError(f"{origin}: contains several networks ({detail}); give the tensors of one")
    prefix = prefixes[0] if prefixes else ""
    return {name: tensor for name, tensor in state.items() if name.startswith(prefix)}, prefix


def _reason(path: Path, error: Exception) -> str:
    """What a library says about a file, in one sentence."""
    if kind := pointer_at(path):
        return kind
    text = str(error)
    if found := re.search(r"GLOBAL (\S+)", text):
        return f"it contains {found[1]}; only tensors and plain values are loaded"
    if "WeightsUnpickler error" in text:
        return "neither tensors nor plain values saved by torch.save"
    return re.split(r"\.\s|\n", text.strip())[0] or type(error).__name__
