#!/usr/bin/env bash
# numcodecs 0.16.6: its Delta filter, float32 features.
# Guess: differences before a lossless compressor lose nothing, as with integers, or floats are refused;
# an infinity or NaN touches the number that it is in.
# Seen: they are sums of float differences again: errors of up to 2e-5 in normal features, .03 where
# one channel of 192 is 30000 times as large, .09 in float16. After one infinity every number up to the
# end of the chunk is NaN. No warning.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numcodecs==0.16.6 numpy==2.4.6
"$folder/venv/bin/python" -W error::UserWarning - <<'PYTHON'
import numpy as np
from numcodecs import Delta

normal = np.random.default_rng(0).normal(size=(257, 192)).astype(np.float32)


def stored(feature: np.ndarray) -> np.ndarray:
    codec = Delta(feature.dtype.str)
    return np.asarray(codec.decode(codec.encode(feature))).reshape(feature.shape)


def error(feature: np.ndarray) -> float:
    return float(np.abs(stored(feature).astype(float) - feature).max())


outlier, infinite = normal.copy(), normal.copy()
outlier[:, 5] *= 30000
infinite[3, 3] = np.inf
codes = np.rint(normal * 100).astype(np.int16)
seen = {
    "float32": error(normal),
    "float32 with a large channel": error(outlier),
    "float16": error(normal.astype(np.float16)),
    "int16": error(codes),
}
for name, largest in seen.items():
    print(f"{name}: off by up to {largest:.1e}")
with np.errstate(invalid="ignore"):
    lost = np.isnan(stored(infinite))
print(f"one infinity in row 3 of 257: {lost.mean():.1%} are NaN")
assert seen["int16"] == 0 < seen["float32"] < 1e-3, "changed"
assert seen["float32 with a large channel"] > 0.01 and seen["float16"] > 0.01, "changed"
assert lost[4:].all() and not lost[:3].any(), "changed"
PYTHON
