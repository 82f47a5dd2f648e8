"""Convert NumPy scalars to Python values."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["python_value"]


def python_value(value: Any) -> Any:
    """Convert a NumPy scalar to a Python value; return anything else unchanged."""
    return value.item() if isinstance(value, np.generic) else value
