"""A plugin of cfqa-data: features of short texts."""

from __future__ import annotations

from pathlib import Path

RECIPE = Path(__file__).with_name("text.toml")
"""The recipe of the example dataset."""
