# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""SPEAR's formulas, settings and hooks by themselves. tests/trainers/test_replay.py trains with it."""

import json
import logging
import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import strategies as st
from support import cases
from support.fuzzing import ADVANTAGES, covers, draw_shape, draw_tensor, finite_gradients
from support.registry import MethodSettings
from support.tensors import make_rollouts, make_tokens

from trl_entropy import EntropyGRPOConfig
from trl_entropy.functional import aggregate
from trl_entropy.methods import spear
from trl_entropy.methods.spear import falling, replay_choice, replay_count, rising, tool_bonus, turns_with_calls
from trl_entropy.tokens import Stored


# The runs of all methods have no tool, and few completions. A replay takes one for each process and micro-batch, and
# comes with the third generation batch at the latest.
ALONE = dict(spear_tools_only=False, spear_tool_reward=0.0)
STRONG = dict(spear_tool_reward=0.0, spear_buffer_size=4, spear_replay_steps=0, spear_clip_cov_low=-1e9)
METHOD_SETTINGS = {
    "spear": MethodSettings(
        required=dict(spear_tools_only=False),
        strong=STRONG,
        steps=9,
        world={**STRONG, "spear_buffer_size": 8},  # of four processes
        batches=(1024, 2048),
    )
}
STEPS = (0, 1, 20, 60, 100, 200, 300)


def build(**settings):
    return cases.build("spear", **settings)


# Worked examples


def test_schedules():
    grown = [0, 0.0000616838, 0.0244717419, 0.2061073739, 0.5, 1, 1]
    assert [rising(step, 200) for step in STEPS] == pytest.approx(grown, abs=1e-10)
    left = [1, 0.9999383162, 0.9755282581, 0.7938926261, 0.5, 0, 0]
    assert [falling(step, 200) for step in STEPS] == pytest.approx(left, abs=1e-10)
    assert rising(0, 0) == 1 and falling(0, 0) == 0
    assert max(falling(step, 200) - falling(step + 10, 200) for step in range(200)) <= math.pi * 10 / 400


def test_bonus_and_counts():
    assert [tool_bonus(calls, 0.1, 1.0) for calls in (0, 3, 12)] == pytest.approx([0, 0.3, 1])
    counts = {1: 0, 2: 2, 3: 2, 5: 4, 8: 8, 100: 64, 3073: 2048}
    assert {number: replay_count(number, 2048) for number in counts} == counts


# Two rows of three tokens; row 0 token 1 is a tool's, row 0 token 2 is clipped.
LOGPS = [[-0.2, -1.0, -0.5], [-0.4, -2.0, -0.1]]
STORED = [[-0.3, -1.0, -0.9], [-0.5, -1.5, -0.1]]
OWN = [[1, 0, 1], [1, 1, 1]]
LOSSES = {
    "dapo": (-0.5031566364, [-0.1326205102, 0, 0, -0.0884136734, -0.0485224528, -0.08], -0.3705361262),
    "grpo": (-0.5385557429, [-0.1657756377, 0, 0, -0.0736780612, -0.0404353773, -0.0666666667], -0.3727801052),
    "dr_grpo": (-0.3144728977, [-0.0828878189, 0, 0, -0.0552585459, -0.0303265330, -0.05], -0.2315850789),
}


def imitated(loss_type, draw=(0, 0, 0), **settings):
    """The reduced term of the worked example, its gradient, and the logs."""
    method = build(**{"spear_replay_steps": 0, **settings})
    logps = torch.tensor(LOGPS, dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[0.6], [0.4]], dtype=torch.float64).expand(2, 3)
    plain = make_tokens(LOGPS, STORED, advantages, mask=OWN, clip_low=0.8, clip_high=1.28, draw=draw)
    tokens = replace(plain, logps=logps)
    term, logs = method.auxiliary_loss(tokens)
    found = aggregate(term, tokens.mask, loss_type, torch.tensor(5), 4)
    (gradient,) = torch.autograd.grad(found, logps)
    return found.item(), gradient.flatten().tolist(), logs


@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_of_the_worked_example(loss_type):
    loss, gradient, without_one = LOSSES[loss_type]
    found, own, logs = imitated(loss_type, spear_clip_cov_ratio=0.0)
    assert found == pytest.approx(loss, abs=1e-10) and own == pytest.approx(gradient, abs=1e-10)
    assert logs["clip_fraction"].tolist() == [[False, False, True], [False, False, False]]
    ratios = [1.1051709181, 1, 1.4918246976, 1.1051709181, 0.6065306597, 1]
    assert logs["ratio_mean"].flatten().tolist() == pytest.approx(ratios, abs=1e-10)
    # Clip-Cov draws one of the two tokens in the band.
    band = dict(spear_clip_cov_low=0.02, spear_clip_cov_high=40.0)
    draws = [imitated(loss_type, (seed, 0, 0), **band) for seed in range(8)]
    eligible = [[True, False, False], [False, True, False]]
    assert all(logs["eligible_fraction"].tolist() == eligible for _, _, logs in draws)
    found, own, logs = next(one for one in draws if not one[2]["kept_fraction"][0, 0])
    assert found == pytest.approx(without_one, abs=1e-10) and own == pytest.approx([0, *gradient[1:]], abs=1e-10)
    assert any(not logs["kept_fraction"][1, 1] for _, _, logs in draws)
    assert all(logs["kept_fraction"].sum() == 4 for _, _, logs in draws)


def test_covariance_is_that_of_the_worked_example(monkeypatch):
    seen = []
    centered = spear.centered_product
    monkeypatch.setattr(spear, "centered_product", lambda *args: seen.append(centered(*args)) or seen[-1])
    imitated("dapo")
    expected = [0.0528, 0, 0.0168, -0.0192, 0.1088, -0.0432]
    assert seen[0].flatten().tolist() == pytest.approx(expected, abs=1e-12)


def test_the_weight_grows_and_the_engine_corrects():
    full, half = imitated("dapo", spear_clip_cov_ratio=0.0), imitated("dapo", (0, 100, 0), spear_replay_steps=200)
    assert half[0] == pytest.approx(full[0] / 2, abs=1e-12)  # at its default band Clip-Cov acts on none of these
    double = imitated("dapo", spear_coef=2.0)
    assert double[0] == pytest.approx(2 * full[0])
    tokens = make_tokens([-1.0], [-1.0], [0.5], clip_low=0.8, clip_high=1.2, engine_ratio=torch.tensor([[3.0]]))
    assert build(spear_replay_steps=0).auxiliary_loss(tokens)[0].item() == pytest.approx(-1.5)


def test_baseline_is_the_median_of_the_groups():
    """D_R = .25 .5 .75 0 1, so b = .5; R = 1.1, .9, .5, .4 -> Ã = .6, .4, 0, -.1, of which two may be replayed."""
    method = build(spear_buffer_size=1, spear_replay_steps=0)
    method.baseline = [[0.25, 0.5], [0.75, 0.0, 1.0]]
    rewards = torch.tensor([1.1, 0.9, 0.5, 0.4], dtype=torch.float64)
    facts = Stored(reward=rewards, advantage=torch.tensor([0.3, 0.2, 0.1, 0.1]).double(), step=torch.zeros(4), now=3)
    ((chosen,), (advantage,)), logs = method.replays(facts)
    assert advantage == pytest.approx({0: 0.6, 1: 0.4}[chosen]) and logs["worthy"] == 2
    assert logs["baseline"] == 0.5 and logs["age_mean"].tolist() == [3]
    method.baseline.append([0.75])  # an even number: the mean of the middle two
    assert method.replays(facts)[1]["baseline"] == 0.625
    decayed = build(spear_decay=0.9, spear_buffer_size=2, spear_replay_steps=0)
    (chosen, advantages), logs = decayed.replays(facts)
    assert logs["worthy"] == 4 and advantages == pytest.approx([0.9 * facts.advantage[one].item() for one in chosen])
    assert len(chosen) == 2 and "baseline" not in logs


def test_no_replay_yet():
    facts = Stored(reward=torch.ones(9), advantage=torch.ones(9), step=torch.zeros(9), capacity=4)
    assert build(spear_replay_steps=0).replays(facts)[0] is None  # no baseline
    method = build(spear_replay_steps=9)
    method.baseline = [[0.0]]
    assert method.replays(facts)[0] is None  # its weight is 0
    assert len(method.replays(replace(facts, now=1))[0][0]) == 4
    method.baseline = [[1.0]]
    assert method.replays(replace(facts, now=1))[0] is None  # constant rewards


def test_choice_depends_on_its_draw_alone_and_keeps_the_order():
    advantages = torch.linspace(-1, 1, 40)
    found = {draw: replay_choice(advantages, 8, (0, draw)) for draw in range(6)}
    assert all(chosen == sorted(set(chosen)) and len(chosen) == 8 for chosen in found.values())
    assert all(min(chosen) >= 20 for chosen in found.values()) and len(set(map(tuple, found.values()))) == 6
    assert replay_choice(advantages, 8, (0, 3)) == found[3]
    assert replay_choice(advantages, 14, (0, 3)) is None  # 20 are not more than 21


# What is remembered


def rollouts(**changes):
    """Two groups of four. Rows 0, 1 and 4 have a positive advantage; row 1 called no tool, row 4 has no token."""
    rewards = torch.tensor([1.0, 1, 0, 0, 1, torch.nan, 0, 0])
    mask = torch.ones(8, 3, dtype=torch.bool)
    mask[4] = False
    fields = dict(
        advantages=[1.0, 1, -1, -1, 1.5, 0, -0.5, -0.5],
        mask=mask,
        rewards=rewards,
        num_generations=4,
        tool_calls=torch.tensor([2, 0, 1, 1, 1, 1, 1, 1]),
    )
    return make_rollouts(torch.ones(8, 3), **{**fields, **changes})


def kept(method, **changes):
    return method.keeps(rollouts(**changes))[0].nonzero().flatten().tolist()


def test_what_is_kept():
    method = build()
    assert kept(method) == [0] and kept(build(spear_tools_only=False)) == [0, 1]
    assert kept(method, tool_calls=None) == []
    assert method.baseline == [[0.5, pytest.approx(1 / 3)]] * 2  # a missing reward does not count
    assert kept(method, rewards=torch.full((8,), torch.nan)) == [] and len(method.baseline) == 2
    # A group of equal rewards is not kept, even if rounding leaves it a positive advantage. Its mean counts.
    equal = torch.full((8,), 0.7)
    assert kept(method, rewards=equal, advantages=[1e-4] * 8) == []
    assert method.baseline[-1] == [equal[0].double().item()] * 2
    # Per-token advantages count by their mean, which a method before may have changed.
    advantages = torch.tensor([[2.0, -1, -0.5]] + [[2.0, -2, -0.5]] + [[0.0] * 3] * 6)
    assert kept(build(spear_tools_only=False), advantages=advantages) == [0]


def test_baseline_forgets_whole_batches():
    method = build(spear_baseline_size=3)
    for value in range(4):
        kept(method, rewards=torch.arange(8) / 10 + value)
    # Dropped before a batch is added, while it holds more than three
    assert [len(batch) for batch in method.baseline] == [2, 2] and method.baseline[0][0] == pytest.approx(2.15)


def test_state_survives_json():
    method, other = build(), build()
    kept(method)
    kept(method, rewards=torch.arange(8) / 7)
    other.load_state_dict(json.loads(json.dumps(method.state_dict())))
    assert other.baseline == method.baseline and len(method.baseline) == 2
    method.state_dict()["baseline"][0].append(3.0)
    assert other.baseline == method.baseline


# The bonus

CALLS = [{"type": "function", "function": {"name": "add", "arguments": {}}}]
TURNS = [{"role": "assistant", "tool_calls": CALLS}, {"role": "tool", "content": "3"}, {"role": "assistant"}]


def test_turns_with_calls():
    assert turns_with_calls(TURNS, [True, False, True]) == 1
    assert turns_with_calls([*TURNS, *TURNS, TURNS[0]], [True, False, True]) == 3  # the last call had no answer
    assert turns_with_calls("text", [True, False, False, True, False]) == 2
    assert turns_with_calls([{"role": "assistant", "content": "text"}], [True, False, True]) == 1  # `rollout_func`
    assert turns_with_calls("text", [True, True]) == turns_with_calls("text", []) == 0


@pytest.mark.parametrize("schedule, step, scale", [("cosine", 0, 1), ("cosine", 50, 0.5), ("constant", 99, 1)])
def test_bonus_fades(schedule, step, scale):
    method = build(spear_tool_steps=100, spear_tool_schedule=schedule, spear_tool_reward=0.4, spear_tool_cap=0.9)
    given = dict(completions=[TURNS, TURNS * 3, "a"], token_mask=[[True]] * 3)
    found, logs = method.reward(**given, trainer_state=SimpleNamespace(global_step=step))
    assert found == pytest.approx([0.4 * scale, 0.9 * scale, 0]) and logs["tool_coef"] == pytest.approx(scale)


# Settings


@pytest.mark.parametrize(
    "field, value, accepted",
    [
        ("coef", -1.0, "a finite number >= 0"),
        ("replay_steps", 1.5, "an integer >= 0"),
        ("tool_reward", math.inf, "a finite number >= 0"),
        ("tool_cap", 0, "a finite number > 0"),
        ("tool_steps", -1, "an integer >= 0"),
        ("tool_schedule", "linear", "one of 'cosine', 'constant'"),
        ("buffer_size", 0, "an integer >= 1, or none"),
        ("baseline_size", 0, "an integer >= 1"),
        ("max_age", 0, "an integer >= 1"),
        ("decay", 0, r"a factor in \(0, 1\], or none"),
        ("tools_only", "yes", "true or false"),
        ("clip_cov_ratio", 1.1, r"a ratio in \[0, 1\]"),
        ("clip_cov_low", 40.0, r"less than `spear_clip_cov_high` \(40.0\)"),
        ("clip_cov_high", None, "a number"),
        ("save_buffer", 1, "true or false"),
    ],
)
def test_wrong_fields(field, value, accepted):
    with pytest.raises(ValueError, match=f"`spear_{field}` must be {accepted}, got {value!r}"):
        build(**{f"spear_{field}": value})


def configured(tmp_path, **settings):
    given = dict(per_device_train_batch_size=4, num_generations=4, steps_per_generation=4, use_cpu=True, bf16=False)
    return EntropyGRPOConfig(str(tmp_path), methods=["spear"], **{**given, **settings})


def test_buffer_must_fill_each_micro_batch(tmp_path):
    with pytest.raises(ValueError, match="`spear_buffer_size` must be none or at least 4, one completion per process"):
        configured(tmp_path, spear_buffer_size=3)


IDLE = "it does nothing."


@pytest.mark.parametrize(
    "settings, expected",
    [
        (dict(), []),
        (dict(spear_coef=0.0), ["only gives a bonus for tool calls, since `spear_coef` is 0"]),
        (dict(spear_coef=0.0, spear_tool_steps=0), ["does nothing, since `spear_coef` is 0"]),
        (dict(spear_coef=0.0, spear_max_age=4), ["only gives a bonus", "`spear_max_age` is set to 4"]),
        (dict(spear_clip_cov_ratio=0.0, spear_clip_cov_low=2.0), ["`spear_clip_cov_low` is set to 2.0"]),
        (dict(spear_tool_reward=0.0, spear_tool_steps=9), ["`spear_tool_steps` is set to 9"]),
        (dict(spear_tool_steps=0, spear_tool_cap=2.0), ["`spear_tool_cap` is set to 2.0"]),
        (dict(spear_tool_schedule="constant", spear_tool_steps=9), ["`spear_tool_steps` is set to 9"]),
        (dict(spear_decay=0.9, spear_baseline_size=9), ["`spear_baseline_size` is set to 9"]),
        # Eight updates per generation batch: the memory holds the rows of at most three.
        (dict(spear_max_age=8, gradient_accumulation_steps=1, num_iterations=2), []),
        (dict(spear_max_age=7, gradient_accumulation_steps=1, num_iterations=2), ["only if 75% of the completions"]),
        (dict(spear_max_age=7, num_iterations=2, spear_buffer_size=8), []),
    ],
    ids=repr,
)
def test_warnings_about_settings(tmp_path, caplog, settings, expected):
    with caplog.at_level(logging.WARNING, "trl_entropy"):
        configured(tmp_path, **{"gradient_accumulation_steps": 4, **settings})
    messages = [record.getMessage() for record in caplog.records if "spear" in record.getMessage()]
    assert len(messages) == len(expected), messages
    assert all(any(text in message for message in messages) for text in expected), messages


def test_tools():
    with pytest.raises(ValueError, match="`spear_tools_only` must be false without `tools`, `environment_factory` or"):
        build().check_tools(False)
    assert build().check_tools(True) == [] == build(**ALONE).check_tools(False)
    (bonus,) = build(spear_tools_only=False).check_tools(False)
    assert "is always 0" in bonus
    assert build(spear_coef=0.0).needs == () and build().needs == ("replay",)


def test_warnings_while_training_come_once():
    method = build()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(50):
            kept(method, tool_calls=torch.zeros(8, dtype=torch.long))
    assert [str(one.message).startswith("No completion of 20 generation batches") for one in caught] == [True]
    once = build()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):  # all replayed rewards are equal: no covariance
            tokens = make_tokens([[-1.0, -2.0]], [[-1.0, -2.0]], [[0.5, 0.5]])
            once.auxiliary_loss(tokens)
            once.auxiliary_loss(tokens)
            kept(once)
        kept(once)
    assert ["could drop no token of a whole replay" in str(one.message) for one in caught] == [True]
    fine = build(spear_clip_cov_low=-1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fine.auxiliary_loss(make_tokens([[-1.0, -2.0]], [[-1.0, -2.0]], [[0.5, 0.5]]))
        kept(fine)
        assert kept(fine) == [0]
    assert not caught


# Searched by test_fuzzing.py


@covers(spear.rising, spear.falling, spear.tool_bonus, spear.replay_count)
def schedules_of_spear(draw):
    step, steps = draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))
    assert 0 <= spear.rising(step, steps) <= 1 and 0 <= spear.falling(step, steps) <= 1
    if steps:
        assert spear.rising(step, steps) + spear.falling(step, steps) == pytest.approx(1)
    number, size = draw(st.integers(0, 10**5)), draw(st.integers(1, 10**5))
    found = spear.replay_count(number, size)
    assert 0 <= found <= min(number, size) and (number < 2 or found == size or found > number / 2)
    assert 0 <= spear.tool_bonus(number, 0.1, 1.0) <= 1


@covers(spear.recalibrated_advantages, spear.replay_choice, spear.imitation_terms, spear.turns_with_calls)
def replays_of_spear(draw):
    shape = draw_shape(draw)
    rewards, advantages = draw_tensor(draw, shape, ADVANTAGES)[0], draw_tensor(draw, shape, ADVANTAGES)[0]
    baseline, decay = draw(st.none() | st.floats(-1e6, 1e6)), draw(st.none() | st.floats(1e-3, 1))
    found = spear.recalibrated_advantages(rewards, advantages, baseline, decay)
    assert found.isfinite().all() and found.shape == rewards.shape
    size = draw(st.integers(1, 8))
    chosen = spear.replay_choice(found, size, (draw(st.integers(0, 9)), 0))
    assert (chosen is None) == ((found > 0).sum().item() <= 1.5 * size)
    assert chosen is None or (len(chosen) <= size and all(found[one] > 0 for one in chosen))
    ratio = draw_tensor(draw, shape, (0.0, 5e8)).requires_grad_()
    terms = spear.imitation_terms(ratio, draw_tensor(draw, shape, (0.0, 1e6)), 0.8, 1.28)
    (gradient,) = finite_gradients(terms.sum(), ratio)
    assert (gradient[ratio > 1.28] == 0).all() and (terms <= 0).all()
    own = draw(st.lists(st.booleans(), max_size=6))
    assert spear.turns_with_calls("", own) == sum(
        not mine and (place == 0 or own[place - 1]) for place, mine in enumerate(own)
    )
