# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st
from support import cases
from support.fuzzing import ADVANTAGES, ENTROPIES, covers, draw_flags, draw_shape, draw_tensor, spoiled
from support.reference import dense_logps_and_entropy
from support.tensors import config_of, make_rollouts, random_rollouts
from support.tiny import FLOAT64, build_tokenizer

from trl_entropy.methods import build_methods, empg
from trl_entropy.methods.empg import ends_of


# Each step of the worked example has tokens whose entropies have its mean; a tool's token lies between two steps.
ENTROPY = [[0.1, 0.3, 9.0, 0.8, 9.0, 0.4], [1.0, 9.0, 0.6, 0.6, 0.6, 9.0]]
MASK = [[1, 1, 0, 1, 0, 1], [1, 0, 1, 1, 1, 0]]


@pytest.mark.parametrize(
    "zeta, first, second",
    [
        (0.05, [1.159328530, 0.356760356, 0.792827084], [-0.954326897, -1.354589073]),
        (0.1, [1.164369878, 0.377123415, 0.774250104], [-0.942577344, -1.373166054]),
    ],
)
def test_worked_example(zeta, first, second):
    rollouts = make_rollouts(ENTROPY, [1.0, -1.0], MASK)
    method = cases.build("empg", empg_zeta=zeta)
    found, metrics = method.group_advantages(rollouts)
    expected = [[first[0]] * 2 + [0, first[1], 0, first[2]], [second[0], 0] + [second[1]] * 3 + [0]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)
    assert metrics["steps"].tolist() == [3, 2]
    torch.testing.assert_close(
        metrics["step_entropy"], torch.tensor([0.2, 0.8, 0.4, 1.0, 0.6], dtype=torch.float64), **FLOAT64
    )


def test_groups_without_signal_get_the_bonus_unless_skipped():
    rollouts = make_rollouts(
        [[0.2, 9, 0.6], [0.3, 9, 0.9]], [0.0, 0.0], [[1, 0, 1]] * 2, rewards=torch.ones(2), num_generations=2
    )
    found = cases.build("empg").group_advantages(rollouts)[0][:, [0, 2]]
    expected = torch.tensor([[0.0165784, -0.0116575], [0.0067365, -0.0116575]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    method = cases.build("empg", empg_skip_uniform=True)
    assert method.group_advantages(rollouts)[0].abs().max() == 0
    for rewards, skipped in (([1, math.nan, 1, 1], True), ([1, math.nan, 0, 1], False), ([math.nan] * 4, True)):
        rollouts = make_rollouts([[0.2, 0.6]] * 4, [0.1] * 4, rewards=torch.tensor(rewards), num_generations=4)
        assert (method.group_advantages(rollouts)[0].abs().max() == 0) == skipped


def literal(advantages, entropy, mask, k, k_future, zeta):
    """The equations, step by step."""
    steps = []
    for row in range(len(mask)):
        spans, t = [], 0
        while t < len(mask[row]):
            if mask[row][t]:
                start = t
                while t < len(mask[row]) and mask[row][t]:
                    t += 1
                spans.append((start, t))
            t += 1
        means = [sum(entropy[row][a:b]) / (b - a) for a, b in spans]
        steps += [(row, span, mean, n, len(spans)) for n, (span, mean) in enumerate(zip(spans, means, strict=True))]
    low, high = min(s[2] for s in steps), max(s[2] for s in steps)
    scaled = [(s[2] - low) / (high - low + 1e-8) for s in steps]
    mean_g = sum(math.exp(-k * h) for h in scaled) / len(steps) + 1e-8
    values = []
    for i, (row, _, _, n, count) in enumerate(steps):
        future = math.exp(-k_future * scaled[i + 1]) if n + 1 < count else 0
        values.append(advantages[row] * math.exp(-k * scaled[i]) / mean_g + zeta * future)
    centre = sum(values) / len(values)
    found = [[0.0] * len(row) for row in mask]
    for (row, (a, b), *_), value in zip(steps, values, strict=True):
        found[row][a:b] = [value - centre] * (b - a)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(4))
def test_against_the_equations(seed):
    """Row 5 has no reward: it is left out, as are the tokens that the loss does not count."""
    rollouts = random_rollouts(seed=seed)
    method = cases.build("empg", empg_k=1.7, empg_k_future=0.6, empg_zeta=0.3)
    scored = (rollouts.mask & ~rollouts.rewards.isnan().unsqueeze(1)).tolist()
    assert rollouts.mask[5].any() and not any(scored[5])
    expected = literal(rollouts.advantages[:, 0].tolist(), rollouts.entropy.tolist(), scored, 1.7, 0.6, 0.3)
    torch.testing.assert_close(method.group_advantages(rollouts)[0], expected, **FLOAT64)


def test_one_step_or_equal_entropies_change_nothing_but_the_mean():
    rollouts = make_rollouts([[0.5, 0.5], [0.5, 0.5]], [1.0, 0.5])
    found = cases.build("empg").group_advantages(rollouts)[0]
    torch.testing.assert_close(found, torch.tensor([[0.25] * 2, [-0.25] * 2], dtype=torch.float64), rtol=0, atol=1e-7)


def test_advantages_per_token_keep_their_shape():
    """Changes of an earlier method to single tokens stay, scaled by the step's weight."""
    advantages = torch.randn(8, 7, dtype=torch.float64)
    rollouts = replace(random_rollouts(rewards=torch.ones(8)), advantages=advantages)
    method = cases.build("empg", empg_k=0.0, empg_zeta=0.0)
    shift = (method.group_advantages(rollouts)[0] - rollouts.advantages)[rollouts.mask]
    torch.testing.assert_close(shift, shift[:1].expand_as(shift), rtol=0, atol=1e-7)


def test_splitter():
    assert ends_of(["a", "b\n", "\nc", "d\n\n", "e"], "\n\n") == [2, 3]
    assert ends_of(["\n\n\n\n", "a"], "\n\n") == [0, 0] and ends_of([], "x") == []
    method = cases.build("empg", empg_splitter="w5")  # token 7
    method.setup(build_tokenizer().decode)
    rollouts = make_rollouts([[1.0, 2.0, 5.0, 3.0]], [1.0], completion_ids=torch.tensor([[4, 7, 7, 4]]))
    _, metrics = method.group_advantages(rollouts)
    assert metrics["steps"].tolist() == [3] and metrics["step_entropy"].tolist() == [1.5, 5.0, 3.0]
    # A tool's result ends only the step of the policy that it interrupts.
    rollouts = replace(rollouts, mask=torch.tensor([[True, False, True, True]]))
    assert method.group_advantages(rollouts)[1]["steps"].tolist() == [3]


def test_properties():
    cases.check_rollouts(lambda: cases.build("empg"))


def test_it_excludes_agentic_aepo():
    for names in (["empg", "agentic_aepo"], ["agentic_aepo", "steer", "empg"]):
        with pytest.raises(ValueError, match="`methods` must not list both .*: EMPG damps steps of high entropy"):
            build_methods(config_of(methods=names))


@pytest.mark.parametrize("steps", [1, 2])
def test_training(make_trainer, steps):
    """One pass if TRL makes none. The table shows the advantages in use."""
    trainer = make_trainer(methods=["empg"], steps_per_generation=steps, per_device_train_batch_size=8)
    trainer.current_gradient_accumulation_steps = 1
    rows = [row for index in range(2 * steps) for row in [{"prompt": f"w{index} w8"}] * 4]
    output = trainer._generate_and_score_completions(rows)
    with torch.no_grad():
        _, entropy = dense_logps_and_entropy(trainer.model, output)
    rewards = torch.tensor(list(trainer._logs["rewards"]["count_reward"])).view(-1, 4)
    stock = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten()
    mask = output["completion_mask"].bool()
    expected = literal(stock.tolist(), entropy.tolist(), mask.tolist(), 1.0, 1.0, 0.05).float()
    torch.testing.assert_close(output["advantages"], expected, rtol=1e-4, atol=2e-5)
    assert list(trainer._logs["advantages"]) == pytest.approx(expected[:, 0].tolist(), abs=2e-5)
    trainer.train()
    assert trainer.state.log_history[0]["empg/steps"] == 1


# Searched by test_fuzzing.py


@covers(empg.step_index, empg.step_means, empg.modulated)
def empg_steps(draw):
    shape = draw_shape(draw)
    mask, breaks = draw_flags(draw, shape), draw_flags(draw, shape)
    index = empg.step_index(mask, breaks)
    steps = int(index.max()) + 2
    values = draw_tensor(draw, shape, ENTROPIES)
    entropy, valid = empg.step_means(spoiled(draw, values, mask), mask, index, steps)
    assert entropy.isfinite().all() and valid.sum() <= mask.sum() and (valid.any(1) == mask.any(1)).all()
    assert not valid[:, -1].any()  # one more, so that every step has a next one
    k, k_future, zeta = (draw(st.floats(0, 100)) for _ in range(3))
    advantages = draw_tensor(draw, tuple(entropy.shape), ADVANTAGES)
    for part in empg.modulated(advantages, entropy, valid, k, k_future, zeta):
        assert part.isfinite().all()
    other = empg.modulated(spoiled(draw, advantages, valid), entropy, valid, k, k_future, zeta)
    torch.testing.assert_close(other[2], empg.modulated(advantages, entropy, valid, k, k_future, zeta)[2])
