#!/usr/bin/env bash
# torchmetrics 1.9.0 with torch 2.13.0: the relative average spectral error (RASE) of planes of several
# channels, in percent: 100 / mean * the root of the mean squared error, here 10 by construction.
# Guess: about 10, whatever the window that local errors are taken in.
# Seen: about 160, 640 and 2560 with windows of 4, 8 (the default) and 16: the mean under the fraction is
# divided once more by the window's area. sewar 0.4.10 says 10 at each. The error that RASE rests
# on (RMSE over sliding windows) and ERGAS are right in torchmetrics, too.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
    torch==2.13.0 torchmetrics==1.9.0 sewar==0.4.10 scipy==1.17.1 pillow==13.0.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from sewar.full_ref import rase
from torch.nn.functional import avg_pool2d
from torchmetrics.functional import image

torch.manual_seed(0)
smooth = avg_pool2d(torch.rand(2, 4, 68, 68), 5, 1)
planes = 0.25 + (smooth - smooth.min()) / (smooth.max() - smooth.min()) / 2
noisy = planes * (1 + 0.1 * torch.randn_like(planes))
mean, squared = planes.mean((2, 3)), ((planes - noisy) ** 2).mean((2, 3))
by_definition = float((100 / mean.mean(1) * squared.mean(1).sqrt()).mean())
ergas = float((100 / 4 * (squared / mean**2).mean(1).sqrt()).mean())
print(f"by definition {by_definition:.1f}")
assert 9.5 < by_definition < 10.5, "changed"
for window in (4, 8, 16):
    seen = float(image.relative_average_spectral_error(noisy, planes, window_size=window))
    pair = (part[0].permute(1, 2, 0).numpy() for part in (planes, noisy))
    other = float(rase(*pair, ws=window))
    print(f"window of {window}: torchmetrics {seen:.1f}, sewar {other:.1f}")
    assert abs(seen / window**2 / by_definition - 1) < 0.05, "changed"
    assert abs(other / by_definition - 1) < 0.05, "changed"
    local = float(image.root_mean_squared_error_using_sliding_window(noisy, planes, window_size=window))
    assert abs(local / float(squared.sqrt().mean()) - 1) < 0.05, "changed"
assert abs(float(image.error_relative_global_dimensionless_synthesis(noisy, planes)) / ergas - 1) < 0.05, "changed"
PYTHON
