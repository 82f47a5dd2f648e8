"""Geometry metrics: the shape of the cloud of tokens, wherever it lies and however it is turned."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cfqa_data.errors import MetricError
from cfqa_data.eval.metrics.base import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from cfqa_data.eval.features import Features
    from cfqa_data.eval.relations import Directions

__all__ = [
    "GEOMETRY",
    "angular_shape",
    "procrustes",
    "procrustes_normalized",
    "rsa",
    "rsm_difference",
]

NEAREST = 2.0**-40
"""Shapes whose similarity is within this of 1 are the same: the rest is rounding."""


def procrustes(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """Squared distance of the centred clouds after the best orthogonal map, mean over slices.

    ``min_Q |Xc - Yc Q|^2 = |Xc|^2 + |Yc|^2 - 2 |Xc^T Yc|_*``, with the nuclear norm, the sum of
    singular values. Computed as ``(|Xc| - |Yc|)^2 + 2 |Xc| |Yc| (1 - s)`` with the shapes'
    similarity s, see `shape_gaps`.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64, in squared feature units, summed over tokens and channels.

    Raises:
        MetricError: The decomposition did not converge.
    """
    from cfqa_data.eval.features import as_features, slice_mean

    x, y = as_features(x, y)
    before, after = _sizes(x), _sizes(y)
    apart = (before - after).square() + 2.0 * before * after * shape_gaps(x, y)
    return slice_mean(apart)


def procrustes_normalized(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """`procrustes` of clouds brought to norm 1, mean over slices: 2 (1 - s).

    A slice where x or y does not vary over tokens scores 2, as if nothing were shared.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64 in [0, 2].

    Raises:
        MetricError: The decomposition did not converge.
    """
    from cfqa_data.eval.features import as_features, slice_mean

    return slice_mean(2.0 * shape_gaps(*as_features(x, y)))


def angular_shape(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """Angle between the centred clouds after the best orthogonal map, mean over slices: arccos(s).

    A slice where x or y does not vary over tokens is at right angles.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64 in [0, pi / 2], in radians.

    Raises:
        MetricError: The decomposition did not converge.
    """
    from cfqa_data.eval.features import as_features, slice_mean

    # 1 - cos(a) = 2 sin(a / 2)^2
    angles = 2.0 * (shape_gaps(*as_features(x, y)) / 2.0).sqrt().asin()
    return slice_mean(angles).clamp(0.0, math.pi / 2)


def rsa(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """Spearman correlation of the distances between tokens, each pair once, mean over slices.

    The dissimilarity is the Euclidean distance. Distances that are equal but for rounding share
    their mean rank. A slice where all distances of x or y are equal (all with fewer than three
    tokens) scores 0.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64 in [-1, 1].
    """
    from cfqa_data.eval.features import as_features, slice_mean
    from cfqa_data.eval.relations import alignment

    x, y = as_features(x, y)
    return slice_mean(alignment(_ranks(x), _ranks(y)))


def rsm_difference(x: Tensor | Features, y: Tensor | Features) -> Tensor:
    """Root mean square change of the cosines between two tokens of a slice, mean over slices.

    Cosines are not centred; with a zero token they are 0. A single token scores 0: there are no
    two.

    Args:
        x: (B or 1, N, C, T, D).
        y: (B, N, C, T, D).

    Returns:
        (B,) float64 in [0, 2].
    """
    import torch

    from cfqa_data.eval.features import as_features, slice_mean
    from cfqa_data.eval.relations import by_slice, token_cosines

    x, y = as_features(x, y)
    tokens = y.shape[-2]

    def make(before: Tensor, after: Tensor) -> tuple[Tensor]:
        changes = after - before
        changes.diagonal(dim1=-2, dim2=-1).zero_()
        return (torch.linalg.matrix_norm(changes) / math.sqrt(max(1, tokens * (tokens - 1))),)

    (changes,) = by_slice(make, token_cosines(x), token_cosines(y))
    return slice_mean(changes).clamp(0.0, 2.0)


def shape_gaps(x: Features, y: Features) -> Tensor:
    """Return 1 - s, with the similarity ``s = |Xc^T Yc|_* / (|Xc| |Yc|)`` of two shapes.

    The singular values are the roots of the eigenvalues of a symmetric matrix of min(T, D) rows:
    several times faster than a singular value decomposition. In float64 this resolves singular
    values down to 1e-7 of the largest; smaller ones are left out.

    Returns:
        (B, N, C) float64 in [0, 1]; 1 where x or y does not vary over tokens.

    Raises:
        MetricError: The decomposition did not converge.
    """
    import torch

    from cfqa_data.eval.relations import by_slice, points

    def make(factor: Tensor, values: Tensor) -> tuple[Tensor]:
        crossed = factor @ _unit(points(values.double()))
        try:
            squares = torch.linalg.eigvalsh(crossed @ crossed.mT)
        except torch.linalg.LinAlgError as error:
            raise MetricError("the singular values of a slice did not converge") from error
        noise = 64.0 * torch.finfo(squares.dtype).eps * squares[:, -1:]
        shared = squares.masked_fill(squares <= noise, 0.0).sqrt().sum(-1)
        gaps = (1.0 - shared).clamp_(max=1.0)
        return (gaps.masked_fill(gaps <= NEAREST, 0.0),)

    return y.once(("shape_gaps", x), lambda: by_slice(make, _factors(x), y.values)[0])


def _factors(z: Features) -> Tensor:
    """Return F, min(T, D) x T, with F^T F = Zc Zc^T / |Zc|^2; (B, N, C, ., T) float64."""
    import torch

    from cfqa_data.eval.relations import by_slice, points

    def make(values: Tensor) -> tuple[Tensor]:
        cloud = _unit(points(values.double())).mT
        rows, columns = cloud.shape[-2:]
        return (torch.linalg.qr(cloud, mode="r").R if rows > columns else cloud,)

    return z.once("factors", lambda: by_slice(make, z.values)[0])


def _unit(clouds: Tensor) -> Tensor:
    from cfqa_data.eval.relations import unit

    return unit(clouds).arrays


def _sizes(z: Features) -> Tensor:
    """Return |Zc| of each slice, (B, N, C) float64."""
    import torch

    from cfqa_data.eval.relations import by_slice

    def make(values: Tensor) -> tuple[Tensor]:
        cloud = values.double()
        cloud = cloud - cloud[:, :1]
        return (torch.linalg.matrix_norm(cloud - cloud.mean(-2, keepdim=True)),)

    return z.once("sizes", lambda: by_slice(make, z.values)[0])


def _ranks(z: Features) -> Directions:
    """Return the centred ranks of the distances, above the diagonal of unit T x T matrices."""
    import torch

    from cfqa_data.eval.relations import Directions, by_slice, squared_distances, unit, upper

    tokens = z.shape[-2]
    rows, columns = torch.triu_indices(tokens, tokens, 1, device=z.values.device)

    def make(squares: Tensor) -> Directions:
        ranks = _mean_ranks(upper(squares))
        matrices = torch.zeros_like(squares, dtype=z.values.dtype)
        matrices[:, rows, columns] = (ranks - (len(rows) - 1) / 2).to(z.values.dtype)
        return unit(matrices)

    return z.once("ranks", lambda: Directions(*by_slice(make, squared_distances(z))))


def _mean_ranks(values: Tensor) -> Tensor:
    """Return the rank of each number in its row, from 0; equal ones share their mean rank.

    Args:
        values: (b, P) float64, not negative. Neighbours in order are equal if they differ by no
            more than rounding, relative to themselves and to the row's mean.
    """
    import torch

    from cfqa_data.eval.relations import ROUNDING

    if values.shape[-1] == 0:
        return values
    ordered, order = values.sort(-1)
    noise = ROUNDING * (ordered[:, 1:] + ordered.mean(-1, keepdim=True))
    rises = ordered.diff(dim=-1) > noise
    ends = torch.ones_like(ordered[:, :1], dtype=torch.bool)
    places = torch.arange(values.shape[-1], device=values.device)
    first = places.where(torch.cat((ends, rises), -1), 0).cummax(-1).values
    last = places.where(torch.cat((rises, ends), -1), len(places)).flip(-1).cummin(-1).values
    means = (first + last.flip(-1)).double() / 2.0
    return torch.empty_like(means).scatter_(-1, order, means)


PROCRUSTES = Metric(
    name="procrustes",
    family="geometry",
    formula="mean_nc |Xc|^2 + |Yc|^2 - 2 |Xc^T Yc|_*",
    function=procrustes,
    lower_better=True,
    score_range=(0.0, math.inf),
    identity=0.0,
    invariances=frozenset({"orthogonal", "permutation", "translation"}),
    cost="D3",
    citation=(
        "Ding et al., Grounding Representation Similarity Through Statistical Testing, NeurIPS 2021"
    ),
)

PROCRUSTES_NORMALIZED = Metric(
    name="procrustes_normalized",
    family="geometry",
    formula="mean_nc 2 - 2 |Xc^T Yc|_* / (|Xc| |Yc|)",
    function=procrustes_normalized,
    lower_better=True,
    score_range=(0.0, 2.0),
    identity=0.0,
    invariances=frozenset({"orthogonal", "permutation", "scale", "translation"}),
    cost="D3",
    citation=(
        "Ding et al., Grounding Representation Similarity Through Statistical Testing, NeurIPS 2021"
    ),
)

ANGULAR_SHAPE = Metric(
    name="angular_shape",
    family="geometry",
    formula="mean_nc arccos(|Xc^T Yc|_* / (|Xc| |Yc|))",
    function=angular_shape,
    lower_better=True,
    score_range=(0.0, math.pi / 2),
    identity=0.0,
    invariances=frozenset({"orthogonal", "permutation", "scale", "translation"}),
    cost="D3",
    citation="Williams et al., Generalized Shape Metrics on Neural Representations, NeurIPS 2021",
)

RSA = Metric(
    name="rsa",
    family="geometry",
    formula="mean_nc spearman_{s<t}(|x_s - x_t|, |y_s - y_t|)",
    function=rsa,
    lower_better=False,
    score_range=(-1.0, 1.0),
    identity=1.0,
    invariances=frozenset({"orthogonal", "permutation", "scale", "translation"}),
    cost="T2D",
    citation=(
        "Kriegeskorte et al., Representational Similarity Analysis, Frontiers in Systems "
        "Neuroscience 2008"
    ),
)

RSM_DIFFERENCE = Metric(
    name="rsm_difference",
    family="geometry",
    formula="mean_nc sqrt(mean_{s!=t} (cos(y_s, y_t) - cos(x_s, x_t))^2)",
    function=rsm_difference,
    lower_better=True,
    score_range=(0.0, 2.0),
    identity=0.0,
    invariances=frozenset({"orthogonal", "permutation", "scale"}),
    cost="T2D",
    citation=(
        "Yin and Shen, On the Dimensionality of Word Embedding, NeurIPS 2018 (the pairwise inner "
        "product loss, here of unit tokens)"
    ),
)

GEOMETRY = (PROCRUSTES, PROCRUSTES_NORMALIZED, ANGULAR_SHAPE, RSA, RSM_DIFFERENCE)
