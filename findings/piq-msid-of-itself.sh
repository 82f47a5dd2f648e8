#!/usr/bin/env bash
# piq 0.8.0 with torch 2.13.0: MSID, a multi-scale distance between samples of features, as it is by default.
# Guess: a sample is at 0 from itself, or nearly, and further from a sample of another distribution.
# Seen: 200 normal features of 16 numbers are at 2 to 24 from themselves, another number at each call, 12 on
# average, and so far they are from features of another mean and deviation, too (11). Random vectors
# estimate both sides; the noise is as large as the difference. With niters=1000 it is about a third.
# No warning.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install -q --disable-pip-version-check "$@"; }
pip torch==2.13.0 numpy==2.4.6 scipy==1.17.1
pip --no-deps piq==0.8.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.util
import sys
import types

import numpy as np
import torch

# The package as a whole imports torchvision, for networks that MSID does not use on features.
package, networks = types.ModuleType("piq"), types.ModuleType("piq.feature_extractors")
package.__path__ = list(importlib.util.find_spec("piq").submodule_search_locations)
networks.InceptionV3 = None
sys.modules |= {"piq": package, "piq.feature_extractors": networks}
from piq.msid import MSID

rows = []
for seed in range(8):
    torch.manual_seed(seed)
    np.random.seed(seed)
    sample, other = torch.randn(200, 16), torch.randn(200, 16) * 1.5 + 0.5
    distance = MSID()
    rows.append([float(distance(sample, second)) for second in (sample, sample, other)])
    print("from itself {:.1f} and {:.1f}, from another distribution {:.1f}".format(*rows[-1]))
itself, again, another = np.array(rows).T
print(f"on average {itself.mean():.1f} from itself, {another.mean():.1f} from the other")
assert (itself != again).all() and itself.min() > 0 and itself.mean() > 3, "changed"
assert (another < np.maximum(itself, again)).sum() >= 3 and itself.mean() > another.mean() / 2, "changed"
PYTHON
