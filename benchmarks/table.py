"""All figures as one table: for a terminal, for a page, and as JSON with the machine's facts."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from results import FIGURES, Figure, Result
from rich.console import Console
from rich.table import Table

__all__ = ["complete", "fill", "machine", "markdown", "show"]

HEADS = ("figure", "measured", "peer in the same run", "ratio", "limit", "met")
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
PAGE = "docs/performance.md"


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, memory, versions."""
    from cfqa_data.format.manifest import package_versions

    facts = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"^model name\s*: (.*)$", facts, re.M)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return {
        "processor": name[1] if name else platform.machine(),
        "cores": cores,
        "threads": os.environ.get("OMP_NUM_THREADS", "as many as cores"),
        "memory_gb": round(pages / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": package_versions(),
    }


def complete(results: Iterable[Result], chosen: Sequence[str] = ()) -> list[tuple[Figure, Result]]:
    """Return every figure of the data, in its order, with its result.

    Args:
        results: what was measured, figures and details alike.
        chosen: benchmarks whose figures are wanted; all if there are none.
    """
    by_name = {result.name: result for result in results}
    rows = []
    for name, known in FIGURES.items():
        if not chosen or known.benchmark in chosen:
            nothing = Result(name, None, known.unit, known.peer, None, known.limit, "not measured")
            rows.append((known, by_name.get(name, nothing)))
    return rows


def show(rows: Iterable[tuple[Figure, Result]], title: str, console: Console) -> None:
    """Print the table; a limit that is missed stands out."""
    table = Table(*HEADS, title=title, title_justify="left", box=None, header_style="bold")
    for known, result in rows:
        verdict = result.cells()[-1]
        if verdict == "NO":
            verdict = "no, known" if known.missed else "NO"
        style = "bold red" if verdict.startswith(("NO", "no")) else None
        table.add_row(result.name, *result.cells()[:-1], verdict, style=style)
    console.print(table)


def markdown(
    rows: Iterable[tuple[Figure, Result]], facts: dict[str, Any], loads: Sequence[float]
) -> str:
    """Return the table as a page has it, with commands and why limits are not met."""
    lines = [
        f"Measured on {facts['cores']} cores of {facts['processor']} with {facts['memory_gb']:.0f} "
        f"GB of memory, Python {facts['versions']['python']}, torch {facts['versions']['torch']}, "
        f"NumPy {facts['versions']['numpy']}, threads of torch and BLAS: {facts['threads']}. "
        f"Other programs kept {min(loads):.0f} to {max(loads):.0f} processes busy meanwhile.",
        "",
        f"| {' | '.join((*HEADS, 'command'))} |",
        "|---" * (len(HEADS) + 1) + "|",
    ]
    notes: dict[str, int] = {}
    for known, result in rows:
        *cells, verdict = result.cells()
        if verdict == "NO":
            verdict = "**no**"
            if known.missed:
                verdict += f" ({notes.setdefault(known.missed, len(notes) + 1)})"
        lines.append(f"| {' | '.join([known.name, *cells, verdict, f'`{known.benchmark}.py`'])} |")
    if notes:
        lines += ["", "Why a limit is not met:", ""]
        lines += [f"{place}. {text}" for text, place in notes.items()]
    return "\n".join(lines)


def fill(page: Path, text: str) -> None:
    """Put the table between its marks in a page."""
    old = page.read_text(encoding="utf-8")
    before, after = old.split(BEGIN)[0], old.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
