"""What every metric is: a pure function on a batch, and the facts that go with it.

Conventions, shared by all metrics:

* Inputs are an original batch ``x`` and a compressed batch ``y``, tensors of shape (B, N, C, T, D):
  views, layers, tokens, channels. ``x`` may also have a batch of 1, which stands for the same
  original against all of ``y``; work on it (a Gram matrix, say) is then done once.
* Unless a metric says otherwise, each (n, c) slice is scored as a T x D matrix and the slices are
  averaged. The result is one float64 number per item, shape (B,).
* Arithmetic is float64 whatever the input's dtype: ``1 - cka`` of a good reconstruction is below
  float32's resolution, and expanded distances lose half their digits in it.
* An item's score does not depend on the rest of its batch beyond 1e-12, relative.
* Invariances are about transforming the compressed feature alone: ``m(x, a(y)) == m(x, y)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cfqa_data.errors import MetricError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["INVARIANCES", "Metric", "check_device", "error_line", "first_nonfinite"]

INVARIANCES = {
    "orthogonal": "an orthogonal map of the channels",
    "permutation": "a reordering of the channels",
    "scale": "multiplication by a positive number",
    "translation": "the same offset added to every token",
}


@dataclass(frozen=True)
class Metric:
    """A metric and its facts; call it with ``(x, y)`` to score a batch.

    Attributes:
        name: Registered name.
        formula: The definition in one line.
        function: ``(x, y) -> (B,)``; sees finite tensors of agreeing shapes on ``device``.
        lower_better: Whether a smaller score is a better reconstruction; None when the author of
            a custom metric did not say.
        score_range: Closed interval of possible scores.
        identity: Score of a feature against itself (where it varies over tokens), or None.
        invariances: Subset of `INVARIANCES`.
        citation: Where the definition comes from.
        device: Torch device on which the metric runs.
    """

    name: str
    formula: str
    function: Callable[[Tensor, Tensor], Tensor] = field(repr=False)
    lower_better: bool | None
    score_range: tuple[float, float]
    identity: float | None
    invariances: frozenset[str]
    citation: str
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise MetricError(f"a metric's name is a text, not {self.name!r}")
        if not isinstance(self.lower_better, bool | None):
            raise MetricError(
                f"metric {self.name!r}: lower_better is True, False or None, "
                f"not {self.lower_better!r}"
            )
        unknown = self.invariances - INVARIANCES.keys()
        if unknown:
            raise MetricError(
                f"metric {self.name!r} declares unknown invariances {sorted(unknown)}; "
                f"known: {', '.join(INVARIANCES)}"
            )
        try:
            low, high = map(float, self.score_range)
        except (TypeError, ValueError):
            raise MetricError(
                f"metric {self.name!r}: score_range is two numbers, not {self.score_range!r}"
            ) from None
        if not low < high:
            raise MetricError(f"metric {self.name!r} has an empty score range [{low}, {high}]")

    def to(self, device: str) -> Metric:
        """Return the same metric on another torch device."""
        return replace(self, device=check_device(device))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Score a batch.

        Args:
            x: Originals, (B, N, C, T, D), or (1, N, C, T, D) for one original against all.
            y: Compressed features, (B, N, C, T, D).

        Returns:
            (B,) float64 scores on the metric's device.

        Raises:
            MetricError: Shapes disagree, or an item holds NaN or Inf.
        """
        _check_shapes(self.name, tuple(x.shape), tuple(y.shape))
        x, y = x.to(self.device), y.to(self.device)
        for side, batch in (("original", x), ("compressed", y)):
            item = first_nonfinite(batch)
            if item is not None:
                raise MetricError(f"{self.name}: the {side} feature {item} holds NaN or Inf")
        return self.score(x, y)

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        """Score tensors that are already checked and on the device; only the result is checked."""
        scores = self.function(x, y)
        if tuple(scores.shape) != (len(y),):
            raise MetricError(
                f"metric {self.name!r} returned shape {tuple(scores.shape)} for a batch of "
                f"{len(y)}; one number per item, ({len(y)},), is expected"
            )
        scores = scores.double()
        item = first_nonfinite(scores)
        if item is not None:
            raise MetricError(f"metric {self.name!r} gave {float(scores[item])} for item {item}")
        return scores


def first_nonfinite(batch: Tensor) -> int | None:
    """Return the index of the first item that holds NaN or Inf, or None.

    One float64 sum per item: finite float32 values cannot overflow it, and NaN or Inf cannot
    leave it.
    """
    import torch

    bad = ~batch.reshape(len(batch), -1).sum(1, dtype=torch.float64).isfinite()
    return int(bad.int().argmax()) if bool(bad.any()) else None


def error_line(error: BaseException) -> str:
    """Return the type of an error and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def check_device(device: str) -> str:
    """Return the device's name if metrics can run there.

    Raises:
        MetricError: The device is unknown, absent, or has no float64.
    """
    if device != "cpu":
        import torch

        try:
            torch.zeros(1, dtype=torch.float64, device=device)
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MetricError(f"device {device!r} cannot run the metrics: {reason}") from None
    return device


def _check_shapes(name: str, x: tuple[int, ...], y: tuple[int, ...]) -> None:
    if len(x) != 5 or len(y) != 5:
        raise MetricError(
            f"{name}: batches are (B, N, C, T, D) tensors, but the shapes are {x} and {y}"
        )
    if x[1:] != y[1:] or x[0] not in (1, y[0]):
        raise MetricError(f"{name}: original {x} and compressed {y} have different shapes")
    if 0 in y:
        raise MetricError(f"{name}: an empty batch of shape {y} has no score")
