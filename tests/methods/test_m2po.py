# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st
from support import cases
from support.fuzzing import covers, draw_tokens
from support.reference import policy_terms
from support.registry import MethodSettings
from support.tensors import make_tokens, random_tokens
from support.tiny import EXACT, FLOAT64, build_dataset, build_model, loss_and_gradients

from trl_entropy import EntropyGRPOConfig
from trl_entropy.collectives import Collectives
from trl_entropy.methods import m2po
from trl_entropy.methods.m2po import harmful_squares, largest_log_ratio
from trl_entropy.tokens import CLIPPING_LOSSES


METHOD_SETTINGS = {
    "m2po": MethodSettings(
        strong=dict(m2po_budget=0.3),
        variants=(dict(m2po_budget=1e-3, m2po_min_low=0.1, m2po_min_high=0.2),),
        world=dict(m2po_budget=0.02, m2po_scope="world"),
        batches=(512, 2048),
        losses=CLIPPING_LOSSES,
    )
}


def bounds_by_hand(log_ratios, advantages, budget, margin=1e-12):
    """The released code's rule token by token, in plain Python."""
    squares = sorted(
        d * d for d, a in zip(log_ratios, advantages, strict=True) if (a > 0 and d > 0) or (a < 0 and d < 0)
    )
    count = len(squares)
    if not squares or math.fsum(squares) / count <= budget:
        return 0.0, math.inf
    first = next(
        k
        for k in range(count)
        if math.fsum(squares[: k + 1]) + (squares[k] - margin) * (count - k - 1) >= budget * count
    )
    threshold = 0.0 if first == 0 else max(squares[first - 1] - margin, 0.0)
    return math.exp(-math.sqrt(threshold)), math.exp(math.sqrt(threshold))


@pytest.fixture
def float64():
    """In float64 the token on the bound lies beyond it, as it should. In float32 rounding decides."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("budget", [0.02, 0.1, 10.0])
@pytest.mark.parametrize("loss_type", CLIPPING_LOSSES)
def test_loss_and_gradients(make_trainer, float64, loss_type, budget):
    def reference(logps, old_logps, entropy, advantages, mask):
        log_ratio = (logps - old_logps).detach()[mask]
        low, high = bounds_by_hand(log_ratio.tolist(), advantages[mask].tolist(), budget)
        assert (0.5 < low < 0.99 and 1.01 < high < 2) if budget < 1 else high == math.inf
        return policy_terms(loss_type, logps, old_logps, advantages, mask, low, high)

    trainer, _, _ = cases.check_against_reference(make_trainer, "m2po", loss_type, reference, dict(m2po_budget=budget))
    assert (trainer._metrics["train"]["m2po/clip_fraction"][0] > 0) == (budget < 1)


def test_delta_cuts_beside_the_bounds(make_trainer, float64):
    """TRL cuts the ratio of negative advantages at `delta`, whatever the bounds."""

    def reference(logps, old_logps, entropy, advantages, mask):
        log_ratio = (logps - old_logps).detach()[mask]
        bounds = bounds_by_hand(log_ratio.tolist(), advantages[mask].tolist(), 0.02)
        ratio = (logps - old_logps).exp()
        assert (ratio[mask & (advantages < 0)] > 1.1).any()
        return -torch.minimum(ratio.clamp(max=1.1) * advantages, ratio.clamp(*bounds) * advantages)

    settings = dict(m2po_budget=0.02, delta=1.1)
    cases.check_against_reference(make_trainer, "m2po", "bnpo", reference, settings)


D = [0.02, 0.05, -0.10, 0.30, 0.60, -0.04, -0.15, -0.35, 0.08, -0.90]
A = [1.0] * 5 + [-1.0] * 5
EXAMPLES = {
    0.04: (
        (0.8607079764, 1.161834243),
        -0.0673777904,
        [-1.02020134, -1.051271096, -0.904837418, 0, 0, 0.9607894392, 0, 0, 1.083287068, 0],
    ),
    0.01: (
        (0.9512294245, 1.051271096),
        -0.0181087267,
        [-1.02020134, 0, -0.904837418, 0, 0, 0.9607894392, 0, 0, 1.083287068, 0],
    ),
    0.10: (
        (0.7046880897, 1.419067549),
        -0.1431075548,
        [-1.02020134, -1.051271096, -0.904837418, -1.349858808, 0, 0.9607894392, 0.8607079764, 0, 1.083287068, 0],
    ),
    0.20: ((0.0, math.inf), -0.2132245230, None),
}


def loss_of(tokens, bounds):
    ratio = (tokens.logps - tokens.old_logps).exp()
    clipped = ratio.clamp(*bounds)
    return -torch.minimum(ratio * tokens.advantages, clipped * tokens.advantages)[tokens.mask].mean()


@pytest.mark.parametrize("budget", EXAMPLES)
def test_worked_example(budget):
    expected_bounds, expected_loss, expected_gradient = EXAMPLES[budget]
    logps = torch.tensor([D], dtype=torch.float64, requires_grad=True)
    tokens = make_tokens(logps, [[0.0] * 10], [A])
    bounds, logs = cases.build("m2po", m2po_budget=budget).clip_bounds(tokens)
    torch.testing.assert_close(torch.stack(bounds), torch.tensor(expected_bounds, dtype=torch.float64), **FLOAT64)
    assert logs["second_moment"].mean().item() == pytest.approx(0.1761875, abs=1e-9)
    loss = loss_of(tokens, bounds)
    assert loss.item() == pytest.approx(expected_loss, abs=1e-9)
    gradient = 10 * torch.autograd.grad(loss, logps)[0]
    if expected_gradient is None:
        assert (gradient != 0).all() and logs["unclipped_forwards"]
        assert logs["clip_low"].isnan() and logs["clip_high"].isnan()
    else:
        torch.testing.assert_close(gradient, torch.tensor([expected_gradient], dtype=torch.float64), **FLOAT64)
        assert torch.equal(logs["clip_fraction"], gradient == 0) and not logs["unclipped_forwards"]


def test_second_moment_within_the_bound_of_the_example():
    bound = largest_log_ratio(harmful_squares(make_tokens(D, [0.0] * 10, A)), 0.04)
    squares = harmful_squares(make_tokens(D, [0.0] * 10, A)).clamp(max=bound.item() ** 2)
    assert squares.mean().item() == pytest.approx(0.014625, abs=1e-9)


# The departures of the docstring


def test_1_one_bound_for_a_forward_is_symmetric_in_the_log_ratio():
    low, high = cases.build("m2po", m2po_budget=0.004).clip_bounds(random_tokens())[0]
    assert low.dim() == high.dim() == 0 and 0 < low < 1 < high < 2
    torch.testing.assert_close(low * high, torch.ones_like(low), **FLOAT64)


def test_1_epsilon_does_not_matter(make_trainer):
    batch = cases.off_policy_batch(build_model())
    found = [
        loss_and_gradients(make_trainer(methods=["m2po"], m2po_budget=0.02, **epsilon), batch)
        for epsilon in ({}, dict(epsilon=0.01, epsilon_high=0.9))
    ]
    torch.testing.assert_close(*found, **EXACT)


def test_2_the_bound_is_read_off_tokens_that_moved_with_their_advantage():
    tokens = random_tokens()
    method = cases.build("m2po", m2po_budget=0.004)
    plain = method.clip_bounds(tokens)[0]
    log_ratio = tokens.logps - tokens.old_logps
    against = (log_ratio * tokens.advantages <= 0) | ~tokens.mask
    other = replace(tokens, old_logps=torch.where(against, tokens.old_logps - 5 * log_ratio.sign(), tokens.old_logps))
    assert against[tokens.mask].any()
    other = replace(other, old_logps=torch.where(against, tokens.logps - 9 * log_ratio, tokens.old_logps))
    torch.testing.assert_close(method.clip_bounds(other)[0], plain, **EXACT)


def test_2_the_direction_is_that_of_each_token_s_own_advantage():
    """Of two rows with equal log-ratios, one has mixed advantages."""
    log_ratios, advantages = [[0.5, 0.5, -0.5, 0.1]], [[1.0, -1.0, -1.0, 0.0]]
    squares = harmful_squares(make_tokens(log_ratios, [[0.0] * 4], advantages))
    assert squares.tolist() == [0.25, 0.25]
    first = harmful_squares(make_tokens([[0.5, 0.5]], [[0.0] * 2], [[0.0, 1.0]]))  # the first has none
    assert first.tolist() == [0.25]
    still = harmful_squares(make_tokens([[0.0, 0.0]], [[0.0] * 2], [[1.0, -1.0]]))  # ratios of exactly 1
    assert still.numel() == 0


@pytest.mark.parametrize("loss_type", CLIPPING_LOSSES)
def test_3_within_budget_nothing_is_clipped(make_trainer, loss_type):
    """Bit-equal to TRL's loss without a clip: the neutral setting."""
    batch = cases.off_policy_batch(build_model())
    stock = make_trainer(stock=True, loss_type=loss_type)
    stock.epsilon_low = stock.epsilon_high = math.inf
    trainer = make_trainer(methods=["m2po"], m2po_budget=1e6, loss_type=loss_type, fused_head=False)
    torch.testing.assert_close(loss_and_gradients(trainer, batch), loss_and_gradients(stock, batch), **EXACT)
    assert trainer._metrics["train"]["m2po/unclipped_forwards"] == [1.0]
    assert trainer._metrics["train"]["clip_ratio/region_mean"] == [0.0]


@pytest.mark.parametrize("loss_type", CLIPPING_LOSSES)
def test_on_policy_it_is_grpo(make_trainer, loss_type):
    weights = []
    for settings in (dict(methods=["m2po"], fused_head=False), dict(stock=True)):
        trainer = make_trainer(loss_type=loss_type, **settings)
        trainer.train()
        weights.append(trainer.model.state_dict())
        assert ("m2po/unclipped_forwards" in trainer.state.log_history[0]) == ("methods" in settings)
    torch.testing.assert_close(*weights, **EXACT)


# The rule


@pytest.mark.parametrize("seed", range(50))
def test_rule_against_brute_force(seed):
    """Of all log-ratios the largest at which clipping keeps the sum of squares below the budget; ties, tiny values."""
    generator = torch.Generator().manual_seed(seed)
    count = 1 + seed
    values = torch.randn(count, generator=generator, dtype=torch.float64)
    if seed % 3 == 1:
        values = (values * 2).round() / 2  # ties, zeros among them
    if seed % 3 == 2:
        values *= 10.0 ** torch.randint(-8, 1, (count,), generator=generator)
    squares = values.square()
    for budget in (1e-9, 1e-4, 0.04, 0.3, 1.0, 4.0):
        found = largest_log_ratio(squares, budget).item()
        if squares.mean() <= budget:
            assert found == math.inf
            continue
        sums = torch.minimum(squares[None], squares[:, None]).sum(1)  # clipped at each of them
        allowed = squares[sums < budget * count]
        expected = max(allowed.max().item() - 1e-12, 0.0) ** 0.5 if len(allowed) else 0.0
        assert found == pytest.approx(expected, abs=1e-12), (seed, budget)


def test_a_larger_budget_never_clips_more():
    squares = torch.randn(60, generator=torch.Generator().manual_seed(2), dtype=torch.float64).square()
    found = [largest_log_ratio(squares, budget).item() for budget in torch.logspace(-6, 1, 50).tolist()]
    assert found == sorted(found) and found[0] < 0.1 and found[-1] == math.inf and len(set(found)) > 10


def test_nothing_or_equal_log_ratios():
    none = largest_log_ratio(torch.empty(0, dtype=torch.float64), 0.04)
    equal = largest_log_ratio(torch.full((7,), 0.25, dtype=torch.float64), 0.04)
    assert none == math.inf and equal == 0  # all of them are clipped


def test_floors_widen_the_bounds():
    tokens = make_tokens(D, [0.0] * 10, A)
    low, high = cases.build("m2po", m2po_min_low=0.3, m2po_min_high=0.1).clip_bounds(tokens)[0]
    assert (low.item(), high.item()) == pytest.approx((0.7, 1.161834243))
    low, high = cases.build("m2po", m2po_min_low=0.1, m2po_min_high=0.5).clip_bounds(tokens)[0]
    assert (low.item(), high.item()) == pytest.approx((0.8607079764, 1.5))
    low, high = cases.build("m2po", m2po_budget=9.0, m2po_min_low=0.3, m2po_min_high=0.5).clip_bounds(tokens)[0]
    assert (low, high) == (0, math.inf)


def test_world_gathers_the_log_ratios_of_all_processes():
    tokens = random_tokens()
    parts = [cases.map_rows(tokens, lambda value, rows=rows: value[rows]) for rows in (slice(0, 1), slice(1, 4))]
    squares = [harmful_squares(part) for part in parts]
    both = Collectives(gather=lambda values: torch.cat([squares[0], squares[1]]))
    expected = cases.build("m2po", m2po_budget=0.004).clip_bounds(tokens)[0]
    method = cases.build("m2po", m2po_budget=0.004, m2po_scope="world")
    assert method.clip_bounds(tokens)[0] == expected
    for part in parts:
        assert method.clip_bounds(replace(part, world=both))[0] == expected
    alone = [cases.build("m2po", m2po_budget=0.004).clip_bounds(replace(part, world=both))[0] for part in parts]
    assert alone[0] != alone[1]


# In a trainer


def test_clip_cov_sees_the_bounds(make_trainer, monkeypatch):
    batch = cases.off_policy_batch(build_model())
    trainer = make_trainer(methods=["m2po", "clip_cov"], m2po_budget=0.02, clip_cov_ratio=0.2)
    update = cases.record_update(monkeypatch)
    loss_and_gradients(trainer, batch)
    acted, logs = update["taken"].turns[0][1], update["taken"].logs
    assert torch.equal(acted.clipped, logs["m2po/clip_fraction"]) and acted.clipped.any()
    assert not (logs["clip_cov/eligible_fraction"] & acted.clipped).any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_log_ratio_that_is_not_finite_keeps_epsilon(make_trainer, value):
    batch = cases.off_policy_batch(build_model())
    batch["old_per_token_logps"][1, 2] = value
    trainer = make_trainer(methods=["m2po"])
    trainer.current_gradient_accumulation_steps = 1
    trainer.compute_loss(trainer.model, batch)
    logged = trainer._metrics["train"]
    assert logged["m2po/kept_bounds_fraction"] == [1.0] and math.isnan(logged["m2po/second_moment"][0])
    assert 0 < logged["clip_ratio/region_mean"][0] < 1
    low, high = trainer.methods[0].clip_bounds(make_tokens([0.1, 0.2], [0.0, value], [1.0, 1.0]))[0]
    assert low.isnan() and high.isnan()


def test_log_has_the_bounds_of_the_forwards_that_clip(make_trainer, monkeypatch):
    """Of a window whose forwards do not clip they are null, as TRL logs a metric without a value."""
    trainer = make_trainer(methods=["m2po"], m2po_budget=0.01, gradient_accumulation_steps=3)
    wide, wider, near = (cases.off_policy_batch(build_model(), spread=spread) for spread in (0.2, 0.5, 0.01))
    seen, lines = [], []
    for batches in ([wide, near, wider], [near, near, near]):
        for batch in batches:
            update = cases.record_update(monkeypatch)
            loss_and_gradients(trainer, batch)
            seen.append(update["taken"].acted)
        trainer.log({})
        line = trainer.state.log_history[-1]
        lines.append({key.removeprefix("m2po/"): value for key, value in line.items() if key.startswith("m2po/")})
    values = [
        ((tokens.logps.detach() - tokens.old_logps)[tokens.mask].tolist(), tokens.advantages[tokens.mask].tolist())
        for tokens in seen
    ]
    bounds = [bounds_by_hand(*given, budget=0.01) for given in values]
    assert [low == 0 for low, _ in bounds] == [False, True, False, True, True, True] and bounds[0] != bounds[2]
    harmful = [d * d for ds, signs in values[:3] for d, a in zip(ds, signs, strict=True) if d * a > 0]
    beyond = sum(tokens.clipped[tokens.mask].sum().item() for tokens in seen[:3])
    assert lines[0] == {
        "clip_low": pytest.approx((bounds[0][0] + bounds[2][0]) / 2, rel=1e-5),
        "clip_high": pytest.approx((bounds[0][1] + bounds[2][1]) / 2, rel=1e-5),
        "second_moment": pytest.approx(sum(harmful) / len(harmful), rel=1e-5),
        "clip_fraction": pytest.approx(beyond / sum(len(ds) for ds, _ in values[:3])),
        "selected_tokens": beyond,
        "unclipped_forwards": pytest.approx(1 / 3),
        "kept_bounds_fraction": 0,
    }
    assert beyond > 0 and 0 < lines[1].pop("second_moment") < 1e-3
    assert lines[1] == {
        "clip_low": None,
        "clip_high": None,
        "clip_fraction": 0,
        "selected_tokens": 0,
        "unclipped_forwards": 1,
        "kept_bounds_fraction": 0,
    }


def test_tokens_that_do_not_count_may_be_anything():
    tokens = random_tokens()
    method = cases.build("m2po", m2po_budget=0.004)
    other = replace(tokens, old_logps=tokens.old_logps.masked_fill(~tokens.mask, math.nan))
    assert method.clip_bounds(other)[0] == method.clip_bounds(tokens)[0]
    nothing = replace(tokens, mask=torch.zeros_like(tokens.mask))
    assert method.clip_bounds(nothing)[0] == (0, math.inf)
    neutral = replace(tokens, advantages=torch.zeros_like(tokens.advantages))
    assert method.clip_bounds(neutral)[0] == (0, math.inf)


def test_properties(make_trainer):
    cases.check_empty_mask(make_trainer, "m2po")
    tokens = random_tokens()
    method = cases.build("m2po", m2po_budget=0.004)
    order = torch.tensor([2, 0, 3, 1])
    permuted = cases.map_rows(tokens, lambda value: value[order])
    torch.testing.assert_close(method.clip_bounds(permuted)[0], method.clip_bounds(tokens)[0], **FLOAT64)


def test_evaluation_uses_its_own_bounds(make_trainer):
    trainer = make_trainer(methods=["m2po"], eval_dataset=build_dataset(4), per_device_eval_batch_size=4)
    before = vars(trainer.methods[0]).copy()
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    assert vars(trainer.methods[0]) == before and trainer.methods[0].state_dict() == {}


def test_accumulation_of_two_halves_is_their_sum(make_trainer):
    """Each micro-batch has its own bounds; the gradient is the sum of both, as TRL scales them."""
    halves = [cases.off_policy_batch(build_model(), seed=seed) for seed in (3, 4)]
    count = sum(half["num_items_in_batch"] for half in halves)
    apart = [{**half, "num_items_in_batch": count} for half in halves]
    trainer = make_trainer(methods=["m2po"], m2po_budget=0.02, gradient_accumulation_steps=2, steps_per_generation=2)
    whole = [loss_and_gradients(trainer, half)[1] for half in apart]
    single = make_trainer(methods=["m2po"], m2po_budget=0.02)
    alone = [loss_and_gradients(single, {**half, "num_items_in_batch": count})[1] for half in halves]
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-6)


# Errors

BASE = dict(output_dir="out", methods=["m2po"], steps_per_generation=2, use_cpu=True, bf16=False)


@pytest.mark.parametrize("value", [0, -0.1, math.inf, math.nan, "0.1", True, None])
def test_budget_is_checked(value):
    with pytest.raises(ValueError, match="`m2po_budget` must be a finite number > 0, got"):
        EntropyGRPOConfig(**BASE, m2po_budget=value)


@pytest.mark.parametrize("name", ["m2po_min_low", "m2po_min_high"])
@pytest.mark.parametrize("value", [0, -0.1, math.inf, math.nan, False])
def test_floors_are_checked(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number > 0, or none, got"):
        EntropyGRPOConfig(**BASE, **{name: value})


def test_scope_is_checked():
    with pytest.raises(ValueError, match="`m2po_scope` must be one of 'micro_batch', 'world', got 'rows'."):
        EntropyGRPOConfig(**BASE, m2po_scope="rows")


@pytest.mark.parametrize("loss_type", ["cispo", "sapo", "vespo"])
def test_losses_without_a_clip_are_refused(loss_type):
    with pytest.raises(
        ValueError, match=f"`loss_type` must be one of 'grpo', .* with method 'm2po'.* got '{loss_type}'"
    ):
        EntropyGRPOConfig(**BASE, loss_type=loss_type)


def test_sequence_level_ratios_are_refused():
    with pytest.raises(ValueError, match="`importance_sampling_level` must be 'token' with method 'm2po'"):
        EntropyGRPOConfig(**BASE, importance_sampling_level="sequence")


def test_kl_cov_is_refused():
    with pytest.raises(ValueError, match="`methods` must not list both 'm2po' and 'kl_cov'"):
        EntropyGRPOConfig(**{**BASE, "methods": ["m2po", "kl_cov"]})


# Searched by test_fuzzing.py


@covers(m2po.harmful_squares, m2po.largest_log_ratio, m2po.ratio_bounds)
def m2po_bounds(draw):
    tokens = draw_tokens(draw)
    budget, floors = draw(st.floats(1e-6, 1e3)), draw(st.tuples(*[st.none() | st.floats(1e-3, 2.0)] * 2))
    squares = harmful_squares(tokens)
    assert squares.isfinite().all() and squares.numel() <= tokens.mask.sum()
    bound = largest_log_ratio(squares, budget)
    low, high = m2po.ratio_bounds(bound, *floors)
    assert 0 <= bound and low <= 1 <= high
    if bound < math.inf:
        assert squares.clamp(max=bound**2).sum() < budget * squares.numel() * (1 + 1e-9)
    other = replace(tokens, logps=tokens.logps.masked_fill(~tokens.mask, -1e30))
    assert torch.equal(largest_log_ratio(harmful_squares(other), budget), bound)
