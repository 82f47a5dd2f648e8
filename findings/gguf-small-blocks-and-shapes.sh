#!/usr/bin/env bash
# gguf 0.19.0: features in the block types of its Python package, and their shapes when read.
# Guess: each block of 32 has its own scale, so that the error does not depend on the unit of the values;
# the shape that the reader states is that of the array which was written.
# Seen: the scale is float16. Q8_0 has an error of .5% of the deviation at about 1, 9% at 1e-5 and 99% at
# 1e-6; at 1e-7 Q4_1 is off by twice the signal. From 1e6 (Q8_0: 1e7) up whole blocks are NaN. MXFP4, whose
# scale is a power of two, has 11% anywhere. The reader's `shape` is the reverse of its `data.shape`.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore::RuntimeWarning - "$folder/feature.gguf" <<'PYTHON'
import sys

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

feature = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)


def error(kind: str, scale: float) -> float:
    """Root of the mean squared error, in deviations."""
    number = gguf.GGMLQuantizationType[kind]
    scaled = feature * np.float32(scale)
    back = dequantize(quantize(scaled, number), number).astype(float)
    return float(np.sqrt(np.mean((back - scaled) ** 2)) / scaled.astype(float).std())


scales = (1e-7, 1e-6, 1e-5, 1e-3, 1, 1e3, 1e7)
errors = {kind: [error(kind, scale) for scale in scales] for kind in ("Q8_0", "Q4_0", "Q4_1", "MXFP4")}
for kind, seen in errors.items():
    print(f"{kind}: " + ", ".join(f"{value:.3f} at {scale:g}" for value, scale in zip(seen, scales)))
for kind in ("Q8_0", "Q4_0", "Q4_1"):
    assert max(errors[kind][3:6]) < 0.1 and np.isnan(errors[kind][6]), "changed"
assert errors["Q8_0"][1] > 0.9 and errors["Q8_0"][2] > 10 * errors["Q8_0"][3], "changed"
assert errors["Q4_1"][0] > 1.5, "changed"
assert np.ptp(errors["MXFP4"]) < 0.02, "changed"

writer = gguf.GGUFWriter(sys.argv[1], "feature")
writer.add_tensor("feature", feature.reshape(4, 16, 256))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
(tensor,) = gguf.GGUFReader(sys.argv[1]).tensors
print(f"written (4, 16, 256), shape {tensor.shape.tolist()}, data.shape {tensor.data.shape}")
assert tensor.shape.tolist() == [256, 16, 4] and tensor.data.shape == (4, 16, 256), "changed"
assert (tensor.data == feature.reshape(4, 16, 256)).all(), "changed"
PYTHON
