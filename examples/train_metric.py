"""Train a tiny metric with torch, fold by fold, and score it beside the baselines.

    python examples/train_metric.py cfqa --task seg

The metric weighs the error of eight bands of channels. `evaluate` trains it once per fold, on the
sources of the other folds, and scores each source by the weights that have not seen it.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.nn.functional import softplus

import cfqa_data
from cfqa_data.eval import TrainingSet
from cfqa_data.loaders import read_ahead
from cfqa_data.loaders.torch import Pairs

BANDS = 8


def band_errors(x: Tensor, y: Tensor) -> Tensor:
    """Return the logarithm of the squared error in each band of channels, (B, 8)."""
    error = (y - x).square().mean(dim=(1, 2, 3))
    bands = torch.nn.functional.adaptive_avg_pool1d(error[:, None], BANDS)[:, 0]
    return bands.clamp(min=1e-12).log()


class WeightedBands(torch.nn.Module):
    """A weighted mean of the bands' errors; weights are never negative."""

    name = "bands"
    lower_better = True

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(BANDS))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.score(band_errors(x, y))

    def score(self, errors: Tensor) -> Tensor:
        return errors @ self.weights.softmax(dim=0)

    def fit(self, training: TrainingSet, device: str) -> WeightedBands:
        """Learn to rank the versions of a source as the label does that is followed.

        `evaluate` calls it for each task and fold, of a fresh copy.

        Args:
            training: the labels and features of the other folds' sources.
            device: where to compute.
        """
        pairs = read_ahead(Pairs(training).__getitem__, range(len(training)))
        errors = torch.cat([band_errors(x[None], y[None]) for x, y, _ in pairs]).to(device)
        harm = torch.tensor(training.labels[training.target].to_pylist(), device=device)
        sources = training.labels["source_id"].combine_chunks().dictionary_encode().indices
        source = torch.tensor(sources.to_numpy(), device=device)
        better, worse = torch.nonzero(
            (harm[:, None] < harm) & (source[:, None] == source), as_tuple=True
        )
        optimizer = torch.optim.Adam(self.to(device).parameters(), lr=0.1)
        for _ in range(100):
            scores = self.score(errors)
            loss = softplus(scores[better] - scores[worse]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return self


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", help="what `cfqa build` made")
    parser.add_argument("--task", help="only this task")
    arguments = parser.parse_args()
    evaluation = cfqa_data.evaluate(arguments.folder, ["mse", WeightedBands()], task=arguments.task)
    print("Per source over the levels of all codecs, then averaged:")
    for row in evaluation.across_codecs.to_pylist():
        print(f"  {row['task']} {row['metric']:<6} SROCC {row['srocc']:+.4f}")


if __name__ == "__main__":
    main()
