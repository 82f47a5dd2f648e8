"""Convert CompressAI checkpoints into a file of hyperprior models.

    python -m cfqa_data.builders.training.convert --out ladder.safetensors --name NAME \\
        LAMBDA=FILE ...

The checkpoints are of ``bmshj2018-hyperprior`` models with one channel and of equal size; no code
in them is run. A recipe names the resulting file in ``models``.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cfqa_data.builders.training.hyperprior_plan import check_lambdas, model_size
from cfqa_data.codecs.hyperprior.checkpoint import read_checkpoint
from cfqa_data.codecs.hyperprior.codec import Hyperprior
from cfqa_data.codecs.hyperprior.weights import HyperpriorWeights, write_ladder
from cfqa_data.errors import BuildError, CodecError, prefixed
from cfqa_data.format.manifest import hash_file
from cfqa_data.format.storage import check_writable
from cfqa_data.paths import expanded
from cfqa_data.scripts import run_script

__all__ = ["convert", "main"]


def convert(checkpoints: Sequence[tuple[float, Path]], out: Path, name: str) -> None:
    """Write the models of several checkpoints into one file.

    Args:
        checkpoints: Pairs of lambda and file, with distinct lambdas.
        out: Safetensors file to write.
        name: Name of the ladder, such as ``hyperprior_multi_task``.

    Raises:
        CfqaError: If a file is not such a checkpoint, or the models do not match.
    """
    if out.suffix != ".safetensors":
        raise BuildError(f"{out}: the file name must end in .safetensors")
    lambdas = [lmbda for lmbda, _ in checkpoints]
    check_lambdas(name, lambdas)
    if len(lambdas) > 256:
        raise BuildError(f"{name}: at most 256 models are supported, got {len(lambdas)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    check_writable(out)
    models: list[tuple[float, HyperpriorWeights]] = []
    for lmbda, path in sorted(checkpoints):
        weights = read_checkpoint(path)
        models.append((lmbda, weights))
        size, expected = model_size(weights), model_size(models[0][1])
        if size != expected:
            message = f"{path} has {size}, the others {expected}"
            raise BuildError(f"{message}: all models must have the same size")
        if not np.array_equal(weights.y_thresholds, models[0][1].y_thresholds):
            raise BuildError(f"{path} has a different table of scales than the other models")
        with prefixed(path, CodecError, CodecError):
            Hyperprior(weights)
    sources = [{"file": path.name, "sha256": hash_file(path)} for _, path in sorted(checkpoints)]
    write_ladder(out, name, models, {**model_size(models[0][1]), "checkpoints": sources})


def _pair(text: str) -> tuple[float, Path]:
    lmbda, equals, file = text.partition("=")
    try:
        number = float(lmbda)
    except ValueError:
        number = math.nan
    if not equals or not file or not number > 0.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not LAMBDA=FILE")
    return number, expanded(file)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--out", type=expanded, required=True, help="safetensors file of the models"
    )
    parser.add_argument(
        "--name", required=True, help="name of the set of models, stored in the file"
    )
    parser.add_argument(
        "checkpoints", type=_pair, nargs="+", metavar="LAMBDA=FILE", help="a model of the set"
    )

    def run(options: argparse.Namespace) -> None:
        convert(options.checkpoints, options.out, options.name)
        print(f"{options.out}  {options.out.stat().st_size / 1e6:.2f} MB")

    return run_script(parser, arguments, run)


if __name__ == "__main__":
    sys.exit(main())
