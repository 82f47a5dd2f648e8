"""Forests of regression trees: fitted by scikit-learn, kept as plain arrays, evaluated by NumPy.

A fitted forest needs scikit-learn no more: it is written as JSON, and its predictions are those of
the model that it was made from.
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
"""What a node is: ``left`` where its input is at most the threshold, else ``right``. A leaf has
itself on both sides; its value alone counts."""

FLOATS = ("threshold", "value")


@dataclass(frozen=True, eq=False)
class Forest:
    """A sum of regression trees.

    Attributes:
        inputs: Names of the F inputs.
        gains: (F,) share of each in how much the trees' splits reduce the squared error.
        start: What is predicted without any tree.
        trees: By the names of `NODE`, (trees, nodes) arrays; the first node is the root.
    """

    inputs: tuple[str, ...]
    gains: tuple[float, ...]
    start: float
    trees: Mapping[str, NDArray[Any]] = field(repr=False)

    def predict(self, values: Floats) -> Floats:
        """Return what the forest predicts from each row of (n, F) values, (n,)."""
        which, left, right = (self.trees[name] for name in ("input", "left", "right"))
        numbers = np.arange(len(which))
        node = np.zeros((len(values), len(which)), dtype=np.intp)
        while True:
            here = numbers, node
            lower = (
                values[np.arange(len(values))[:, None], which[here]]
                <= (self.trees["threshold"][here])
            )
            below = np.where(lower, left[here], right[here])
            if (below == node).all():
                break
            node = below
        # Tree by tree, as scikit-learn adds them up.
        return np.asarray(self.trees["value"][numbers, node].cumsum(axis=1)[:, -1] + self.start)

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` makes the same forest of, JSON-safe."""
        trees = {name: column.tolist() for name, column in self.trees.items()}
        return {
            "inputs": list(self.inputs),
            "gains": list(self.gains),
            "start": self.start,
            "trees": trees,
        }

    @classmethod
    def from_dict(cls, facts: Any) -> Forest:
        """Return a forest from its facts.

        Raises:
            MetricError: They are no forest's.
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
        known = (trees["input"] >= 0).all() and (trees["input"] < len(inputs)).all()
        # Both ways lead further on, or nowhere: no path has an end otherwise.
        onward = all((side >= own).all() and (side < shape[1]).all() for side in sides)
        if len(gains) != len(inputs) or not (finite and known and onward):
            raise MetricError("these are not the facts of a forest")
        return cls(inputs, gains, start, trees)


@extras()
def fit_forest(values: Floats, target: Floats, inputs: Sequence[str], **options: Any) -> Forest:
    """Fit gradient-boosted trees that rise with every input.

    Args:
        values: (n, F).
        target: (n,).
        inputs: Names of the F inputs.
        options: Of scikit-learn's ``HistGradientBoostingRegressor``.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    facts = {"monotonic_cst": [1] * len(inputs), "early_stopping": False, "random_state": 0}
    model = HistGradientBoostingRegressor(**facts, **options)
    # One thread: several wait for each other after every node, which on cores that are busy took
    # fifty times as long.
    with threadpool_limits(1):
        model.fit(values, target)
    # Scikit-learn gives no public access to the trees; a test holds predictions equal to its own.
    grown = [of_step[0].nodes for of_step in model._predictors]
    most = max(map(len, grown))
    shape = len(grown), most
    trees: dict[str, NDArray[Any]] = {
        name: np.zeros(shape, np.float64 if name in FLOATS else np.intp) for name in NODE
    }
    gains = np.zeros(len(inputs))
    for number, nodes in enumerate(grown):
        own, leaf = np.arange(len(nodes)), nodes["is_leaf"].astype(bool)
        here = number, slice(len(nodes))
        for side in ("left", "right"):
            trees[side][number] = np.arange(most)
            trees[side][here] = np.where(leaf, own, nodes[side])
        trees["input"][here] = np.where(leaf, 0, nodes["feature_idx"])
        trees["threshold"][here] = np.where(leaf, 0.0, nodes["num_threshold"])
        trees["value"][here] = np.where(leaf, nodes["value"], 0.0)
        np.add.at(gains, nodes["feature_idx"][~leaf], nodes["gain"][~leaf])
    whole = gains.sum()
    shares = tuple(float(gain / whole) if whole else 0.0 for gain in gains)
    return Forest(tuple(inputs), shares, float(np.ravel(model._baseline_prediction)[0]), trees)
