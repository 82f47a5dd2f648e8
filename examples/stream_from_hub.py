"""Stream a dataset on the Hub: labels row by row, arrays by ranges, nothing downloaded first.

python examples/stream_from_hub.py org/cfqa --task dpt --rows 3

Needs the extra `hf`. For a private repo, log in by `hf auth login` or set `HF_TOKEN`.
"""

from __future__ import annotations

import argparse
from itertools import islice

from datasets import load_dataset

import cfqa_data
from cfqa_data.loaders import attach


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("repo", help="of a dataset that `cfqa publish` sent, as org/name")
    parser.add_argument("--task", default="seg", help="cls, seg or dpt")
    parser.add_argument("--revision", help="branch, tag or commit; the main branch if not said")
    parser.add_argument("--rows", type=int, default=3, help="how many rows to read")
    arguments = parser.parse_args()

    # Opened before the rows are: it says what is wrong with a repo.
    arrays = cfqa_data.load(arguments.repo, arguments.task, revision=arguments.revision)
    rows = load_dataset(
        arguments.repo, arguments.task, split="test", revision=arguments.revision, streaming=True
    )
    for row in islice(attach(rows, arrays), arguments.rows):
        error = ((row["compressed"] - row["original"]) ** 2).mean()
        print(f"{row['source_id']} {row['codec']} level {row['level']}: MSE {error:.4g}")


if __name__ == "__main__":
    main()
