"""The figure of `scaling.py`: time per item and memory against the number of items."""

from __future__ import annotations

from pathlib import Path

__all__ = ["plot"]

STYLES = {
    "write": ("#000000", "o", "write a folder"),
    "export": ("#D55E00", "s", "export to .npy"),
    "score": ("#0072B2", "^", "mse, cosine, cka"),
    "read": ("#009E73", "D", "read all in order"),
    "statistics": ("#CC79A7", "v", "statistics"),
    "verify": ("#E69F00", "P", "verify"),
    "open": ("#56B4E9", "X", "open"),
    "labels": ("#7F7F7F", "*", "labels as Python objects"),
}
"""Colour (Okabe and Ito, which all kinds of eyes tell apart), marker, and words of each step."""

FLOOR = 0.1
"""Megabytes below which a process's record says nothing."""


def plot(found: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    """Draw what `scaling.py` found, by step and number of items, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    for name, rows in found.items():
        colour, marker, words = STYLES[name]
        items = sorted(rows)
        look = {"color": colour, "marker": marker, "label": words, "lw": 1.6, "ms": 6}
        left.plot(items, [1e3 * rows[n]["seconds"] / n for n in items], **look)
        right.plot(items, [max(FLOOR, rows[n]["memory"] / 1e6) for n in items], **look)
    most = max(max(rows) for rows in found.values())
    least = min(min(rows) for rows in found.values())
    size = [4e-6 * 65 * 64 * n for n in (least, most)]
    words = "all features as float32"
    right.plot([least, most], size, ls=":", color="#000000", lw=1.4, label=words)
    for axes, title in (
        (left, "milliseconds of processor per item"),
        (right, "megabytes above the start"),
    ):
        axes.set(xscale="log", yscale="log", xlabel="compressed features in the folder")
        axes.set_title(title, loc="left", fontsize=11)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}".replace(",", " ")))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
        axes.grid(which="major", color="#DDDDDD", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
