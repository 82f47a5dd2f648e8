#!/usr/bin/env bash
# NumPy 2.4.6 with ml_dtypes 0.6.0: means and deviations of bfloat16 arrays, as features of models in
# that type are once they are read into NumPy.
# Guess: as of float16, whose mean NumPy forms in float32: 1000 ones have a mean of 1.0.
# Seen: the running total itself is bfloat16, and 256 + 1 is 256 there: 1000 ones have a mean of 0.256
# along either axis (8-bit floats: 0.016 and 0.008), and 4096 normal values a deviation of about 0.7.
# No warning. With dtype=np.float32 both are right, and matrix products come out as float32.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 ml_dtypes==0.6.0
"$folder/venv/bin/python" -W error - <<'PYTHON'
import ml_dtypes
import numpy as np

normal = np.random.default_rng(0).normal(size=(4096, 64))
expected = {"float16": 1.0, "bfloat16": 0.255859375, "float8_e4m3fn": 0.015625, "float8_e5m2": 0.0078125}
for name, mean in expected.items():
    kind = np.dtype(getattr(ml_dtypes, name, name))
    ones = np.ones((1000, 64), kind)
    seen = {float(value) for means in (ones.mean(0), ones.T.mean(1)) for value in means}
    print(f"{name}: 1000 ones have a mean of {seen}, summed in float32 {ones.mean(0, dtype=np.float32)[0]}")
    assert seen == {mean}, "changed"
    assert (ones.mean(0, dtype=np.float32) == 1).all(), "changed"
for name, low, high in (("float16", 0.95, 1.05), ("bfloat16", 0.6, 0.8)):
    values = normal.astype(getattr(ml_dtypes, name, name))
    deviation = float(values.std(0).astype(float).mean())
    print(f"{name}: normal values have a deviation of {deviation:.3f}")
    assert low < deviation < high, "changed"
    assert abs(values.std(0, dtype=np.float32).mean() - 1) < 0.01, "changed"
assert (values.T @ values).dtype == np.float32, "changed"
PYTHON
