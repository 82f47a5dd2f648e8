"""PyArrow, imported on first use, since reading a manifest does not need it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfqa_data.lazy import LazyModule

__all__ = ["pa", "pc", "pq"]

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
else:
    pa, pc, pq = map(LazyModule, ("pyarrow", "pyarrow.compute", "pyarrow.parquet"))
