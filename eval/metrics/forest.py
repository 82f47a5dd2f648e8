"""Forests of regression trees: fitted by scikit-learn, stored as arrays, evaluated by NumPy.

A fitted forest does not need scikit-learn. It can be saved as JSON, and its predictions equal those
of the model that it was created from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfqa_data.errors import MetricError
from cfqa_data.extras import extras

__all__ = ["Forest", "fit_forest"]

Floats = NDArray[np.float64]

NODE = ("input", "threshold", "left", "right", "value")
"""Attributes of a node. The next node is ``left`` if the input is at most the threshold, else
``right``. A leaf is its own next node on both sides, and predicts its value."""

FLOATS = ("threshold", "value")


@dataclass(frozen=True, eq=False)
class Forest:
    """A sum of regression trees.

    Attributes:
        inputs: Names of the F inputs.
        gains: Share of each input in the reduction of the squared error by all splits, (F,).
        start: Constant to which the predictions of the trees are added.
        trees: Arrays of (trees, nodes) by the names of `NODE`; the first node is the root.
    """

    inputs: tuple[str, ...]
    gains: tuple[float, ...]
    start: float
    trees: Mapping[str, NDArray[Any]] = field(repr=False)

    def predict(self, values: Floats) -> Floats:
        """Return the predictions for rows of values, (n, F) to (n,)."""
        which, left, right = (self.trees[name] for name in ("input", "left", "right"))
        numbers = np.arange(len(which))
        node = np.zeros((len(values), len(which)), dtype=np.intp)
        while True:
            at = numbers, node
            inputs = values[np.arange(len(values))[:, None], which[at]]
            child = np.where(inputs <= self.trees["threshold"][at], left[at], right[at])
            if (child == node).all():
                break
            node = child
        # Trees are added one after another, as in scikit-learn, for the same rounding.
        return np.asarray(self.trees["value"][numbers, node].cumsum(axis=1)[:, -1] + self.start)

    def to_dict(self) -> dict[str, Any]:
        """Return the forest as a dictionary of JSON types, which `from_dict` converts back."""
        trees = {name: column.tolist() for name, column in self.trees.items()}
        inputs, gains = list(self.inputs), list(self.gains)
        return {"inputs": inputs, "gains": gains, "start": self.start, "trees": trees}

    @classmethod
    def from_dict(cls, facts: Any) -> Forest:
        """Return the forest that `to_dict` converted.

        Raises:
            MetricError: If ``facts`` is not such a dictionary.
        """
        try:
            trees = {
                name: np.array(facts["trees"][name], np.float64 if name in FLOATS else np.intp)
                for name in NODE
            }
            inputs = tuple(map(str, facts["inputs"]))
            gains, start = tuple(map(float, facts["gains"])), float(facts["start"])
        except (LookupError, TypeError, ValueError, OverflowError):
            raise MetricError("these are not the facts of a forest") from None
        shape = trees["value"].shape
        if len(shape) != 2 or 0 in shape or {column.shape for column in trees.values()} != {shape}:
            raise MetricError("these are not the facts of a forest")
        own, sides = np.arange(shape[1]), (trees["left"], trees["right"])
        finite = all(np.isfinite(trees[name]).all() for name in FLOATS) and np.isfinite(start)
        valid = (trees["input"] >= 0).all() and (trees["input"] < len(inputs)).all()
        # No child precedes its parent: paths through the tree could be endless otherwise.
        ordered = all((side >= own).all() and (side < shape[1]).all() for side in sides)
        if len(gains) != len(inputs) or not (finite and valid and ordered):
            raise MetricError("these are not the facts of a forest")
        return cls(inputs, gains, start, trees)


@extras()
def fit_forest(values: Floats, target: Floats, inputs: Sequence[str], **options: Any) -> Forest:
    """Fit gradient-boosted trees that increase with every input.

    Args:
        values: Inputs, (n, F).
        target: Values to predict, (n,).
        inputs: Names of the F inputs.
        options: Options of scikit-learn's ``HistGradientBoostingRegressor``.

    Raises:
        MissingDependencyError: If scikit-learn is not installed.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    facts = {"monotonic_cst": [1] * len(inputs), "early_stopping": False, "random_state": 0}
    model = HistGradientBoostingRegressor(**facts, **options)
    # One thread, since several synchronise after every node, which took fifty times as long on busy
    # cores.
    with threadpool_limits(1):
        model.fit(values, target)
    # Scikit-learn has no public access to trees; a test compares the predictions with its own.
    grown = [step[0].nodes for step in model._predictors]
    shape = len(grown), max(map(len, grown))
    trees: dict[str, NDArray[Any]] = {
        name: np.zeros(shape, np.float64 if name in FLOATS else np.intp) for name in NODE
    }
    gains = np.zeros(len(inputs))
    for number, nodes in enumerate(grown):
        own, leaf = np.arange(len(nodes)), nodes["is_leaf"].astype(bool)
        part = number, slice(len(nodes))
        for side in ("left", "right"):
            trees[side][number] = np.arange(shape[1])
            trees[side][part] = np.where(leaf, own, nodes[side])
        trees["input"][part] = np.where(leaf, 0, nodes["feature_idx"])
        trees["threshold"][part] = np.where(leaf, 0.0, nodes["num_threshold"])
        trees["value"][part] = np.where(leaf, nodes["value"], 0.0)
        np.add.at(gains, nodes["feature_idx"][~leaf], nodes["gain"][~leaf])
    total = gains.sum()
    shares = tuple(float(gain / total) if total else 0.0 for gain in gains)
    return Forest(tuple(inputs), shares, float(np.ravel(model._baseline_prediction)[0]), trees)
