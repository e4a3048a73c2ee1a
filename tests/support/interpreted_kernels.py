# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels against the torch tiles, run by Triton's interpreter on a CPU: see `test_head_triton.py`.

And TRL's kernel of the divergence with ours around it, where tiles are folded by a Triton kernel.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch
from triton.runtime import interpreter
from trl.kernels import chunked_divergence

from trl_entropy.head import function, nucleus, sweeps, triton_tiles
from trl_entropy.head.divergence import Head, divergences
from trl_entropy.head.function import token_statistics
from trl_entropy.head.spec import HeadSpec


N, H, V = 6, 5, 45
ALL = HeadSpec(second_moments=True, second_temperature=0.8, top_p=0.8, top_k=3, vocab_tile=20)
SPECS = {
    "all": replace(ALL, temperature=1.3),
    "softcap": replace(ALL, logit_scale=0.7, softcap=4.0, include_crossing=True),
    "entropy only": HeadSpec(vocab_tile=20),
    "second moments": HeadSpec(second_moments=True, vocab_tile=20),
    "second temperature": HeadSpec(second_temperature=2.0, vocab_tile=20),
    "top 1": HeadSpec(top_k=1, vocab_tile=20),
    "top 8": HeadSpec(top_k=8, temperature=0.7, vocab_tile=20),
    "top 24 of 24": HeadSpec(top_k=24, vocab_tile=20),
}


@pytest.fixture(scope="module", autouse=True)
def language_patched_once():
    """Its functions, which the interpreter else replaces at each call of a function: a third of its time."""
    original = interpreter._patch_builtin
    patch = cache(lambda package: original(package, interpreter.interpreter_builder, interpreter._LangPatchScope()))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(interpreter, "_patch_builtin", lambda package, builder, scope: patch(package))
        yield


@pytest.fixture
def kernels(monkeypatch):
    """The module of kernels, with blocks of 16 columns."""
    monkeypatch.setattr(triton_tiles, "BLOCK", 16)
    monkeypatch.setattr(sweeps, "FEWEST_ROWS", 2)
    monkeypatch.setattr(function, "FEWEST_ROWS", 2)
    return triton_tiles


def example(dtype, vocabulary=V):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, generator=generator) * torch.linspace(0.5, 2, N).unsqueeze(-1)
    weight, bias = torch.randn(vocabulary, H, generator=generator), torch.randn(vocabulary, generator=generator)
    inputs = [x.to(dtype).requires_grad_() for x in (hidden, weight, bias)]
    return inputs, torch.randint(vocabulary, (N,), generator=generator)


def results(spec, dtype, each=False):
    """All outputs, and the gradients of the inputs for live rows 0, 2, 3 of the outputs together, or of `each`."""
    inputs, targets = example(dtype, 24 if spec.top_k == 24 else V)
    outputs = token_statistics(*inputs, targets, spec)
    parts = []
    for output in (0, 1, 5, 6):
        if outputs[output] is not None:
            values = outputs[output] if output < 6 else outputs[output] @ torch.linspace(0.1, 0.2, spec.top_k)
            parts.append((values * torch.tensor([1.0, 0, -2, 3, 0, 0])).sum() * (output + 1))
    if not each:
        return outputs, torch.autograd.grad(sum(parts), inputs)
    return outputs, [torch.autograd.grad(part, inputs, retain_graph=True) for part in parts]


@pytest.mark.parametrize("name", [*SPECS, "from bins"])
def test_kernels_are_the_torch_tiles(kernels, monkeypatch, name):
    if name == "from bins":
        monkeypatch.setattr(nucleus, "LIKELY", 2.0)
        monkeypatch.setattr(triton_tiles, "LIKELY", 2.0)
    spec = SPECS.get(name, ALL)
    expected = results(spec, torch.float32)
    monkeypatch.setattr(sweeps, "backend_for", lambda *_: kernels)
    actual = results(spec, torch.float32)
    for a, b in zip(actual[0], expected[0], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=1e-5)


def test_gradient_of_each_output(kernels, monkeypatch):
    expected = results(ALL, torch.float32, each=True)[1]
    monkeypatch.setattr(sweeps, "backend_for", lambda *_: kernels)
    actual = results(ALL, torch.float32, each=True)[1]
    assert len(actual) == 4
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_bfloat16(kernels, monkeypatch):
    expected = results(ALL, torch.bfloat16)
    monkeypatch.setattr(sweeps, "backend_for", lambda *_: kernels)
    actual = results(ALL, torch.bfloat16)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(actual[1], expected[1], rtol=2e-2, atol=3e-2)


def test_kernels_keep_small_entropies(kernels, monkeypatch):
    """A logit of 60, and 40 words 12 to 25 nats below it: entropies of 1e-3 to 1e-9 nats, none of which reads 0."""
    monkeypatch.setattr(sweeps, "backend_for", lambda *_: kernels)
    gaps = torch.linspace(12, 25, 6).unsqueeze(-1)
    z = torch.cat([60 - gaps - torch.linspace(0, 2, 20), torch.full_like(gaps, 60.0), 58 - gaps.expand(6, 20)], dim=-1)
    out = token_statistics(torch.eye(6), z.t().contiguous(), None, torch.zeros(6, dtype=torch.int64), ALL)
    truth = torch.distributions.Categorical(logits=z.double()).entropy()
    error = (out.entropy.double() - truth).abs()
    assert (error <= 0.09 * truth).all() and (error <= 4e-7 + 1e-5 * truth).all()


@pytest.mark.parametrize("value", [-torch.inf, torch.finfo(torch.float32).min])
def test_masked_vocabulary(kernels, monkeypatch, value):
    """The first block and some single words have probability 0."""
    (hidden, weight, bias), targets = example(torch.float32)
    masked = torch.tensor([*range(16), 21, 44])
    bias.data[masked] = value
    targets = targets.clamp(min=22, max=43)
    found = []
    for backend in (None, kernels):
        if backend is not None:
            monkeypatch.setattr(sweeps, "backend_for", lambda *_: kernels)
        out = token_statistics(hidden, weight, bias, targets, replace(ALL, temperature=0.7))
        total = out.log_probs.sum() + 2 * out.entropy.sum() + 3 * out.nucleus_entropy.sum()
        total = total + 0.1 * out.top_log_probs.sum()
        found.append((*out, *torch.autograd.grad(total, (hidden, weight, bias))))
    assert all(values.isfinite().all() for values in found[0]) and found[0][5].max() > 0.1
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count, vocabulary", [(1, V), (3, V), (24, 24)])
def test_ties_of_the_likeliest_tokens(kernels, monkeypatch, count, vocabulary):
    """Within a block, across blocks and tiles. The gradient shows which ids were kept. Row 0 has only two finite."""
    z = 0.5 * torch.randint(-2, 3, (4, vocabulary), generator=torch.Generator().manual_seed(0)).float()
    z[0, :-2] = -torch.inf
    z[1] = 0.25
    expected, ids = z.sort(dim=-1, descending=True, stable=True)
    expected = (expected - z.logsumexp(-1, keepdim=True))[:, :count]
    for backend in (None, kernels):
        if backend is not None:
            monkeypatch.setattr(sweeps, "backend_for", lambda *_: kernels)
        bias = torch.zeros(vocabulary, requires_grad=True)
        for row in range(4):  # each by itself, so that the gradient of the bias is that of its logits
            hidden, weight = torch.ones(1, 1), z[row].nan_to_num(neginf=0.0).unsqueeze(-1)
            masked = bias + torch.where(z[row].isinf(), -torch.inf, 0.0)
            out = token_statistics(
                hidden, weight, masked, torch.zeros(1, dtype=torch.int64), HeadSpec(top_k=count, vocab_tile=20)
            )
            torch.testing.assert_close(out.top_log_probs, expected[row : row + 1], rtol=1e-5, atol=2e-6)
            (gradient,) = torch.autograd.grad(out.top_log_probs[:, -1].nan_to_num(neginf=0.0).sum(), bias)
            if expected[row, -1] > -torch.inf:
                one = torch.nn.functional.one_hot(ids[row, count - 1], vocabulary)
                torch.testing.assert_close(gradient, one - z[row].softmax(-1), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("logit", [9.0, 14.0])
def test_more_likely_tokens_than_are_kept(kernels, monkeypatch, logit):
    """12 likely tokens and room for 5: left to the bins, unless a late token is certain."""
    z = torch.full((2, 45), -20.0)
    z[:, :12] = torch.linspace(5, 6, 12)
    z[1, 41] = logit
    arguments = torch.eye(2), z.t().contiguous(), None, torch.zeros(2, dtype=torch.int64), ALL
    expected = token_statistics(*arguments).nucleus_entropy
    assert expected[0] > 2 and (expected[1] == 0) == (logit == 14.0)
    monkeypatch.setattr(nucleus, "CAPACITY", 5)
    monkeypatch.setattr(triton_tiles, "CAPACITY", 5)
    monkeypatch.setattr(sweeps, "backend_for", lambda *_: kernels)
    torch.testing.assert_close(token_statistics(*arguments).nucleus_entropy, expected, rtol=1e-5, atol=2e-3)


def test_refinement_of_crowded_boundary_bins(kernels, monkeypatch):
    """Thirty logits within one bin around the crossing of 0.8, told apart by the finer bins."""
    monkeypatch.setattr(nucleus, "BOUNDARY_TOLERANCE", 0.0)
    monkeypatch.setattr(nucleus, "LIKELY", 2.0)  # as no token is, so that nothing is read off those
    monkeypatch.setattr(triton_tiles, "LIKELY", 2.0)
    z = torch.stack([torch.linspace(0, 0.007, 30), torch.linspace(0, 0.002, 30)])
    arguments = torch.eye(2), z.t().contiguous(), None, torch.zeros(2, dtype=torch.int64), ALL
    expected = token_statistics(*arguments).nucleus_entropy
    torch.testing.assert_close(expected, torch.full((2,), 23.0).log(), rtol=0, atol=1e-5)
    monkeypatch.setattr(sweeps, "backend_for", lambda *_: kernels)
    torch.testing.assert_close(token_statistics(*arguments).nucleus_entropy, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("value", [0.0, -torch.inf])
def test_divergences_where_a_kernel_folds(monkeypatch, beta, value):
    monkeypatch.setattr(chunked_divergence, "_BLOCK_SIZE", 16)
    monkeypatch.setattr(chunked_divergence, "TOKEN_CHUNK_SIZE", 4)
    monkeypatch.setattr(chunked_divergence, "VOCAB_CHUNK_SIZE", 20)
    (hidden, weight, bias), _ = example(torch.float32)
    masked = torch.zeros(V).index_fill(0, torch.tensor([*range(20), 44]), value)
    weights, biases = (weight, weight.detach().roll(1, 0)), (bias, masked)
    bias.data += masked
    head = Head(hidden, weights[0], biases[0], hidden.detach() * 1.5, weights[1], biases[1], beta, 0.7)
    found = []
    for triton in (False, True):
        monkeypatch.setattr(chunked_divergence, "_use_triton", lambda _, triton=triton: triton)
        of_rows = divergences(head, live_rows=True)
        grads = torch.autograd.grad(of_rows.loss, (hidden, weight, bias), torch.tensor([1.0, 0, 2, 0, 0, 1]))
        found.append((*of_rows, *grads))
    assert len(found[0]) == 7 and found[0][2].min() > 0.01 and all(values.isfinite().all() for values in found[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
