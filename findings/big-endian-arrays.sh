#!/usr/bin/env bash
# NumPy arrays in big-endian order, as readers of FITS, classic netCDF and 16-bit PGM give them, in
# opencv-python-headless 5.0.0.93, imagecodecs 2026.3.6, blosc2 4.14.1, pyarrow 26.0.1 and webdataset 1.0.2.
# Guess: they come back with the same values, or are refused (safetensors, zarr, Pillow and faiss do the
# one; torch, Parquet and imagecodecs' PNG and JPEG XL the other).
# Seen: OpenCV, imagecodecs' JPEG 2000, its high-throughput form and TIFF, sums and expressions of blosc2,
# pyarrow.Tensor and webdataset's tenbin take the bytes for little-endian ones: 1.0 is read as 4.6e-41,
# without an error or a warning.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check opencv-python-headless==5.0.0.93 \
    imagecodecs==2026.3.6 blosc2==4.14.1 pyarrow==26.0.1 webdataset==1.0.2 numpy==2.4.6
"$folder/venv/bin/python" -W error::UserWarning - <<'PYTHON'
import blosc2
import cv2
import imagecodecs
import numpy as np
import pyarrow as pa
from webdataset import tenbin

rng = np.random.default_rng(0)
codes = rng.integers(0, 1024, (16, 24)).astype(np.uint16)
feature = np.concatenate([np.ones((1, 24)), rng.normal(size=(15, 24))]).astype(np.float32)


def image(name: str):
    encode, decode = getattr(imagecodecs, f"{name}_encode"), getattr(imagecodecs, f"{name}_decode")
    return codes, lambda array: decode(encode(array))


ways = {
    "OpenCV, PNG": (codes, lambda array: cv2.imdecode(cv2.imencode(".png", array)[1], -1)),
    "OpenCV, resize to the same size": (feature, lambda array: cv2.resize(array, array.shape[::-1])),
    "imagecodecs, JPEG 2000": image("jpeg2k"),
    "imagecodecs, HTJ2K": image("htj2k"),
    "imagecodecs, TIFF": image("tiff"),
    "blosc2, the array": (feature, lambda array: blosc2.asarray(array)[:]),
    "blosc2, the array plus 0": (feature, lambda array: (blosc2.asarray(array) + 0)[:]),
    "pyarrow.Tensor": (feature, lambda array: pa.Tensor.from_numpy(array).to_numpy()),
    "webdataset, tenbin": (feature, lambda array: tenbin.decode_buffer(tenbin.encode_buffer([array]))[0]),
}
for name, (array, through) in ways.items():
    native, swapped = through(array), through(array.astype(array.dtype.newbyteorder(">")))
    same = bool((np.asarray(swapped) == array).all())
    print(f"{name}: {array[0, 0]} is read as {np.asarray(swapped)[0, 0]}")
    assert (np.asarray(native) == array).all(), "changed"
    assert same == (name == "blosc2, the array"), "changed"
array = blosc2.asarray(feature.astype(">f4"))
print(f"blosc2, sum: {array.sum()} of {feature.sum()}")
assert not np.isclose(array.sum(), feature.sum()), "changed"
PYTHON
