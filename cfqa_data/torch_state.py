"""A context of fixed global torch settings, in which scores, features and labels are computed.

Autocast, the default device and dtype, inference mode, the precision of float32 matrix products and
the enabled kernels are global settings that change results. Every public function that returns
computed values therefore computes them inside `torch_state`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, NamedTuple

from cfqa_data.extras import extras

__all__ = ["threads_for", "torch_state"]

SMALL = 2**18
"""Most values of a feature for which one thread is used. For 2 x 4 x 65 x 192 values, two threads
take 0.8 times as long as one on idle cores, but three to four times as long on busy cores."""

AUTOCAST = ("cpu", "cuda", "xpu")
"""Device types with autocast."""

EXACT = ("none", "ieee")
"""Values of `fp32_precision` that mean full precision."""

_precision: ContextVar[str] = ContextVar("precision", default="highest")


@contextmanager
def threads_for(values: int) -> Iterator[None]:
    """Compute with one thread if features are small; otherwise keep the number of threads.

    Args:
        values: Number of values of a feature.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1 if values <= SMALL else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def torch_state(grad: bool | None = None, precision: str | None = None) -> Iterator[None]:
    """Compute with fixed global torch settings, and restore the caller's settings afterwards.

    Inside, autocast, inference mode, the default device and other function modes are off, the
    default dtype is float32, convolutions and recurrent layers compute in float32, and all kernels
    of attention and oneDNN are enabled. The number of threads, deterministic algorithms, anomaly
    detection, and the algorithms that NVIDIA's libraries choose are not changed, since they affect
    only rounding. As a decorator, the context is entered for each call.

    Args:
        grad: Whether to record gradients; by default as the caller does.
        precision: Precision of float32 matrix products: ``highest``, or ``high``, which also lets
            cuDNN use TF32. By default that of an enclosing `torch_state`, or ``highest``.

    Raises:
        MissingDependencyError: If Torch is not installed.
    """
    torch, overrides = _torch()
    modes = [overrides._pop_mode() for _ in range(overrides._len_torch_function_stack())]
    autocast = {device: torch.is_autocast_enabled(device) for device in AUTOCAST}
    grad_before, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    grad = grad_before if grad is None else grad
    token = _precision.set(precision or _precision.get())
    _enter(_precision.get())
    try:
        _set_autocast(dict.fromkeys(AUTOCAST, False))
        with nullcontext() if grad == grad_before and not inference else _set_grad(grad):
            yield
    finally:
        _set_autocast(autocast)
        if torch.is_grad_enabled() != grad_before:
            torch.set_grad_enabled(grad_before)
        _precision.reset(token)
        _leave(_precision.get())
        for _ in range(overrides._len_torch_function_stack()):
            overrides._pop_mode()
        for mode in reversed(modes):
            overrides._push_mode(mode)


@cache
def _torch() -> tuple[Any, Any]:
    """Return torch and `torch.overrides`, which has the stack of function modes."""
    with extras():
        import torch
        import torch.overrides

    return torch, torch.overrides


def _set_autocast(enabled: dict[str, bool]) -> None:
    torch, _ = _torch()
    for device, enable in enabled.items():
        if torch.is_autocast_enabled(device) != enable:
            torch.set_autocast_enabled(device, enable)


@contextmanager
def _set_grad(grad: bool) -> Iterator[None]:
    torch, _ = _torch()
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        yield


class _Setting(NamedTuple):
    """A setting that torch shares between all threads.

    Attributes:
        get: Function that returns the value.
        put: Function that sets the value.
        highest: Value inside `torch_state`.
        high: Value inside `torch_state` with the precision ``high``.
        operations: Operations that have a precision of their own in newer versions of torch.
    """

    get: Callable[[], Any]
    put: Callable[[Any], Any]
    highest: Any
    high: Any
    operations: tuple[Any, ...] = ()

    def read(self) -> tuple[Any, list[str]]:
        """Return the value, and the precision of each operation."""
        precisions = [operation.fp32_precision for operation in self.operations]
        try:
            return self.get(), precisions
        except RuntimeError:  # torch refuses to return the value while an operation differs
            for operation in self.operations:
                operation.fp32_precision = "ieee"
        try:
            value = self.get()
        except RuntimeError:  # the value differs from "ieee", so it is the lower precision
            value = self.high
        self.write(value, precisions)
        return value, precisions

    def write(self, value: Any, precisions: list[str]) -> None:
        """Set the value, and the precision of each operation."""
        self.put(value)
        for operation, precision in zip(self.operations, precisions, strict=True):
            if operation.fp32_precision != precision:
                operation.fp32_precision = "none"  # inherit the backend's precision
            if operation.fp32_precision != precision:
                operation.fp32_precision = precision

    def apply(self, precision: str, current: tuple[Any, list[str]]) -> None:
        """Set the value inside `torch_state`, if the current one differs."""
        target = self.high if precision == "high" else self.highest
        accepted = EXACT if target == self.highest else ("tf32",)
        value, precisions = current
        if value != target or not all(name in accepted for name in precisions):
            self.write(target, [accepted[-1]] * len(precisions))


# The first thread that enters saves the settings, and the last one that leaves restores them.
_lock = threading.Lock()
_inside = 0
_before: list[tuple[Any, list[str]]]
_applied: dict[str, list[tuple[Any, list[str]]]] = {}
"""Precision -> values of the settings after they were applied."""


def _enter(precision: str) -> None:
    """Apply the settings that threads share."""
    global _inside, _before
    with _lock:
        current = [setting.read() for setting in _settings()]
        if not _inside:
            _before = current
        _inside += 1
        _apply(precision, current)


def _leave(precision: str) -> None:
    """Apply the settings of the enclosing context; restore them if no thread is inside."""
    global _inside
    with _lock:
        _inside -= 1
        current = [setting.read() for setting in _settings()]
        if _inside:
            _apply(precision, current)
        elif current != _before:
            for setting, value, before in zip(_settings(), current, _before, strict=True):
                if value != before:
                    setting.write(*before)


def _apply(precision: str, current: list[tuple[Any, list[str]]]) -> None:
    """Set the values inside `torch_state` for settings whose current values differ."""
    if current == _applied.get(precision):
        return
    for setting, value in zip(_settings(), current, strict=True):
        setting.apply(precision, value)
    if precision not in _applied:
        _applied[precision] = [setting.read() for setting in _settings()]


@cache
def _settings() -> list[_Setting]:
    torch, _ = _torch()
    backends = torch.backends
    cuda, cudnn, mkldnn = backends.cuda, backends.cudnn, backends.mkldnn
    newer = hasattr(mkldnn, "matmul")
    kernels = [
        (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
        (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
        (cuda.math_sdp_enabled, cuda.enable_math_sdp),
        (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
        (lambda: mkldnn.enabled, partial(setattr, mkldnn, "enabled")),
    ]
    return [
        _Setting(torch.get_default_dtype, torch.set_default_dtype, torch.float32, torch.float32),
        _Setting(
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
            "highest",
            "high",
            (cuda.matmul, mkldnn.matmul) if newer else (),
        ),
        _Setting(
            lambda: cudnn.allow_tf32,
            partial(setattr, cudnn, "allow_tf32"),
            False,
            True,
            (cudnn.conv, cudnn.rnn) if newer else (),
        ),
        *(_Setting(get, put, True, True) for get, put in kernels),
        *(
            _Setting(lambda: None, lambda _: None, None, None, (operation,))
            for operation in ((mkldnn.conv, mkldnn.rnn) if newer else ())
        ),
    ]
