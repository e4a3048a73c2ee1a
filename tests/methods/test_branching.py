# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The rules of branching, and settings that cannot work. `tests/trainers/test_branches.py` has the rollouts."""

import logging
import math
import random

import pytest
from hypothesis import strategies as st
from support import cases
from support.fuzzing import covers
from support.registry import MethodSettings

from trl_entropy import EntropyGRPOConfig
from trl_entropy.methods import branching, build_methods
from trl_entropy.methods.branching import aepo_branches, arpo_branches, initial_rollouts, turn_entropy
from trl_entropy.turns import Turn


METHOD_SETTINGS = {
    "branching": MethodSettings(not_tested="it needs tools, which the trainers of these tests do not have")
}


@pytest.mark.parametrize(
    "delta, consecutive, expected",
    [
        (0, 0, 0.5), (0.5, 0, 0.6), (-0.5, 0, 0.4), (0.5, 2, 0.5444444444), (1.5, 4, 0.675), (0, 10, 0), (3, 10, 0.6),
        (1, 20, 0),
    ],
)  # fmt: skip
def test_probability_of_branching(delta, consecutive, expected):
    """The worked examples: exactly, by the smallest draw that branches, and as the frequency of 10,000 draws."""
    threshold = 1 - expected
    for draw, branches in ((threshold - 1e-9, False), (threshold + 1e-9, True)):
        if 0 <= draw < 1:
            assert aepo_branches(draw, delta, consecutive, 0.2, 0.5, 0.05) == branches
    draws = random.Random(0)
    count = sum(aepo_branches(draws.random(), delta, consecutive, 0.2, 0.5, 0.05) for _ in range(10_000))
    assert abs(count - 10_000 * expected) <= 3 * math.sqrt(10_000 * expected * (1 - expected))


def test_draws_of_the_worked_examples():
    assert aepo_branches(0.45, 0.5, 0, 0.2, 0.5, 0.05) and not aepo_branches(0.45, 0.5, 2, 0.2, 0.5, 0.05)
    assert arpo_branches(0.55, 0.5, 0.2, 0.5) and not arpo_branches(0.55, 0.0, 0.2, 0.5)


@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_rules_on_a_grid(weight, threshold):
    """P = 1 - τ / f + w ΔH with f = 1 - ρ l, and τ + w ΔH for ARPO, both within [0, 1]: exact over a grid of draws."""
    draws = [(index + 0.5) / 400 for index in range(400)]
    for delta in (-2.0, -0.3, 0.0, 0.4, 1.7):
        for consecutive in (0, 1, 3, 20, 50):
            factor = max(0.0, 1 - 0.05 * consecutive)
            expected = min(max(1 - threshold / factor + weight * delta, 0), 1) if factor else 0
            found = sum(aepo_branches(draw, delta, consecutive, weight, threshold, 0.05) for draw in draws) / 400
            assert abs(found - expected) <= 1 / 400
        found = sum(arpo_branches(draw, delta, weight, threshold) for draw in draws) / 400
        assert abs(found - min(max(threshold + weight * delta, 0), 1)) <= 1 / 400


def test_budget_of_the_worked_examples():
    assert 8 / (1 + math.exp(-0.5 * (1.2 - 0.5))) == pytest.approx(4.6929406313)
    examples = [((1.2, 0.5, 8), 5), ((0.4, 1.6, 8), 3), ((6, 0, 8), 8), ((0.3, 0.3, 1), 1)]
    assert [initial_rollouts(*given, 0.5) for given, _ in examples] == [expected for _, expected in examples]
    assert initial_rollouts(0.3, 0.3, 9, 0.5) == 5  # no turn but the first: half of the group, and one


def test_entropy_of_a_turn():
    values = [0.5] * 5 + [2.0] * 5 + [0.1] * 30
    assert turn_entropy(values, 20, 151936) == pytest.approx(1.1314858031, abs=1e-10)
    assert turn_entropy(values[:7], 20, 151936) == pytest.approx(6.5 / math.log(151936))
    assert turn_entropy([], 20, 151936) == 0


def test_the_object_follows_its_rule():
    turn = Turn(entropy=1.0, reference=0.5, consecutive=2, draw=0.45)
    assert not cases.build("branching").branches(turn)
    assert cases.build("branching", branching_penalty=0.0).branches(turn)
    assert cases.build("branching", branching_weight=0.6).branches(turn)
    assert cases.build("branching", branching_probability=0.4).branches(turn)
    assert cases.build("branching", branching_rule="arpo").branches(turn)
    assert not cases.build("branching", branching_rule="arpo", branching_probability=0.3).branches(turn)
    built = cases.build("branching", branching_tokens=2)
    assert built.turn_entropy([1.0, 2.0, 4.0], 10) == pytest.approx(3 / math.log(10))
    assert [cases.build("branching", branching_initial=m).roots(8, None) for m in (None, 1, 8)] == [4, 1, 8]
    assert cases.build("branching").roots(1, None) == 1
    dynamic = cases.build("branching", branching_dynamic=True)
    assert dynamic.roots(8, None) is None and dynamic.roots(8, [1.2, 0.0, 0.3]) == 5
    plan = cases.build("branching", branching_scope="prompt", branching_width=3, branching_logprobs=4).plan
    assert (plan.width, plan.per_prompt, plan.top_logprobs) == (3, True, 4)


@pytest.mark.parametrize(
    "field, value, accepted",
    [
        ("rule", "grpo", "one of 'aepo', 'arpo'"),
        ("initial", 0, "a whole number >= 1, or none"),
        ("initial", 2.5, "a whole number >= 1, or none"),
        ("initial", 9, r"at most `num_generations` \(8\)"),
        ("dynamic", "yes", "true or false"),
        ("weight", -0.1, "a finite number >= 0"),
        ("probability", 1.0, r"a number in \(0, 1\)"),
        ("penalty", 1.1, r"a number in \[0, 1\]"),
        ("scope", "row", "one of 'path', 'prompt'"),
        ("width", 1, "a whole number >= 2"),
        ("width", 9, r"at most `num_generations` \(8\)"),
        ("tokens", 0, "a whole number >= 1"),
        ("slope", math.inf, "a finite number >= 0"),
        ("logprobs", 0, "a whole number >= 1"),
    ],
)
def test_wrong_fields(tmp_path, field, value, accepted):
    with pytest.raises(ValueError, match=f"`branching_{field}` must be {accepted}, got {value!r}"):
        build_config(tmp_path, **{f"branching_{field}": value})


def build_config(folder, **settings):
    defaults = dict(methods=["branching"], use_cpu=True, bf16=False, num_generations=8)
    return EntropyGRPOConfig(str(folder), **{**defaults, **settings})


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(use_transformers_continuous_batching=True), "`use_transformers_continuous_batching` must be false with"),
        (dict(use_vllm=True, vllm_tensor_parallel_size=2), "`vllm_tensor_parallel_size` must be 1 with method"),
        (dict(use_vllm=True, branching_logprobs=21), "`branching_logprobs` must be at most 20 with `vllm_mode` 'col"),
        (dict(generation_kwargs={"do_sample": False}), "`generation_kwargs` must sample with method 'branching'"),
        (dict(generation_kwargs={"num_beams": 2}), "`generation_kwargs` must not have 'num_beams' with method 'bran"),
    ],
    ids=str,
)
def test_what_cannot_branch_is_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        build_config(tmp_path, **settings)


def test_a_server_may_give_more_log_probabilities(tmp_path):
    """As many as it is started with, which the trainer does not know."""
    config = build_config(tmp_path, use_vllm=True, vllm_mode="server", branching_logprobs=30)
    assert build_methods(config)[0].plan.top_logprobs == 30


def test_what_cannot_branch_on_two_processes_is_refused(tmp_path, monkeypatch):
    config = build_config(tmp_path, use_vllm=True, vllm_mode="server")
    monkeypatch.setattr(EntropyGRPOConfig, "world_size", 2)
    (method,) = build_methods(config)
    for rows, steps, fits in ((4, 1, False), (12, 1, False), (4, 2, True), (16, 1, True)):
        config.per_device_train_batch_size, config.steps_per_generation, config.use_vllm = rows, steps, False
        if fits:
            assert method.check(config) == []
            continue
        with pytest.raises(ValueError, match=rf"by `num_generations` \(8\) with method 'branching', .* got {rows}"):
            method.check(config)
    config.use_vllm = True
    with pytest.raises(ValueError, match="`vllm_mode` must be 'colocate' with method 'branching' and 2 processes"):
        method.check(config)


@pytest.mark.parametrize(
    "settings, warning",
    [
        (dict(max_tool_calling_iterations=1), "a branch then has no further tool turn"),
        (dict(branching_initial=8), "method 'branching' does nothing, because no place is free"),
        (
            dict(branching_rule="arpo", branching_penalty=0.1),
            "`branching_penalty` is set to 0.1, but `branching_rule`",
        ),
        (
            dict(branching_dynamic=True, branching_initial=3),
            "`branching_initial` is set to 3, but `branching_dynamic`",
        ),
        (dict(branching_slope=1.0), "`branching_slope` is set to 1.0, but `branching_dynamic` is false: it does"),
        (dict(branching_logprobs=5), "`branching_logprobs` is set to 5, but `use_vllm` is false: it does nothing"),
        (dict(), None),
        (dict(branching_dynamic=True, branching_slope=1.0, max_tool_calling_iterations=2), None),
    ],
    ids=str,
)
def test_settings_that_do_nothing_are_said_once(tmp_path, caplog, settings, warning):
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        build_config(tmp_path, **settings)
    said = [text for text in caplog.messages if "branching" in text]
    assert len(said) == (warning is not None) and all(warning in text for text in said)


# Searched by test_fuzzing.py

REAL = st.floats(-1e3, 1e3)
SHARE = st.floats(0, 1)


@covers(branching.aepo_branches, branching.arpo_branches)
def rules_are_monotone(draw):
    """More entropy and a draw in favor never undo a branching; with more branchings before it AEPO never gains one."""
    given, delta, count = draw(SHARE), draw(REAL), draw(st.integers(0, 40))
    weight, threshold, penalty = draw(st.floats(0, 10)), draw(st.floats(0.01, 0.99)), draw(SHARE)
    more = delta + draw(st.floats(0, 10))
    here = aepo_branches(given, delta, count, weight, threshold, penalty)
    assert aepo_branches(given, more, count, weight, threshold, penalty) >= here
    assert aepo_branches(min(given + 0.1, 1.0), delta, count, weight, threshold, penalty) >= here
    assert aepo_branches(given, delta, count + 1, weight, threshold, penalty) <= here
    there = arpo_branches(given, delta, weight, threshold)
    assert arpo_branches(given, more, weight, threshold) >= there
    assert arpo_branches(max(given - 0.1, 0.0), delta, weight, threshold) >= there


@covers(branching.initial_rollouts)
def budgets_are_within_the_group(draw):
    root, turns, group, slope = draw(REAL), draw(REAL), draw(st.integers(1, 64)), draw(st.floats(0, 1e3))
    found = initial_rollouts(root, turns, group, slope)
    assert 1 <= found <= group and initial_rollouts(root + 1, turns, group, slope) >= found


@covers(branching.turn_entropy)
def turn_entropies_are_sums_of_the_first(draw):
    values = draw(st.lists(st.floats(0, 13), max_size=5))
    count, vocabulary = draw(st.integers(1, 6)), draw(st.integers(2, 10**6))
    found = turn_entropy(values, count, vocabulary)
    assert math.isfinite(found) and found == turn_entropy(values[:count], count, vocabulary)
    assert found <= count * 13 / math.log(vocabulary) + 1e-9


@covers(branching.is_count)
def counts_are_whole_numbers(draw):
    value, least = draw(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=1)), 2
    assert branching.is_count(value, least) == (type(value) is int and value >= 2)
