"""The training data of a metric."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TrainedOn"]


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """The data that a metric was trained on, in one or several trainings.

    Attributes:
        folds: Union of the folds of all trainings; in an evaluation, each training leaves out the
            fold that it scores.
        codecs: Codecs of the compressed features.
        originals: Number of originals.
        target: Label column that the metric was fitted to.
    """

    folds: tuple[int, ...]
    codecs: tuple[str, ...]
    originals: int
    target: str

    @classmethod
    def of(cls, labels: pa.Table, folds: Iterable[int], target: str) -> TrainedOn:
        """Return the description of a training on some rows of labels."""
        return cls(
            folds=tuple(folds),
            codecs=tuple(sorted(labels["codec"].unique().to_pylist())),
            originals=labels.group_by(["task", "source_id"]).aggregate([]).num_rows,
            target=target,
        )

    @classmethod
    def from_dict(cls, facts: Any) -> TrainedOn:
        """Return the object that `dataclasses.asdict` turned into ``facts``.

        Raises:
            TypeError, ValueError, LookupError: If ``facts`` is not such a dictionary.
        """
        return cls(
            folds=tuple(map(int, facts["folds"])),
            codecs=tuple(map(str, facts["codecs"])),
            originals=int(facts["originals"]),
            target=str(facts["target"]),
        )
