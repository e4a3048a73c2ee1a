# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Diffusion spectral entropy (DSE) of features, and their mutual information with classes (DSMI).

[Assessing Neural Network Representations During Training Using Noise-Resilient Diffusion Spectral
Entropy](https://huggingface.co/papers/2312.04823). For points x_i, with D = diag(Σ_j G_ij):

    G_ij = exp(-‖x_i - x_j‖² / (2σ²))        K = D^-1/2 G D^-1/2
    DSE = -Σ p log2 p                        p = |eig K|^t / Σ |eig K|^t
    DSMI = Σ_c p(c) [mean DSE of random subsets of size n_c - DSE of class c]

in bits. Departs from the paper's code: σ is the median of all pairwise distances. At the code's width of 10, DSE of
hidden states is 0 or log2 n.
"""

import math
from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor

from ..paper import Paper


DRAWS = 5  # random subsets for each class, as in the paper's code
ROUNDS = 100  # of k-means, at most

PAPER = Paper(
    arxiv="2312.04823",
    title="Assessing Neural Network Representations During Training Using Noise-Resilient Diffusion Spectral Entropy",
    bibtex="""@inproceedings{liao2024assessing,
    title     = {Assessing Neural Network Representations During Training Using Noise-Resilient Diffusion Spectral
                 Entropy},
    author    = {Danqi Liao and Chen Liu and Benjamin W. Christensen and Alexander Tong and Guillaume Huguet and
                 Guy Wolf and Maximilian Nickel and Ian Adelstein and Smita Krishnaswamy},
    booktitle = {Annual Conference on Information Sciences and Systems},
    year      = {2024}
}""",
)


def squared_distances(points: Tensor) -> Tensor:
    """(n, d) -> (n, n), exact for equal points."""
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()


def entropy_from_distances(square: Tensor, width: float, time: int = 1) -> float:
    """DSE in bits from (n, n) squared distances. With a width of 0 only equal points are neighbors."""
    kernel = (-square / (2 * width * width)).exp() if width > 0 else (square == 0).to(square.dtype)
    degree = kernel.sum(1).rsqrt()
    values = torch.linalg.eigvalsh(degree[:, None] * kernel * degree).abs().pow(time)
    return float(torch.special.entr(values / values.sum()).sum()) / math.log(2)


def diffusion_entropy(features: Tensor, width: float | None = None, time: int = 1) -> float:
    """Diffusion spectral entropy in bits. NaN below two points, or if one is not finite.

    Args:
        features: (n, d).
        width: σ of the Gaussian kernel; the median of all pairwise distances by default, and for equal points any.
        time: power t of the diffusion.
    """
    points = features.double()
    if not points.isfinite().all() or len(points) < 2:
        return math.nan
    sigma = float(torch.pdist(points).median()) if width is None else width
    return entropy_from_distances(squared_distances(points), sigma, time)


def diffusion_information(
    features: Tensor,
    labels: Tensor,
    width: float | None = None,
    time: int = 1,
    draws: int = DRAWS,
    seed: int = 0,
) -> float:
    """Diffusion spectral mutual information of features and classes, in bits.

    Classes of one point are left out. NaN if none is left, or if a feature is not finite.

    Args:
        features: (n, d).
        labels: (n,) whole numbers, the class of each point.
        width, time: as in [`diffusion_entropy`]; the median is that of all points.
        draws: random subsets for each class. If there are no more than this, all are taken.
        seed: of the draws.
    """
    points = features.double()
    if not points.isfinite().all() or len(points) < 2:
        return math.nan
    sigma = float(torch.pdist(points).median()) if width is None else width
    square = squared_distances(points)

    def entropy(chosen: Tensor) -> float:
        return entropy_from_distances(square[chosen][:, chosen], sigma, time)

    generator = torch.Generator().manual_seed(seed)
    found = total = 0.0
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        size = len(members)
        if size < 2:
            continue
        others = [entropy(chosen) for chosen in subsets(len(points), size, draws, generator)]
        found += size * (sum(others) / len(others) - entropy(members))
        total += size
    return found / total if total else math.nan


def subsets(count: int, size: int, draws: int, generator: torch.Generator) -> Iterator[Tensor]:
    """All subsets of `size` out of `count` indices if there are at most `draws`, else as many random ones."""
    if math.comb(count, size) <= draws:
        yield from (torch.tensor(chosen) for chosen in combinations(range(count), size))
        return
    for _ in range(draws):
        yield torch.randperm(count, generator=generator)[:size]


def clusters(features: Tensor, count: int, seed: int = 0) -> Tensor:
    """The cluster of each point by k-means, from a k-means++ start.

    Args:
        features: (n, d).
        count: clusters, at most n.
        seed: of the start.

    Returns:
        (n,) numbers of clusters. There are fewer clusters if there are fewer distinct points.
    """
    points = features.double()
    generator = torch.Generator().manual_seed(seed)
    centers = points[torch.randint(len(points), (1,), generator=generator)]
    while len(centers) < count:
        nearest = torch.cdist(points, centers).amin(1).square()
        if not nearest.sum() > 0:
            break
        centers = torch.cat([centers, points[torch.multinomial(nearest, 1, generator=generator)]])
    labels = torch.full((len(points),), -1)
    for _ in range(ROUNDS):
        found = torch.cdist(points, centers).argmin(1)
        if found.equal(labels):
            break
        labels = found
        for number in labels.unique():
            centers[number] = points[labels == number].mean(0)
    return labels
