# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The divergence of two heads where tokens have probability 0, against full logits in float64."""

import math

import pytest
import torch
from support.distilling import jsd, kl
from support.tiny import FLOAT32
from trl.kernels import chunked_divergence

from trl_entropy.head.divergence import Head, divergences, student_entropy


N, H, V = 20, 6, 45
MASKED = torch.tensor([*range(20), 27, 44])  # a tile of its own, and single tokens of others
LOWEST = torch.finfo(torch.float32).min


def example(student, teacher, beta, temperature):
    """The head, and its tensors that have a gradient. `student`, `teacher`: the bias of the masked tokens."""
    generator = torch.Generator().manual_seed(0)
    s_hidden, t_hidden = (torch.randn(N, H, generator=generator) for _ in range(2))
    s_weight, t_weight = (torch.randn(V, H, generator=generator) for _ in range(2))
    s_bias, t_bias = (torch.randn(V, generator=generator).index_fill(0, MASKED, x) for x in (student, teacher))
    inputs = [x.requires_grad_() for x in (s_hidden, s_weight, s_bias)]
    return Head(*inputs, t_hidden, t_weight, t_bias, beta, temperature), inputs


def dense(head):
    """Loss, entropy, reverse and forward KL over the words that are not masked, and their inputs."""
    kept = torch.ones(V, dtype=torch.bool).index_fill(0, MASKED, False)
    inputs = [x.detach().double() for x in head[:6]]
    inputs = [x if index % 3 == 0 else x[kept] for index, x in enumerate(inputs)]
    inputs[:3] = [x.requires_grad_() for x in inputs[:3]]
    student, teacher = (
        ((hidden @ weight.t() + bias) / head.temperature).log_softmax(-1)
        for hidden, weight, bias in (inputs[:3], inputs[3:])
    )
    entropy = -(student.exp() * student).sum(-1)
    return (jsd(student, teacher, head.beta), entropy, kl(student, teacher), kl(teacher, student)), inputs[:3], kept


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(chunked_divergence, "TOKEN_CHUNK_SIZE", 8)
    monkeypatch.setattr(chunked_divergence, "VOCAB_CHUNK_SIZE", 20)


@pytest.mark.parametrize("live_rows", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("student", [-math.inf, LOWEST])
@pytest.mark.parametrize("teacher", [-math.inf, LOWEST])
def test_masked_vocabulary_adds_nothing(student, teacher, beta, live_rows):
    head, inputs = example(student, teacher, beta, temperature=0.7)
    expected, exact, kept = dense(head)
    found = divergences(head, live_rows)
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), reference, **FLOAT32)
    torch.testing.assert_close(student_entropy(head, torch.arange(N)).double(), expected[1], **FLOAT32)
    of_hidden, *of_head = torch.autograd.grad(found.loss.sum(), inputs)
    reference = torch.autograd.grad(expected[0].sum(), exact)
    torch.testing.assert_close(of_hidden.double(), reference[0], rtol=1e-5, atol=2e-5)
    for ours, theirs in zip(of_head, reference[1:], strict=True):
        torch.testing.assert_close(ours[kept].double(), theirs, rtol=1e-5, atol=2e-5)
        assert (ours[~kept] == 0).all()


@pytest.mark.parametrize(
    ("student", "teacher", "infinite"), [(-math.inf, 0.0, "forward"), (0.0, -math.inf, "reverse")]
)
def test_a_token_possible_for_one_model_only(student, teacher, infinite):
    """One KL is infinite, the other and the JSD are finite, with finite gradients."""
    for beta in (0.3, 1.0 if infinite == "forward" else 0.0):
        head, inputs = example(student, teacher, beta, temperature=1.0)
        found = divergences(head, live_rows=True)
        assert (getattr(found, infinite) == math.inf).all()
        other = found.reverse if infinite == "forward" else found.forward
        assert found.loss.isfinite().all() and other.isfinite().all() and found.entropy.isfinite().all()
        full = [x.detach().double() for x in head[:6]]
        logps = [
            (hidden @ weight.t() + bias).log_softmax(-1).clamp(min=-1e300)
            for hidden, weight, bias in (full[:3], full[3:])
        ]
        torch.testing.assert_close(found.loss.double(), jsd(*logps, beta), **FLOAT32)
        assert all(g.isfinite().all() for g in torch.autograd.grad(found.loss.sum(), inputs))
