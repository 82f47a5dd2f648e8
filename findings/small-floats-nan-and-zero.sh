#!/usr/bin/env bash
# ml_dtypes 0.6.0 and torch 2.13.0: the small floats of block formats (MX: 4- or 6-bit values and a power
# of two, e8m0, for each block).
# Guess: NaN stays NaN or is refused; the scale of a block of zeros is the smallest power; both libraries
# make one scale of one number.
# Seen: ml_dtypes turns NaN into -0.0 in the 4- and 6-bit types, and infinity into their largest number. A
# scale of 0 is NaN in ml_dtypes, so that a block of zeros comes back as NaN, and 2^-127 in torch; a scale
# below zero is NaN in ml_dtypes and loses its sign in torch. From 2^-126 up they agree. No warning.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 ml_dtypes==0.6.0 numpy==2.4.6
"$folder/venv/bin/python" -W error::UserWarning - <<'PYTHON'
import ml_dtypes
import numpy as np
import torch

odd = np.array([np.nan, np.inf, -np.inf], np.float32)
for name, top in (("float4_e2m1fn", 6), ("float6_e2m3fn", 7.5), ("float6_e3m2fn", 28)):
    seen = odd.astype(getattr(ml_dtypes, name)).astype(np.float32)
    print(f"{name}: NaN and infinities become {seen}")
    assert seen[0] == 0 and np.signbit(seen[0]) and list(seen[1:]) == [top, -top], "changed"


def scales(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    by_torch = torch.from_numpy(values).to(torch.float8_e8m0fnu).float().numpy()
    return values.astype(ml_dtypes.float8_e8m0fnu).astype(np.float32), by_torch


by_numpy, by_torch = scales(np.array([0, -1, -6], np.float32))
print(f"e8m0 of 0, -1 and -6: {by_numpy} in ml_dtypes, {by_torch} in torch")
assert np.isnan(by_numpy).all() and list(by_torch) == [2.0**-127, 1, 8], "changed"
positive = np.exp2(np.random.default_rng(0).uniform(-126, 127, 10_000)).astype(np.float32)
by_numpy, by_torch = scales(positive)
print(f"e8m0 of 10000 others: {(by_numpy != by_torch).sum()} differ")
assert (by_numpy == by_torch).all(), "changed"

block = np.zeros(32, np.float32)
scale = (np.abs(block).max(keepdims=True) / 6).astype(ml_dtypes.float8_e8m0fnu).astype(np.float32)
back = np.zeros(32, ml_dtypes.float4_e2m1fn).astype(np.float32) * scale
print(f"a block of zeros: {back[:3]} ...")
assert np.isnan(back).all(), "changed"
PYTHON
