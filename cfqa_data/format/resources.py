"""Locate the files that a recipe names: in a package, below the data root, or by path."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path, PurePosixPath

from cfqa_data.errors import RecipeError
from cfqa_data.format.limits import pointer_at
from cfqa_data.paths import absolute_path, real_path

__all__ = ["ROOT_VARIABLE", "WEIGHTS_VARIABLE", "is_uri", "locate", "resolve"]

PACKAGE, ROOT, HUB = "package://", "root://", "hf://"

ROOT_VARIABLE = "CFQA_ROOT"
"""Environment variable with the folder of ``root://``; the working directory if unset.

A recipe that names its images and weights by ``root://`` works on every machine that has them.
"""

WEIGHTS_VARIABLE = "CFQA_WEIGHTS"
"""Environment variable with a weights file, or a folder of them, that a dataset may need."""


def is_uri(text: str) -> bool:
    """Return whether ``text`` begins with a scheme of this module."""
    return text.startswith((PACKAGE, ROOT, HUB))


def locate(uri: str, base: str | Path | None = None) -> Path:
    """Return the absolute path of a file or folder, whether or not it exists.

    Args:
        uri: ``package://cfqa_data.codecs/weights/x.safetensors``, ``root://weights/x.pth``, or a
            path.
        base: Folder of relative paths; the working directory if None.

    Raises:
        RecipeError: If the name is malformed, leads outside the package or the root, or is on the
            Hub.
    """
    if uri.startswith(HUB):
        raise RecipeError(f"{uri}: only backbones and heads are read from the Hub; give a path")
    if uri.startswith(ROOT):
        parts = PurePosixPath(uri.removeprefix(ROOT)).parts
        if not parts or ".." in parts or parts[0] == "/":
            raise RecipeError(f"{uri}: must be root://path without '..'")
        return real_path(os.environ.get(ROOT_VARIABLE) or ".").joinpath(*parts)
    if not uri.startswith(PACKAGE):
        return absolute_path(uri, base or "")
    package, _, name = uri.removeprefix(PACKAGE).partition("/")
    parts = PurePosixPath(name).parts
    if package.split(".")[0] != "cfqa_data" or not parts or ".." in parts or name[0] == "/":
        raise RecipeError(f"{uri}: must be package://cfqa_data[.part]/path without '..'")
    try:
        return Path(str(resources.files(package).joinpath(*parts)))
    except ModuleNotFoundError:
        raise RecipeError(f"{uri}: no package {package}") from None


def resolve(uri: str, base: str | Path | None = None) -> Path:
    """Return the path of an existing file.

    Args:
        uri: See :func:`locate`.
        base: See :func:`locate`.

    Raises:
        RecipeError: If the name is malformed, the file does not exist, or it is only a pointer of
            Git LFS or git-annex.
    """
    path = locate(uri, base)
    if kind := pointer_at(path):
        raise RecipeError(f"{uri}: {kind} ({path})")
    if not os.path.isfile(path):
        hint = (
            f"; set {ROOT_VARIABLE} to the folder that {ROOT} stands for"
            if uri.startswith(ROOT)
            else ""
        )
        raise RecipeError(f"{uri}: no such file ({path}){hint}")
    return path
