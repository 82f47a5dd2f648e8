"""What every metric is: a pure function on a batch, and the facts that go with it.

Conventions, shared by all metrics:

* Inputs are an original batch ``x`` and a compressed batch ``y``, tensors of shape (B, N, C, T, D):
  views, layers, tokens, channels. ``x`` may also have a batch of 1, which stands for the same
  original against all of ``y``; work on it (a Gram matrix, say) is then done once.
* Unless a metric says otherwise, each (n, c) slice is scored as a T x D matrix and the slices are
  averaged. The result is one float64 number per item, shape (B,).
* Arithmetic is in the input's dtype, float32 or float64 (anything else becomes float32), and sums
  over anything but channels are float64; see `cfqa_data.eval.features`.
* An item's score does not depend on the rest of its batch but for rounding in that dtype.
* Invariances are about transforming the compressed feature alone: ``m(x, a(y)) == m(x, y)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cfqa_data.errors import CfqaError, MetricError, unknown_name
from cfqa_data.eval.metrics.needs import STATISTICS, as_statistic, check_statistic
from cfqa_data.extras import extras
from cfqa_data.torch_inputs import as_tensor
from cfqa_data.torch_state import torch_state

if TYPE_CHECKING:
    from torch import Tensor

    from cfqa_data.eval.features import Features
    from cfqa_data.eval.reading import FeatureSource

__all__ = [
    "COSTS",
    "FAMILIES",
    "INVARIANCES",
    "STATISTICS",
    "Metric",
    "check_device",
    "error_line",
    "first_nonfinite",
]

FAMILIES = {
    "signal": "the error as a number",
    "angle": "direction and length of each token",
    "whitened": "the error in units of how much the originals vary",
    "kernel": "similarities among tokens, by kernels",
    "geometry": "shape of the cloud of tokens",
    "neighbours": "who is near to whom",
    "distributional": "distribution of the values",
    "trained": "weights fitted to the labels of other folds",
    "custom": "a user's own",
}

COSTS = {
    "TD": "a few passes over the values",
    "T2D": "matrix products: of all tokens, of all channels, or with many directions",
    "D3": "matrix decompositions",
}
"""How a metric's time grows with tokens and channels."""

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
        family: One of `FAMILIES`.
        formula: The definition in one line.
        function: ``(x, y, **options) -> (B,)``; sees finite `Features` of agreeing shapes on
            ``device``.
        lower_better: Whether a smaller score is a better reconstruction; None when the author of
            a custom metric did not say.
        score_range: Closed interval of possible scores.
        identity: Score of a feature against itself (where it varies over tokens), or None.
        invariances: Subset of `INVARIANCES`.
        citation: Where the definition comes from.
        cost: One of `COSTS`.
        options: Keyword arguments of the function and their values.
        needs: Names of `STATISTICS` that the function takes as keyword arguments. The evaluator
            gives them; used alone, `with_options` or `create_metric` does.
        fit: For a metric that is trained: takes the training part of a dataset (`FeatureSource`:
            labels, originals, compressed features; its ``target`` names the label column to
            follow) and the device, and returns a metric or a callable. The evaluator trains it for
            each task and fold on the other folds' sources.
        device: Torch device on which the metric runs.
    """

    name: str
    family: str
    formula: str
    function: Callable[..., Tensor] = field(repr=False)
    lower_better: bool | None
    score_range: tuple[float, float]
    identity: float | None
    invariances: frozenset[str]
    citation: str
    cost: str = "TD"
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    fit: Callable[[FeatureSource, str], Any] | None = None
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

        for what, value, known in (("family", self.family, FAMILIES), ("cost", self.cost, COSTS)):
            if value not in known:
                raise MetricError(f"metric {self.name!r}: {unknown_name(what, value, known)}")
        options = dict(self.options)
        for statistic in self.needs:
            if statistic not in STATISTICS:
                told = unknown_name("statistic", statistic, STATISTICS)
                raise MetricError(f"metric {self.name!r} needs an {told}")
            if statistic in options:
                options[statistic] = as_statistic(self.name, statistic, options[statistic])
        object.__setattr__(self, "options", options)

    def with_options(self, **options: Any) -> Metric:
        """Return the same metric with other values for some of its options.

        Args:
            options: Any of ``options`` and ``needs``; statistics become float64 tensors. A metric
                that is trained and has all that training finds is not trained any more.

        Raises:
            MetricError: It has no such option (its own are listed), or a statistic is no array.
        """
        for name in options:
            if name not in self.options and name not in self.needs:
                known = [*self.options, *self.needs]
                if not known:
                    raise MetricError(f"metric {self.name!r} has no options; got {name!r}")
                told = unknown_name("option", name, known)
                raise MetricError(f"metric {self.name!r}: {told}")
        given = {**self.options, **options}
        fit = self.fit
        if options and all(value is not None for value in given.values()):
            fit = None  # what training would find is given
        return replace(self, options=given, fit=fit)

    def fitted(self, training: FeatureSource) -> Metric:
        """Return the metric that training on a part of a dataset makes of this one.

        Raises:
            MetricError: It is not one that is trained, or training fails.
        """
        from cfqa_data.eval.metrics.custom import as_metric

        if self.fit is None:
            raise MetricError(f"metric {self.name!r} is not one that is trained")
        try:
            with torch_state(grad=True):  # also while an evaluation runs
                found = as_metric(self.fit(training, self.device), self.device)
        except CfqaError as error:
            raise MetricError(f"metric {self.name!r} cannot be trained: {error}") from error
        except (Exception, SystemExit) as error:  # whatever a user's function raises
            told = f"metric {self.name!r} cannot be trained: {error_line(error)}"
            raise MetricError(told) from error
        return replace(found, name=self.name, lower_better=self.lower_better)

    def to(self, device: str) -> Metric:
        """Return the same metric on another torch device."""
        return replace(self, device=check_device(device))

    @torch_state()
    def __call__(self, x: Any, y: Any) -> Tensor:
        """Score a batch.

        Tensors or arrays; a single feature (N, C, T, D) counts as a batch of one. Scores do not
        depend on the state of torch around the call (see `cfqa_data.torch_state`), and gradients
        follow from them wherever they are recorded.

        Args:
            x: Originals, (B, N, C, T, D), or (1, N, C, T, D) for one original against all.
            y: Compressed features, (B, N, C, T, D).

        Returns:
            (B,) float64 scores, a tensor on the metric's device.

        Raises:
            MetricError: These are no numbers, shapes disagree, or an item holds NaN or Inf.
        """
        x, y = self._batch(x), self._batch(y)
        _check_shapes(self.name, tuple(x.shape), tuple(y.shape))
        for side, batch in (("original", x), ("compressed", y)):
            item = first_nonfinite(batch)
            if item is not None:
                raise MetricError(f"{self.name}: the {side} feature {item} holds NaN or Inf")
        return self._score(x, y)

    def _batch(self, features: Any) -> Tensor:
        """Return features as a tensor on the device, with a batch axis."""
        try:
            tensor = as_tensor(features).to(self.device)
        except TypeError as error:
            raise MetricError(f"{self.name}: {error}") from None
        tensor = tensor if tensor.is_floating_point() else tensor.float()
        return tensor[None] if tensor.ndim == 4 else tensor

    @torch_state()
    def score(self, x: Tensor | Features, y: Tensor | Features) -> Tensor:
        """Score tensors that are already checked and on the device; only the result is checked.

        Raises:
            MetricError: A statistic that the metric needs was not given or has another shape, or
                the function's result is not one finite number per item.
        """
        return self._score(x, y)

    def _score(self, x: Tensor | Features, y: Tensor | Features) -> Tensor:
        from cfqa_data.eval.features import as_features

        if self.fit is not None:
            raise MetricError(
                f"metric {self.name!r} is trained on the data: evaluate() does it, fold by fold; "
                "used alone, .fitted(training) does"
            )
        for name in self.needs:
            check_statistic(self.name, name, self.options.get(name), y.shape)
        scores = self.function(*as_features(x, y), **self.options)
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

    NaN or Inf cannot leave a sum. One of finite float32 values may overflow float32, which is when
    the sum is taken again in float64, which it cannot overflow.
    """
    import torch

    if batch.is_floating_point() and bool(batch.sum(-1).isfinite().all()):
        return None
    bad = ~batch.reshape(len(batch), -1).sum(1, dtype=torch.float64).isfinite()
    return int(bad.int().argmax()) if bool(bad.any()) else None


def error_line(error: BaseException) -> str:
    """Return the type of an error and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


@extras()
def check_device(device: str) -> str:
    """Return the device's name if metrics can run there.

    Raises:
        MetricError: The device is unknown, absent, or has no float64.
    """
    if device != "cpu":
        import torch

        try:
            torch.zeros(1, dtype=torch.float64, device=device).item()
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MetricError(f"device {device!r} cannot run the metrics: {reason}") from None
    return device


def _check_shapes(name: str, x: tuple[int, ...], y: tuple[int, ...]) -> None:
    if len(x) != 5 or len(y) != 5:
        raise MetricError(
            f"{name}: features are (N, C, T, D), or batches (B, N, C, T, D) of them, but the "
            f"shapes are {x} and {y}"
        )
    if x[1:] != y[1:] or x[0] not in (1, y[0]):
        raise MetricError(f"{name}: original {x} and compressed {y} have different shapes")
    if 0 in y:
        raise MetricError(f"{name}: an empty batch of shape {y} has no score")
