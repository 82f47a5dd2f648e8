#!/usr/bin/env bash
# imagecodecs 2026.3.6, planes of 10-bit codes in uint16, as feature codecs have them.
# Guess: a quality (JPEG 2000: a PSNR in dB) is relative to the values that are there.
# Seen: it is relative to 16 bits unless `bitspersample=10` is said: at 40 dB JPEG 2000 loses the
# plane (an error of 512 of 1023 where its deviation is 23), with the 10 bits told it is 10. JPEG XL at
# level 90 likewise: 21 of 23, told 11.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check imagecodecs==2026.3.6 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import imagecodecs
import numpy as np

rough = np.random.default_rng(0).normal(512, 40, (64, 96))
plane = np.rint((rough + np.roll(rough, 1, 0) + np.roll(rough, 2, 0)) / 3).astype(np.uint16)


def error(codec: str, level: float, **options: int) -> float:
    stream = getattr(imagecodecs, f"{codec}_encode")(plane, level=level, **options)
    decoded = getattr(imagecodecs, f"{codec}_decode")(stream)
    return float(np.sqrt(np.mean((decoded.astype(float) - plane) ** 2)))


for codec, level in (("jpeg2k", 40), ("jpegxl", 90)):
    plain, told = error(codec, level), error(codec, level, bitspersample=10)
    print(f"{codec} at {level}: error {plain:.1f}, with bitspersample=10 {told:.1f}")
    assert plain > 0.9 * plane.std() and told < 0.6 * plane.std(), "changed"
PYTHON
