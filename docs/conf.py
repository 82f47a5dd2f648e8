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
html_static_path = ["site.css"]
html_css_files = ["site.css"]
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


def latex(formula: str) -> str:
    """Return a metric's formula as mathematics in Markdown, and an explanation after it as text.

    Words become upright, what follows an underscore a subscript, and what follows a caret a
    superscript; `<a, b>` is an inner product, `&` and `u` are intersection and union.
    """
    formula, comma, note = re.fullmatch(r"(.*?)(?:(, )(\w+(?: \w+){2,}))?", formula).groups("")  # type: ignore[union-attr]
    rules = {
        r"\^\(?(-1|1/2|T)\)?": r"^{\1}",
        r"_\{([^}]*)\}|_([a-z]{4,})|_(\w+)": lambda m: (
            f"_{{{m[1] or m[3]}}}" if m[1] or m[3] else rf"_\mathrm{{{m[2]}}}"
        ),
        r"(?<![\\{\w])([a-z]{2,}\d*|KL|HSIC)(?![a-zA-Z])": r"\\operatorname{\1}",
        r"\b([XY])c": r"\1_c",
        r"1e(-\d+)": r"10^{\1}",
        r"!=": r" \\ne ",
        r"<(?=\w+, |\w+_\{\w+\}, )": r"\\langle ",
        r"(?<=[\w}])>": r"\\rangle ",
        r"&": r"\\cap ",
        r"(?<=\)) u ": r" \\cup ",
        r"\boperatorname\{sigma\}": "sigma",
        r"(?<=[\w})]) (?=\\operatorname)": r"\\, ",
        r", ": r",\\ ",
    }
    for pattern, replacement in rules.items():
        formula = re.sub(pattern, replacement, formula)
    return f"${formula}${comma}{note}"


def _formulas(app: Any, name: str, source: list[str]) -> None:
    """Show the formulas in the tables of metrics as mathematics."""
    if name == "metrics":
        source[0] = re.sub(
            r"^(\| `\w+` \| )`([^`]*)`",
            lambda row: row[1] + latex(row[2].replace(r"\|", "|")).replace("|", r"\|"),
            source[0],
            flags=re.M,
        )


def _mathml(writer: Any, node: Any) -> None:
    """Write a formula as MathML, which browsers draw without a script."""
    block = isinstance(node, nodes.math_block)
    text = str(tex2mathml(node.astext(), as_block=block))
    writer.body.append(re.sub(r"<mo[^>]*>\|</mo>", '<mo lspace="0" rspace="0">|</mo>', text))
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Take part in reading the pages and in writing formulas."""
    app.connect("source-read", _order)
    app.connect("source-read", _formulas)
    app.add_html_math_renderer("mathml", (_mathml, None), (_mathml, None))
