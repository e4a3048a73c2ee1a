# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Mutual information of features and classes against literals, and the clusters that stand for pairs."""

import math
from itertools import combinations

import pytest
import torch

from trl_entropy.monitors.diffusion import clusters, diffusion_entropy, diffusion_information


POINTS = torch.tensor([[0.0, 0], [0, 1], [3, 0], [3, 1]])


def literal_entropy(points, width):
    """DSE from its definition, with the factor of the Gaussian that cancels."""
    gauss = [
        [math.exp(-(math.dist(x, y) ** 2) / (2 * width**2)) / (width * math.sqrt(2 * math.pi)) for y in points]
        for x in points
    ]
    degree = [sum(row) for row in gauss]
    matrix = [[value / math.sqrt(degree[i] * degree[j]) for j, value in enumerate(row)] for i, row in enumerate(gauss)]
    values = torch.linalg.eigvalsh(torch.tensor(matrix, dtype=torch.float64)).abs()
    return -sum(p * math.log2(p) for p in (values / values.sum()).tolist() if p > 0)


def test_worked_example():
    labels = torch.tensor([0, 0, 1, 1])
    assert diffusion_information(POINTS, labels, 1.0, draws=6) == pytest.approx(0.1897266313, abs=1e-9)
    points = POINTS.tolist()
    subsets = [literal_entropy([points[i] for i in chosen], 1.0) for chosen in combinations(range(4), 2)]
    assert sum(subsets) / 6 == pytest.approx(0.9050757980, abs=1e-9)
    assert literal_entropy(points[:2], 1.0) == pytest.approx(0.7153491667, abs=1e-9)
    assert diffusion_entropy(POINTS, 1.0) == pytest.approx(literal_entropy(points, 1.0), abs=1e-12)


def test_random_subsets_are_near_all_of_them():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 3, generator=generator) + torch.arange(12)[:, None] % 2 * 4
    labels = torch.arange(12) % 2
    exact = diffusion_information(features, labels, draws=math.comb(12, 6))
    assert exact > 0.3
    assert diffusion_information(features, labels, draws=200, seed=1) == pytest.approx(exact, rel=0.05)
    assert diffusion_information(features, labels) == diffusion_information(features, labels, seed=0)
    assert diffusion_information(features, labels, seed=0) != diffusion_information(features, labels, seed=1)
    # Neither names of classes nor the order of points matter.
    order = torch.randperm(12, generator=generator)
    renamed = diffusion_information(features[order], 7 - labels[order], draws=math.comb(12, 6))
    assert renamed == pytest.approx(exact, abs=1e-9)


def test_classes_of_one_point_are_left_out():
    labels = torch.tensor([0, 0, 1, 2])
    pair = sum(literal_entropy([POINTS[i].tolist() for i in chosen], 1.0) for chosen in combinations(range(4), 2)) / 6
    expected = pair - literal_entropy(POINTS[:2].tolist(), 1.0)
    assert diffusion_information(POINTS, labels, 1.0, draws=6) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(diffusion_information(POINTS, torch.arange(4), 1.0))
    assert math.isnan(diffusion_information(POINTS * math.nan, labels))
    assert math.isnan(diffusion_information(POINTS[:1], labels[:1]))


def test_clusters_are_the_planted_ones():
    generator = torch.Generator().manual_seed(0)
    planted = torch.arange(40) % 4
    features = torch.randn(40, 5, generator=generator) + 50 * torch.eye(5)[planted]
    found = clusters(features, 4)
    assert len(found.unique()) == 4
    assert all(len(found[planted == number].unique()) == 1 for number in range(4))
    assert found.equal(clusters(features, 4))
    assert len(clusters(torch.ones(5, 2), 3).unique()) == 1  # fewer distinct points than clusters
