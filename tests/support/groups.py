# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks for methods that define the advantage of a completion by the rewards of its group."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from support import cases
from support.reference import dense_logps_and_entropy, policy_terms, reduce_terms
from support.tensors import make_rollouts
from support.tiny import FLOAT32, build_model, loss_and_gradients


NAN = math.nan
REWARDS = [1.0, 0, 1, 0, 0, 0, 1, 0, 1, 1, 1, 1]  # groups of four, one with equal rewards


def group_rollouts(rewards, group=None, tokens=2, **extra):
    """A generation batch of completions of `tokens` tokens each."""
    rewards = torch.tensor(rewards, dtype=torch.float64)
    extra.setdefault("entropy", torch.ones(len(rewards), tokens, dtype=torch.float64))
    return make_rollouts(rewards=rewards, num_generations=group or len(rewards), **extra)


def group_advantages(name, rewards, group=None, extra=None, **settings):
    """The advantages that a method gives to completions, and its logs."""
    rollouts = group_rollouts(rewards, group, **(extra or {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, logs = cases.build(name, **settings).group_advantages(rollouts)
    assert torch.equal(found[:, 0], found[:, -1])
    torch.testing.assert_close(logs["advantage_abs"], found.abs(), rtol=0, atol=0)
    return found[:, 0].tolist(), logs


def mean_of(value):
    return value[~value.isnan()].double().mean().item()


def trl_advantages(rewards, scale="group"):
    """The advantages of one group, or of one batch with one group, as TRL makes them."""
    known = [reward for reward in rewards if not math.isnan(reward)]
    if len(known) < 2:
        return [0.0] * len(rewards)
    mean = sum(known) / len(known)
    std = math.sqrt(sum((reward - mean) ** 2 for reward in known) / (len(known) - 1))
    divisor = 1.0 if scale == "none" else std + 1e-4
    return [0.0 if math.isnan(reward) else (reward - mean) / divisor for reward in rewards]


def fixed_rewards(values):
    """A reward function that gives these values whatever the completions."""

    def fixed_reward(completions, **columns):
        assert len(completions) == len(values)
        return [None if math.isnan(value) else value for value in values]

    return fixed_reward


def generated(make_trainer, methods, rewards=REWARDS, dtype=torch.float32, stock=False, **settings):
    """A trainer and the generation batch that it makes, with fixed rewards in groups of four."""
    torch.manual_seed(0)
    keywords = {} if stock else dict(methods=methods)
    trainer = make_trainer(
        stock=stock, model=build_model().to(dtype), reward_funcs=fixed_rewards(rewards),
        per_device_train_batch_size=len(rewards), **keywords, **settings,
    )  # fmt: skip
    rows = [{"prompt": f"w{index // 4} w9"} for index in range(len(rewards))]
    torch.manual_seed(5)
    return trainer, trainer._generate_and_score_completions(rows)


@pytest.mark.filterwarnings("ignore")
def check_loss_against_definition(make_trainer, name, loss_type, literal, rewards=REWARDS, **settings):
    """Loss and every gradient, off policy, against a loss in float64 from the definition of the advantages.

    `literal(rewards, logps, entropy, mask)` gets one group of four, with the old policy's values, and returns its
    advantages: four numbers or (4, T).
    """
    trainer, batch = generated(
        make_trainer, [name], rewards, dtype=torch.float64, loss_type=loss_type, fused_head=False, **settings
    )
    model = build_model().double()
    mask = (batch["completion_mask"] * batch.get("tool_mask", batch["completion_mask"])).bool()
    with torch.no_grad():
        old_logps, old_entropy = dense_logps_and_entropy(model, batch)
    groups = [slice(start, start + 4) for start in range(0, len(rewards), 4)]
    rows = [
        torch.as_tensor(literal(rewards[part], old_logps[part], old_entropy[part], mask[part]), dtype=torch.float64)
        for part in groups
    ]
    advantages = torch.cat([row.view(4, -1).expand(4, mask.size(1)) for row in rows])
    torch.testing.assert_close(batch["advantages"][mask].double(), advantages[mask], rtol=1e-5, atol=1e-6)
    noise = torch.randn(old_logps.shape, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    batch["old_per_token_logps"] = (old_logps + 0.35 * noise).masked_fill(~mask, 0)
    loss, gradients = loss_and_gradients(trainer, batch)

    logps, _ = dense_logps_and_entropy(model, batch)
    terms = policy_terms(loss_type, logps, batch["old_per_token_logps"], advantages, mask)
    expected = reduce_terms(loss_type, terms, mask)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected.detach(), **FLOAT32)
    for parameter, value in model.named_parameters():
        torch.testing.assert_close(gradients[parameter], value.grad, msg=lambda m, p=parameter: f"{p}: {m}", **FLOAT32)


def check_loss_is_that_of_trl(make_trainer, name, loss_type, **settings):
    """The loss is TRL's, to the bit, on the method's advantages."""
    trainer, batch = generated(make_trainer, [name], loss_type=loss_type, fused_head=False, **settings)
    stock, same = generated(make_trainer, [], loss_type=loss_type, stock=True)
    assert torch.equal(batch["completion_ids"], same["completion_ids"])
    same["advantages"] = batch["advantages"]
    loss, gradients = loss_and_gradients(trainer, batch)
    expected, others = loss_and_gradients(stock, same)
    assert torch.equal(loss, expected)
    assert gradients.keys() == others.keys()
    assert all(torch.equal(gradients[key], others[key]) for key in others)


def check_neutral(make_trainer, name, loss_type, rewards=REWARDS, **settings):
    """With these settings loss and gradients are TRL's to the bit, on TRL's own advantages."""
    trainer, batch = generated(make_trainer, [name], rewards, loss_type=loss_type, fused_head=False, **settings)
    stock, same = generated(make_trainer, [], rewards, loss_type=loss_type, stock=True)
    assert torch.equal(batch["completion_ids"], same["completion_ids"])
    assert torch.equal(batch["advantages"], same["advantages"].unsqueeze(1).expand_as(batch["advantages"]))
    loss, gradients = loss_and_gradients(trainer, batch)
    expected, others = loss_and_gradients(stock, same)
    assert torch.equal(loss, expected)
    assert all(torch.equal(gradients[key], others[key]) for key in others)


def check_groups(name, keep=lambda rollouts: rollouts, **settings):
    """Padding, order of groups and of completions, no valid token, missing rewards, no group, evaluation."""
    warnings.simplefilter("ignore")
    cases.check_rollouts(lambda: cases.build(name, **settings))

    rollouts = keep(group_rollouts([1.0, 0, 0, 1, NAN, NAN, 1, 0], 4, **old_policy(8)))
    plain = cases.build(name, **settings).group_advantages(rollouts)[0]
    assert plain[rollouts.rewards.isnan()].abs().max() == 0 and plain.isfinite().all()
    order = torch.tensor([2, 0, 3, 1, 4, 7, 6, 5])
    moved = cases.map_rows(rollouts, lambda value: value[order])
    torch.testing.assert_close(cases.build(name, **settings).group_advantages(moved)[0], plain[order])

    nothing = replace(rollouts, rewards=torch.full((8,), NAN, dtype=torch.float64))
    assert cases.build(name, **settings).group_advantages(nothing)[0].abs().max() == 0

    alone = replace(rollouts, num_generations=1)  # as in an evaluation with one completion per prompt
    assert cases.build(name, **settings).group_advantages(alone)[0].isfinite().all()

    method = cases.build(name, **settings)
    before = {key: repr(vars(value)) for key, value in vars(method).items() if hasattr(value, "__dict__")}
    for _ in range(25):
        method.group_advantages(replace(rollouts, training=False))
    assert before == {key: repr(vars(value)) for key, value in vars(method).items() if hasattr(value, "__dict__")}
    assert method.state_dict() == {}


def old_policy(rows, tokens=2):
    """Entropies and log-probabilities of the old policy."""
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(2, rows, tokens, generator=generator, dtype=torch.float64)
    return {"entropy": 3 * values[0], "logps": -2 * values[1]}


def warned_by(name, rewards, batches, settings=None, **changes):
    """The warnings of a run on the same rewards, over and over."""
    method = cases.build(name, **(settings or {}))
    rollouts = replace(group_rollouts(rewards, 4, **old_policy(len(rewards))), **changes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(batches):
            method.group_advantages(rollouts)
    return [str(warning.message) for warning in caught]


def check_accumulation(make_trainer, name, **settings):
    """The gradient of one update is the same in one forward and in two, with a loss that is a mean over rows."""
    found = []
    for steps in (1, 2):
        trainer, batch = generated(make_trainer, [name], loss_type="grpo", fused_head=False, **settings)
        trainer.model.zero_grad()
        trainer.current_gradient_accumulation_steps = steps
        size = len(REWARDS) // steps
        for start in range(0, len(REWARDS), size):
            part = {
                key: value[start : start + size] if torch.is_tensor(value) and value.dim() else value
                for key, value in batch.items()
            }
            trainer.compute_loss(trainer.model, part).backward()
        found.append({key: value.grad.clone() for key, value in trainer.model.named_parameters()})
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
