"""A torch device in CPU memory that counts the operations of a GPU.

Its tensors wrap CPU tensors and every operation runs on those, so that results equal the CPU's bit
for bit. Tensors of different devices cannot be combined. Importing the module registers the device.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

__all__ = ["DEVICE", "count", "uploads"]

DEVICE = "counted"

count: Counter[str] = Counter()
"""Counts of ``operations``; ``back``: transfers to the CPU; ``waits``: synchronisations, including
transfers; ``checks``: decompositions that synchronise to check their success."""

uploads: list[torch.Tensor] = []
"""Tensors that were copied to the device."""

aten = torch.ops.aten
WAIT = {
    *(aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2),
    *(aten.unique_dim, aten.unique_consecutive, aten.bincount, aten.repeat_interleave),
}
VALUES = {aten._linalg_eigh: "compute_v", aten._linalg_svd: "compute_uv"}
CHECK = {*VALUES, aten.linalg_lstsq}
BY_INDEX = {aten.index, aten.index_put, aten.index_put_}
MOVE = {aten.copy_, aten._to_copy}
FREE = {aten.empty, aten.empty_strided, aten.empty_like, aten.detach, aten._unsafe_view}


class CountedTensor(torch.Tensor):
    """A tensor of the device.

    Attributes:
        inner: The CPU tensor with its values.
    """

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> CountedTensor:
        wrapper: CountedTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=f"{DEVICE}:0",
        )
        return wrapper

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(
        cls, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(op, *args, **(kwargs or {}))


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operation on the wrapped CPU tensors."""
    packet, leaves = op.overloadpacket, tree_leaves((args, kwargs))
    tensors = [one for one in leaves if isinstance(one, torch.Tensor)]
    ours = {id(one.inner): one for one in tensors if isinstance(one, CountedTensor)}
    others = [one for one in tensors if not isinstance(one, CountedTensor)]
    if any(one.ndim for one in others) and packet not in MOVE:
        raise RuntimeError(f"{op}: tensors of the CPU and of {DEVICE!r}")
    back = bool(ours) and (
        (packet is aten.copy_ and not isinstance(args[0], CountedTensor))
        or torch.device(kwargs.get("device") or DEVICE).type == "cpu"
    )
    by_mask = packet in BY_INDEX and any(
        one is not None and one.dtype == torch.bool for one in args[1]
    )
    count["back"] += back
    count["waits"] += back or by_mask or packet in WAIT
    count["checks"] += packet in CHECK
    returned = [one.alias_info for one in op._schema.returns]
    view = any(alias is not None and not alias.is_write for alias in returned)
    count["operations"] += not (view or packet in FREE)
    if others and not back:
        uploads.extend(others)
    args, kwargs = tree_map_only(CountedTensor, lambda one: one.inner, (args, kwargs))
    if "device" in kwargs:
        kwargs["device"] = "cpu"
    if packet in VALUES:  # for tensor subclasses, torch requests the vectors too
        args, kwargs = args[:1], {VALUES[packet]: False}
    result = op(*args, **kwargs)
    if back:
        return result
    # In-place operations return the same tensor.
    same = {key: one for key, one in ours.items() if not view}
    return tree_map_only(
        torch.Tensor, lambda one: same[id(one)] if id(one) in same else CountedTensor(one), result
    )


def _factory(op: Any) -> Any:
    """Return a function that creates a tensor of the final size, since torch would resize one."""

    def make(*args: Any, **kwargs: Any) -> CountedTensor:
        count["operations"] += 1
        return CountedTensor(op(*args, **kwargs | {"device": "cpu"}))

    return make


_setup_privateuseone_for_python_backend(DEVICE)
_any = torch.library.Library("_", "IMPL")
_any.fallback(_run, "PrivateUse1")
_sized = torch.library.Library("aten", "IMPL")
for _op in (
    *(aten.arange.default, aten.arange.start, aten.arange.start_step),
    *(aten.eye.default, aten.eye.m),
):
    _sized.impl(_op, _factory(_op), "PrivateUse1")
