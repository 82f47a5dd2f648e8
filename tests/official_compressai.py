"""Figures of CompressAI for small planes and two scale hyperpriors with deterministic weights.

The figures in official_compressai.json come from the public repository
InterDigitalInc/CompressAI, version 1.2.9.dev0 at commit 869a9f5, on torch 2.13.0 (CPU, float32):
``bmshj2018-hyperprior`` with the first and the last convolution changed to one channel, planes
padded with zeros on both sides to multiples of 64, as the code of arXiv 2506.07412 does it.  To
make them again, where CompressAI can be imported:

    python tests/official_compressai.py
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FIGURES = Path(__file__).with_suffix(".json")
N, M = 8, 12
#: Factors on the analysis and on h_a: latents within their tables, and latents far beyond them.
KINDS = {"near": (3.0, 1.0), "far": (400.0, 400.0)}
#: Rows and columns: no padding, both sides padded, padded by odd numbers.
SHAPES = ((128, 192), (130, 200), (97, 259))
SAMPLES = 40


def _uniform(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return uniform float32 numbers in [-1, 1) from NumPy's frozen stream."""
    return np.random.RandomState(seed).uniform(-1, 1, shape).astype(np.float32)


def weights(kind: str) -> dict[str, Tensor]:
    """Weights of a kind, by CompressAI's names (the newer ones of the density).

    The density's quantiles are not among them: CompressAI solved for them.
    """
    gain, hyper_gain = KINDS[kind]
    made: dict[str, np.ndarray] = {}

    def layer(name: str, shape: tuple[int, ...], outputs: int, factor: float) -> None:
        seed = sum(map(ord, name))
        spread = factor / np.sqrt(np.prod(shape[1:]) if outputs == shape[0] else 25 * shape[0] / 4)
        made[f"{name}.weight"] = (_uniform(seed, shape) * np.float32(spread)).astype(np.float32)
        made[f"{name}.bias"] = 0.1 * _uniform(seed + 1000, (outputs,))

    widths = (1, N, N, N, M)
    for stage, (inner, outer) in enumerate(pairwise(widths)):
        last = stage == 3
        layer(f"g_a.{2 * stage}", (outer, inner, 5, 5), outer, 2.0 * (gain if last else 1.0))
        layer(f"g_s.{6 - 2 * stage}", (outer, inner, 5, 5), inner, 1.5 / (gain if last else 1.0))
    made["g_s.6.bias"] += np.float32(0.5)
    for name in ("g_a", "g_s"):
        for place in (1, 3, 5):
            seed = sum(map(ord, name)) + place
            made[f"{name}.{place}.beta"] = 1 + 0.3 * _uniform(seed, (N,))
            noise = 0.05 * np.abs(_uniform(seed + 100, (N, N)))
            made[f"{name}.{place}.gamma"] = noise + 0.3 * np.eye(N, dtype=np.float32)
    layer("h_a.0", (N, M, 3, 3), N, 2.0 / gain)
    layer("h_a.2", (N, N, 5, 5), N, 2.0)
    layer("h_a.4", (N, N, 5, 5), N, 4.0 * hyper_gain)
    layer("h_s.0", (N, N, 5, 5), N, 2.0 / hyper_gain)
    layer("h_s.2", (N, N, 5, 5), N, 2.0)
    layer("h_s.4", (M, N, 3, 3), M, 2.0)
    made["h_s.4.bias"] += np.float32(0.5 * gain**0.5)
    sizes = (1, 3, 3, 3, 3, 1)
    for place in range(5):
        shape = (N, sizes[place + 1], sizes[place])
        start = np.log(np.expm1(1 / 10**0.2 / sizes[place + 1]))
        density = (start + 0.3 * _uniform(50 + place, shape)).astype(np.float32)
        made[f"entropy_bottleneck.matrices.{place}"] = density
        made[f"entropy_bottleneck.biases.{place}"] = 0.5 * _uniform(60 + place, (N, shape[1], 1))
        if place < 4:
            factors = 0.2 * _uniform(70 + place, (N, shape[1], 1))
            made[f"entropy_bottleneck.factors.{place}"] = factors
    return {name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in made.items()}


def plane(shape: tuple[int, int]) -> np.ndarray:
    """Return a plane of codes / 256, float64, with similar neighbouring rows."""
    rough = _uniform(shape[0], (shape[0] + 4, shape[1])) + 0.6 * _uniform(shape[1], (1, shape[1]))
    smooth = sum(rough[shift : shift + shape[0]] for shift in range(5)) / 5
    return np.asarray(np.clip(np.floor(128 + 90 * smooth.astype(np.float64)), 0, 255) / 256)


def places(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples whose figures are recorded: corners, and fixed positions."""
    rows, cols = shape
    index = np.arange(SAMPLES)
    row, col = index * 37 % rows, index * 53 % cols
    row[:4], col[:4] = (0, 0, rows - 1, rows - 1), (0, cols - 1, 0, cols - 1)
    return row, col


def wave(values: np.ndarray) -> float:
    """Return the mean weighted by a wave, which every sample affects."""
    flat = values.astype(np.float64).ravel()
    return float((flat * np.cos(np.arange(len(flat)))).mean())


def tables(coder: Any) -> list[list[int]]:
    """Return the first integer, number, largest and last (escape) entry of each table."""
    found = []
    parts = (coder._offset, coder._cdf_length, coder._quantized_cdf)
    for first, length, sums in zip(*(part.tolist() for part in parts), strict=True):
        entries = np.diff(sums[:length])
        found.append([first, len(entries), int(entries.max()), int(entries[-1])])
    return found


def main() -> None:
    """Write CompressAI's figures; print their difference from ours."""
    from compressai.models.google import ScaleHyperprior

    written: dict[str, Any] = {}
    for kind in KINDS:
        net = ScaleHyperprior(N, M)
        net.g_a[0] = nn.Conv2d(1, N, 5, 2, 2)
        net.g_s[6] = nn.ConvTranspose2d(N, 1, 5, 2, 2, output_padding=1)
        own, ours = net.state_dict(), weights(kind)
        print(f"{kind}: CompressAI's own are {', '.join(set(own) - set(ours))}")
        net.load_state_dict({**own, **ours})
        net.eval()
        net.update(force=True, update_quantiles=True)
        written[kind] = {
            "quantiles": net.entropy_bottleneck.quantiles[:, 0].tolist(),
            "y": tables(net.gaussian_conditional),
            "z": tables(net.entropy_bottleneck),
        }
        for shape in SHAPES:
            margins = [(-side % 64 // 2, -side % 64 - -side % 64 // 2) for side in shape]
            x = torch.from_numpy(np.pad(plane(shape), margins)[None, None]).float()
            with torch.inference_mode():
                y = net.g_a(x)
                z = net.h_a(y.abs()) - net.entropy_bottleneck.quantiles[:, 0, 1, None, None]
                coded = net.compress(x)
                decoded = net.decompress(coded["strings"], coded["shape"])["x_hat"][0, 0].numpy()
            (top, _), (left, _) = margins
            decoded = decoded[top : top + shape[0], left : left + shape[1]]
            gaps = [float((0.5 - (t - t.round()).abs()).min()) for t in (y, z)]
            print(f"{kind} {shape}: |y| up to {float(y.abs().max()):.0f}, nearest to a half {gaps}")
            written[kind]["x".join(map(str, shape))] = {
                "bytes": sum(len(part[0]) for part in coded["strings"]),
                "largest": [int(t.round().abs().max()) for t in (y, z)],
                "latents": [wave(t.round().numpy()) for t in (y, z)],
                "samples": [round(float(v), 7) for v in decoded[places(shape)]],
                "wave": round(wave(decoded), 9),
                "clipped": int(((decoded == 0) | (decoded == 1)).sum()),
                "deviation": round(float(decoded.std()), 4),
            }
    FIGURES.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
