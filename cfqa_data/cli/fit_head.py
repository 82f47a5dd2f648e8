"""`cfqa fit-head`: a linear probe, or a head of hypervectors, for a recipe."""

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
    """Fit a head for a recipe's backbone to labelled images, and say how well it does.

    Args:
        recipe (RECIPE): Whose backbone and blocks: a name, or a TOML file.
        images (IMAGES): Images in a folder per class, none of them the dataset's.
        out (FILE): Head to write, .safetensors.
        task (TASK): The task that the head is for. Default: the only one.
        kind: For the tasks classification and fidelity, or for hypervector.
        dims (N): Length of hypervectors.
    """
    from cfqa_data.builders.training.head import fit_head as run_fit

    check_new_file(out, [".safetensors"], force)
    with working("nothing was written") as progress:
        found = run_fit(
            recipe,
            images,
            out,
            task=task,
            kind=kind,
            dims=dims,
            workers=workers or cores(),
            progress=progress,
        )
    data = found._asdict() | {"path": str(found.path), "classes": list(found.classes)}
    held_out = "no image was held out, which takes five of a class"
    if found.held_out:
        held_out = f"right on {found.accuracy:.1%} of {found.held_out} held-out images"
    what = f"{out}: a head of {len(found.classes)} classes, fitted to {found.trained} images"
    answer(as_json, lambda: data, lambda: f"{what}\n{held_out}")
