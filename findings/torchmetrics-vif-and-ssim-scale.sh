#!/usr/bin/env bash
# torchmetrics 1.9.0 with torch 2.13.0: likeness of planes to their noisy copies by VIF, and by SSIM
# where no range is given (data_range=None) and each item has its own score (reduction="none").
# Guess: VIF, a ratio of informations, does not change when both are multiplied by one number; the SSIM
# of an item does not depend on which others are in the batch.
# Seen: VIF has the sensor's noise of images from 0 to 255 built in: one pair has .999, .89, .23 and .13
# at 1, 10, 255 and 2550 times its values. The range of SSIM is that of the whole batch: an item's score
# goes from .58 to .99 when the other one is 20 times as large. No warning.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 torchmetrics==1.9.0 numpy==2.4.6
"$folder/venv/bin/python" -W error::UserWarning - <<'PYTHON'
import torch
from torch.nn.functional import avg_pool2d
from torchmetrics.functional import image

torch.manual_seed(0)
smooth = avg_pool2d(torch.rand(2, 4, 68, 68), 5, 1)
planes = 0.25 + (smooth - smooth.min()) / (smooth.max() - smooth.min()) / 2
noisy = planes * (1 + 0.1 * torch.randn_like(planes))
vif = [float(image.visual_information_fidelity(noisy * by, planes * by)) for by in (1, 10, 255, 2550)]
print("VIF at 1, 10, 255 and 2550 times the values:", [round(value, 3) for value in vif])
assert vif == sorted(vif, reverse=True) and vif[0] > 0.99 and vif[2] < 0.3 and vif[3] < 0.2, "changed"


def first(by: float) -> float:
    """SSIM of the first item beside a second one of `by` times its values."""
    times = torch.tensor([1.0, by]).reshape(2, 1, 1, 1)
    scores = image.structural_similarity_index_measure(noisy * times, planes * times, reduction="none")
    return float(scores[0])


alone = float(image.structural_similarity_index_measure(noisy[:1], planes[:1]))
beside = [first(by) for by in (1, 5, 20)]
print(f"SSIM of the first alone {alone:.2f}, beside one of 1, 5 and 20 times:", [round(s, 2) for s in beside])
assert abs(alone - beside[0]) < 0.02 and alone < 0.6 and beside[2] > 0.95, "changed"
PYTHON
