"""`cfqa extend`: a dataset of another one's originals and labels, and of one more codec."""

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
    accept_versions: bool = False,
    as_json: bool = False,
) -> None:
    """Compress and label the originals of a dataset with one more codec, in a new folder.

    Args:
        folder (DIR): A dataset folder that `cfqa build` made.
        codec (CODEC): Name of a codec, built in or installed, or MODULE:CLASS.
        levels (NUMBERS): Its parameter at each level, the best first: 8,4,2. With auto, or auto=6
            for so many, they are found on training samples.
        out (DIR): Folder to make. An interrupted run goes on there.
        name (NAME): Of the codec in the dataset. Default: its class's own.
        task (TASK): Only this task; repeat it for several.
        quantizer (TABLE): Of a codec on planes, as in a recipe: '{kind = "uniform", bits = 8, lo
            = -9, hi = 9}', or with range = "fit". Default: that of the task's first codec on
            planes.
        models (FILE): Weights of a learned codec, as in a recipe.
        option (KEY=VALUE): Argument of the codec's class; repeat it for several.
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
            accept_versions=accept_versions,
            progress=progress,
        )
    summary = summarise(str(path))
    answer(as_json, lambda: summary, lambda: info_text(summary))


def _levels(text: str) -> list[float] | dict[str, int]:
    """Return levels, or how many are to be found."""
    first, _, number = text.partition("=")
    if first.strip() == "auto":
        return {"auto": int(_number(number)) if number else 10}
    return [_number(level) for level in text.split(",")]


def _number(text: str) -> float:
    """Return a level; a whole number stays one."""
    try:
        return float(text) if set(text) & set(".eE") else int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no number", param_hint="'--levels'") from None


def _toml(option: str, text: str) -> Any:
    """Return what a text means as a value of TOML."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise typer.BadParameter(f"{text!r}: {error}", param_hint=f"'{option}'") from None


def _option(text: str) -> tuple[str, Any]:
    """Return key and value; a value that is none of TOML is a text."""
    key, sign, value = text.partition("=")
    if not sign:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="'--option'")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
