"""The scale hyperprior as a torch module, for training, with the state dict names of CompressAI.

Balle, Minnen, Singh, Hwang and Johnston, "Variational Image Compression with a Scale Hyperprior",
ICLR 2018. One channel in and out; ``stages`` convolutions of stride 2 (the paper has four). Coding
does not run this module: see :mod:`cfqa_data.codecs.hyperprior.codec`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfqa_data.codecs.hyperprior.entropy_tables import COMPRESSAI_TAIL, Density

__all__ = ["GDN", "EntropyBottleneck", "ScaleHyperprior"]

PEDESTAL = 2.0**-36
SMALLEST_SCALE = 0.11
SMALLEST_LIKELIHOOD = 1e-9


class _LowerBound(torch.autograd.Function):
    """max(x, bound) with a gradient that can still increase x below the bound."""

    @staticmethod
    def forward(ctx, x: Tensor, bound: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return gradient * ((x >= ctx.bound) | (gradient < 0)), None


lower_bound: Callable[[Tensor, float], Tensor] = _LowerBound.apply
"""max(x, bound), with a gradient that can increase x below the bound."""


class GDN(nn.Module):
    """(Inverse) generalised divisive normalisation; beta and gamma are stored as square roots."""

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.sqrt(torch.ones(channels) + PEDESTAL))
        self.gamma = nn.Parameter(torch.sqrt(0.1 * torch.eye(channels) + PEDESTAL))

    def forward(self, x: Tensor) -> Tensor:
        """Return x / sqrt(beta + gamma @ x**2), or times it, for x (B, channels, H, W)."""
        beta = lower_bound(self.beta, math.sqrt(1e-6 + PEDESTAL)).square() - PEDESTAL
        gamma = lower_bound(self.gamma, math.sqrt(PEDESTAL)).square() - PEDESTAL
        norm = F.conv2d(x * x, gamma[:, :, None, None], beta)
        return x * torch.sqrt(norm) if self.inverse else x * torch.rsqrt(norm)

    @torch.no_grad()
    def bound(self) -> None:
        """Clip gamma, in place, to the range of exact arithmetic: row sums up to 32."""
        self.gamma.clamp_(max=math.sqrt(32.0 / len(self.gamma) + PEDESTAL))


class EntropyBottleneck(nn.Module):
    """A learned density per channel: a monotone network computes its cumulative distribution."""

    def __init__(self, channels: int, filters: tuple[int, ...] = (3, 3, 3, 3)) -> None:
        super().__init__()
        sizes = (1, *filters, 1)
        scale = 10.0 ** (1 / (len(filters) + 1))
        self.layers = len(filters) + 1
        for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
            start = math.log(math.expm1(1 / scale / outputs))
            matrix = torch.full((channels, outputs, inputs), start)
            self.register_parameter(f"_matrix{layer}", nn.Parameter(matrix))
            bias = torch.rand(channels, outputs, 1) - 0.5
            self.register_parameter(f"_bias{layer}", nn.Parameter(bias))
            if layer < len(filters):
                factor = nn.Parameter(torch.zeros(channels, outputs, 1))
                self.register_parameter(f"_factor{layer}", factor)
        # Lower end, median and upper end of the density; see solve_quantiles.
        quantiles = torch.tensor([-10.0, 0.0, 10.0]).repeat(channels, 1, 1)
        self.quantiles = nn.Parameter(quantiles, requires_grad=False)

    @torch.no_grad()
    def solve_quantiles(self) -> None:
        """Set the quantiles to those of the density, where CompressAI's auxiliary loss is zero."""
        state = {f"entropy_bottleneck.{k}": v.cpu().numpy() for k, v in self.state_dict().items()}
        quantiles = Density(state).quantiles(COMPRESSAI_TAIL)
        self.quantiles.copy_(torch.from_numpy(quantiles[:, None, :]))

    def _logits(self, x: Tensor) -> Tensor:
        for layer in range(self.layers):
            matrix, bias = getattr(self, f"_matrix{layer}"), getattr(self, f"_bias{layer}")
            x = F.softplus(matrix) @ x + bias
            if layer < self.layers - 1:
                x = x + torch.tanh(getattr(self, f"_factor{layer}")) * torch.tanh(x)
        return x

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and its likelihoods, (B, C, H, W).

        In training, z gets uniform noise; otherwise it is rounded.
        """
        if self.training:
            z = z + torch.rand_like(z) - 0.5
        else:
            medians = self.quantiles[:, 0, 1, None, None]
            z = torch.round(z - medians) + medians
        flat = z.transpose(0, 1).flatten(1).unsqueeze(1)
        low, high = self._logits(flat - 0.5), self._logits(flat + 0.5)
        sign = -torch.sign(low + high).detach()
        mass = (torch.sigmoid(sign * high) - torch.sigmoid(sign * low)).abs()
        shape = (z.shape[1], z.shape[0], *z.shape[2:])
        return z, lower_bound(mass, SMALLEST_LIKELIHOOD).reshape(shape).transpose(0, 1)


def gaussian_conditional(y: Tensor, scales: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    """Return y, with uniform noise in training and rounded otherwise, and its likelihoods.

    The likelihoods are those of zero-mean Gaussians with the given scales, integrated over unit
    cells.
    """
    y = y + torch.rand_like(y) - 0.5 if training else torch.round(y)
    size, unit = y.abs(), -(2**-0.5) / lower_bound(scales, SMALLEST_SCALE)
    mass = 0.5 * (torch.erfc((0.5 - size) * unit) - torch.erfc((-0.5 - size) * unit))
    return y, lower_bound(mass, SMALLEST_LIKELIHOOD)


def _conv(inputs: int, outputs: int, kernel: int = 5, stride: int = 2) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)


def _deconv(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 5, 2, padding=2, output_padding=1)


class ScaleHyperprior(nn.Module):
    """Analysis and synthesis transforms, the hyper transforms, and the entropy bottleneck.

    Args:
        n: Channels of the inner layers and of z.
        m: Channels of y.
        stages: Convolutions of stride 2 between a plane and y.
    """

    def __init__(self, n: int = 128, m: int = 192, stages: int = 4) -> None:
        super().__init__()
        analysis: list[nn.Module] = [_conv(1, n)]
        synthesis: list[nn.Module] = [_deconv(m, n)]
        for stage in range(1, stages):
            last = stage == stages - 1
            analysis += [GDN(n), _conv(n, m if last else n)]
            synthesis += [GDN(n, inverse=True), _deconv(n, 1 if last else n)]
        self.g_a, self.g_s = nn.Sequential(*analysis), nn.Sequential(*synthesis)
        self.h_a = nn.Sequential(_conv(m, n, 3, 1), nn.ReLU(), _conv(n, n), nn.ReLU(), _conv(n, n))
        self.h_s = nn.Sequential(
            _deconv(n, n), nn.ReLU(), _deconv(n, n), nn.ReLU(), _conv(n, m, 3, 1), nn.ReLU()
        )
        self.entropy_bottleneck = EntropyBottleneck(n)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the decoded x (B, 1, H, W) and the likelihoods of y and z.

        H and W must be multiples of ``2**stages``.
        """
        y = self.g_a(x).float()
        z = self.h_a(y.abs()).float()
        z_hat, z_likelihoods = self.entropy_bottleneck(z)
        scales = self.h_s(z_hat).float()[:, :, : y.shape[2], : y.shape[3]]
        y_hat, y_likelihoods = gaussian_conditional(y, scales, self.training)
        return self.g_s(y_hat).float(), y_likelihoods, z_likelihoods
