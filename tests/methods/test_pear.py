# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import logging
import math

import pytest
import torch
from datasets import Dataset
from hypothesis import strategies as st
from support import cases
from support.fuzzing import covers
from support.tensors import config_of
from support.tiny import build_tokenizer, count_reward

from trl_entropy import EntropyGRPOConfig
from trl_entropy.methods import empg, pear
from trl_entropy.methods.pear import Pear, pear_penalty, pear_reward, phase_entropies, tag_span


ROWS = [[0.25] * 4, [0.7, 0.1, 0.1, 0.1], [0.97, 0.01, 0.01, 0.01], [0.9, 0.05, 0.03, 0.02], [0.5, 0.5, 0, 0]]
ENTROPIES = [-math.fsum(p * math.log(p) for p in row if p) for row in ROWS]
ALL = [True] * 5


def test_worked_example():
    think, answer = phase_entropies(ENTROPIES, ALL, (2, 3))
    assert (think, answer) == pytest.approx((1.1633711749, 0.5605977277), abs=1e-10)
    rewards = {1: 0.3972265528, 2: 0.9578242805, 0: -0.1633711749, -1: -0.7239689026}
    for alpha, reward in rewards.items():
        found = pear_reward(True, pear_penalty(think, answer, alpha), 1.0, 0.0, None)
        assert found == pytest.approx(reward, abs=1e-9)
    assert pear_penalty(think, answer, 1) == pytest.approx(0.6027734472, abs=1e-10)
    assert phase_entropies(ENTROPIES, ALL, None) == pytest.approx((0.7306227904, 0), abs=1e-10)
    assert pear_penalty(0.2, 0.9, 1.0) == 0


def test_reward_is_bounded_above_and_by_the_floor():
    assert pear_reward(True, 0.0, 0.9, 0.1, None) == 0.9 and pear_reward(False, 0.0, 0.9, 0.1, 0.3) == 0.1
    assert pear_reward(True, 1.5, 1.0, 0.1, 0.3) == 0.3 and pear_reward(True, 0.5, 1.0, 0.1, 0.3) == 0.5


@pytest.mark.parametrize(
    "pieces, span",
    [
        (["a", "</think>", "b"], (1, 2)),
        (["a", "</", "think", ">", "b"], (1, 4)),
        (["a</", "think", ">\n", "b"], (0, 3)),
        (["</think>", "a", "</think>"], (0, 1)),
        (["a", "</think"], None),
        ([], None),
    ],
)
def test_tag_of_one_token_or_several(pieces, span):
    assert tag_span(pieces, "</think>") == span


def test_empty_phases_and_tokens_of_tools():
    assert phase_entropies([0.5, 0.7], [True] * 2, (0, 1)) == (0, 0.7)
    assert phase_entropies([0.5, 0.7], [True] * 2, (1, 2)) == (0.5, 0)
    assert phase_entropies([0.5], [True], None) == (0, 0)
    assert phase_entropies([], [], None) == (0, 0)
    values, kept = [1.0, 9.0, 2.0, 9.0, 9.0, 0.4], [True, False, True, False, False, True]
    assert phase_entropies(values, kept, (3, 4)) == (1.5, 0.4)
    # As if the tool's tokens were not there.
    own = [value for value, keep in zip(values, kept, strict=True) if keep]
    assert phase_entropies(values, kept, (3, 4))[0] == phase_entropies([*own[:2], 0, own[2]], [True] * 4, (2, 3))[0]


def shaped(method, completions, rewards, prompt=(2, 3)):
    method.setup(build_tokenizer().decode)
    values = [[0.3 * token for token in ids] for ids in completions]
    return method.reward(
        rewards=rewards,
        prompt_ids=[list(prompt)] * len(completions),
        completion_ids=completions,
        token_entropies=values,
        token_mask=[[True] * len(ids) for ids in completions],
    )


def test_rewards_of_completions():
    """The tag is the word w5, token 7; the entropy of token i is 0.3 i."""
    method = cases.build("pear", pear_think_end="w5", pear_format_reward=0.1)
    completions = [[4, 6, 7, 2, 3], [4, 6, 7, 2, 3], [4, 6, 2], [2, 7, 9], [2, 3]]
    found, logs = shaped(method, completions, [1.0, 0.0, 1.0, 0.5, math.nan])
    # 1.5 - 0.75 = 0.75; wrong; no tag: the mean of all but the last, 1.5; 0.6 - 2.7 < 0; no reward was given
    assert found[:4] == pytest.approx([0.25, 0.1, -0.5, 1.0]) and found[4] is None
    metrics = {key: value.tolist() for key, value in logs.items()}
    assert metrics["penalty"] == pytest.approx([0.75, 0.75, 1.5, 0.0, 0.6])
    assert metrics["think_entropy"] == pytest.approx([1.5, 1.5, 1.5, 0.6, 0.6])
    assert metrics["answer_entropy"] == pytest.approx([0.75, 0.75, 0, 2.7, 0])
    assert metrics["accuracy"][:4] == [1, 0, 1, 0.5] and math.isnan(metrics["accuracy"][4])
    assert metrics["below_format_fraction"][0] == 0 and metrics["below_format_fraction"][2] == 1
    assert math.isnan(metrics["below_format_fraction"][1])


def test_a_prompt_that_closes_the_thinking_leaves_only_an_answer():
    method = cases.build("pear", pear_think_end="w5")
    with pytest.warns(UserWarning, match=r"A prompt ends in `pear_think_end` \('w5'\)") as seen:
        assert shaped(method, [[4, 6, 7, 2]] * 2, [1.0, 1.0], prompt=(2, 7))[0] == [1.0, 1.0]
    assert len(seen) == 1
    assert shaped(method, [[4, 6, 7, 2]], [1.0], prompt=(7, 2))[0] == pytest.approx([1 - (1.5 - 0.6)])


def test_a_tag_that_a_tool_wrote_closes_nothing():
    method = cases.build("pear", pear_think_end="w5")
    method.setup(build_tokenizer().decode)
    columns = dict(
        rewards=[1.0], prompt_ids=[[2]], completion_ids=[[4, 7, 6, 7, 3]], token_entropies=[[1, 9, 2, 9, 1]]
    )
    for kept, think in (([1, 0, 1, 1, 1], 1.5), ([1, 1, 1, 1, 1], 1.0)):
        _, logs = method.reward(**columns, token_mask=[[bool(keep) for keep in kept]])
        assert logs["think_entropy"].tolist() == [think]


def test_columns_of_the_dataset_may_have_any_name(make_trainer):
    dataset = Dataset.from_dict({"prompt": ["w1", "w2"], "rewards": [7.0, 7.0], "prompt_ids": [[1], [1]]})
    trainer = make_trainer(methods=["pear"], train_dataset=dataset, steps_per_generation=2)
    trainer._generate_and_score_completions([row for row in dataset for _ in range(4)])
    assert max(trainer._logs["rewards"]["count_reward"]) <= 1


def right(completion_ids, **kwargs):
    return [float(value >= 0.4) for value in count_reward(completion_ids)]


@pytest.mark.parametrize("mask_truncated", [False, True])
def test_training(make_trainer, mask_truncated):
    """Rewards in the table follow from the logged phases, and TRL's advantages from the rewards."""
    trainer = make_trainer(
        methods=["pear"], pear_think_end="w5", reward_funcs=[count_reward, right], pear_reward="right", max_steps=1,
        mask_truncated_completions=mask_truncated, per_device_train_batch_size=8,
    )  # fmt: skip
    trainer.train()
    row = trainer.state.log_history[0]
    rewards = list(trainer._logs["rewards"]["right"])
    correct = [reward != 0 for reward in rewards]
    assert 0 < sum(correct) < 8 and row["pear/accuracy"] == pytest.approx(sum(correct) / 8)
    penalties = [1 - reward for reward in rewards if reward]
    assert row["rewards/right/mean"] == pytest.approx(sum(rewards) / 8, rel=1e-5)
    assert min(penalties) >= 0 and max(penalties) > 0.3 and row["pear/penalty"] > 0
    below = sum(reward < 0 for reward in rewards) / sum(correct)
    assert row["pear/below_format_fraction"] == pytest.approx(below)
    total = torch.tensor(rewards) + torch.tensor(list(trainer._logs["rewards"]["count_reward"]))
    groups = total.view(2, 4)
    expected = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(
        torch.tensor(list(trainer._logs["advantages"])), expected.flatten(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "rewards, advantages",
    [
        ([0.3972265528, 0.9, 0.0, 1.0], [-0.3807937715, 0.7003723954, -1.2349914462, 0.9154128223]),
        ([0.7, 0.699, 0.7005, 0.6995], [0.33534665, -1.00603996, 1.00603996, -0.33534665]),
    ],
)
@pytest.mark.parametrize("scale", ["group", "none"])
def test_tiny_differences_become_large_advantages(make_trainer, monkeypatch, rewards, advantages, scale):
    """Why there is a warning: the second group differs by at most 0.0015, and TRL divides by its deviation."""
    monkeypatch.setattr(Pear, "reward", lambda self, **columns: (rewards, {}))
    trainer = make_trainer(methods=["pear"], scale_rewards=scale, steps_per_generation=2)
    found = trainer._generate_and_score_completions([{"prompt": "w1"}] * 4)["advantages"]
    if scale == "none":
        advantages = [reward - sum(rewards) / 4 for reward in rewards]
    assert found.tolist() == pytest.approx(advantages, abs=2e-4 if scale == "group" else 1e-6)


def test_warning_about_scaled_rewards(caplog, tmp_path):
    whitened = dict(scale_rewards="none", multi_objective_aggregation="normalize_then_sum")
    for settings, count in ((dict(scale_rewards="group"), 1), (dict(scale_rewards="none"), 0), (whitened, 1)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="trl_entropy"):
            EntropyGRPOConfig(str(tmp_path), methods=["pear"], use_cpu=True, bf16=False, **settings)
        assert sum("'pear'" in record.getMessage() for record in caplog.records) == count


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(pear_scale=0), "`pear_scale` must be a reward in (0, 1], got 0."),
        (dict(pear_format_reward=1.0), "`pear_format_reward` must be a reward in [0, 1), got 1.0."),
        (dict(pear_alpha=math.inf), "`pear_alpha` must be a finite number, got inf."),
        (dict(pear_floor=2.0), "`pear_floor` must be at most `pear_scale` (1.0), got 2.0."),
        (dict(pear_think_end=""), "`pear_think_end` must be a text, got ''."),
    ],
)
def test_errors(fields, message):
    with pytest.raises(ValueError) as error:
        cases.build("pear", **fields)
    assert str(error.value) == message
    assert config_of(methods=["pear"]).pear_alpha == 1


def test_the_accuracy_must_be_named(make_trainer):
    with pytest.raises(
        ValueError, match="`pear_reward` must be one of the reward functions 'count_reward', 'right', got None"
    ):
        make_trainer(methods=["pear"], reward_funcs=[count_reward, right])


# Searched by test_fuzzing.py


PIECES = st.lists(st.text("ab<>/\n", max_size=3), min_size=1, max_size=8)


@covers(empg.ends_of, pear.tag_span)
def places_of_texts(draw):
    pieces, tag = draw(PIECES), draw(st.text("ab<>\n", min_size=1, max_size=2))
    text = "".join(pieces)
    ends = empg.ends_of(pieces, tag)
    assert len(ends) == text.count(tag) and ends == sorted(ends)
    for number, end in enumerate(ends, start=1):
        assert "".join(pieces[: end + 1]).count(tag) >= number > "".join(pieces[:end]).count(tag)
    span = pear.tag_span(pieces, tag)
    assert (span is None) == (tag not in text)
    if span is not None:
        assert 0 <= span[0] < span[1] <= len(pieces) and tag in "".join(pieces[span[0] : span[1]])
        assert tag not in "".join(pieces[: span[1] - 1])


@covers(pear.mean, pear.phase_entropies, pear.pear_penalty, pear.pear_reward)
def pear_rewards(draw):
    values = draw(st.lists(st.floats(0, 13), max_size=6))
    kept = [draw(st.booleans()) for _ in values]
    start = draw(st.integers(0, len(values)))
    span = draw(st.sampled_from([None, (start, draw(st.integers(start, len(values))))]))
    think, answer = pear.phase_entropies(values, kept, span)
    spoilt = [value if keep else 1e30 for value, keep in zip(values, kept, strict=True)]
    assert pear.phase_entropies(spoilt, kept, span) == (think, answer)
    assert 0 <= pear.mean(values, kept) <= 13 and 0 <= min(think, answer) and max(think, answer) <= 13
    penalty = pear.pear_penalty(think, answer, draw(st.floats(-10, 10)))
    scale, floor = draw(st.floats(0.01, 1)), draw(st.none() | st.floats(-1, 0.01))
    reward = pear.pear_reward(draw(st.booleans()), penalty, scale, 0.0, floor)
    assert penalty >= 0 and reward <= 1 and (floor is None or reward >= min(floor, 0))
