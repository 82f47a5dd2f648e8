"""A context of fixed global torch settings, in which scores, features and labels are computed.

Autocast, a default device or dtype, inference mode, the precision of float32 products and which
kernels may be used are global settings that change what torch computes. Every function that returns
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
"""Values of a feature up to which its work is done before threads have met. Where other programs
take the cores, two threads take three to four times as long as one for 2 x 4 x 65 x 192 values; on
idle cores, four fifths."""

AUTOCAST = ("cpu", "cuda", "xpu")
"""Devices that autocast may be on for."""

EXACT = ("none", "ieee")
"""Names of full precision."""

_precision: ContextVar[str] = ContextVar("precision", default="highest")


@contextmanager
def threads_for(values: int) -> Iterator[None]:
    """Compute with one thread where features are small, and with as many as before where not.

    Args:
        values: How many values a feature has.
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
    """Compute with fixed global settings, whatever the caller has set; restore them afterwards.

    No autocast, no default device or other function mode, float32 as the default dtype, no
    inference mode, convolutions and recurrent layers in float32, all kernels of attention and
    oneDNN. The number of threads, deterministic algorithms, the detection of anomalies, and which
    algorithms NVIDIA's libraries choose stay as they are: they change no value by more than
    rounding. As a decorator, it is entered for each call.

    Args:
        grad: Whether gradients are recorded; by default as they are, and not in inference mode.
        precision: Of float32 matrix products, ``highest`` or ``high``, which also lets cuDNN use
            TF32; by default that of the `torch_state` around this one, or ``highest``.

    Raises:
        MissingDependencyError: Torch is not installed.
    """
    torch, stack = _torch()
    modes = [stack._pop_mode() for _ in range(stack._len_torch_function_stack())]
    cast = {device: torch.is_autocast_enabled(device) for device in AUTOCAST}
    recorded, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    recording = recorded if grad is None else grad
    outer = _precision.set(precision or _precision.get())
    _enter(_precision.get())
    try:
        _cast(dict.fromkeys(AUTOCAST, False))
        with nullcontext() if recording == recorded and not inference else _recording(recording):
            yield
    finally:
        _cast(cast)
        if torch.is_grad_enabled() != recorded:
            torch.set_grad_enabled(recorded)
        _precision.reset(outer)
        _leave(_precision.get())
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
    torch, _ = _torch()
    for device, enable in enabled.items():
        if torch.is_autocast_enabled(device) != enable:
            torch.set_autocast_enabled(device, enable)


@contextmanager
def _recording(grad: bool) -> Iterator[None]:
    torch, _ = _torch()
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        yield


class _Setting(NamedTuple):
    """What torch has once for all threads.

    Attributes:
        get: Returns the value.
        put: Sets it.
        highest: The value in `torch_state`.
        high: The value there for the precision of that name.
        operations: What newer versions of torch set the precision of by itself too.
    """

    get: Callable[[], Any]
    put: Callable[[Any], Any]
    highest: Any
    high: Any
    operations: tuple[Any, ...] = ()

    def read(self) -> tuple[Any, list[str]]:
        """Return the value, and the precision of each operation."""
        each = [operation.fp32_precision for operation in self.operations]
        try:
            return self.get(), each
        except RuntimeError:  # torch does not tell the value while an operation differs from it
            for operation in self.operations:
                operation.fp32_precision = "ieee"
        try:
            value = self.get()
        except RuntimeError:  # then it is not the one of full precision
            value = self.high
        self.write(value, each)
        return value, each

    def write(self, value: Any, each: list[str]) -> None:
        self.put(value)
        for operation, precision in zip(self.operations, each, strict=True):
            if operation.fp32_precision != precision:
                operation.fp32_precision = "none"  # as the setting for all, if there is one
            if operation.fp32_precision != precision:
                operation.fp32_precision = precision

    def define(self, precision: str, found: tuple[Any, list[str]]) -> None:
        """Set what `torch_state` computes with, where another value was found."""
        target = self.high if precision == "high" else self.highest
        exact = EXACT if target == self.highest else ("tf32",)
        value, each = found
        if value != target or not all(name in exact for name in each):
            self.write(target, [exact[-1]] * len(each))


# Several threads may be inside: the first saves the settings, the last restores them.
_lock = threading.Lock()
_inside = 0
_before: list[tuple[Any, list[str]]]
_defined: dict[str, list[tuple[Any, list[str]]]] = {}
"""What is found once a precision is defined: then there is nothing to do."""


def _enter(precision: str) -> None:
    """Set what threads share."""
    global _inside, _before
    with _lock:
        found = [setting.read() for setting in _settings()]
        if not _inside:
            _before = found
        _inside += 1
        _define(precision, found)


def _leave(precision: str) -> None:
    """Set it as it is around; as it was, if no thread is inside any more."""
    global _inside
    with _lock:
        _inside -= 1
        found = [setting.read() for setting in _settings()]
        if _inside:
            _define(precision, found)
        elif found != _before:
            for setting, value, before in zip(_settings(), found, _before, strict=True):
                if value != before:
                    setting.write(*before)


def _define(precision: str, found: list[tuple[Any, list[str]]]) -> None:
    """Set what `torch_state` computes with, where something else was found."""
    if found == _defined.get(precision):
        return
    for setting, value in zip(_settings(), found, strict=True):
        setting.define(precision, value)
    if precision not in _defined:
        _defined[precision] = [setting.read() for setting in _settings()]


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
