"""The study of embedding compression: mAP by method, size and quantisation, trained and post hoc.

python examples/reid_study.py pooled.safetensors reid.png --csv reid.csv

Queries and gallery are both compressed. The first argument is the file of backbone features that
`python -m cfqa_data.builders.training.embedding` makes; it is made if it is not there.

| method | trained | post hoc |
|---|---|---|
| slice | with the first k numbers of the embedding only | the first k of the full embedding |
| low rank | with a projection to k numbers | the first k principal axes of training embeddings |
| pruning | a fifth of the numbers left out, those of smallest norm, trained on, again and again | the k of largest norm |

int8 has one scale for all embeddings, and of the trained ones quantisation was a part of training.
"""  # noqa: E501

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from cfqa_data.builders.sources.instances import JUNK
from cfqa_data.builders.tasks.retrieval import Embedder
from cfqa_data.builders.training.embedding import (
    average_precisions,
    embeddings,
    pooled_features,
    train,
)
from cfqa_data.recipe.load import load_recipe

RATIOS = (1.5, 3, 6, 12, 24)
METHODS = ("slice", "low rank", "pruning")


class Reduced(nn.Module):
    """An embedding of which some numbers are kept, or that is projected."""

    def __init__(self, width: int, kept: np.ndarray | None, rank: int, quantised: bool) -> None:
        super().__init__()
        self.whole = Embedder(width, width // 4)
        self.projection = nn.Linear(width, rank, bias=False) if rank else nn.Identity()
        self.kept = slice(None) if kept is None else torch.from_numpy(kept)
        self.quantised = quantised

    def forward(self, pooled: Tensor) -> Tensor:
        values = functional.normalize(self.projection(self.whole.unit(pooled))[:, self.kept], dim=1)
        if self.quantised and self.training:  # rounds forward, and passes gradients on
            scale = values.detach().abs().max() / 127
            values = values + (torch.round(values / scale) * scale - values).detach()
        return values


class Study:
    """Trains and measures."""

    def __init__(self, arrays: dict[str, np.ndarray], steps: int) -> None:
        self.arrays, self.steps = arrays, steps
        self.width = arrays["training"].shape[1]
        known = arrays["training_truths"][:, 0] != JUNK
        self.known = arrays["training"][known]

    def fit(self, seed: int, start: nn.Module | None = None, share: float = 1.0, **how) -> Reduced:
        """Train an embedding, from scratch or on from another."""

        def make() -> Reduced:
            made = Reduced(self.width, **{"kept": None, "rank": 0, "quantised": False, **how})
            if start is not None:
                made.load_state_dict(start.state_dict())
            return made

        inputs, truths = self.arrays["training"], self.arrays["training_truths"]
        steps = max(3, round(self.steps * share))
        return train(make, inputs, truths, steps=steps, identities=16, seed=seed)

    def measure(self, embed: Callable[[np.ndarray], np.ndarray], int8: bool) -> np.ndarray:
        """Return the AP of each query; queries and gallery are both embedded so."""
        queries, gallery = (embed(self.arrays[part]) for part in ("queries", "gallery"))
        if int8:
            scale = np.abs(embed(self.known)).max() / 127
            queries, gallery = (
                np.clip(np.rint(part / scale), -127, 127) * scale for part in (queries, gallery)
            )
        identities, cameras = self.arrays["gallery_truths"].T
        searched = {"embeddings": gallery, "identities": identities, "cameras": cameras}
        return average_precisions(queries, self.arrays["queries_truths"], searched)

    def runs(self, seed: int, int8: bool) -> Iterator[tuple[tuple, np.ndarray]]:
        """Yield (method, how, size, int8, seed) and the APs of the queries."""
        sizes = [round(self.width / ratio) for ratio in RATIOS]
        full = self.fit(seed)
        yield from self.post_hoc(full, sizes, int8, seed)
        trained = self.fit(seed, quantised=True) if int8 else full
        whole = self.measure(lambda x: embeddings(trained, x), int8)
        for method in METHODS:
            yield (method, "trained", self.width, int8, seed), whole
        for size in sizes:
            for method, how in (("slice", {"kept": np.arange(size)}), ("low rank", {"rank": size})):
                module = self.fit(seed, quantised=int8, **how)
                aps = self.measure(lambda x, m=module: embeddings(m, x), int8)
                yield (method, "trained", size, int8, seed), aps
        yield from self.pruned(trained, sizes, int8, seed)

    def pruned(self, module, sizes, int8, seed):
        """Leave out a fifth at a time, down to each size, and train on after each."""
        kept = np.arange(self.width)
        for size in sizes:
            while len(kept) > size:
                norms = np.linalg.norm(embeddings(module, self.known), axis=0)
                count = max(size, int(0.8 * len(kept)))
                kept = kept[np.sort(np.argsort(-norms, kind="stable")[:count])]
                module = self.fit(seed, module, 0.25, kept=kept, quantised=int8)
            aps = self.measure(lambda x, m=module: embeddings(m, x), int8)
            yield ("pruning", "trained", size, int8, seed), aps

    def post_hoc(self, full, sizes, int8, seed):
        """Cut the embedding that was trained in full and in floating point."""
        found = embeddings(full, self.known)
        order = np.argsort(-np.linalg.norm(found, axis=0), kind="stable")
        mean = found.mean(axis=0)
        axes = np.linalg.svd(found - mean, full_matrices=False)[2]
        ways = {
            "slice": lambda x, k: embeddings(full, x)[:, :k],
            "low rank": lambda x, k: (embeddings(full, x) - mean) @ axes[:k].T,
            "pruning": lambda x, k: embeddings(full, x)[:, order[:k]],
        }
        for method, way in ways.items():
            for size in (self.width, *sizes):
                aps = self.measure(lambda x, way=way, k=size: way(x, k), int8)
                yield (method, "post hoc", size, int8, seed), aps


def run(part: tuple[Study, int, bool]) -> dict[tuple, np.ndarray]:
    """Return all runs of a seed, in floating point or int8."""
    study, *which = part
    began, found = time.monotonic(), dict(study.runs(*which))
    print(f"seed {which[0]}, int8 {which[1]}: {time.monotonic() - began:.0f} s", flush=True)
    return found


def intervals(aps: np.ndarray, identities: np.ndarray, count: int = 2000) -> np.ndarray:
    """Return mean and 95% interval by a bootstrap over identities, of APs (queries,)."""
    _, labels = np.unique(identities, return_inverse=True)
    totals, sizes = np.bincount(labels, aps), np.bincount(labels)
    drawn = np.random.default_rng(0).integers(len(sizes), size=(count, len(sizes)))
    means = totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return np.array([aps.mean(), *np.quantile(means, (0.025, 0.975))])


def summary(found: dict[tuple, np.ndarray], identities: np.ndarray) -> list[dict[str, object]]:
    """Return a row per method and size: mAP over seeds, and what it is less than the full one."""
    seeds = sorted({key[-1] for key in found})
    width = max(key[2] for key in found)

    def mean(*key: object) -> np.ndarray:
        return np.mean([found[(*key, seed)] for seed in seeds], axis=0)

    full = mean("slice", "trained", width, False)
    rows = []
    for method, how, size, int8 in sorted({key[:-1] for key in found}, key=str):
        aps = mean(method, how, size, int8)
        level, low, high = intervals(aps, identities)
        lost, least, most = intervals(full - aps, identities)
        spread = np.std([found[method, how, size, int8, seed].mean() for seed in seeds])
        rows.append(
            {
                "method": method,
                "how": how,
                "size": size,
                "int8": int8,
                "ratio": round(width / size * (4 if int8 else 1), 1),
                "map": round(level, 4),
                "map_low": round(low, 4),
                "map_high": round(high, 4),
                "lost": round(lost, 4),
                "lost_low": round(least, 4),
                "lost_high": round(most, 4),
                "seed_sd": round(float(spread), 4),
            }
        )
    return sorted(rows, key=lambda row: (row["int8"], row["how"], row["method"], -row["size"]))


def draw(rows: list[dict], path: Path) -> None:
    """Draw mAP against the ratio, in floating point and int8."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    full = next(row for row in rows if row["ratio"] == 1 and row["how"] == "trained")
    for axis, int8 in zip(axes, (False, True), strict=True):
        for method, colour in zip(METHODS, ("C0", "C1", "C2"), strict=True):
            for how, style in (("trained", "o-"), ("post hoc", "s--")):
                points = [
                    r for r in rows if (r["method"], r["how"], r["int8"]) == (method, how, int8)
                ]
                points.sort(key=lambda row: row["ratio"])
                ratios = [row["ratio"] for row in points]
                axis.plot(
                    ratios,
                    [r["map"] for r in points],
                    style,
                    color=colour,
                    label=f"{method}, {how}",
                )
                if how == "trained":
                    band = [row["map_low"] for row in points], [row["map_high"] for row in points]
                    axis.fill_between(ratios, *band, color=colour, alpha=0.08)
        axis.axhline(full["map"], color="grey", lw=0.8)
        axis.axhline(0.96 * full["map"], color="grey", lw=0.8, ls=":")
        axis.set(
            xscale="log",
            xlabel="times smaller than float32 of all",
            title="int8" if int8 else "float32",
        )
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mAP, query and gallery compressed")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "features", type=Path, help="file of backbone features; made if it is not there"
    )
    parser.add_argument("out", type=Path, help="picture to write")
    parser.add_argument("--csv", type=Path, help="table to write")
    parser.add_argument("--steps", type=int, default=200, help="batches of a training")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each method")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    chosen = parser.parse_args()
    study = Study(pooled_features(load_recipe("ret"), "ret", chosen.features), chosen.steps)
    parts = [(study, seed, int8) for seed in range(chosen.seeds) for int8 in (False, True)]
    found: dict[tuple, np.ndarray] = {}
    if chosen.workers == 1:
        for part in parts:
            found |= run(part)
    else:
        with ProcessPoolExecutor(chosen.workers, mp_context=get_context("spawn")) as pool:
            for runs in pool.map(run, parts):
                found |= runs
    rows = summary(found, study.arrays["queries_truths"][:, 0])
    for row in rows:
        print(*row.values(), sep="\t")
    if chosen.csv:
        with chosen.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    draw(rows, chosen.out)


if __name__ == "__main__":
    main()
