"""Sphinx: `python -m sphinx -W -b html docs OUT` makes a site of these pages."""

from __future__ import annotations

import re
from typing import Any

project = "cfqa-data"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
root_doc = "README"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
autodoc_typehints = "description"
napoleon_use_ivar = True


def _order(app: Any, name: str, source: list[str]) -> None:
    """Give the index a table of contents for the side bar: its own headings and links."""
    if name != root_doc:
        return
    parts = re.split(r"^## (.*)$", source[0], flags=re.M)
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        pages = re.findall(r"\]\(([\w-]+)\.md\)", text)
        names = "\n".join(pages + ["api"] * (title == "Reference"))
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{names}\n```\n"


def setup(app: Any) -> None:
    """Take part in reading the pages."""
    app.connect("source-read", _order)
