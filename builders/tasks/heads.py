"""The heads of the three published tasks, and of hypervectors, from their checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfqa_data.builders.sources.geometry import DepthGeometry, SegGeometry, window_starts
from cfqa_data.builders.tasks.classification import ClsHead
from cfqa_data.builders.tasks.depth import DepthHead
from cfqa_data.builders.tasks.hypervector import HypervectorHead
from cfqa_data.builders.tasks.linear import Head
from cfqa_data.builders.tasks.segmentation import SegHead
from cfqa_data.errors import BuildError

__all__ = ["DepthGeometry", "Head", "SegGeometry", "load_head", "window_starts"]

HEADS: Mapping[str, type[Head]] = {
    kind.task: kind for kind in (ClsHead, SegHead, DepthHead, HypervectorHead)
}


def load_head(
    task: str,
    path_or_dict: str | Path | Mapping[str, Any],
    norm: Any = None,
    layers: int | None = None,
) -> Head:
    """Build a task's head from its checkpoint, in evaluation mode, float32.

    Args:
        task: "cls", "seg", "dpt" or "hypervector".
        path_or_dict: File as published or safetensors, index or folder as of `load_backbone`, or
            what they hold: ``weight`` and ``bias`` (cls), or ``classifier.*`` and the backbone,
            as the Hub's models `-imagenet1k-1-layer` have them; ``conv_seg.*`` and ``bn.*`` (seg)
            or ``conv_depth.*`` (dpt), alone or behind ``decode_head.``, where the rest of a whole
            model may stand beside them.
        norm: The backbone's final norm, for files that do not carry it as ``norm.*``; the
            published ones of cls and seg do not.
        layers: C of the features that it takes: those of cls and dpt may have more or fewer than
            the published evaluation's.

    Returns:
        The head, on the CPU.

    Raises:
        BuildError: Unknown task, or a tensor is missing, left over or misshapen.
    """
    if task not in HEADS:
        raise BuildError(f"no head for task '{task}'; known are {', '.join(HEADS)}")
    head: Head = HEADS[task].load(path_or_dict, norm, layers)
    return head
