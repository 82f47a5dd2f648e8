"""`cfqa extend`: add a codec to a dataset, in a new folder."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import typer

from cfqa_data.cli.command import command, cores, use_modules
from cfqa_data.cli.shared import answer, working

__all__ = ["extend"]


@command("extend", "build")
def extend(
    folder: Path,
    *,
    codec: str,
    levels: str,
    out: Path,
    name: str | None = None,
    task: list[str] | None = None,
    quantizer: str | None = None,
    models: str | None = None,
    option: list[str] | None = None,
    plugin: list[str] | None = None,
    workers: int | None = None,
    root: Path | None = None,
    allow_version_mismatch: bool = False,
    as_json: bool = False,
) -> None:
    """Add a codec to a dataset: compress and label its originals, in a new folder.

    Args:
        folder (DIR): A dataset folder that `cfqa build` made.
        codec (CODEC): Name of a codec, built in or installed, or MODULE:CLASS.
        levels (NUMBERS): Its parameter at each level, best first: 8,4,2. With auto, or auto=6 for
            six levels, they are chosen on training samples.
        out (DIR): Folder to create. An interrupted run resumes there.
        name (NAME): Name of the codec in the dataset. Default: that of its class.
        task (TASK): Only this task; may be repeated.
        quantizer (TABLE): Quantiser of a codec on planes, as in a recipe: '{kind = "uniform", bits
            = 8, lo = -9, hi = 9}', or with range = "fit". Default: that of the task's first
            codec on planes.
        models (FILE): Weights of a learned codec, as in a recipe.
        option (KEY=VALUE): Argument of the codec's class; may be repeated.
    """
    from cfqa_data.builders.extending import extend as run_extension
    from cfqa_data.integrity.summary import info_text, summarise

    use_modules([codec])
    with working() as progress:
        path = run_extension(
            folder,
            codec,
            _levels(levels),
            out=out,
            name=name,
            tasks=task,
            quantizer=None if quantizer is None else _toml("--quantizer", quantizer),
            models=models,
            options=dict(_option(text) for text in option or ()),
            plugins=plugin or (),
            workers=workers or cores(),
            accept_versions=allow_version_mismatch,
            progress=progress,
        )
    summary = summarise(str(path))
    answer(as_json, lambda: summary, lambda: info_text(summary))


def _levels(text: str) -> list[float] | dict[str, int]:
    """Parse levels, or the number of levels to choose."""
    first, _, number = text.partition("=")
    if first.strip() == "auto":
        return {"auto": int(_number(number)) if number else 10}
    return [_number(level) for level in text.split(",")]


def _number(text: str) -> float:
    """Parse a level as an int or float."""
    try:
        return float(text) if set(text) & set(".eE") else int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number", param_hint="'--levels'") from None


def _toml(option: str, text: str) -> Any:
    """Parse a TOML value."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise typer.BadParameter(f"{text!r}: {error}", param_hint=f"'{option}'") from None


def _option(text: str) -> tuple[str, Any]:
    """Parse KEY=VALUE; a value that is not TOML is a string."""
    key, sign, value = text.partition("=")
    if not sign:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="'--option'")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
