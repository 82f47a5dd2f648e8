"""What the training of a metric has seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TrainedOn"]


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """What one or several trainings of a metric have seen.

    Attributes:
        folds: Folds of all trainings together; in an evaluation each was trained on those but the
            one that it scores.
        codecs: Codecs.
        originals: How many originals.
        target: Label column that was followed.
    """

    folds: tuple[int, ...]
    codecs: tuple[str, ...]
    originals: int
    target: str

    @classmethod
    def of(cls, labels: pa.Table, folds: Iterable[int], target: str) -> TrainedOn:
        """Return what rows of labels show a training."""
        return cls(
            folds=tuple(folds),
            codecs=tuple(sorted(labels["codec"].unique().to_pylist())),
            originals=labels.group_by(["task", "source_id"]).aggregate([]).num_rows,
            target=target,
        )

    @classmethod
    def from_dict(cls, facts: Any) -> TrainedOn:
        """Return what `dataclasses.asdict` made a dictionary of.

        Raises:
            TypeError, ValueError, LookupError: It is something else.
        """
        return cls(
            folds=tuple(map(int, facts["folds"])),
            codecs=tuple(map(str, facts["codecs"])),
            originals=int(facts["originals"]),
            target=str(facts["target"]),
        )
