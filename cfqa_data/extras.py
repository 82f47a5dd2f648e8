"""Report missing optional packages with the extra of `cfqa-data` that installs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cfqa_data.errors import MissingDependencyError

__all__ = ["EXTRAS", "extras"]

EXTRAS = {
    "av": "codecs",
    "constriction": "codecs",
    "dask": "build",
    "datasets": "hf",
    "distributed": "build",
    "h5py": "paper",
    "huggingface_hub": "hf",
    "imageio_ffmpeg": "codecs",
    "jinja2": "eval",
    "matplotlib": "build",
    "PIL": "build",
    "scipy": "eval",
    "sklearn": "eval",
    "timm": "timm",
    "torch": "eval",
    "transformers": "transformers",
}
"""Module that may be absent -> the extra that brings it."""

INCLUDED = {"build": ("build", "codecs", "eval")}
"""Extra that brings others -> all that it brings."""


@contextmanager
def extras(extra: str | None = None) -> Iterator[None]:
    """Say of a package that is not installed which extra brings it; a decorator too.

    Args:
        extra: The one to name if it brings the package; else, the package's own is named. Of
            several around each other the outermost decides.

    Raises:
        MissingDependencyError: A package of an extra is not installed.
    """
    try:
        yield
    except (ModuleNotFoundError, MissingDependencyError) as error:
        module = error.name or ""  # with a dot, it is a part that an installed package lacks
        already_handled = isinstance(error, MissingDependencyError) and extra is None
        if already_handled or module not in EXTRAS:
            raise
        needed = EXTRAS[module]
        extra_name = extra if extra and needed in INCLUDED.get(extra, ()) else needed
        message = f"{module} is not installed: pip install 'cfqa-data[{extra_name}]'"
        raise MissingDependencyError(message, name=module) from None
