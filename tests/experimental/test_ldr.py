# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The LDR-KL loss and its gradient against the formula."""

import math
import warnings

import pytest
import torch

from trl_entropy.experimental import warning
from trl_entropy.experimental.ldr import ldr_kl_loss
from trl_entropy.experimental.warning import ExperimentalWarning


Z = torch.tensor([[2.0, 1, 0]], dtype=torch.float64)
Y = torch.tensor([0])


def literal(z, y, lam, margin):
    """One example by the formula, with plain exponentials."""
    terms = [math.exp(((0 if k == y else margin) + z[k] - z[y]) / lam) for k in range(len(z))]
    return lam * math.log(sum(terms) / len(z))


@pytest.mark.parametrize(
    ("lam", "margin", "expected"),
    [(1, 0, -0.6910063242), (0.5, 0, -0.4778403301), (2, 0, -0.8366852361), (1, 1, -0.2366174846)],
)
def test_worked_example(lam, margin, expected):
    assert float(ldr_kl_loss(Z, Y, lam, margin)) == pytest.approx(expected, abs=1e-9)
    assert literal(Z[0].tolist(), 0, lam, margin) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("lam", "margin"), [(1.0, 0.0), (0.3, 0.7), (4.0, 2.0)])
def test_loss_and_gradient_are_those_of_the_formula(lam, margin):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64).requires_grad_()
    y = torch.randint(7, (2, 5), generator=generator)
    y[0, 3] = -100
    loss = ldr_kl_loss(z, y, lam, margin)
    loss.backward()
    rows = [(z[b, t], y[b, t]) for b in range(2) for t in range(5) if y[b, t] >= 0]
    expected = sum(literal(row.tolist(), int(label), lam, margin) for row, label in rows) / 9
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    for b in range(2):
        for t in range(5):
            if y[b, t] < 0:
                assert not z.grad[b, t].any()
                continue
            # d/dz_k = (p_k - [k = y]) / 9, with p the softmax of (c + z) / λ
            c = torch.full((7,), margin, dtype=torch.float64)
            c[y[b, t]] = 0
            p = ((c + z[b, t].detach()) / lam).softmax(0)
            p[y[b, t]] -= 1
            torch.testing.assert_close(z.grad[b, t], p / 9, rtol=1e-9, atol=1e-12)


def test_is_scaled_cross_entropy_without_a_margin():
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    expected = 2 * (torch.nn.functional.cross_entropy(z / 2, y) - math.log(4))
    torch.testing.assert_close(ldr_kl_loss(z, y, 2.0), expected)


def test_ends_of_lambda_shifts_and_large_logits():
    assert float(ldr_kl_loss(Z, Y, 1e-3, 3.0)) == pytest.approx(2.0, abs=2e-3)  # the largest of 0, 2, 1
    assert float(ldr_kl_loss(Z, Y, 1e5, 3.0)) == pytest.approx(1.0, abs=1e-4)  # their mean
    assert float(ldr_kl_loss(Z + 5, Y)) == pytest.approx(float(ldr_kl_loss(Z, Y)), abs=1e-12)
    assert float(ldr_kl_loss(torch.tensor([[-1e4, 1e4]]), Y)) == pytest.approx(2e4 - math.log(2), rel=1e-6)
    assert ldr_kl_loss(Z.to(torch.bfloat16), Y).dtype == torch.float32


def test_no_label_counts():
    z = Z.clone().requires_grad_()
    loss = ldr_kl_loss(z, torch.tensor([-100]))
    loss.backward()
    assert float(loss) == 0 and not z.grad.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(lam=0), "`lam` must be a finite number above 0, got 0"),
        (dict(lam=math.inf), "got inf"),
        (dict(margin=-1), "`margin` must be a finite number >= 0, got -1"),
        (dict(labels=torch.tensor([0, 1])), r"`labels` must have shape \(1,\), got \(2,\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ldr_kl_loss(**{"logits": Z, "labels": Y, **arguments})


def test_warns_once(monkeypatch):
    monkeypatch.setattr(warning, "_warned", set())
    with pytest.warns(ExperimentalWarning, match="`ldr_kl_loss` is experimental") as given:
        ldr_kl_loss(Z, Y)
    assert given[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ldr_kl_loss(Z, Y)
