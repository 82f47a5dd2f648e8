#!/usr/bin/env bash
# h5py 3.16.0 with hdf5plugin 7.1.0: the error of lossy filters (scale-offset, ZFP, SZ3, SPERR).
# Guess: what a dataset gives after writing, at the latest after flush(), is what the file holds.
# Seen: as long as the file is open the values come back without any error, flush() or not, while the
# stored size is already that of the lossy data; after opening the file again the error is there.
# Chunks that fit into the chunk cache are answered from it, as they were before the filter. Arrays
# larger than the cache show the error at once, so that small and large tests disagree.
# Scale-offset with one decimal is off by .1, not by .05 as rounding to it would be.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check h5py==3.16.0 hdf5plugin==7.1.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np

path = Path(sys.argv[1], "feature.h5")
filters = {
    "scale-offset": {"scaleoffset": 1},
    "ZFP": hdf5plugin.Zfp(accuracy=0.1),
    "SZ3": hdf5plugin.SZ3(absolute=0.1),
    "SPERR": hdf5plugin.Sperr(absolute=0.1),
}
rng = np.random.default_rng(0)
small = rng.normal(size=(257, 192)).astype(np.float32)
large = rng.normal(size=(40, 1611, 192)).astype(np.float32)


def error(stored: np.ndarray, data: np.ndarray) -> float:
    return float(np.abs(stored - data).max())


for name, options in filters.items():
    with h5py.File(path, "w") as file:
        feature = file.create_dataset("feature", data=small, chunks=small.shape, **options)
        written = error(feature[:], small)
        file.flush()
        flushed, size = error(feature[:], small), feature.id.get_storage_size()
    with h5py.File(path) as file:
        reopened = error(file["feature"][:], small)
    print(f"{name}: {written} after writing, {flushed} after flush, {reopened:.3f} reopened, {size} bytes")
    assert written == flushed == 0 and size < small.nbytes / 2, "changed"
    assert reopened > (0.09 if name != "ZFP" else 0.02), "changed"

with h5py.File(path, "w") as file:
    feature = file.create_dataset("feature", data=large, chunks=(1, 1611, 192), **filters["ZFP"])
    shown = error(feature[:], large)
print(f"ZFP, larger than the cache: {shown:.3f} after writing")
assert shown > 0.02, "changed"
PYTHON
