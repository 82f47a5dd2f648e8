"""Extend a finished dataset by a codec, and label other reconstructions of its originals."""

from __future__ import annotations

from cfqa_data.builders.extending.extension import extend
from cfqa_data.builders.extending.labelling import Label, label

__all__ = ["Label", "extend", "label"]
