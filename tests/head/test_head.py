# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The fused head against dense softmax in float64, and against TRL's own head."""

import math
import weakref
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from support.tiny import EXACT, FLOAT64
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trl.kernels import ChunkedLogProbFunction

from trl_entropy.head import function, nucleus, sweeps, top, torch_tiles
from trl_entropy.head.function import token_statistics
from trl_entropy.head.spec import HeadSpec


# Sizes that are not multiples of a tile, over several tiles each way
N, H, V = 37, 11, 101
EVERYTHING = HeadSpec(second_moments=True, second_temperature=0.8, top_p=0.8, top_k=4, vocab_tile=24, token_tile=16)
SPECS = {
    "plain": EVERYTHING,
    "include": replace(EVERYTHING, include_crossing=True),
    "temperature": replace(EVERYTHING, temperature=1.3),
    "scale": replace(EVERYTHING, logit_scale=0.3, temperature=0.7),
    "softcap": replace(EVERYTHING, logit_scale=1.7, softcap=4.0, temperature=0.9),
    "one tile": replace(EVERYTHING, vocab_tile=4096, token_tile=4096),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks per tile, several nucleus searches per batch, and a partly filled last block of bins."""
    monkeypatch.setattr(torch_tiles, "CPU_BLOCK", 150)
    monkeypatch.setattr(sweeps, "FEWEST_ROWS", 4)
    monkeypatch.setattr(function, "FEWEST_ROWS", 4)
    monkeypatch.setattr(sweeps, "NUCLEUS_ROWS", 8)
    monkeypatch.setattr(nucleus, "READ_ROWS", 3)


@pytest.fixture(params=["read off likely tokens", "from bins"])
def search(request, monkeypatch):
    """Both ways of finding a nucleus."""
    if request.param == "from bins":
        monkeypatch.setattr(nucleus, "LIKELY", 2.0)  # which no token reaches


@pytest.fixture
def real_blocks(small_blocks, monkeypatch):
    monkeypatch.undo()


def example(dtype=torch.float64, bias=True, rows=N, width=H, vocab=V, seed=0):
    """Hidden states, weight and bias with gradients, and labels: entropies from 0.1 to 4 nats."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden = draw(rows, width) * torch.linspace(0.2, 2.0, rows, dtype=torch.float64).unsqueeze(-1)
    tensors = [hidden, draw(vocab, width), draw(vocab) if bias else None]
    tensors = [None if x is None else x.to(dtype).requires_grad_() for x in tensors]
    return *tensors, torch.randint(vocab, (rows,), generator=generator)


def in_nucleus(z: Tensor, top_p: float, include_crossing: bool) -> Tensor:
    """(N, V) bool nucleus, by the mass of all tokens with at least, or above, a token's own logit."""
    rising, order = (x.contiguous() for x in z.detach().sort(-1))
    mass = torch.nn.functional.pad(z.detach().softmax(-1).gather(-1, order).flip(-1).cumsum(-1).flip(-1), (0, 1))
    first = torch.searchsorted(rising, z.detach().contiguous(), right=include_crossing)
    return mass.gather(-1, first) < top_p


def nucleus_entropy(z: Tensor, top_p: float, include_crossing: bool) -> Tensor:
    inside = in_nucleus(z, top_p, include_crossing)
    empty = ~inside.any(-1)
    log_q = z.masked_fill(~(inside | empty.unsqueeze(-1)), -torch.inf).log_softmax(-1)
    entropy = -(log_q.exp() * log_q.masked_fill(log_q == -torch.inf, 0.0)).sum(-1)
    return torch.where(empty, 0.0, entropy)


def dense(hidden, weight, bias, targets, spec: HeadSpec) -> tuple[Tensor, ...]:
    """All statistics by their definitions, on `[N, V]` logits."""
    x = hidden @ weight.t() + (0.0 if bias is None else bias)
    x = x * spec.logit_scale
    if spec.softcap is not None:
        x = spec.softcap * torch.tanh(x / spec.softcap)
    log_p = (x / spec.temperature).log_softmax(-1)
    p, label = log_p.exp(), targets.unsqueeze(-1)
    return (
        log_p.gather(-1, label).squeeze(-1),
        -(p * log_p).sum(-1),
        (p * p).sum(-1),
        (p * p * log_p).sum(-1),
        (x / spec.second_temperature).log_softmax(-1).gather(-1, label).squeeze(-1),
        nucleus_entropy(x / spec.temperature, spec.top_p, spec.include_crossing),
        log_p.sort(dim=-1, descending=True, stable=True).values[:, : spec.top_k],
    )


def weighted(outputs, seed=1, share=1.0):
    """A scalar of the differentiable outputs; each output of a row counts with probability `share`."""
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for values in (outputs[0], outputs[1], outputs[5], outputs[6]):
        if values is not None:
            weight = torch.randn(values.shape, generator=generator, dtype=torch.float64)
            kept = torch.rand(len(values), generator=generator, dtype=torch.float64) < share
            weight *= kept.view(-1, *[1] * (values.dim() - 1))
            total = total + (weight.to(values.dtype) * values).sum()
    return total


def gradients(outputs, inputs, **options):
    inputs = [x for x in inputs if x is not None]
    return torch.autograd.grad(weighted(outputs, **options), inputs)


def stock(hidden, weight, bias, targets, spec: HeadSpec):
    return ChunkedLogProbFunction.apply(
        hidden,
        weight,
        bias,
        targets,
        spec.temperature,
        spec.vocab_tile,
        spec.softcap,
        spec.logit_scale,
        ("log_probs", "entropy"),
    )


HEADS = (token_statistics, stock)


# Values and gradients


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_values_and_gradients_are_those_of_dense_softmax(search, name, bias, share):
    *inputs, targets = example(bias=bias)
    ours, expected = (f(*inputs, targets, SPECS[name]) for f in (token_statistics, dense))
    for ours_, expected_ in zip(ours, expected, strict=True):
        torch.testing.assert_close(ours_, expected_, **FLOAT64)
    ours, expected = (gradients(outputs, inputs, share=share) for outputs in (ours, expected))
    torch.testing.assert_close(ours, expected, **FLOAT64)


@pytest.mark.parametrize("output", range(7))
def test_each_output_alone_has_its_own_gradient(output):
    *inputs, targets = example()
    ours, expected = (f(*inputs, targets, EVERYTHING)[output] for f in (token_statistics, dense))
    assert ours.requires_grad == (output in (0, 1, 5, 6))
    if ours.requires_grad:
        ours, expected = (torch.autograd.grad(values.square().sum(), inputs) for values in (ours, expected))
        torch.testing.assert_close(ours, expected, **FLOAT64)


@pytest.mark.parametrize("name", ["plain", "include", "softcap"])
def test_gradcheck(name):
    *inputs, targets = example(rows=5, width=3, vocab=13)

    def head(*inputs):
        outputs = token_statistics(*inputs, targets, replace(SPECS[name], vocab_tile=5))
        return outputs.log_probs, outputs.entropy, outputs.nucleus_entropy, outputs.top_log_probs

    assert torch.autograd.gradcheck(head, inputs, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SPECS)
def test_float32_is_within_rounding_of_float64(search, name):
    *inputs, targets = example(torch.float32)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    ours, expected = token_statistics(*inputs, targets, SPECS[name]), dense(*exact, targets, SPECS[name])
    for ours_, expected_ in zip(ours, expected, strict=True):
        assert ours_.dtype == torch.float32
        torch.testing.assert_close(ours_.double(), expected_, rtol=2e-6, atol=5e-6)
    for ours_, expected_ in zip(gradients(ours, inputs), gradients(expected, exact), strict=True):
        torch.testing.assert_close(ours_.double(), expected_, rtol=1e-5, atol=2e-5)


def test_bfloat16_accumulates_in_float32():
    *inputs, targets = example(torch.bfloat16, bias=False)
    ours = token_statistics(*inputs, targets, EVERYTHING)
    logits = (inputs[0] @ inputs[1].t()).double()
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(ours.entropy.double(), entropy, rtol=2e-6, atol=1e-6)
    assert [x.dtype for x in gradients(ours, inputs)] == [torch.bfloat16] * 2
    assert {x.dtype for x in ours} == {torch.float32}


def test_a_large_logit_of_a_single_token_leaves_no_entropy_and_no_nan():
    hidden, weight = torch.eye(3), torch.zeros(5, 3)
    weight[2, 0], weight[0, 1] = 1e4, -1e4
    outputs = token_statistics(hidden.requires_grad_(), weight, None, torch.tensor([2, 0, 1]), EVERYTHING)
    torch.testing.assert_close(outputs.entropy, torch.tensor([0.0, math.log(4), math.log(5)]))
    torch.testing.assert_close(outputs.log_probs, torch.tensor([0.0, -1e4 - math.log(4), -math.log(5)]))
    assert torch.autograd.grad(weighted(outputs), hidden)[0].isfinite().all()


# Tokens of probability 0


MASKED = torch.tensor([*range(24), 50, 60, 99])  # a tile of its own, and single tokens of others
MASK_SPECS = ("plain", "include", "temperature", "scale")


@pytest.mark.parametrize("name", MASK_SPECS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("value", [-math.inf, torch.finfo(torch.float32).min])
def test_masked_vocabulary_adds_nothing(search, name, dtype, value):
    """A bias of -inf, or of the lowest number: outputs and gradients are those of the rest of the vocabulary."""
    hidden, weight, bias, _ = example(dtype)
    kept = torch.ones(V, dtype=torch.bool)
    kept[MASKED] = False
    bias.data[MASKED] = value
    rest = [x.detach().double()[kept] for x in (weight, bias)]
    exact = [hidden.detach().double().requires_grad_(), *(x.requires_grad_() for x in rest)]
    labels = torch.arange(N) % int(kept.sum())
    ours = token_statistics(hidden, weight, bias, kept.nonzero().squeeze(-1)[labels], SPECS[name])
    expected = dense(*exact, labels, SPECS[name])
    tolerance = FLOAT64 if dtype == torch.float64 else dict(rtol=1e-5, atol=2e-5)
    for ours_, expected_ in zip(ours, expected, strict=True):
        torch.testing.assert_close(ours_.double(), expected_, **tolerance)
    for output in (0, 1, 5, 6):
        of_hidden, *of_head = torch.autograd.grad(ours[output].sum(), [hidden, weight, bias], retain_graph=True)
        expected_ = torch.autograd.grad(expected[output].sum(), exact, retain_graph=True)
        torch.testing.assert_close(of_hidden.double(), expected_[0], **tolerance)
        for x, y in zip(of_head, expected_[1:], strict=True):
            torch.testing.assert_close(x[kept].double(), y, **tolerance)
            assert (x[~kept] == 0).all()


def test_a_label_of_probability_0_does_not_spoil_its_row():
    hidden, weight, bias, targets = example(torch.float32)
    bias.data[MASKED] = -math.inf
    targets[0] = MASKED[0]
    out = token_statistics(hidden, weight, bias, targets, EVERYTHING)
    assert out.log_probs[0] == out.second_log_probs[0] == -math.inf
    assert torch.equal(out.log_probs.isfinite(), ~torch.isin(targets, MASKED))
    assert out.entropy.isfinite().all() and out.nucleus_entropy.isfinite().all()
    for gradient in torch.autograd.grad(out.entropy.sum() + out.nucleus_entropy.sum(), [hidden, weight, bias]):
        assert gradient.isfinite().all()


# Worked examples: three tokens over four words, and four tokens over five


def logits_of(rows):
    """Hidden states that select their logits exactly from a weight that holds them in columns."""
    rows = torch.tensor(rows, dtype=torch.float64)
    return torch.eye(len(rows), dtype=torch.float64).requires_grad_(), rows.t().contiguous().requires_grad_()


def test_second_moments_of_three_tokens():
    """N = H·C2 + C2L is the mean of S_i = p_i (H + log p_i) under p."""
    hidden, weight = logits_of([[2, 1, 0, -1], [0.5, 0.4, 0.3, 0.2], [4, 0, -1, -2]])
    out = token_statistics(hidden, weight, None, torch.tensor([0, 2, 1]), HeadSpec(second_moments=True))

    def close(ours, expected):
        torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), **FLOAT64)

    close(out.log_probs, [-0.4401896986, -1.4425355295, -4.0271601395])
    close(out.entropy, [0.947536964, 1.3800708112, 0.1457206938])
    close(out.sum_sq_probs, [0.4793609299, 0.2531135853, 0.9474952578])
    close(out.sum_sq_probs_log_probs, [-0.2853947395, -0.3462124569, -0.0272549225])
    close(out.log_probs.exp() * (out.entropy + out.log_probs), [0.3266881389, -0.0147621483, -0.0691861858])
    mean = out.entropy * out.sum_sq_probs + out.sum_sq_probs_log_probs
    close(mean, [0.1688174607, 0.0031022142, 0.1108147438])


@pytest.mark.parametrize(
    ("include_crossing", "entropies", "first_gradient"),
    [
        # The three tied tokens of the last row hold 0.968 together. Without them the nucleus is empty.
        (False, [0.5822031089, 1.0952872687, 0.0, 0.0], [-0.1966119332, 0.1966119332, 0, 0, 0]),
        (
            True,
            [0.9059592565, 1.3800708112, 0.0, 1.0986122887],
            [-0.2775536188, 0.1291176274, 0.1484359913, 0, 0],
        ),
    ],
)
def test_nucleus_entropy_of_four_tokens(search, include_crossing, entropies, first_gradient):
    hidden, weight = logits_of([[2, 1, 0.5, 0, -1], [0.5, 0.4, 0.3, 0.2, 0.1], [4, 0, -1, -2, -3], [1, 1, 1, -2, -2]])
    spec = HeadSpec(top_p=0.8, include_crossing=include_crossing)
    out = token_statistics(hidden, weight, None, torch.zeros(4, dtype=torch.int64), spec)
    torch.testing.assert_close(out.nucleus_entropy, torch.tensor(entropies, dtype=torch.float64), **FLOAT64)
    full = torch.tensor([1.2064892076, 1.5995024847, 0.1527092566, 1.2276400342], dtype=torch.float64)
    torch.testing.assert_close(out.entropy, full, **FLOAT64)
    (by_logits,) = torch.autograd.grad(out.nucleus_entropy.sum(), weight)
    torch.testing.assert_close(by_logits[:, 0], torch.tensor(first_gradient, dtype=torch.float64), **FLOAT64)
    assert by_logits[:, 2].abs().max() == 0


# The nucleus


@pytest.mark.parametrize("include_crossing", [False, True])
@pytest.mark.parametrize("top_p", [0.3, 0.8, 0.95])
def test_tied_logits_go_in_or_out_together(search, include_crossing, top_p):
    """Logits from a few values, so every row has many ties, at the crossing and at the maximum."""
    generator = torch.Generator().manual_seed(0)
    z = 0.37 * torch.randint(-3, 4, (40, 23), generator=generator).double()
    hidden, weight = logits_of(z.tolist())
    spec = replace(EVERYTHING, top_p=top_p, include_crossing=include_crossing, vocab_tile=9)
    ours = token_statistics(hidden, weight, None, torch.zeros(40, dtype=torch.int64), spec).nucleus_entropy
    z = hidden @ weight.t()
    expected = nucleus_entropy(z, top_p, include_crossing)
    torch.testing.assert_close(ours, expected, **FLOAT64)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), weight)[0] for x in (ours, expected)), **FLOAT64)


def flat_logits(vocab=3001, rows=12, dtype=torch.float32):
    """Normal logits with standard deviation 1 to 3 and an identity projection: thousands of tokens per nucleus."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, vocab, generator=generator) * torch.linspace(1, 3, rows).unsqueeze(-1)
    return torch.eye(rows, dtype=dtype), z.t().contiguous().to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("include_crossing", [False, True])
def test_crowded_boundary_bins_are_swept_again(real_blocks, monkeypatch, dtype, include_crossing):
    """Without tolerance, the nucleus equals a sort's up to tokens 4e-6 nats apart, even with thousands inside."""
    monkeypatch.setattr(nucleus, "BOUNDARY_TOLERANCE", 0.0)
    hidden, weight = flat_logits(dtype=dtype)
    spec = HeadSpec(top_p=0.8, include_crossing=include_crossing, vocab_tile=1000)
    ours = token_statistics(hidden, weight, None, torch.zeros(12, dtype=torch.int64), spec).nucleus_entropy
    z = weight.detach().t().double().requires_grad_()
    expected = nucleus_entropy(z, 0.8, include_crossing)
    assert (in_nucleus(z, 0.8, include_crossing).sum(-1) > 60).all()
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=2e-5)
    gradient = torch.autograd.grad(ours.sum(), weight)[0].double().t()
    expected = torch.autograd.grad(expected.sum(), z)[0]
    assert (gradient - expected).norm() < (1e-4 if dtype == torch.float32 else 5e-3) * expected.norm()


def test_a_light_boundary_bin_costs_at_most_its_tolerance_of_top_p(real_blocks):
    """Entropy and gradient are then exactly those of the nucleus for a slightly smaller mass."""
    hidden, weight = flat_logits()
    spec = HeadSpec(top_p=0.8)
    ours = token_statistics(hidden, weight, None, torch.zeros(12, dtype=torch.int64), spec).nucleus_entropy
    z = weight.detach().t().double()
    candidates = [nucleus_entropy(z, 0.8 - step, False) for step in torch.linspace(0, 1.01e-3, 40).tolist()]
    assert torch.stack(candidates).sub(ours.double()).abs().amin(0).max() < 2e-5


def test_only_rows_without_likely_tokens_are_swept_again(real_blocks):
    """Of 64 tokens, 16 are certain, 32 have a few continuations, and 16 have 3000: these take two more sweeps."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(64, 3000, generator=generator)
    z[:48, 0] += 20.0
    z[16:48, 1:4] += torch.tensor([20.0, 19.5, 19.0])
    hidden, weight, targets = torch.eye(64), z.t().contiguous(), torch.zeros(64, dtype=torch.int64)
    with GemmCount() as count:
        out = token_statistics(hidden, weight, None, targets, HeadSpec(top_p=0.8, vocab_tile=1000))
    assert count.elements == (64 + 2 * 16) * 3000
    torch.testing.assert_close(
        out.nucleus_entropy.double(), nucleus_entropy(z.double(), 0.8, False), rtol=0, atol=1e-4
    )
    with GemmCount() as count:  # one tile of the whole vocabulary is still there, and needs no second product
        token_statistics(hidden, weight, None, targets, HeadSpec(top_p=0.8))
    assert count.elements == 64 * 3000


def test_more_likely_tokens_than_are_kept(real_blocks):
    """300 about equally likely tokens in the first tile, followed by no, four or one likely token of a later tile."""
    z = torch.full((3, 900), -30.0)
    z[:, :300] = torch.linspace(0, 0.5, 300)
    z[1, 500:504] = 9.0 + torch.linspace(0, 0.5, 4)
    z[2, 700] = 9.0
    arguments = torch.eye(3), z.t().contiguous(), None, torch.zeros(3, dtype=torch.int64)
    ours = token_statistics(*arguments, HeadSpec(top_p=0.8, vocab_tile=300)).nucleus_entropy
    torch.testing.assert_close(ours.double(), nucleus_entropy(z.double(), 0.8, False), rtol=0, atol=2e-3)
    assert ours[0] > math.log(200) and 0 < ours[1] < math.log(4) and ours[2] == 0


def test_tokens_that_crowd_out_the_likeliest(real_blocks):
    """300 likely words of probability 0.002 fill the room before one of 0.4, which alone crosses 0.3."""
    z = torch.full((20, 900), -30.0)
    z[:, :300] = torch.linspace(0, 0.01, 300)
    z[:, 700] = math.log(200)
    arguments = torch.eye(20), z.t().contiguous(), None, torch.zeros(20, dtype=torch.int64)
    assert (token_statistics(*arguments, HeadSpec(top_p=0.3, vocab_tile=300)).nucleus_entropy == 0).all()


def test_a_nucleus_that_may_reach_below_the_bins_is_refused():
    *inputs, targets = example(rows=4)
    with pytest.raises(ValueError, match="`top_p` must be at most 0.999989 for a vocabulary of 101, got 0.99999999"):
        token_statistics(*inputs, targets, replace(EVERYTHING, top_p=0.99999999))


# The likeliest tokens


def largest(z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(N, V) final logits -> (N, count) log-probabilities and ids of the largest, of equal ones the lower id first."""
    ids = z.detach().sort(dim=-1, descending=True, stable=True).indices[:, :count]
    return z.log_softmax(-1).gather(-1, ids), ids


@pytest.mark.parametrize("group", [2, 64])
@pytest.mark.parametrize("vocab_tile", [3, 9, 23, 64])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 23])
def test_tied_tokens_are_taken_by_their_ids(monkeypatch, vocab_tile, count, group):
    """Logits of a few values, and tiles that do not divide the vocabulary. The gradient shows which ids were kept."""
    monkeypatch.setattr(top, "GROUP", group)
    generator = torch.Generator().manual_seed(0)
    z = 0.37 * torch.randint(-3, 4, (40, 23), generator=generator).double()
    hidden, weight = logits_of(z.tolist())
    spec = HeadSpec(top_k=count, vocab_tile=vocab_tile)
    ours = token_statistics(hidden, weight, None, torch.zeros(40, dtype=torch.int64), spec).top_log_probs
    expected, _ = largest(hidden @ weight.t(), count)
    torch.testing.assert_close(ours, expected, **FLOAT64)
    share = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        *(torch.autograd.grad((x * share).sum(), weight)[0] for x in (ours, expected)), **FLOAT64
    )


@pytest.mark.parametrize("group", [16, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_many_ties_of_a_narrow_dtype(real_blocks, monkeypatch, dtype, group):
    """In bfloat16 many rows have equal logits at the last place."""
    monkeypatch.setattr(top, "GROUP", group)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(64, 3001, generator=generator).mul_(3).to(dtype)
    kept = top.TopTokens.none(64, 4, torch.float32, z.device)
    for start in range(0, 3001, 700):
        kept.add(z[:, start : start + 700].float(), start)
    _, ids = largest(z.double(), 5)
    at_last = z.gather(-1, ids)
    assert (at_last[:, 3] == at_last[:, 4]).sum() > 5 or dtype == torch.float32
    assert torch.equal(kept.ids, ids[:, :4]) and torch.equal(kept.ordered().ids, kept.ids)
    torch.testing.assert_close(kept.z, z.float().gather(-1, kept.ids), **EXACT)


def test_the_sampled_token_may_be_one_of_the_likeliest():
    """Gradients of a token that is the label and among the likeliest add up."""
    *inputs, _ = example()
    with torch.no_grad():
        targets = (inputs[0] @ inputs[1].t() + inputs[2]).argmax(-1)
    spec = HeadSpec(top_k=3, vocab_tile=24)

    def total(log_probs, likeliest):
        return (2 * log_probs - likeliest @ likeliest.new_tensor([1.0, 0.5, 0.25])).sum()

    out = token_statistics(*inputs, targets, spec)
    log_p = (inputs[0] @ inputs[1].t() + inputs[2]).log_softmax(-1)
    expected = total(log_p.gather(-1, targets[:, None]).squeeze(-1), log_p.topk(3).values)
    ours = total(out.log_probs, out.top_log_probs)
    assert torch.equal(out.log_probs, out.top_log_probs[:, 0])
    torch.testing.assert_close(ours, expected, **FLOAT64)
    torch.testing.assert_close(*(torch.autograd.grad(x, inputs) for x in (ours, expected)), **FLOAT64)


def test_fewer_tokens_of_probability_above_0_than_are_kept():
    """The rest reads -inf, and does not spoil the others."""
    hidden, weight, bias, targets = example()
    bias.data[2:] = -math.inf
    bias.data[50] = torch.finfo(torch.float64).min
    out = token_statistics(hidden, weight, bias, targets % 2, EVERYTHING)
    assert (out.top_log_probs[:, 2:] == -math.inf).all() and out.top_log_probs[:, :2].isfinite().all()
    torch.testing.assert_close(out.top_log_probs[:, :2].exp().sum(-1), torch.ones(N, dtype=torch.float64), **FLOAT64)
    grads = torch.autograd.grad(out.top_log_probs[:, :2].sum(), [hidden, weight, bias])
    assert all(gradient.isfinite().all() for gradient in grads) and grads[2][:2].abs().min() > 0


def test_the_likeliest_tokens_cost_no_second_product(real_blocks):
    *inputs, targets = example(torch.float32, bias=False, rows=64)
    with GemmCount() as count:
        out = token_statistics(*inputs, targets, HeadSpec(top_k=3, vocab_tile=24))
    assert count.elements == 64 * V
    grad = torch.zeros(64, 3)
    grad[:20, 2] = 1.0
    with GemmCount() as count:  # rows are live by any of the three
        out.top_log_probs.backward(grad)
    assert count.flops == 3 * 20 * H * V


def test_more_tokens_than_the_vocabulary_has_are_refused():
    *inputs, targets = example()
    with pytest.raises(ValueError, match="`top_k` must be at most 101, the size of the vocabulary, got 102."):
        token_statistics(*inputs, targets, HeadSpec(top_k=102))


def test_a_row_that_is_not_a_number_stays_visible():
    hidden, weight, bias, targets = example()
    hidden.data[3] = torch.nan
    out = token_statistics(hidden, weight, bias, targets, HeadSpec(top_k=3, vocab_tile=24))
    assert out.top_log_probs[3].isnan().all() and out.top_log_probs[4:].isfinite().all()
    (gradient,) = torch.autograd.grad(out.top_log_probs[4:].sum(), hidden)
    assert gradient[4:].isfinite().all()


# Against TRL's own head


class GemmCount(TorchDispatchMode):
    """Rows x columns of every product that writes a tile, and the sum of rows x depth x columns."""

    def __init__(self):
        super().__init__()
        self.elements = self.flops = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            a, b = args[-2:]
            self.flops += a.shape[0] * a.shape[1] * b.shape[1]
            if op.overloadpacket is torch.ops.aten.mm:
                self.elements += a.shape[0] * b.shape[1]
        return op(*args, **(kwargs or {}))


class Allocations(TorchDispatchMode):
    """Size of the largest tensor that any operation made, and peak memory of all tensors."""

    def __init__(self):
        super().__init__()
        self.largest = self.alive = self.peak = 0
        self._seen = weakref.WeakSet()  # of storages

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self._seen:
                storage = tensor.untyped_storage()
                self._seen.add(storage)
                weakref.finalize(storage, self._free, storage.nbytes())
                self.alive += storage.nbytes()
                self.peak = max(self.peak, self.alive)
                self.largest = max(self.largest, storage.nbytes() // tensor.element_size())
        return out

    def _free(self, size):
        self.alive -= size


def log_probs_gradients(head, inputs, targets, spec, share=1.0):
    """Log-probabilities and the gradients that reach the inputs from a share of them."""
    log_probs = head(*inputs, targets, spec)[0]
    generator = torch.Generator().manual_seed(2)
    grad = torch.randn(len(targets), generator=generator)
    grad *= torch.rand(len(targets), generator=generator) < share
    present = [x for x in inputs if x is not None]
    return log_probs, *torch.autograd.grad(log_probs, present, grad)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.2, 0.01, 0.0])
@pytest.mark.parametrize(
    "spec",
    [
        HeadSpec(vocab_tile=512),
        HeadSpec(temperature=0.7, vocab_tile=700),
        HeadSpec(logit_scale=0.25, softcap=30.0, temperature=1.2, vocab_tile=4096),
    ],
    ids=["plain", "temperature", "scale and softcap"],
)
def test_bit_equal_to_trl(real_blocks, spec, share):
    """Also with fewer live rows than a matrix product needs to round like one of many rows."""
    *inputs, targets = example(torch.float32, bias=spec.softcap is None, rows=150, width=64, vocab=1501)
    ours, trls = (log_probs_gradients(head, inputs, targets, spec, share) for head in (token_statistics, stock))
    torch.testing.assert_close(ours[:2], trls[:2], **EXACT)
    for ours_, trls_ in zip(ours[2:], trls[2:], strict=True):
        assert (ours_ - trls_).norm() <= 1e-6 * trls_.norm()


def test_entropy_gradients_are_closer_to_the_truth_than_trls(real_blocks):
    *inputs, targets = example(torch.float32, rows=64, width=64, vocab=1501)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    spec = replace(EVERYTHING, vocab_tile=512)

    def by_entropy(head, inputs):
        return torch.autograd.grad(head(*inputs, targets, spec)[1].sum(), inputs)[0].double()

    truth = by_entropy(dense, exact)
    ours, trls = ((by_entropy(head, inputs) - truth).norm() for head in (token_statistics, stock))
    assert ours < 5e-6 * truth.norm()
    assert ours <= 1.05 * trls


def test_small_entropies_are_not_lost():
    """One word of logit 60 and 31 words below it, for entropies from 1e-10 to 1e-2 nats; TRL reads 0 up to 1e-6."""
    gaps = torch.linspace(8, 30, 45, dtype=torch.float64).unsqueeze(-1)
    z = torch.cat([torch.full_like(gaps, 60.0), 60 - gaps + torch.linspace(0, -3, 31, dtype=torch.float64)], dim=-1)
    hidden, weight = torch.eye(45), z.t().float().contiguous()
    truth = torch.distributions.Categorical(logits=weight.t().double()).entropy()
    ours, trls = (f(hidden, weight, None, torch.zeros(45, dtype=torch.int64), SPECS["plain"]) for f in HEADS)
    error = (ours[1].double() - truth).abs()
    assert (error <= 4e-7 + 1e-5 * truth).all()  # Σe is 1 and a little, in float32
    assert (error <= 0.07 * truth).all()
    assert (trls[1][truth < 1e-6] == 0).all() and (truth < 1e-6).sum() > 10
    assert (trls[1].double() - truth).abs().max() > 1e-5
    assert (ours[1] >= 0).all()
    second = (weight.t().double().softmax(-1) ** 2 * weight.t().double().log_softmax(-1)).sum(-1)
    torch.testing.assert_close(ours.sum_sq_probs_log_probs.double(), second, rtol=1e-5, atol=4e-7)


@pytest.mark.parametrize(("live", "multiplied"), [(0, 0), (1, 16), (16, 16), (31, 31), (64, 64)])
def test_backward_multiplies_live_rows_only(real_blocks, live, multiplied):
    """One product to recompute the logits and one per gradient, of the live rows or `FEWEST_ROWS`."""
    *inputs, targets = example(torch.float32, bias=False, rows=64)
    log_probs = token_statistics(*inputs, targets, replace(EVERYTHING, vocab_tile=24)).log_probs
    grad = torch.zeros(64)
    grad[torch.randperm(64)[:live]] = 1.0
    with GemmCount() as count:
        log_probs.backward(grad)
    assert count.flops == 3 * multiplied * H * V


def test_a_row_is_live_for_any_of_its_outputs(real_blocks):
    """16 rows live by log-probability, entropy and nucleus entropy each; 8 by two, an empty nucleus by none."""
    *inputs, targets = example(torch.float32, bias=False, rows=128)
    out = token_statistics(*inputs, targets, EVERYTHING)
    undecided, decided = (
        (condition).nonzero()[:, 0] for condition in (out.nucleus_entropy > 0, out.nucleus_entropy == 0)
    )
    assert len(undecided) >= 40 and len(decided) >= 16
    rows = undecided[:40]
    grads = [torch.zeros(128) for _ in range(3)]
    grads[0][rows[:16]] = grads[1][rows[16:32]] = grads[2][rows[24:40]] = 1.0
    grads[2][decided[:16]] = 1.0
    with GemmCount() as count:
        torch.autograd.backward([out.log_probs, out.entropy, out.nucleus_entropy], grads)
    assert count.flops == 3 * 40 * H * V


def test_live_rows_can_be_switched_off(real_blocks):
    *inputs, targets = example(torch.float32, bias=False, rows=64)
    log_probs = token_statistics(*inputs, targets, HeadSpec(live_rows=False)).log_probs
    with GemmCount() as count:
        log_probs[:16].sum().backward()
    assert count.flops == 3 * 64 * H * V


def test_a_gradient_that_is_nan_is_not_hidden():
    *inputs, targets = example()
    log_probs = token_statistics(*inputs, targets, EVERYTHING).log_probs
    grad = torch.zeros_like(log_probs)
    grad[3] = torch.nan
    by_hidden = torch.autograd.grad(log_probs, inputs[0], grad)[0]
    assert by_hidden[3].isnan().all() and by_hidden[4:].isfinite().all()


def test_frozen_head_and_frozen_hidden_states():
    hidden, weight, bias, targets = example()
    for frozen in (hidden, weight, bias):
        frozen.requires_grad_(False)
        live = [x for x in (hidden, weight, bias) if x is not frozen]
        ours, expected = (
            gradients(f(hidden, weight, bias, targets, EVERYTHING), live) for f in (token_statistics, dense)
        )
        torch.testing.assert_close(ours, expected, **FLOAT64)
        frozen.requires_grad_(True)


@pytest.mark.parametrize("spec", [HeadSpec(), EVERYTHING], ids=["plain", "all statistics"])
def test_never_all_logits_and_never_more_memory_than_trl(real_blocks, spec):
    """The largest tile is a quarter of `[N, V]`. Only per-token statistics exceed TRL's peak."""
    spec = replace(spec, vocab_tile=1000)
    *inputs, targets = example(torch.float32, bias=False, rows=512, vocab=4000)
    peaks = []
    for head in HEADS:
        with Allocations() as memory:
            outputs = head(*inputs, targets, spec)
            outputs[0].sum().backward()
            del outputs
        peaks.append(memory.peak)
        assert memory.largest <= 512 * 1000
    assert peaks[0] <= 1.05 * peaks[1]


def test_no_rows():
    *inputs, targets = example(rows=0)
    outputs = token_statistics(*inputs, targets, EVERYTHING)
    assert [x.shape for x in outputs] == [(0,)] * 6 + [(0, 4)]
    for gradient, x in zip(gradients(outputs, inputs), inputs, strict=True):
        torch.testing.assert_close(gradient, torch.zeros_like(x))


@pytest.mark.parametrize("live", [0, 3])
def test_a_sharded_head_is_gathered_in_the_backward_of_every_process(monkeypatch, live):
    """Outside the context the weight is empty, as under ZeRO-3."""
    hidden, weight, _, targets = example(bias=False)
    weight = weight.detach()
    full, entered = weight.data, []

    @contextmanager
    def gather(*parameters):
        entered.append(parameters)
        weight.data = full
        yield
        weight.data = torch.empty(0, dtype=full.dtype)

    monkeypatch.setattr(function, "maybe_gather_lm_head_ctx", gather)
    with gather(weight):
        outputs = token_statistics(hidden, weight, None, targets, EVERYTHING)
        expected = dense(hidden, weight, None, targets, EVERYTHING)
        expected = torch.autograd.grad(expected[0][:live].sum(), hidden)[0]
    assert weight.numel() == 0
    torch.testing.assert_close(torch.autograd.grad(outputs[0][:live].sum(), hidden)[0], expected, **FLOAT64)
    assert [len(parameters) for parameters in entered] == [1, 2]


def test_where_shapes_are_compiled_all_rows_are_multiplied(real_blocks, monkeypatch):
    monkeypatch.setattr(function, "DYNAMIC_DEVICES", ())
    *inputs, targets = example(torch.float32, bias=False, rows=64)
    log_probs = token_statistics(*inputs, targets, HeadSpec()).log_probs
    with GemmCount() as count:
        log_probs[:16].sum().backward()
    assert count.flops == 3 * 64 * H * V
