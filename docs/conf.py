"""Sphinx: `python -m sphinx -W -b html docs OUT` makes a site of these pages."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

project = "cfqa-data"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
root_doc = "README"
myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"
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


def _mathml(writer: Any, node: Any) -> None:
    """Write a formula as MathML, which browsers draw without a script."""
    block = isinstance(node, nodes.math_block)
    writer.body.append(tex2mathml(node.astext(), as_block=block))
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Take part in reading the pages and in writing formulas."""
    app.connect("source-read", _order)
    app.add_html_math_renderer("mathml", (_mathml, None), (_mathml, None))
