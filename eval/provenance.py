"""Provenance of scores: code, options, date, device, cost and training data."""

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
    """Provenance of a metric's scores; unknown values, as from older files, are None.

    Attributes:
        package: Distribution that provides the metric, or else the module that defines it.
        version: Version of that distribution or module.
        source_sha256: SHA-256 of the source file that defines the metric.
        options: Options of the metric, or arguments of its class, by name. Values that are not
            plain are described, and options that training determines are left out.
        date: Time of the last score, UTC, ISO 8601.
        device: Torch device.
        precision: Precision of float32 matrix products.
        seconds: Time for scoring and training. What several metrics share, such as a Gram matrix,
            counts for the first of them.
        training_seconds: Part of that time for training and for statistics of other folds.
        features: Number of compressed features that were scored in that time.
        memory_bytes: Peak memory during that time: of the process, or of torch on a GPU.
        trained_on: Training data, if the evaluation trained the metric.
        trained_before: Training data of a metric that was trained before, possibly on the features
            that it scores; None if unknown.
        alone: Whether it scored one feature at a time because its scores depend on the batch.
        arrays: Hash of some features, if the labels alone do not identify the dataset.
        fingerprint: Digest of everything that determines the scores; None if no file was written.
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
        """Return the record as a dictionary of JSON types."""
        return asdict(self)

    @property
    def milliseconds(self) -> float | None:
        """Milliseconds per scored feature, without training; None if unknown."""
        if self.seconds is None or not self.features:
            return None
        return 1000 * (self.seconds - (self.training_seconds or 0.0)) / self.features

    @classmethod
    def from_dict(cls, facts: Any) -> Provenance:
        """Return the record that `to_dict` converted.

        Raises:
            TypeError, ValueError, AttributeError, LookupError: If the facts are not valid.
        """
        fields = dict(facts)
        kinds = {"seconds": float, "memory_bytes": int, "options": dict, "alone": bool}
        kinds |= {"training_seconds": float, "features": int}
        for name, value in fields.items():
            if name in ("trained_on", "trained_before", "fingerprint") or value is None:
                continue
            if not isinstance(value, kinds.get(name, str)):
                raise TypeError(f"{name} is {value!r}")
        for name in ("trained_on", "trained_before"):
            if seen := fields.get(name):
                fields[name] = TrainedOn.from_dict(seen)
        if code := fields.get("fingerprint"):
            fields["fingerprint"] = Fingerprint(**code)
        return cls(**fields)


def provenance_of(metric: Metric, precision: str, arrays: str) -> Provenance:
    """Return the provenance of a metric before it scores anything."""
    definer = inspect.unwrap(metric.function)
    while hasattr(definer, "func"):  # unwrap `functools.partial`
        definer = definer.func
    if not inspect.isroutine(definer):
        definer = type(definer)
    module_name = str(definer.__module__)
    module = sys.modules.get(module_name)
    file = getattr(module, "__file__", None)
    path = Path(file) if file else None
    package, package_version = _distribution(module_name.partition(".")[0], path)
    all_trained = metric.family == "trained" and metric.weights
    trained = [n for n, v in metric.options.items() if all_trained or (metric.fit and v is None)]
    options = {**metric.options, **metric.made_with}
    return Provenance(
        package=package or module_name,
        version=package_version or _text(getattr(module, "__version__", None)),
        source_sha256=hash_file(path) if path and path.is_file() else None,
        options={
            option: _plain(value) for option, value in options.items() if option not in trained
        },
        device=metric.device,
        precision=precision,
        trained_before=metric.trained_on,
        arrays=arrays,
    )


def now() -> str:
    """Return the current UTC time in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def peak_memory(device: str) -> int | None:
    """Return the peak memory in bytes of this process, or of torch on a GPU."""
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
    """Return name and version of the installed distribution of a top-level module."""
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
    """Return an option's value if JSON can represent it, or else the name of its type."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    shape = getattr(value, "shape", None)
    return type(value).__name__ + ("" if shape is None else f" {tuple(shape)}")
