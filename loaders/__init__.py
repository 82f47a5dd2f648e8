"""Integrations with training libraries: PyTorch and Hugging Face `datasets`.

`cfqa_data.loaders.attach` gives rows of Hugging Face `datasets` their arrays;
`cfqa_data.loaders.torch` has a PyTorch dataset and its `DataLoader`. Plain arrays are
`cfqa_data.load`, and `read_ahead` reads them in threads.
"""

from __future__ import annotations

from cfqa_data.lazy import lazy_modules
from cfqa_data.loaders.ahead import read_ahead
from cfqa_data.loaders.huggingface import attach

__all__ = ["attach", "read_ahead"]

__getattr__, __dir__ = lazy_modules(__name__, __path__)
