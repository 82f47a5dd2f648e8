"""`cfqa fit-head`: train a linear probe, or a hypervector head, for a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cfqa_data.cli.command import command, cores
from cfqa_data.cli.shared import answer, check_new_file, working

__all__ = ["fit_head"]


@command("fit-head", extra="build")
def fit_head(
    recipe: str,
    images: Path,
    *,
    out: Path,
    task: str | None = None,
    kind: Literal["linear", "hypervector"] = "linear",
    dims: int = 1000,
    workers: int | None = None,
    root: Path | None = None,
    force: bool = False,
    as_json: bool = False,
) -> None:
    """Train a head for a recipe's backbone on labelled images, and report its accuracy.

    Args:
        recipe (RECIPE): Recipe of the backbone and blocks: a name, or a TOML file.
        images (IMAGES): One folder of images per class; none may be in the dataset.
        out (FILE): Write the head to this .safetensors file.
        task (TASK): Task of the head. Default: the recipe's only task.
        kind: linear for the tasks classification and fidelity, hypervector for hypervector.
        dims (N): Dimensions of the hypervectors.
    """
    from cfqa_data.builders.training.head import fit_head as run_fit

    check_new_file(out, [".safetensors"], force)
    with working("nothing was written") as progress:
        result = run_fit(
            recipe,
            images,
            out,
            task=task,
            kind=kind,
            dims=dims,
            workers=workers or cores(),
            progress=progress,
        )
    data = result._asdict() | {"path": str(result.path), "classes": list(result.classes)}
    held_out = "no image was held out: a class needs five images for that"
    if result.held_out:
        held_out = f"accuracy {result.accuracy:.1%} on {result.held_out} held-out images"
    what = f"{out}: a head of {len(result.classes)} classes, trained on {result.trained} images"
    answer(as_json, lambda: data, lambda: f"{what}\n{held_out}")
