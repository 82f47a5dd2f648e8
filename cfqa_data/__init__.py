"""Compressed Feature Quality Assessment: read and evaluate CFQA dataset folders.

The public names, and all submodules, are imported on first use, so that `import cfqa_data` is fast.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from cfqa_data._moved import MovedModules
from cfqa_data.lazy import lazy_modules

if TYPE_CHECKING:
    from cfqa_data import builders as builders
    from cfqa_data import codecs as codecs
    from cfqa_data import eval as eval
    from cfqa_data import loaders as loaders
    from cfqa_data.access.dataset import Dataset, FeaturePair, load
    from cfqa_data.access.from_arrays import from_arrays
    from cfqa_data.builders.extending import extend, label
    from cfqa_data.builders.gallery.show import show as show
    from cfqa_data.builders.gallery.source import source_image as source_image
    from cfqa_data.builders.sharing.save import save
    from cfqa_data.errors import (
        BuildError,
        CfqaError,
        CodecError,
        FormatError,
        HubError,
        MetricError,
        MetricWarning,
        MissingDependencyError,
        RecipeError,
    )
    from cfqa_data.eval import create_metric, evaluate, list_metrics

    __version__: str

__all__ = [
    "BuildError",
    "CfqaError",
    "CodecError",
    "Dataset",
    "FeaturePair",
    "FormatError",
    "HubError",
    "MetricError",
    "MetricWarning",
    "MissingDependencyError",
    "RecipeError",
    "__version__",
    "create_metric",
    "evaluate",
    "extend",
    "from_arrays",
    "label",
    "list_metrics",
    "load",
    "save",
]

sys.meta_path.append(MovedModules())

_PACKAGES = ("builders", "codecs", "eval", "loaders")
_HOMES = {
    "Dataset": "cfqa_data.access.dataset",
    "FeaturePair": "cfqa_data.access.dataset",
    "load": "cfqa_data.access.dataset",
    "from_arrays": "cfqa_data.access.from_arrays",
    "extend": "cfqa_data.builders.extending",
    "label": "cfqa_data.builders.extending",
    "save": "cfqa_data.builders.sharing.save",
    "show": "cfqa_data.builders.gallery.show",
    "source_image": "cfqa_data.builders.gallery.source",
    "create_metric": "cfqa_data.eval",
    "evaluate": "cfqa_data.eval",
    "list_metrics": "cfqa_data.eval",
}
_find, _ = lazy_modules(__name__, __path__, dict.fromkeys(__all__, "cfqa_data.errors") | _HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("cfqa-data")
    else:
        value = _find(name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
