#!/usr/bin/env bash
# torchmetrics 1.9.0 with torch 2.13.0, retrieval metrics of scores that may be negative, such as
# distances with a minus, cosines or log-probabilities.
# Guess: they depend on the order of the scores alone.
# Seen: a right document with a score of 0 or less counts as wrong in average precision, precision,
# recall and reciprocal rank. All are 0.0 once 3 is taken off every score, and an average precision of
# 0.83 is 1.0 where a right document has a negative cosine. nDCG stays as it is. No warning.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 torchmetrics==1.9.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torchmetrics.functional import retrieval as of

scores, right = torch.tensor([2.0, 1.0, 0.5]), torch.tensor([True, True, False])
names = ("average_precision", "precision", "recall", "reciprocal_rank", "normalized_dcg")
for name in names:
    metric = getattr(of, f"retrieval_{name}")
    above, below = float(metric(scores, right)), float(metric(scores - 3, right))
    print(f"{name}: {above:.2f}, and {below:.2f} with 3 less on every score")
    assert above > 0.6, "changed: positive scores"
    assert below == (above if name == "normalized_dcg" else 0.0), f"changed: {name}"
cosines = torch.tensor([0.2, -0.1, -0.05])  # right, right, wrong: (1 + 2 / 3) / 2
mixed = float(of.retrieval_average_precision(cosines, right))
print(f"average precision by cosines, which is 0.83: {mixed:.2f}")
assert mixed == 1.0, "changed: cosines below 0"
PYTHON
