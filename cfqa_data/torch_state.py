"""The state of torch in which every score, feature and label is computed, whatever the caller's is.

Autocast, a default device or dtype, inference mode and the precision of float32 products are set in
one place and decide what torch computes in all others. So whatever gives out values computes them
inside `torch_state`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

from cfqa_data.extras import extras

__all__ = ["torch_state"]

AUTOCAST = ("cpu", "cuda", "xpu")
"""Devices that autocast may be on for."""

EXACT = ("none", "ieee")
"""Names of full precision."""

_precision: ContextVar[str] = ContextVar("precision", default="highest")


@contextmanager
def torch_state(grad: bool | None = None, precision: str | None = None) -> Iterator[None]:
    """Compute as torch does when it has just been imported; afterwards all is as it was.

    No autocast, no default device or other function mode, float32 as the default dtype, no
    inference mode. The number of threads, deterministic algorithms and the detection of anomalies
    stay as they are: they change no value by more than rounding. As a decorator, it is entered for
    each call.

    Args:
        grad: Whether gradients are recorded; by default as they are, and not in inference mode.
        precision: Of float32 matrix products, ``highest`` or ``high``; by default that of the
            `torch_state` around this one, or ``highest``.

    Raises:
        MissingDependencyError: torch is not installed.
    """
    torch, stack = _torch()
    modes = [stack._pop_mode() for _ in range(stack._len_torch_function_stack())]
    cast = {device: torch.is_autocast_enabled(device) for device in AUTOCAST}
    recorded, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    wanted = recorded if grad is None else grad
    outer = _precision.set(precision or _precision.get())
    changed = _enter(_precision.get())
    try:
        _cast(dict.fromkeys(AUTOCAST, False))
        with nullcontext() if wanted == recorded and not inference else _recording(wanted):
            yield
    finally:
        _cast(cast)
        if torch.is_grad_enabled() != recorded:
            torch.set_grad_enabled(recorded)
        _precision.reset(outer)
        _leave(_precision.get(), changed)
        for _ in range(stack._len_torch_function_stack()):
            stack._pop_mode()
        for mode in reversed(modes):
            stack._push_mode(mode)


@cache
def _torch() -> tuple[Any, Any]:
    """Return torch, and where its stack of function modes is."""
    with extras():
        import torch
        import torch.overrides

    return torch, torch.overrides


def _cast(enabled: dict[str, bool]) -> None:
    import torch

    for device, wanted in enabled.items():
        if torch.is_autocast_enabled(device) != wanted:
            torch.set_autocast_enabled(device, wanted)


@contextmanager
def _recording(wanted: bool) -> Iterator[None]:
    import torch

    with torch.inference_mode(False), torch.set_grad_enabled(wanted):
        yield


class _Settings(NamedTuple):
    """What torch has once for all threads.

    Attributes:
        dtype: The default one.
        precision: Of float32 matrix products; None while newer names say what this one cannot.
        each: Precision of each of `_operations`, where these do not follow from ``precision``.
    """

    dtype: Any
    precision: str | None
    each: tuple[str, ...]


# Threads may be inside at the same time: the first remembers, the last puts back.
_lock = threading.Lock()
_inside = 0
_before: _Settings


def _enter(precision: str) -> bool:
    """Set what threads share, and return whether anything was different."""
    global _inside, _before
    with _lock:
        now = _settings()
        if not _inside:
            _before = now
        _inside += 1
        if now == (_torch()[0].float32, precision, ()):
            return False
        found = _define(precision)
        if _before.precision is None:
            _before = _before._replace(precision=found)
        return True


def _leave(precision: str, changed: bool) -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside and changed:
            _define(precision)
        elif not _inside and _settings() != _before:
            _restore(_before)


def _settings() -> _Settings:
    import torch

    operations, precision = _operations(), None
    try:
        precision = torch.get_float32_matmul_precision()
        usual = not operations or operations[-1].fp32_precision in EXACT
    except RuntimeError:
        usual = False
    each = () if usual else tuple(operation.fp32_precision for operation in operations)
    return _Settings(torch.get_default_dtype(), precision, each)


def _define(precision: str) -> str:
    """Set what threads share, and return the precision of matrix products that there was."""
    import torch

    torch.set_default_dtype(torch.float32)
    for operation in _operations():
        if operation.fp32_precision not in EXACT:
            operation.fp32_precision = "ieee"
    found = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    return found


def _restore(settings: _Settings) -> None:
    import torch

    torch.set_default_dtype(settings.dtype)
    torch.set_float32_matmul_precision(settings.precision or "highest")
    for operation, value in zip(_operations(), settings.each, strict=False):
        operation.fp32_precision = "none"  # then it follows the setting for all, if there is one
        if operation.fp32_precision != value:
            operation.fp32_precision = value


@cache
def _operations() -> tuple[Any, ...]:
    """Return what newer versions of torch set the precision of float32 for; convolutions last."""
    import torch

    backends: Any = torch.backends
    if not hasattr(backends.mkldnn, "matmul"):
        return ()
    return backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv
