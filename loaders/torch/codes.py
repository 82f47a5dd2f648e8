"""Integer codes as tensors, moved to a device before they become float32.

Integers are a half or a quarter of the bytes to move between processes and to a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cfqa_data.format.codes import Codes
from cfqa_data.torch_state import torch_state

__all__ = ["CodeTensors"]


class CodeTensors(NamedTuple):
    """Codes of one feature, or of a batch of them, and the values that they stand for.

    Attributes:
        indices: (..., N, C, T, D) places in the tables: uint8, or int16 with the bits of uint16,
            which torch does not move and convert everywhere.
        tables: float32 (..., C, size), the values of each layer.
    """

    indices: Tensor
    tables: Tensor

    @classmethod
    @torch_state()
    def of(cls, codes: Codes) -> CodeTensors:
        """Return a feature's codes as tensors; indices that can be written to are not copied."""
        indices = np.require(codes.indices, requirements=("C", "W"))
        if indices.dtype == np.uint16:
            indices = indices.view(np.int16)
        return cls(torch.from_numpy(indices), torch.tensor(codes.tables))

    @torch_state()
    def dequantize(self, device: str | torch.device | None = None) -> Tensor:
        """Return float32 (..., N, C, T, D), looked up on a device, or where the codes are."""
        device = self.indices.device if device is None else device
        # int32 first: the sign of int16 is the sixteenth bit.
        places = self.indices.to(device, non_blocking=True).int() & 0xFFFF
        tables = self.tables.to(device, non_blocking=True)
        starts = torch.arange(tables[..., 0].numel(), device=device, dtype=torch.int32)
        starts = (starts * tables.shape[-1]).reshape(*tables.shape[:-2], 1, -1, 1, 1)
        return tables.flatten()[places + starts]
