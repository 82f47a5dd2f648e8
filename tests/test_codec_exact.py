"""The fixed-point networks: equal to torch, and bit-exact in any order of summation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import each

from cfqa_data.codecs.hyperprior import fixed_point
from cfqa_data.codecs.hyperprior.fixed_point import FRACTION, GDN, LIMIT, Conv, Deconv, ReLU, snap
from cfqa_data.codecs.hyperprior.strips import Network
from cfqa_data.errors import CodecError

generator = np.random.default_rng(0)
GRID = 2.0**FRACTION


def activations(*shape: int, scale: float = 3.0) -> np.ndarray:
    return snap(generator.normal(0, scale, shape))


def layers(shuffle: np.ndarray | None = None) -> dict[str, tuple]:
    """Return one layer of each kind on 12 channels, optionally with permuted input channels."""
    draw = np.random.default_rng(1)
    conv, deconv = draw.normal(0, 0.1, (8, 12, 5, 5)), draw.normal(0, 0.1, (12, 8, 5, 5))
    bias, beta = draw.normal(0, 1, 8), draw.uniform(0.1, 2, 12)
    gamma = draw.uniform(0, 0.2, (12, 12))
    order = np.arange(12) if shuffle is None else shuffle
    return {
        "conv": (Conv("conv", conv[:, order], bias, 2), conv, bias),
        "flat": (Conv("flat", conv[:, order, :3, :3], bias, 1), conv[:, :, :3, :3], bias),
        "deconv": (Deconv("deconv", deconv[order], bias), deconv, bias),
        "gdn": (GDN("gdn", beta[order], gamma[order][:, order], False), gamma, beta),
        "igdn": (GDN("igdn", beta[order], gamma[order][:, order], True), gamma, beta),
    }


@each("kind", ["conv", "flat", "deconv", "gdn", "igdn"])
@each("size", [(8, 8), (9, 13), (1, 1), (2, 41)])
def test_layers_agree_with_torch(kind: str, size: tuple[int, int]) -> None:
    layer, weight, bias = layers()[kind]
    x = activations(12, *size)
    t, w, b = (torch.tensor(array) for array in (x, weight, bias))
    if kind in ("conv", "flat"):
        stride, padding = (2, 2) if kind == "conv" else (1, 1)
        expected = torch.nn.functional.conv2d(t, w, b, stride, padding)
    elif kind == "deconv":
        expected = torch.nn.functional.conv_transpose2d(t, w, b, 2, 2, 1)
    else:
        norm = torch.sqrt(torch.einsum("oc,chw->ohw", w, t * t) + b[:, None, None])
        expected = t * norm if kind == "igdn" else t / norm
    found = layer(x)
    assert found.shape == tuple(expected.shape)
    assert np.allclose(found, expected.numpy(), rtol=5e-4, atol=2e-3)
    assert np.array_equal(found * GRID, np.rint(found * GRID))


@each("kind", ["conv", "flat", "deconv", "gdn", "igdn"])
def test_the_order_of_the_channels_changes_no_bit(kind: str) -> None:
    x = activations(12, 20, 30, scale=300.0)
    plain = layers()[kind][0](x)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(12)
        shuffled = layers(order)[kind][0](x[order])
        same = np.empty_like(shuffled)
        same[order if "gdn" in kind else slice(None)] = shuffled
        assert np.array_equal(plain, same)


@each("kind", ["conv", "flat", "deconv", "gdn", "igdn"])
def test_the_height_of_the_strips_changes_no_bit(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = activations(12, 21, 34)
    plain = layers()[kind][0](x)
    for strip in (1, 30000):
        monkeypatch.setattr(fixed_point, "STRIP", strip)
        assert np.array_equal(plain, layers()[kind][0](x))


def test_strips_of_a_network_change_no_bit() -> None:
    known = {kind: layer for kind, (layer, _, _) in layers().items()}
    draw = np.random.default_rng(4)
    again = Conv("again", draw.normal(0, 0.1, (12, 8, 5, 5)), draw.normal(0, 1, 12), 2)
    up = Deconv("up", draw.normal(0, 0.1, (8, 12, 5, 5)), draw.normal(0, 1, 12))
    for network in map(
        Network,
        (
            [known["conv"], again, known["gdn"], known["conv"]],
            [known["deconv"], up, known["igdn"], known["deconv"], ReLU(), up, known["flat"]],
        ),
    ):
        x = activations(12, 37, 16)
        whole = network(x)
        for budget in (1, 20_000, 100_000):
            assert np.array_equal(network(x, budget), whole)


def test_sums_stay_below_what_float64_holds_exactly() -> None:
    """The largest possible sums, against Python's integers."""
    for scale in (1e-6, 0.1, 30.0, 200.0):
        weight = np.random.default_rng(2).normal(0, scale, (3, 12, 5, 5))
        layer = Conv("worst", weight, np.random.default_rng(3).normal(0, scale, 3), 2)
        ((_, exact, bias),) = layer.phases
        bits = next(b for b in range(60) if not (exact * 2.0**b % 1).any())
        worst = [int(w * 2.0**bits) for w in np.abs(exact).sum(axis=1)]
        grid = int(LIMIT * GRID)
        biases = [abs(int(b * 2.0 ** (bits + FRACTION))) for b in bias[:, 0]]
        assert max(w * grid + b for w, b in zip(worst, biases, strict=True)) < 2**53


def test_activations_saturate() -> None:
    x = np.array([1e9, -1e9, LIMIT, 0.3])
    assert np.array_equal(snap(x)[:3], [LIMIT, -LIMIT, LIMIT])
    assert x[3] == np.rint(0.3 * GRID) / GRID


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e12])
def test_weights_without_a_grid_are_refused(value: float) -> None:
    with pytest.raises(CodecError, match="broken"):
        Conv("broken", np.full((2, 2, 3, 3), value), np.zeros(2), 1)
