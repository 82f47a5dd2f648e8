"""Numbers as NumPy has them, where Python's are meant."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["python_value"]


def python_value(value: Any) -> Any:
    """Return a NumPy number, truth value or text as Python's, and anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value
