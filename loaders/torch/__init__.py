"""A PyTorch dataset of a dataset folder, and a `DataLoader` for it."""

from __future__ import annotations

from cfqa_data.extras import extras

with extras():
    from cfqa_data.loaders.torch.batches import ShardBatches, data_loader
    from cfqa_data.loaders.torch.codes import CodeTensors
    from cfqa_data.loaders.torch.pairs import Pair, Pairs

__all__ = ["CodeTensors", "Pair", "Pairs", "ShardBatches", "data_loader"]
