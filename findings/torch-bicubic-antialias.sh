#!/usr/bin/env bash
# torch 2.13.0: enlarging by bicubic interpolation with and without antialias, as position embeddings of
# vision transformers are resized to more patches.
# Guess: antialias matters where something is made smaller; enlarging is the same with and without, as it
# is for bilinear interpolation.
# Seen: bilinear yes, bicubic no: with antialias the cubic has a parameter of -0.5 (as Pillow's), without
# -0.75. Normal values differ by up to a third of their deviation, 8% on average. timm 1.0.31 enlarges
# with antialias, transformers 5.24 without: two DINOv2 of equal weights agree to the last bit at the
# size of their weights, and differ by 5% at larger ones.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -W error::UserWarning - <<'PYTHON'
import torch
from torch.nn.functional import interpolate

torch.manual_seed(0)
values = torch.randn(1, 64, 16, 16)


def weight(distance: float, a: float) -> float:
    """Keys' cubic of parameter `a`."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


for size in (16, 24, 32, 37):
    pairs = {
        mode: [interpolate(values, (size, size), mode=mode, antialias=smooth) for smooth in (False, True)]
        for mode in ("bilinear", "bicubic")
    }
    off = {mode: float((one - two).pow(2).mean().sqrt() / one.std()) for mode, (one, two) in pairs.items()}
    print(f"16 to {size}: with and without differ by {off['bilinear']:.1e} (bilinear), {off['bicubic']:.3f} (bicubic)")
    assert off["bilinear"] < 1e-5, "changed"
    assert off["bicubic"] == 0 if size == 16 else 0.05 < off["bicubic"] < 0.12, "changed"

step = torch.zeros(1, 1, 1, 16)
step[..., 8] = 1
for smooth, a in ((False, -0.75), (True, -0.5)):
    seen = interpolate(step, (1, 32), mode="bicubic", antialias=smooth).flatten()
    taken = torch.tensor([weight((i + 0.5) / 2 - 8.5, a) for i in range(32)])
    print(f"antialias={smooth}: off from the cubic of parameter {a} by {float((seen - taken).abs().max()):.1e}")
    assert (seen - taken).abs().max() < 1e-6, "changed"
PYTHON
