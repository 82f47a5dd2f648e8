"""Import hook for the former names of moved modules: it warns and returns the new module."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["MovedModules"]

_HOMES = {
    "cfqa_data": {
        "access": "dataset folder files hub hub_requests=hub_client selection shards=arrays "
        "remembered=weights tensors weights",
        "console": "progress terminal text",
        "format": "codes invariants layout limits manifest packing "
        "paper_quantizers=quantizers parquet pointers=limits quantizers resources schema storage "
        "tasks=format_1",
        "integrity": "consistency health summary verify",
        "recipe": "portable recipe_specs=spec",
    },
    "cfqa_data.codecs": {
        "h26x": "annexb=vvc hevc program reference reference_software=reference video vvc",
        "hyperprior": "entropy_coder entropy_escapes=entropy_coder entropy_tables fixed_point "
        "hyperprior_checkpoint=checkpoint hyperprior_module=module hyperprior_strips=strips "
        "hyperprior_weights=weights",
        "sandbox": "confinement isolated isolated_child=child isolated_process=process",
    },
    "cfqa_data.builders": {
        "backbones": "backbone=dinov2 naming",
        "calibration": "calibrate calibration_report=report",
        "importing": "release release_files=files release_recipe=recipe release_scores=scores "
        "release_stages=stages release_tables=recipe",
        "maintenance": "deep=deep_verify repair repair_plan=plan repair_work=scratch",
        "pipeline": "ladders",
        "sharing": "edition=upload export export_formats hub_limits publish publish_text",
        "sources": "geometry",
        "tasks": "heads",
    },
    "cfqa_data.eval": {
        "": "log_files=paper_logs stored=results tables=results",
        "features": "opening=datasets pairs reading relations",
    },
}
"""Package -> subpackage -> modules that moved there, as "former=new" if the name changed too."""

_MOVED = {
    f"{package}.{old}": ".".join(filter(None, (package, folder, new or old)))
    for package, folders in _HOMES.items()
    for folder, names in folders.items()
    for old, _, new in (name.partition("=") for name in names.split())
} | {
    "cfqa_data.builders.spawning": "cfqa_data.processes.spawning",
    "cfqa_data.builders.checkpoints": "cfqa_data.format.checkpoints",
    "cfqa_data.builders.calibration.ladders": "cfqa_data.builders.pipeline.ladders",
}


class MovedModules(MetaPathFinder, Loader):
    """Finds modules by their former names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a former name; None for any other."""
        return ModuleSpec(name, self) if name in _MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Warn, and return the module of the new name."""
        home = _MOVED[spec.name]
        warnings.warn(f"{spec.name} is now {home}", DeprecationWarning, stacklevel=2)
        spec.loader_state = import_module(home).__spec__
        return sys.modules[home]

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own spec; the module has been executed already."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state
