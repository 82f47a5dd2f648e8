"""Parts of a recipe that a build can determine: a uniform quantiser's range, a codec's levels.

The build determines them from training inputs. Its manifest contains the resulting numbers, as if
the recipe had stated them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from cfqa_data.errors import RecipeError
from cfqa_data.format.facts import MAX_LEVELS
from cfqa_data.format.fields import Checked, check_keys, is_number
from cfqa_data.format.quantizers import Quantizer, UniformQuantizer

__all__ = ["AutoLevels", "FittedRange"]


@dataclass(frozen=True)
class FittedRange(Quantizer):
    """A uniform quantiser whose range is fitted: `{ kind = "uniform", bits = 10, range = "fit" }`.

    Attributes:
        bits: Bits of a code, 1 to 16.
        percentile: Above 50, up to 100. At most (100 - percentile)% of the values of a training
            feature are clipped at each end of a layer's range; with 100, the range holds all
            values.
    """

    bits: int
    percentile: float = 100.0
    kind = "uniform"

    def __post_init__(self) -> None:
        UniformQuantizer(self.bits, (0.0,), (1.0,))  # checks bits
        if not is_number(self.percentile) or not 50 < self.percentile <= 100:
            raise RecipeError(
                "uniform quantiser: percentile must be a number above 50, to 100, got "
                f"{self.percentile!r}"
            )

    @staticmethod
    def describes(data: object) -> bool:
        """Return whether a recipe's table describes such a quantiser."""
        return isinstance(data, dict) and "range" in data

    @classmethod
    def from_dict(cls, data: object, *_: str) -> FittedRange:
        """Return the quantiser that a recipe's table describes.

        Raises:
            RecipeError: If a key is missing or unknown, or a value is invalid.
        """
        keys = ("kind", "bits", "range")
        table = check_keys("the quantiser", data, keys, (*keys, "percentile"), RecipeError)
        if table["kind"] != "uniform" or table["range"] != "fit":
            raise RecipeError(
                'only a quantiser of kind "uniform" has a range, and it is "fit"; got '
                f"{table['kind']!r} and {table['range']!r}"
            )
        return cls(table["bits"], table.get("percentile", 100.0))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "bits": self.bits, "range": "fit", "percentile": self.percentile}


@dataclass(frozen=True)
class AutoLevels(Checked):
    """Levels that calibration finds: `"auto"`, or `{ auto = 6 }` for six levels.

    Attributes:
        auto: Number of levels, at least 2.
    """

    auto: int = 10

    error = RecipeError
    complete = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.auto <= MAX_LEVELS:
            raise RecipeError(f"levels: auto must be 2 to {MAX_LEVELS}, got {self.auto}")

    def __len__(self) -> int:
        return self.auto

    @classmethod
    def from_dict(cls, data: object, name: str = "", where: str = "levels") -> Self:
        return cls() if data == "auto" else super().from_dict(data, name, where)
