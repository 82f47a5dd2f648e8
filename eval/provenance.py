"""Where scores come from: whose code made them, when, where, at what cost, and what it had seen."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from cfqa_data.eval.features.trained_on import TrainedOn
from cfqa_data.eval.fingerprint import Fingerprint
from cfqa_data.eval.metrics import Metric
from cfqa_data.format.manifest import hash_file

__all__ = ["Provenance", "TrainedOn", "now", "peak_memory", "provenance_of"]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a metric's scores come from; None is what is not known, as of older files.

    Attributes:
        package: Distribution that the metric is of, or else the module that defines it.
        version: Of that distribution or module.
        source_sha256: SHA-256 of the source file that defines it.
        options: Options of the metric, or those that an object of a class was made with, by name;
            what is no plain value is described, and what training finds is left out.
        date: When its last score was made, UTC, ISO 8601.
        device: Torch device.
        precision: Of float32 matrix products.
        seconds: Time that scoring and training took. What several metrics share, such as a Gram
            matrix, counts for the first of them.
        training_seconds: What training took of this, with statistics of other folds.
        features: How many compressed features were scored in that time.
        memory_bytes: Peak memory at that time, of the process, or of torch on a GPU.
        trained_on: What a metric that the evaluation trained has seen; None where it trained none.
        trained_before: What a metric that came trained has seen, perhaps also what it scores; None
            where that is not known.
        alone: Whether it scored one feature at a time, since its scores depend on the batch.
        arrays: Hash of some features, where the labels alone would not tell a dataset from others.
        fingerprint: Digest of what decides its scores; None where no file was written.
    """

    package: str | None = None
    version: str | None = None
    source_sha256: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None
    device: str | None = None
    precision: str | None = None
    seconds: float | None = None
    training_seconds: float | None = None
    features: int | None = None
    memory_bytes: int | None = None
    trained_on: TrainedOn | None = None
    trained_before: TrainedOn | None = None
    alone: bool = False
    arrays: str | None = None
    fingerprint: Fingerprint | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-safe."""
        return asdict(self)

    @property
    def milliseconds(self) -> float | None:
        """Time that scoring one feature took, without training; None where it is not known."""
        if self.seconds is None or not self.features:
            return None
        return 1000 * (self.seconds - (self.training_seconds or 0.0)) / self.features

    @classmethod
    def from_dict(cls, facts: Any) -> Provenance:
        """Return what `to_dict` made a dictionary of.

        Raises:
            TypeError, ValueError, AttributeError, LookupError: If it is something else.
        """
        found = dict(facts)
        kinds = {"seconds": float, "memory_bytes": int, "options": dict, "alone": bool}
        kinds |= {"training_seconds": float, "features": int}
        for name, value in found.items():
            if name in ("trained_on", "trained_before", "fingerprint") or value is None:
                continue
            if not isinstance(value, kinds.get(name, str)):
                raise TypeError(f"{name} is {value!r}")
        for name in ("trained_on", "trained_before"):
            if seen := found.get(name):
                found[name] = TrainedOn.from_dict(seen)
        if code := found.get("fingerprint"):
            found["fingerprint"] = Fingerprint(**code)
        return cls(**found)


def provenance_of(metric: Metric, precision: str, arrays: str) -> Provenance:
    """Return what is known of a metric before it scores anything."""
    definer = inspect.unwrap(metric.function)
    while hasattr(definer, "func"):  # of `functools.partial`
        definer = definer.func
    if not inspect.isroutine(definer):
        definer = type(definer)
    name = str(definer.__module__)
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    path = Path(file) if file else None
    package, of_package = _distribution(name.partition(".")[0], path)
    by_training = metric.family == "trained" and metric.weights  # all of its options
    found = [n for n, v in metric.options.items() if by_training or (metric.fit and v is None)]
    given = {**metric.options, **metric.made_with}
    return Provenance(
        package=package or name,
        version=of_package or _text(getattr(module, "__version__", None)),
        source_sha256=hash_file(path) if path and path.is_file() else None,
        options={option: _plain(value) for option, value in given.items() if option not in found},
        device=metric.device,
        precision=precision,
        trained_before=metric.trained_on,
        arrays=arrays,
    )


def now() -> str:
    """Return the time, UTC, in ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def peak_memory(device: str) -> int | None:
    """Return the most bytes that this process, or torch on a GPU, has taken so far."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size << 10


@cache
def _distribution(top: str, path: Path | None) -> tuple[str | None, str | None]:
    """Return name and version of the installed distribution that a top-level module is of."""
    try:
        return "cfqa-data" if top == "cfqa_data" else top, version(top)
    except PackageNotFoundError:
        if path is None or not {"site-packages", "dist-packages"} & set(path.parts):
            return None, None
    names = packages_distributions().get(top, ())
    return (names[0], version(names[0])) if names else (None, None)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _plain(value: Any) -> Any:
    """Return an option's value if JSON has it, or else what kind it is of."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    shape = getattr(value, "shape", None)
    return type(value).__name__ + ("" if shape is None else f" {tuple(shape)}")
