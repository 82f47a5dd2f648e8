"""Finding the files a recipe names: in an installed package, or beside the recipe."""

from __future__ import annotations

from importlib import resources
from pathlib import Path, PurePosixPath

from cfqa_data.errors import RecipeError

__all__ = ["is_package_uri", "resolve"]

SCHEME = "package://"


def is_package_uri(uri: str) -> bool:
    """Return whether ``uri`` names a file inside an installed package."""
    return uri.startswith(SCHEME)


def resolve(uri: str, base: str | Path | None = None) -> Path:
    """Return the path of an existing file.

    Args:
        uri: ``package://cfqa_data.codecs/weights/x.safetensors``, or a path.
        base: folder that a relative path starts from; the working directory if None.

    Raises:
        RecipeError: the name is malformed, leaves this package, or there is no such file.
    """
    if is_package_uri(uri):
        package, _, name = uri.removeprefix(SCHEME).partition("/")
        parts = PurePosixPath(name).parts
        if package.split(".")[0] != "cfqa_data" or not parts or ".." in parts or name[0] == "/":
            raise RecipeError(f"{uri}: must be package://cfqa_data[.part]/path without '..'")
        try:
            path = Path(str(resources.files(package).joinpath(*parts)))
        except ModuleNotFoundError:
            raise RecipeError(f"{uri}: there is no package {package}") from None
    else:
        path = Path(base or ".") / Path(uri).expanduser()
    if not path.is_file():
        raise RecipeError(f"{uri}: no such file ({path})")
    return path
