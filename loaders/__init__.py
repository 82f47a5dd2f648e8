"""Loaders for training libraries: PyTorch and Hugging Face `datasets`.

`attach` adds feature arrays to label rows of Hugging Face `datasets`. `cfqa_data.loaders.torch` has
a PyTorch dataset and a `DataLoader` for it. `read_ahead` prefetches the arrays of `cfqa_data.load`
with threads.
"""

from __future__ import annotations

from cfqa_data.lazy import lazy_modules
from cfqa_data.loaders.ahead import read_ahead
from cfqa_data.loaders.huggingface import attach

__all__ = ["attach", "read_ahead"]

__getattr__, __dir__ = lazy_modules(__name__, __path__)
