"""Measure how long `import cfqa_data` and `cfqa --help` take, against their limits.

    python benchmarks/imports.py [--runs 10]

Each run is a fresh process; the best run is compared (others carry what else the machine does).
Exits with 1 when a limit is not met. Where the time goes: `python -X importtime -m ...`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

HELP = "from cfqa_data.cli import main; main(['--help'])"
CASES = {
    "an empty program": ("", None),
    "import cfqa_data": ("import cfqa_data", 0.15),
    "cfqa --help": (HELP, 0.35),
    "cfqa eval --help": (HELP.replace("'--help'", "'eval', '--help'"), None),
    "cfqa_data.list_metrics()": ("import cfqa_data; cfqa_data.list_metrics()", None),
    "cfqa_data.load": ("import cfqa_data; cfqa_data.load", None),
}


def seconds(code: str) -> float:
    """Return the wall time of a fresh interpreter that runs ``code``."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    """Print a table; return 1 if a limit is not met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10, help="processes per case (default 10)")
    runs = parser.parse_args().runs
    missed = 0
    print(f"{'':28}{'best':>9}{'median':>9}{'limit':>9}")
    for name, (code, limit) in CASES.items():
        times = sorted(seconds(code) for _ in range(runs))
        best, median = times[0], times[len(times) // 2]
        shown = f"{limit:.2f} s" if limit else "-"
        print(f"{name:28}{best:7.3f} s{median:7.3f} s{shown:>9}")
        missed += limit is not None and best > limit
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
