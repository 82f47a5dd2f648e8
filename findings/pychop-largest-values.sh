#!/usr/bin/env bash
# pychop 0.6.1, rounding to floats of few bits, here those of an 8-bit float (e4m3, up to 240) and of half.
# Guess: above the largest number comes infinity, or that number again.
# Seen: the next binade becomes 0: 256 to 511 with e4m3, where 512 and more are infinite, and 65536 to 131071
# with half. Values from 248 on become 256, which the format lacks. So a plane loses its largest values
# alone, as if they were its smallest, without a warning. Below, all is rounded as in ml_dtypes and NumPy.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install -q --disable-pip-version-check "$@"; }
pip numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0
pip --no-deps pychop==0.6.1
"$folder/venv/bin/python" -W error::UserWarning - <<'PYTHON'
import ml_dtypes
import numpy as np
import pychop

pychop.backend("numpy")
rng = np.random.default_rng(0)
for name, bits, kind, first in (("e4m3", (4, 3), ml_dtypes.float8_e4m3, 256.0), ("half", (5, 10), np.float16, 65536.0)):
    largest = float(ml_dtypes.finfo(kind).max)
    rounded = pychop.Chop(exp_bits=bits[0], sig_bits=bits[1])
    inside = np.clip(rng.normal(size=5000) * largest / 8, -largest, largest)
    assert (rounded(inside) == inside.astype(kind).astype(float)).all(), "changed: within the range"
    values = first * np.array([1.0, 1.25, 1.75, 1.9, -1.5, 2.0, 4.0])
    seen = rounded(values)
    print(f"{name}, largest number {largest:g}: " + ", ".join(f"{v:g} is {s:g}" for v, s in zip(values, seen)))
    assert (seen[:5] == 0).all() and np.isinf(seen[5:]).all(), "changed: above the range"
edge = float(pychop.Chop(exp_bits=4, sig_bits=3)(np.array([250.0]))[0])
print(f"e4m3: 250 is {edge:g}")
assert edge == 256, "changed: at the edge"
PYTHON
