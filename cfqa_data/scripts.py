"""Run the scripts of the package, `python -m cfqa_data....`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from cfqa_data.errors import CfqaError

__all__ = ["run_script"]


def run_script(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    run: Callable[[argparse.Namespace], Any],
) -> int:
    """Run a script and return its exit status; print an error as one line on stderr.

    Args:
        parser: Parser of the script's options.
        arguments: Command-line arguments; those of the process if None.
        run: Function of the parsed options that does the work.
    """
    try:
        run(parser.parse_args(arguments))
    except (CfqaError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    return 0
