#!/usr/bin/env bash
# scikit-dimension 0.5.0: intrinsic dimension of points of which a tenth is there twice, as tokens
# of flat image regions are.
# Guess: about the dimension without the duplicates, or an error.
# Seen: MLE says 0.0 and MiND_ML 1.0 for ten-dimensional noise (8.4 and 8.8 without duplicates),
# without a warning; FisherS, MOM, CorrInt and lPCA stay within a sixth.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check scikit-dimension==0.5.0 numpy==2.4.6
"$folder/venv/bin/python" -W error::UserWarning - <<'PYTHON'
import numpy as np
import skdim

points = np.random.default_rng(0).normal(size=(500, 10))
twice = np.concatenate([points, points[:50]])


def dimension(name: str, data: np.ndarray) -> float:
    return float(getattr(skdim.id, name)().fit(data).dimension_)


for name in ("MLE", "MiND_ML", "FisherS", "MOM", "CorrInt", "lPCA"):
    once, doubled = dimension(name, points), dimension(name, twice)
    print(f"{name}: {once:.2f}, with a tenth of the points twice {doubled:.2f}")
    if name in ("MLE", "MiND_ML"):
        assert once > 8 and doubled <= 1.0, "changed"
    else:
        assert abs(doubled / once - 1) < 1 / 6, "changed"
PYTHON
