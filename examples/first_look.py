"""Open a dataset folder and look around: contents, one pair, health, and the baseline table.

python examples/first_look.py cfqa
"""

from __future__ import annotations

import argparse
from contextlib import chdir
from pathlib import Path

from datasets import load_dataset

import cfqa_data
from cfqa_data.console.terminal import show_progress
from cfqa_data.eval.text import paper_text
from cfqa_data.integrity.health import health


def show_contents(pairs: cfqa_data.Dataset) -> None:
    """Print what there is per task, and one pair of arrays with its label."""
    print(pairs)
    for task, entry in pairs.manifest.tasks.items():
        rows = pairs.labels["task"].to_pylist().count(task)
        print(f"  {task}: {len(entry.sources)} originals {entry.shape}, {rows} compressed features")

    pair = pairs[len(pairs) - 1]
    error = pair.compressed - pair.original
    print(f"\nThe last pair: {pair.label['source_id']} by {pair.label['codec']}")
    print(f"  original    {pair.original.dtype} {pair.original.shape}")
    print(f"  compressed  {pair.compressed.dtype} {pair.compressed.shape}")
    print(f"  error       RMS {float((error**2).mean()) ** 0.5:.4g}")
    for name in ("level", "bpfp", "reference_score", "score", "distortion", "mse"):
        print(f"  {name:<16}{pair.label[name]:.4g}")


def show_health(pairs: cfqa_data.Dataset) -> None:
    """Print how many ladders have labels that move as they should, and which have not."""
    rows = health(pairs.labels)
    weak = [f"{row['task']} {row['codec']}" for row in rows if not row["ok"]]
    print(f"\nHealth: {len(rows) - len(weak)} of {len(rows)} ladders ok", end="")
    print(f"; weak: {', '.join(weak)}" if weak else "")


def show_labels(folder: Path, task: str) -> None:
    """Print the first label row as `datasets` reads it, from the folder's parent."""
    folder = folder.resolve()
    with chdir(folder.parent):
        rows = load_dataset(folder.name, task, split="test", streaming=True)
        first = next(iter(rows))
    print(f'\nload_dataset("{folder.name}", "{task}"), first row:')
    print("  " + ", ".join(f"{name}={value}" for name, value in first.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="what `cfqa build` made")
    folder = parser.parse_args().folder
    pairs = cfqa_data.load(folder)
    show_contents(pairs)
    show_health(pairs)
    show_labels(folder, next(iter(pairs.manifest.tasks)))
    print("\nScoring every compressed feature with mse, cosine and cka:", flush=True)
    with show_progress() as progress:
        evaluation = cfqa_data.evaluate(pairs, progress=progress)
    print(paper_text(evaluation))


if __name__ == "__main__":
    main()
