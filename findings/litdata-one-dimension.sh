#!/usr/bin/env bash
# litdata 0.2.76 with torch 2.13.0: samples that are arrays, in chunks as its optimize() writes them.
# Guess: every sample comes back with its own type and shape, as the arrays of 2-D features do, or a
# sample of another type than the first is refused.
# Seen: the type of one-dimensional arrays and tensors is stored once, as that of the first sample. Four
# float32 numbers after a sample of float64 come back as two others, whole numbers after a float32
# sample as 1e-45 and the like, and a matrix after a vector as a flat one. No error, no warning.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 litdata==0.2.76 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W error::UserWarning - <<'PYTHON'
import tempfile

import numpy as np
import torch
from litdata import StreamingDataset
from litdata.streaming.writer import BinaryWriter


def second(*samples):
    """Write samples into one chunk and read the second."""
    folder = tempfile.mkdtemp(dir=".")
    writer = BinaryWriter(folder, chunk_size=len(samples))
    for number, sample in enumerate(samples):
        writer.add_item(number, sample)
    writer.done()
    writer.merge()
    return np.asarray(StreamingDataset(folder)[1])


vector, matrix = np.arange(4), np.arange(6.0).reshape(2, 3)
cases = {
    "float64, then float64": (vector * 1.0, vector * 2.0, True),
    "float64, then float32": (vector * 1.0, vector.astype(np.float32), False),
    "float32, then int32": (vector.astype(np.float32), vector.astype(np.int32), False),
    "uint16, then int16": (vector.astype(np.uint16), -vector.astype(np.int16), False),
    "a vector, then a matrix": (vector * 1.0, matrix, False),
    "matrices of float64 and float32": (matrix, matrix.astype(np.float32), True),
    "tensors of float32 and int32": (torch.arange(4.0), torch.arange(4, dtype=torch.int32), False),
}
for name, (first, sample, right) in cases.items():
    seen, sample = second(first, sample), np.asarray(sample)
    print(f"{name}: {sample.dtype} {sample.tolist()} is read as {seen.dtype} {seen.tolist()}")
    assert (seen.dtype == sample.dtype and np.array_equal(seen, sample)) == right, "changed"
PYTHON
