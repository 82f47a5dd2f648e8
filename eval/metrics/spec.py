"""Specifications of metrics: ``NAME``, ``MODULE:ATTRIBUTE`` or ``FILE.py:ATTRIBUTE``, and options.

Options follow a colon, as in ``mutual_knn:k=3``. Options and metrics are separated by commas:
``mse,mutual_knn:k=3,./own.py:Mine:width=2,depth=4,cosine`` names four metrics.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from cfqa_data.errors import MetricError

__all__ = ["parse_spec", "split_specs", "variant_name"]

OPTION = re.compile(r"\s*[A-Za-z_]\w*=")
PART = re.compile(r"(?:\([^()]*\)|\[[^\[\]]*\]|'[^']*'|\"[^\"]*\"|[^,])+")
"""Part of a list separated by commas; commas within brackets or quotes do not separate."""

MOST = 4
"""Maximum number of elements of an option that the name of a metric includes."""


def split_specs(text: str) -> list[str]:
    """Split a list of metrics at commas; options belong to the metric before them."""
    specs: list[str] = []
    for part in map(str.strip, PART.findall(text)):
        if specs and OPTION.match(part):
            specs[-1] += f",{part}"
        elif part:
            specs.append(part)
    return specs


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Return the name or path of a metric, and its options as Python values.

    Raises:
        MetricError: If an option is not of the form ``NAME=VALUE``.
    """
    begin = re.search(rf":(?={OPTION.pattern})", spec)
    if begin is None:
        return spec, {}
    options: dict[str, Any] = {}
    for part in PART.findall(spec[begin.end() :]):
        name, _, value = map(str.strip, part.partition("="))
        if not OPTION.match(part) or not value:
            raise MetricError(f"metric {spec!r}: options are NAME=VALUE, not {part!r}")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError):  # a text without quotes
            options[name] = value
    return spec[: begin.start()], options


def variant_name(name: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Return the name of a metric with its plain, non-default options, as in mutual_knn:k=3."""
    shown = ",".join(
        f"{option}={value}".replace(", ", ",")
        for option, value in options.items()
        if _is_plain(value) and defaults.get(option) != value
    )
    return f"{name}:{shown}" if shown else name


def _is_plain(value: Any) -> bool:
    """Return whether a value is a number, a string, or a list of at most `MOST` numbers."""
    if isinstance(value, tuple | list):
        return len(value) <= MOST and all(isinstance(one, int | float) for one in value)
    return isinstance(value, int | float | str)
