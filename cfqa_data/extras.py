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
"""Optional module -> the extra that installs it."""

INCLUDED = {"build": ("build", "codecs", "eval")}
"""Extra that includes others -> all extras that it installs."""


@contextmanager
def extras(extra: str | None = None) -> Iterator[None]:
    """Report a missing optional package with the extra that installs it; also a decorator.

    Args:
        extra: Extra to name if it installs the package; otherwise the package's own is named. If
            blocks are nested, the outermost one with an extra decides.

    Raises:
        MissingDependencyError: If a package of an extra is not installed.
    """
    try:
        yield
    except (ModuleNotFoundError, MissingDependencyError) as error:
        module = error.name or ""  # a submodule, such as "scipy.stats", is no key
        already_handled = isinstance(error, MissingDependencyError) and extra is None
        if already_handled or module not in EXTRAS:
            raise
        needed = EXTRAS[module]
        extra_name = extra if extra and needed in INCLUDED.get(extra, ()) else needed
        message = f"{module} is not installed: pip install 'cfqa-data[{extra_name}]'"
        raise MissingDependencyError(message, name=module) from None
