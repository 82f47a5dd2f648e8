"""Load the heads of the three published tasks and of hypervectors from their checkpoints."""

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
        task: One of "cls", "seg", "dpt" and "hypervector".
        path_or_dict: Published or safetensors file, index or folder as for `load_backbone`, or a
            dict of tensors. Their names are ``weight`` and ``bias`` (cls), or ``classifier.*``
            beside the backbone, as in the Hub's models `-imagenet1k-1-layer`; ``conv_seg.*`` and
            ``bn.*`` (seg); or ``conv_depth.*`` (dpt). The latter two may be prefixed with
            ``decode_head.``; the other parts of a whole model are then ignored.
        norm: The backbone's final norm, for files without ``norm.*``: published cls and seg.
        layers: Number of layers, C; in cls and dpt it may differ from the published evaluation.

    Returns:
        The head, on the CPU.

    Raises:
        BuildError: If the task is unknown, or a tensor is missing, left over or misshapen.
    """
    if task not in HEADS:
        raise BuildError(f"no head for task '{task}'; known are {', '.join(HEADS)}")
    head: Head = HEADS[task].load(path_or_dict, norm, layers)
    return head
