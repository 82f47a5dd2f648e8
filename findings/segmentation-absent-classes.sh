#!/usr/bin/env bash
# torchmetrics 1.9.0, pytorch-ignite 0.5.5, monai 1.6.1 and kornia 0.9.0 with torch 2.13.0: the mean IoU
# of eight label maps that hold five of ten classes, two in each, with a fifth of the pixels at random.
# Guess: one number, as segmentation benchmarks have it: intersections and unions over all pixels of
# the set, then the mean over the classes that occur; or at most another mean over images.
# Seen: .72 so counted (torchmetrics' Jaccard index), .36 in ignite, where a class that never occurs has an
# IoU of 0, .32 in torchmetrics' MeanIoU, .66 in kornia and .81 in monai. The last three are means over
# images: a class that an image lacks counts 0 after a single wrong pixel in the first two, an absent
# class counts 1 in kornia, and in monai wrong pixels of a class that the image lacks cost nothing.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install -q --disable-pip-version-check "$@"; }
pip torch==2.13.0 torchmetrics==1.9.0 numpy==2.4.6 packaging==26.2
pip --no-deps pytorch-ignite==0.5.5 monai==1.6.1 kornia==0.9.0 kornia-rs==0.2.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from ignite.metrics import ConfusionMatrix, mIoU
from kornia.metrics import mean_iou
from monai.metrics import MeanIoU as MonaiIoU
from torch.nn.functional import one_hot
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.segmentation import MeanIoU

CLASSES = 10
torch.manual_seed(0)
right = torch.zeros(8, 32, 32, dtype=torch.long)
for number, plane in enumerate(right):
    plane[:16], plane[16:] = number % 3, 3 + number % 2
wrong = torch.rand(right.shape) < 0.2
guess = torch.where(wrong, torch.randint(0, 5, right.shape), right)
planes = [one_hot(maps, CLASSES).permute(0, 3, 1, 2) for maps in (guess, right)]

overlaps = []
for number in range(CLASSES):
    union = ((guess == number) | (right == number)).sum()
    if union:
        overlaps.append(((guess == number) & (right == number)).sum() / union)
counts = ConfusionMatrix(CLASSES)
ignite = mIoU(counts)
counts.update((planes[0].float(), right))
monai = MonaiIoU(reduction="mean")
monai(*planes)
seen = {
    "over all pixels, classes that occur": torch.stack(overlaps).mean(),
    "torchmetrics, Jaccard index": MulticlassJaccardIndex(CLASSES)(guess, right),
    "ignite, mIoU": ignite.compute(),
    "torchmetrics, MeanIoU": MeanIoU(num_classes=CLASSES, input_format="index")(guess, right),
    "kornia, mean_iou": mean_iou(guess, right, CLASSES).mean(),
    "monai, MeanIoU": monai.aggregate(),
}
for name, value in seen.items():
    print(f"{name}: {float(value):.2f}")
assert [round(float(value), 2) for value in seen.values()] == [0.72, 0.72, 0.36, 0.32, 0.66, 0.81], "changed"
PYTHON
