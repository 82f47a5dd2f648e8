# %% [markdown]
# # A metric's week
#
# Two metrics of your own, one of them trained, on a dataset in the folder `cfqa`: scored day by day
# into one file, compared with a baseline, looked at, pooled with a colleague's scores, and put into
# a table and a report. Run it cell by cell in an editor or a notebook, or as it is:
# `python examples/metric_week.py`.

# %%
from pathlib import Path

import numpy as np
import torch

import cfqa_data
from cfqa_data.eval import TrainingSet, from_scores
from cfqa_data.eval.report import write_report

dataset = cfqa_data.load("cfqa")
print(dataset)

# %% [markdown]
# ## Monday: a metric is a function
#
# It takes an original and its compressed versions, both (B, N, C, T, D), and returns a score for
# each.


# %%
def worst_token(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The largest squared error of a token."""
    return (y - x).square().mean(dim=-1).flatten(1).amax(dim=1)


worst_token.lower_better = True  # type: ignore[attr-defined]

monday = cfqa_data.evaluate(dataset, ["cosine", "mse", worst_token], out="week.parquet")
print(monday.table("text"))

# %% [markdown]
# ## Tuesday: one that is trained
#
# `fit` gets the sources of the other folds, so that no score is of a source that training has seen.
# The file keeps what it has, and only the new metric is scored.


# %%
class Blend:
    """A weighted sum of the logarithms of mean and largest error, fitted by least squares."""

    name, lower_better = "blend", True

    def __init__(self, weights: tuple[float, float] = (0.5, 0.5)) -> None:
        self.weights = weights

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.parts(x, y) @ torch.tensor(self.weights)

    def parts(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        mean = (y - x).square().mean(dim=(1, 2, 3, 4))
        return torch.stack([mean, worst_token(x, y)], dim=1).clamp(min=1e-12).log()

    def fit(self, training: TrainingSet, device: str) -> "Blend":
        parts, harm = [], np.array(training.labels[training.target].to_pylist())
        for row in training.labels.select(["source_id", "codec", "level"]).to_pylist():
            x, y = training.original(row["source_id"]), training.compressed(*row.values())
            parts.append(self.parts(torch.from_numpy(x)[None], torch.from_numpy(y)[None])[0])
        inputs = torch.stack(parts).numpy()
        ranks = harm.argsort().argsort() / len(harm)
        weights, *_ = np.linalg.lstsq(inputs - inputs.mean(axis=0), ranks - ranks.mean())
        return Blend(tuple(map(float, np.maximum(weights, 1e-6))))


tuesday = cfqa_data.evaluate(dataset, ["cosine", "mse", worst_token, Blend()], out="week.parquet")
for name, made in tuesday.provenance.items():
    print(name, made.package, made.date, made.trained_on and f"folds {made.trained_on.folds}")

# %% [markdown]
# ## Wednesday: is it better?

# %%
print(tuesday.compare(["worst_token", "blend"], "cosine"))

# %% [markdown]
# ## Thursday: where does it err?

# %%
print(tuesday.disagreements("blend", 5))
print(tuesday.disagreements("blend", 5, against="worst_token"))

# %% [markdown]
# ## Friday: with a colleague's scores, for the paper
#
# Scores that were made elsewhere come as a table with a row per compressed feature and metric.

# %%
theirs = dataset.labels.select(["task", "source_id", "codec", "level"]).to_pandas()
theirs["metric"], theirs["value"] = "bits", dataset.labels["bpfp"].to_numpy()
pooled = tuesday.merge(from_scores(theirs, dataset, lower_better=False))
print(pooled.table("latex"))
print("The report:", write_report(pooled, Path("week.html"), dataset, against="cosine"))
