#!/usr/bin/env bash
# imagecodecs 2026.3.6, float32 planes of normal features in the image formats that take floats.
# Guess: as the level rises to 100 the error falls to next to nothing, and without a level nothing is
# lost, as with integers.
# Seen: JPEG XL keeps them exactly without a level; with one, 100 too, every value below 0 comes back as
# 0 (an error of .71 of the deviation, whatever the level), because a float plane is light there. Shifted
# above 0 the error is .0004 to .13 of it. JPEG XR loses float32 without a level and at 100 (1e-4 for
# values up to 4, 1e-2 for a hundred times these), while float16 and uint16 come back exactly.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check imagecodecs==2026.3.6 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import imagecodecs
import numpy as np

rough = np.random.default_rng(0).normal(size=(64, 96))
feature = ((rough + np.roll(rough, 1, 0) + np.roll(rough, 1, 1)) / 3**0.5).astype(np.float32)


def stored(codec: str, plane: np.ndarray, **settings) -> np.ndarray:
    stream = getattr(imagecodecs, f"{codec}_encode")(plane, **settings)
    return getattr(imagecodecs, f"{codec}_decode")(stream)


def error(codec: str, plane: np.ndarray, **settings) -> float:
    difference = stored(codec, plane, **settings).astype(float) - plane
    return float(np.sqrt(np.mean(difference**2)) / plane.astype(float).std())


assert error("jpegxl", feature) == 0, "changed"
for level in (100, 99, 95, 90):
    plain, above = error("jpegxl", feature, level=level), error("jpegxl", feature + 5, level=level)
    lowest = float(stored("jpegxl", feature, level=level).min())
    print(f"JPEG XL at {level}: error {plain:.3f}, shifted by 5 {above:.4f}, lowest value {lowest:.3f}")
    assert 0.65 < plain < 0.75 and above < 0.2 and -0.01 < lowest <= 0, "changed"
for name, settings in (("no level", {}), ("level 100", {"level": 100})):
    for kind, exact in (("float32", False), ("float16", True), ("uint16", True)):
        plane = (feature * 1000 + 20000 if kind == "uint16" else feature).astype(kind)
        seen = float(np.abs(stored("jpegxr", plane, **settings).astype(float) - plane).max())
        print(f"JPEG XR, {name}, {kind}: off by up to {seen:.6f}")
        assert (seen == 0) == exact and seen < 1e-3, "changed"
large = float(np.abs(stored("jpegxr", feature * 100) - feature * 100).max())
print(f"JPEG XR, no level, float32 times 100: off by up to {large:.4f}")
assert large > 0.01, "changed"
PYTHON
