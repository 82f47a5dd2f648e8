"""The `Metric` class and the decorator `metric` that declares one with its facts.

Conventions, shared by all metrics and not repeated at each:

* A function takes `Features` ``x`` and ``y``, an original and a compressed batch of shape
  (B, N, C, T, D): items, views, layers, tokens, channels. ``x`` may also have a batch of 1, one
  original for all of ``y``; its derived quantities, such as Gram matrices, are then computed once.
  Arrays are finite and of agreeing shapes.
* A slice is the T x D matrix of one view and layer. A function returns a number for each slice
  (B, N, C), or for parts of slices such as tokens (B, N, C, T): their mean is the item's score,
  clamped to the range of the metric. A function that returns (B,) has averaged by itself.
* Scores are float64. Arithmetic is in the input's dtype, float32 or float64 (anything else becomes
  float32), and sums over anything but channels are float64; see `cfqa_data.eval.features.batch`.
* An item's score does not depend on the rest of its batch but for rounding in that dtype.
* Where a formula is undefined, as is the cosine of a zero token, the docstring states the value.
  With fewer tokens than ``least_tokens``, the score is NaN.
* Invariances are about transforming the compressed feature alone: ``m(x, a(y)) == m(x, y)``.
* In formulas x and y are slices, Xc and Yc slices whose tokens are centred; x_t are tokens and x_tj
  values; mean_t is over the tokens of all slices, mean_nc over slices; <a, b> is the inner product
  and |a| the Euclidean norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

from cfqa_data.console.progress import Progress, Silent
from cfqa_data.console.summary import Described, Summary
from cfqa_data.console.terminal import listener
from cfqa_data.errors import CfqaError, MetricError, unknown_name
from cfqa_data.eval.features.batch import Features, first_nonfinite, slice_mean
from cfqa_data.eval.features.lazy_torch import Tensor, torch
from cfqa_data.eval.metrics.needs import STATISTICS, as_statistic, check_statistic
from cfqa_data.extras import extras
from cfqa_data.scalars import python_value
from cfqa_data.torch_inputs import as_tensor
from cfqa_data.torch_state import torch_state

if TYPE_CHECKING:
    from cfqa_data.eval.features.reading import FeatureSource
    from cfqa_data.eval.features.trained_on import TrainedOn
    from cfqa_data.eval.features.training import TrainingSet

__all__ = [
    "COSTS",
    "FAMILIES",
    "INVARIANCES",
    "SCOPES",
    "STATISTICS",
    "Metric",
    "agreement",
    "check_device",
    "error_line",
    "metric",
    "relational",
    "relational_agreement",
]

FAMILIES = {
    "signal": "signal fidelity: the numerical error",
    "angle": "direction and norm of each token",
    "whitened": "the error relative to the variation of the originals",
    "kernel": "kernels of token similarities",
    "geometry": "geometry of the point cloud of tokens",
    "neighbours": "nearest neighbours of each token",
    "distributional": "distribution of the values",
    "trained": "weights fitted to the labels of other folds",
    "custom": "user-defined",
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

SCOPES = {
    "pair": "one version and its original",
    "ladder": "all versions of a source by one codec",
    "source": "all versions of a source",
}
"""The versions that a metric scores in one call."""


@dataclass(frozen=True, repr=False)
class Metric(Described):
    """A metric and its facts; call it with ``(x, y)`` to score a batch.

    Attributes:
        name: Registered name.
        family: One of `FAMILIES`.
        formula: The definition in one line.
        function: ``(x, y, **options) -> (B,)`` on `Features` on ``device``.
        lower_better: Whether a smaller score is a better reconstruction; None if a custom metric
            does not declare it.
        score_range: Closed interval of possible scores.
        identity: Score of a feature against itself (where it varies over tokens), or None.
        invariances: Subset of `INVARIANCES`.
        citation: Source of the definition.
        cost: One of `COSTS`.
        least_tokens: Minimum number of tokens. With fewer the score is NaN for any feature.
        differentiable: Whether the score has gradients, which are finite for finite features.
        options: Keyword arguments of the function and their values.
        made_with: Constructor options of the object, where the metric was made from a class.
        needs: Names of `STATISTICS` that the function takes as keyword arguments. The evaluator
            passes them; without one, pass them to `with_options` or `create_metric`.
        tasks: Names of the tasks that the metric applies to; empty for all. On other tasks it has
            no score.
        scope: One of `SCOPES`. With a scope wider than ``pair``, the function takes one original
            and all its versions (of one codec) in any order; scores may depend on one another.
        no_reference: Whether the function takes compressed features only, ``(y, **options)``.
        fit: Training function of a metric that must be trained. It takes a
            `cfqa_data.eval.features.training.TrainingSet` and the device, and returns a metric.
            The evaluator calls it for each task and fold with the sources of the other folds.
        inputs: Metrics whose scores ``fit`` requests from ``training.scores``; the evaluator
            computes them once, before all trainings.
        weights: Share of each input in the trained metric by name, for display.
        model: Result of ``fit`` of a user's metric, which `save_metric` saves.
        trained_on: The training data; None if the metric is not trained or the data are unknown.
        left_out: Codec whose features are left out of the training.
        device: Torch device on which the metric runs.
    """

    name: str
    family: str
    formula: str
    function: Callable[..., Tensor] = field(repr=False)
    lower_better: bool | None = None
    score_range: tuple[float, float] = (-math.inf, math.inf)
    identity: float | None = None
    invariances: frozenset[str] = frozenset()
    citation: str = ""
    cost: str = "TD"
    least_tokens: int = 1
    differentiable: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    made_with: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    scope: str = "pair"
    no_reference: bool = False
    fit: Callable[[TrainingSet, str], Metric] | None = None
    inputs: tuple[Metric, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    model: Any = field(default=None, repr=False, compare=False)
    trained_on: TrainedOn | None = None
    left_out: str | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("name", "lower_better", "identity", "least_tokens", "differentiable"):
            object.__setattr__(self, name, python_value(getattr(self, name)))
        if not isinstance(self.name, str) or not self.name:
            raise MetricError(f"a metric's name must be a string, not {self.name!r}")
        if not isinstance(self.lower_better, bool | None):
            raise self._error(f": lower_better is True, False or None, not {self.lower_better!r}")
        try:
            low, high = map(float, self.score_range)
        except (TypeError, ValueError):
            raise self._error(f": score_range is two numbers, not {self.score_range!r}") from None
        if not low < high:
            raise self._error(f": empty score range [{low}, {high}]")
        object.__setattr__(self, "score_range", (low, high))
        if not isinstance(self.least_tokens, int) or self.least_tokens < 1:
            raise self._error(
                f": least_tokens is a number of tokens from 1, not {self.least_tokens!r}"
            )
        if not isinstance(self.no_reference, bool):
            raise self._error(f": no_reference is True or False, not {self.no_reference!r}")
        for several in ("needs", "tasks"):
            object.__setattr__(self, several, self._names(several))
        if not isinstance(self.inputs, tuple | list) or not all(
            isinstance(one, Metric) for one in self.inputs
        ):
            raise self._error(f": inputs is a list of `Metric`s, not {self.inputs!r}")
        if not isinstance(self.differentiable, bool):
            raise self._error(f": differentiable is True or False, not {self.differentiable!r}")
        for what, values, known in (
            ("family", [self.family], FAMILIES),
            ("cost", [self.cost], COSTS),
            ("scope", [self.scope], SCOPES),
            ("invariance", self.invariances, INVARIANCES),
            ("statistic", self.needs, STATISTICS),
        ):
            for value in values:
                if value not in known:
                    raise self._error(f": {unknown_name(what, value, known)}")
        options = {
            name: as_statistic(self.name, name, value)
            if name in self.needs
            else python_value(value)
            for name, value in self.options.items()
        }
        object.__setattr__(self, "options", options)

    def _summary(self, rows: bool) -> Summary:
        better = {True: "lower", False: "higher", None: "not declared"}[self.lower_better]
        low, high = self.score_range
        facts = {
            "family": self.family,
            "better": better,
            "range": f"{low:g} to {high:g}",
            "options": ", ".join(f"{n}={v}" for n, v in self.options.items() if v is not None),
        }
        more = {
            "formula": self.formula,
            "unchanged by": ", ".join(sorted(self.invariances)),
            "cost": self.cost,
            "needs": ", ".join(self.needs),
            "for tasks": ", ".join(self.tasks),
            "sees": "" if self.scope == "pair" else SCOPES[self.scope],
            "reference": "none" if self.no_reference else "",
            "differentiable": "yes" if self.differentiable else "no",
            "trained": "for each task and fold" if self.fit else "",
            "from": self.citation,
        }
        return Summary(f"Metric {self.name}", facts | (more if rows else {}))

    @property
    def base_name(self) -> str:
        """The name without the suffix that names the codec left out of the training."""
        return self.name.removesuffix(f" without {self.left_out}")

    def _names(self, attribute: str) -> tuple[str, ...]:
        """Return the names in an attribute that is one name or several."""
        value = getattr(self, attribute)
        names = (value,) if isinstance(value, str) else value
        if not isinstance(names, Iterable) or not all(isinstance(name, str) for name in names):
            raise self._error(f": {attribute} is a list of names, not {value!r}")
        return tuple(names)

    def _error(self, why: str) -> MetricError:
        return MetricError(f"metric {self.name!r}{why}")

    def with_options(self, **options: Any) -> Metric:
        """Return the metric with other values for some of its options.

        Args:
            options: Values for names in ``options`` and ``needs``; statistics are converted to
                float64 tensors. If the values include all results of training, the returned
                metric needs no training.

        Raises:
            MetricError: If the metric has no such option, or a statistic is not an array.
        """
        known = [*self.options, *self.needs]
        for name in options:
            if not known:
                raise self._error(f" takes no options, got {name!r}")
            if name not in known:
                raise self._error(f": {unknown_name('option', name, known)}")
        values = {**self.options, **options}
        fitted = [name for name, value in self.options.items() if value is None]  # by training
        fit = None if fitted and all(values[name] is not None for name in fitted) else self.fit
        return replace(self, options=values, fit=fit)

    def fitted(
        self,
        training: FeatureSource,
        target: str | None = None,
        progress: Progress | Literal["auto"] | None = "auto",
    ) -> Metric:
        """Train the metric on a dataset and return the trained one.

        Args:
            training: Dataset with labels, which ``fit`` gets as a `TrainingSet`.
            target: Label column to fit; by default that of a `TrainingSet`, or else the distortion.
            progress: Progress bar; ``auto`` shows one in a terminal or a notebook, None does not.

        Raises:
            MetricError: If the metric cannot be trained, or training fails.
        """
        from cfqa_data.eval.features.trained_on import TrainedOn
        from cfqa_data.eval.features.training import TrainingSet, training_set

        if self.fit is None:
            raise self._error(" is not a trained metric")
        try:
            # Training needs gradients, which an evaluation disables.
            with listener(progress or Silent()) as shown, torch_state(grad=True):
                rows = training_set(training, target, shown)
                trained = self.fit(rows, self.device)
            facts: dict[str, Any] = {
                "name": self.name,
                "lower_better": self.lower_better,
                "least_tokens": max(trained.least_tokens, self.least_tokens),
                "tasks": self.tasks,
            }
            if isinstance(rows, TrainingSet):
                facts["trained_on"] = TrainedOn.of(rows.labels, rows.folds, rows.target)
            options = {name: self.options[name] for name in trained.needs if name in self.options}
            return replace(trained.with_options(**options), **facts)
        except CfqaError as error:
            raise self._error(f" cannot be trained: {error}") from error
        except (Exception, SystemExit) as error:  # whatever a user's function raises
            raise self._error(f" cannot be trained: {error_line(error)}") from error

    def to(self, device: str) -> Metric:
        """Return the metric on another torch device."""
        return replace(self, device=check_device(device))

    @torch_state()
    def __call__(self, x: Any, y: Any = None) -> Tensor:
        """Score a batch of tensors or arrays; a single feature (N, C, T, D) is a batch of one.

        Scores do not depend on global settings of torch (see `cfqa_data.torch_state`).

        Args:
            x: Originals, (B, N, C, T, D), or (1, N, C, T, D) for one original of all versions. For
                a metric without a reference, this may be the compressed features alone.
            y: Compressed features, (B, N, C, T, D).

        Returns:
            (B,) float64 scores, a tensor on the metric's device; NaN where the features have fewer
            tokens than ``least_tokens``.

        Raises:
            MetricError: If the arrays are not numeric, shapes disagree, or an item has NaN or Inf.
        """
        x = self._batch(x)
        y = x if y is None and self.no_reference else self._batch(y)
        _check_shapes(self.name, tuple(x.shape), tuple(y.shape))
        if self.scope != "pair" and not self.no_reference and len(x) != 1:
            raise self._error(f": x is one original and y are its versions, not {len(x)} originals")
        for side, batch in (("original", x), ("compressed", y)):
            item = first_nonfinite(batch)
            if item is not None:
                raise MetricError(f"{self.name}: the {side} feature {item} holds NaN or Inf")
        if y.shape[-2] < self.least_tokens:
            return torch.full((len(y),), math.nan, dtype=torch.float64, device=y.device)
        return self._score(Features(x), Features(y))

    def _batch(self, features: Any) -> Tensor:
        """Return features as a tensor on the device, with a batch axis."""
        try:
            tensor = as_tensor(features).to(self.device)
        except TypeError as error:
            raise MetricError(f"{self.name}: {error}") from None
        tensor = tensor if tensor.is_floating_point() else tensor.float()
        return tensor[None] if tensor.ndim == 4 else tensor

    @torch_state()
    def score(self, x: Features, y: Features) -> Tensor:
        """Score features that are already checked and on the device, and check the scores.

        Raises:
            MetricError: If a statistic that the metric needs is missing or has a wrong shape, there
                are fewer tokens than ``least_tokens``, or the function does not return one finite
                number per item.
        """
        if y.shape[-2] < self.least_tokens:
            raise self._error(f" is undefined for fewer than {self.least_tokens} tokens")
        return self._score(x, y)

    def unchecked(self, x: Features, y: Features) -> Tensor:
        """Return scores as `score` does, without a check for NaN, which would synchronise."""
        if self.fit is not None:
            how = "evaluate() trains it fold by fold; otherwise use .fitted(training)"
            raise self._error(f" must be trained first: {how}")
        for name in self.needs:
            check_statistic(self.name, name, self.options.get(name), y.shape)
        scores: Tensor = self.function(*((y,) if self.no_reference else (x, y)), **self.options)
        if tuple(scores.shape) != (len(y),):
            expected = f"a batch of {len(y)}; expected one number per item, ({len(y)},)"
            raise self._error(f" returned shape {tuple(scores.shape)} for {expected}")
        return scores.double()

    def _score(self, x: Features, y: Features) -> Tensor:
        scores = self.unchecked(x, y)
        item = first_nonfinite(scores)
        if item is not None:
            raise self._error(f" gave {float(scores[item])} for item {item}")
        return scores


def metric(
    *,
    lower_better: bool = True,
    score_range: tuple[float, float] = (0.0, math.inf),
    invariances: Iterable[str] = (),
    **facts: Any,
) -> Callable[[Callable[..., Tensor]], Metric]:
    """Return a decorator that makes a `Metric` of a function with the conventions of this module.

    After ``x`` and ``y``, or ``y`` alone where ``no_reference`` is True, the function takes
    statistics of the dataset as parameters without a default (``needs``), and options as
    parameters with one (``options``).

    Args:
        lower_better: Whether a smaller score is better; by default True, as for a distance.
        score_range: Range that scores are clamped to.
        invariances: Names of `INVARIANCES` that hold.
        facts: ``formula``, ``citation``, and any other attribute of `Metric`. By default,
            ``family`` is the module's name if there is such a family, ``identity`` the better end
            of the range, and ``differentiable`` True.
    """
    low, high = score_range

    def define(function: Callable[..., Tensor]) -> Metric:
        @wraps(function)
        def scores(*features: Features, **options: Any) -> Tensor:
            values = function(*features, **options)
            return values if values.ndim == 1 else slice_mean(values).clamp(low, high)

        scores.__qualname__ += ".function"  # where pickle finds it: its own name is the metric's
        parameters = list(signature(function).parameters.values())
        parameters = parameters[1 if facts.get("no_reference") else 2 :]
        module = function.__module__.rpartition(".")[2]
        defaults: dict[str, Any] = {
            "family": module if module in FAMILIES else "custom",
            "identity": low if lower_better else high,
            "differentiable": True,
        }
        return Metric(
            name=function.__name__,
            function=scores,
            lower_better=lower_better,
            score_range=score_range,
            invariances=frozenset(invariances),
            options={one.name: one.default for one in parameters if one.default is not one.empty},
            needs=tuple(one.name for one in parameters if one.default is one.empty),
            **(defaults | facts),
        )

    return define


agreement = partial(metric, lower_better=False, score_range=(-1.0, 1.0))
"""`metric` for similarities: higher is better, 1 is perfect, and -1 the opposite by default."""

relational = partial(metric, invariances=INVARIANCES, cost="T2D", least_tokens=2)
"""`metric` for the relations among tokens: they take two, and have all `INVARIANCES` by default."""

relational_agreement = partial(relational, lower_better=False, score_range=(0.0, 1.0))
"""`relational` for similarities from 0 to 1."""


def error_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@extras()
def check_device(device: str) -> str:
    """Return the device's name if metrics can run there.

    Raises:
        MetricError: If the device is unknown, absent, or has no float64.
    """
    if device != "cpu":
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
