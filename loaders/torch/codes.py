"""Integer codes as tensors that are moved to a device before they are dequantised to float32.

Codes have a half or a quarter of the bytes to transfer between processes and to a GPU.
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
    """Codes of a feature, or of a batch of features, and their tables of values.

    Attributes:
        indices: Indices (..., N, C, T, D) into the tables: uint8, or int16 with the bits of uint16,
            which torch does not support on all devices.
        tables: Values of the codes of each layer, float32 (..., C, size).
    """

    indices: Tensor
    tables: Tensor

    @classmethod
    @torch_state()
    def of(cls, codes: Codes) -> CodeTensors:
        """Convert the codes of a feature to tensors; writable indices are not copied."""
        indices = np.require(codes.indices, requirements=("C", "W"))
        if indices.dtype == np.uint16:
            indices = indices.view(np.int16)
        return cls(torch.from_numpy(indices), torch.tensor(codes.tables))

    @torch_state()
    def dequantize(self, device: str | torch.device | None = None) -> Tensor:
        """Return the values, float32 (..., N, C, T, D), looked up on a device.

        Args:
            device: Device of the result; that of the codes if None.
        """
        device = self.indices.device if device is None else device
        # As unsigned 16-bit numbers: the sign bit of int16 is the highest bit of the code.
        indices = self.indices.to(device, non_blocking=True).int() & 0xFFFF
        tables = self.tables.to(device, non_blocking=True)
        starts = torch.arange(tables[..., 0].numel(), device=device, dtype=torch.int32)
        starts = (starts * tables.shape[-1]).reshape(*tables.shape[:-2], 1, -1, 1, 1)
        return tables.flatten()[indices + starts]
