"""More from a finished dataset: labels of other reconstructions, and further codecs."""

from __future__ import annotations

from cfqa_data.builders.extending.extension import extend
from cfqa_data.builders.extending.labelling import Label, label

__all__ = ["Label", "extend", "label"]
