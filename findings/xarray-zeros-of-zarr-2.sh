#!/usr/bin/env bash
# xarray 2026.9.0 with zarr 3.1.6: codes of a quantiser (uint16) in Zarr formats 2 and 3.
# Guess: the same array written to either format is read as the same codes.
# Seen: format 3 gives them as they are. In format 2 xarray takes Zarr's fill value, which is 0 where
# nobody has set one, as the mark of missing values: every code 0 is NaN, the rest is float32, and means
# leave them out (4.06 instead of 3.60). No warning. `mask_and_scale=False` reads the codes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
    xarray==2026.9.0 zarr==3.1.6 numpy==2.4.6 pandas==3.1.1
"$folder/venv/bin/python" -W error::UserWarning - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import xarray
import zarr

codes = np.random.default_rng(0).integers(0, 8, size=(64, 32)).astype(np.uint16)
names = ("token", "channel")
for number, said in ((2, {"attributes": {"_ARRAY_DIMENSIONS": list(names)}}), (3, {"dimension_names": names})):
    path = Path(sys.argv[1], f"{number}.zarr")
    group = zarr.open_group(path, mode="w", zarr_format=number)
    array = group.create_array("codes", shape=codes.shape, dtype=codes.dtype, chunks=(32, 32), **said)
    array[:] = codes
    read = xarray.open_zarr(path, consolidated=False)["codes"]
    missing = int(read.isnull().sum())
    print(f"format {number}: {read.dtype}, {missing} missing, mean {float(read.mean()):.2f} of {codes.mean():.2f}")
    assert (array[:] == codes).all(), "changed"
    assert missing == (np.count_nonzero(codes == 0) if number == 2 else 0), "changed"
    assert read.dtype == (np.float32 if number == 2 else np.uint16), "changed"
    whole = xarray.open_zarr(path, consolidated=False, mask_and_scale=False)["codes"]
    assert (whole.values == codes).all(), "changed"
PYTHON
