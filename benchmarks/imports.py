"""How long `import cfqa_data` and `cfqa --help` take.

    python benchmarks/imports.py [--runs 10]

Each run is a fresh process; the best run is compared (others carry what else the machine does).
Exits with 1 when a limit is not met. Where the time goes: `python -X importtime -m ...`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator

from measuring import turns
from results import FIGURES, Result, figure, run

HELP = "from cfqa_data.cli import main; main(['--help'])"
CASES = {
    "import cfqa_data": "import cfqa_data",
    "cfqa --help": HELP,
    "cfqa eval --help": HELP.replace("'--help'", "'eval', '--help'"),
    "cfqa_data.list_metrics()": "import cfqa_data; cfqa_data.list_metrics()",
    "cfqa_data.load": "import cfqa_data; cfqa_data.load",
}


def start(code: str) -> None:
    """Run ``code`` in a fresh interpreter."""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def measure(given: argparse.Namespace) -> Iterator[Result]:
    """Yield each case beside an interpreter that does nothing."""
    codes = ["", *CASES.values()]
    calls = [lambda code=code: start(code) for code in codes]  # type: ignore[misc]
    empty, *taken = turns(calls, 2 if given.quick else given.runs)
    for name, time in zip(CASES, taken, strict=True):
        if name in FIGURES:
            yield figure(name, time, empty)
        else:
            yield Result(name, time, "s", "an empty program", empty)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=10, help="processes per case (default 10)")


if __name__ == "__main__":
    sys.exit(run(__doc__, measure, options))
