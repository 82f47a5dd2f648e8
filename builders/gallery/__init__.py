"""Pictures of a dataset: the effect of compression on features, and on the tasks' predictions."""

from __future__ import annotations

from cfqa_data.lazy import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
