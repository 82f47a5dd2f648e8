#!/usr/bin/env bash
# OpenEXR 3.5.3 (Python package of the library), DWAA compression of one plane of features.
# Guess: `dwaCompressionLevel` sets the loss of every channel, whatever it is called; the lossy B44 is
# lossy for float32 as it is for float16.
# Seen: only channels called R, G, B, Y, RY or BY (or ending so after a dot) lose anything. The same
# plane in a channel called Z, A or feature comes back exactly, in the same bytes at every level; as
# float32 in R it is rounded to float16 first, so that the rate halves. B44 leaves float32 as it is.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check OpenEXR==3.5.3 numpy==2.4.6
"$folder/venv/bin/python" - "$folder/plane.exr" <<'PYTHON'
import os
import sys

import numpy as np
import OpenEXR

path = sys.argv[1]
rough = np.random.default_rng(0).normal(size=(256, 192))
plane = (rough + np.roll(rough, 1, 0) + np.roll(rough, 2, 0)) / 3


def stored(name: str, kind: str, level: float, compression: int = OpenEXR.DWAA_COMPRESSION):
    """Error and bytes of the plane in a channel of that name."""
    data = plane.astype(kind)
    header = {"compression": compression, "type": OpenEXR.scanlineimage, "dwaCompressionLevel": level}
    OpenEXR.File(header, {name: data.copy()}).write(path)
    with OpenEXR.File(path, separate_channels=True) as file:
        back = file.channels()[name].pixels
    return float(np.abs(back.astype(float) - data).max()), os.path.getsize(path)


for kind in ("float16", "float32"):
    for name in ("R", "Y", "layer4.R", "Z", "A", "feature"):
        low, high = stored(name, kind, 45.0), stored(name, kind, 300.0)
        print(f"{kind} in {name}: error {low[0]:.4f} and {high[0]:.4f}, bytes {low[1]} and {high[1]}")
        if name[-1] in "RY":
            assert 0.01 < low[0] < high[0] and high[1] < low[1], "changed"
        else:
            assert low[0] == high[0] == 0 and high[1] == low[1], "changed"
b44 = {kind: stored("R", kind, 45.0, OpenEXR.B44_COMPRESSION)[0] for kind in ("float16", "float32")}
print("B44:", b44)
assert b44["float16"] > 0.1 and b44["float32"] == 0, "changed"
PYTHON
