"""Score a metric of one's own beside the baselines, over all codecs.

    python examples/own_metric.py cfqa

or, in this folder, the same metric by the command line:

    cfqa eval ../cfqa --metric mse --metric own_metric:worst_token
"""

from __future__ import annotations

import argparse

from torch import Tensor

import cfqa_data


def worst_token(x: Tensor, y: Tensor) -> Tensor:
    """Largest relative error of a token, mean over views and layers.

    Args:
        x: originals (B, N, C, T, D).
        y: compressed features (B, N, C, T, D).

    Returns:
        One number per item, (B,).
    """
    error = (y - x).norm(dim=-1) / x.norm(dim=-1).clamp(min=1e-8)
    return error.amax(dim=-1).mean(dim=(1, 2))


worst_token.lower_better = True  # type: ignore[attr-defined]
worst_token.score_range = (0.0, float("inf"))  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", help="what `cfqa build` made")
    parser.add_argument("--task", help="only this task")
    arguments = parser.parse_args()
    metrics = ["mse", "cosine", "cka", worst_token]
    evaluation = cfqa_data.evaluate(arguments.folder, metrics, task=arguments.task)
    print("Per source over the levels of all codecs, then averaged:")
    for row in evaluation.across_codecs.to_pylist():
        figures = "no source with a label that varies"
        if row["n_valid"]:
            figures = (
                f"PLCC {row['plcc']:+.4f}, SROCC {row['srocc']:+.4f}, {row['n_valid']} sources"
            )
        print(f"  {row['task']} {row['metric']:<12} {figures}")


if __name__ == "__main__":
    main()
