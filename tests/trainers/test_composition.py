# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Methods combined with each other and with TRL's own features."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from support import cases
from support.reference import dense_logps_and_entropy, policy_terms, reduce_terms
from support.registry import (
    covered,
    error_of,
    required,
    rewarded,
    set_states,
    settings_of,
    stage,
    strong,
    together_params,
    world,
)
from support.tensors import config_of, random_rollouts, random_tokens
from support.tiny import FLOAT32, LOSS_TYPES, build_dataset, build_model, loss_and_gradients

from trl_entropy import EntropyGRPOConfig
from trl_entropy.methods import METHODS, build_methods


ALL = ["steer", "clip_cov", "clip_b", "kl_cov"]
STRONG = dict(clip_cov_ratio=0.2, clip_cov_low=0.05, clip_cov_high=1.5, kl_cov_ratio=0.3, clip_b_mu=0.5)


def record_turns(trainer):
    """By method: the advantages that its hook received and returned."""
    seen = {}

    def spy(method, hook):
        def token_advantages(tokens):
            advantages, logs = hook(tokens)
            seen[method.name] = (tokens.advantages, advantages)
            return advantages, logs

        return token_advantages

    for method in trainer.methods:
        method.token_advantages = spy(method, method.token_advantages)
    return seen


def test_each_method_sees_the_advantages_that_those_before_it_left(make_trainer):
    batch = cases.off_policy_batch(build_model())
    found = {}
    for order in (["steer", "clip_cov"], ["clip_cov", "steer"]):
        trainer = make_trainer(methods=order, **STRONG)
        seen = record_turns(trainer)
        loss_and_gradients(trainer, batch)
        assert torch.equal(seen[order[1]][0], seen[order[0]][1])
        found[tuple(order)] = seen[order[1]][1]
    assert not torch.equal(*found.values())


@pytest.mark.parametrize("methods", together_params())
def test_methods_take_turns_in_the_order_in_which_they_are_listed(make_trainer, methods):
    """In each off-policy forward, a method sees the advantages that the one before it returned."""
    trainer = make_trainer(methods=methods, steps_per_generation=2, max_steps=2, **strong(methods))
    forwards = []
    for method in trainer.methods:

        def spy(tokens, hook=method.token_advantages, name=method.name):
            if name == methods[0]:
                forwards.append([])
            advantages, logs = hook(tokens)
            forwards[-1].append((name, tokens.advantages, advantages))
            return advantages, logs

        method.token_advantages = spy
    trainer.train()
    assert len(forwards) == 2
    for turns in forwards:
        assert [name for name, _, _ in turns] == methods
        for (_, _, left), (_, seen, _) in zip(turns[:-1], turns[1:], strict=True):
            assert torch.equal(left, seen)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_all_methods_with_every_loss_type_and_trl_entropy_bonus(make_trainer, monkeypatch, loss_type):
    """The loss is TRL's on the composed advantages, plus the penalty, less the entropy bonus."""
    batch = cases.off_policy_batch(build_model())
    trainer = make_trainer(methods=ALL, loss_type=loss_type, entropy_coef=0.03, model=build_model(), **STRONG)
    update = cases.record_update(monkeypatch)
    loss, gradients = loss_and_gradients(trainer, batch)

    model = build_model()
    logps, entropy = dense_logps_and_entropy(model, batch)
    mask = batch["completion_mask"].bool()
    low, high = (0.8, 1.2) if loss_type == "cispo" else (-math.inf, math.inf)
    terms = policy_terms(
        loss_type, logps, batch["old_per_token_logps"], update["taken"].batch["advantages"], mask, low, high
    )
    selected = update["taken"].logs["kl_cov/selected_fraction"]
    assert 0 < selected.sum() < mask.sum()
    terms = terms + (logps - batch["old_per_token_logps"]).abs() * selected
    expected = reduce_terms(loss_type, terms, mask) - 0.03 * entropy[mask].mean()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), **FLOAT32)
    torch.testing.assert_close(gradients, {n: p.grad for n, p in model.named_parameters()}, **FLOAT32)
    assert [method.name for method, _ in update["taken"].turns] == ALL


OPTIONS = [
    dict(entropy_coef=0.01),
    dict(use_adaptive_entropy=True, entropy_target=1.0),
    dict(top_entropy_quantile=0.3),
    dict(importance_sampling_level="sequence", loss_type="grpo"),
    dict(delta=2.0),
    dict(off_policy_mask_threshold=0.5),
    dict(epsilon_high=0.28),
    dict(num_iterations=2),
    dict(mask_truncated_completions=True),
    dict(gradient_checkpointing=True),
    dict(scale_rewards="batch"),
    dict(gradient_accumulation_steps=2, steps_per_generation=4),
]


def check_training(make_trainer, methods, **settings):
    """Trains and evaluates: finite and not idle. Returns the log lines of training, and that of evaluation."""
    trainer = make_trainer(
        methods=methods,
        **{"steps_per_generation": 2, "max_steps": 4, **settings},
        eval_strategy="steps",
        eval_steps=4,
        per_device_eval_batch_size=4,
        eval_dataset=build_dataset(4),
    )
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    assert any(not torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 4
    return rows, next(row for row in trainer.state.log_history if "eval_loss" in row)


@pytest.mark.parametrize("settings", OPTIONS, ids=lambda settings: next(iter(settings)))
@pytest.mark.filterwarnings("ignore")
def test_training_with_trl_options(make_trainer, settings):
    rows, evaluation = check_training(make_trainer, ALL, **STRONG, **settings)
    for prefix, row in (("", rows[-1]), ("eval_", evaluation)):
        for name in ("clip_cov/kept_fraction", "kl_cov/selected_fraction", "steer/weight_mean", "entropy/quantile_50"):
            assert prefix + name in row


@pytest.mark.slow
@pytest.mark.parametrize("methods", together_params())
@pytest.mark.parametrize("settings", OPTIONS, ids=lambda settings: next(iter(settings)))
@pytest.mark.filterwarnings("ignore")
def test_all_methods_with_trl_options(make_trainer, methods, settings):
    """A method may refuse an option, in an error that names it."""
    try:
        rows, _ = check_training(make_trainer, methods, **strong(methods), **settings)
    except ValueError as error:
        assert f"`{next(iter(settings))}`" in str(error) and "method" in str(error)
    else:
        assert {key.split("/")[0] for row in rows for key in row} >= set(methods)


def test_sequence_level_ratio_reaches_the_methods(make_trainer, monkeypatch):
    batch = cases.off_policy_batch(build_model())
    trainer = make_trainer(methods=["steer"], importance_sampling_level="sequence", loss_type="grpo")
    update = cases.record_update(monkeypatch)
    loss_and_gradients(trainer, batch)
    tokens, mask = update["taken"].acted, batch["completion_mask"].bool()
    for row in range(4):
        log_ratio = (tokens.logps - tokens.old_logps).detach()[row][mask[row]].mean()
        torch.testing.assert_close(tokens.ratio[row], log_ratio.exp().expand(6))


def test_lora(make_trainer):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build_model(), LoraConfig(r=4, target_modules="all-linear"))
    trainer = make_trainer(methods=ALL, model=model, steps_per_generation=2, **STRONG)
    trainer.train()
    row = trainer.state.log_history[1]
    assert row["kl_cov/penalty_mean"] > 0 and row["clip_cov/kept_fraction"] < 1


@pytest.mark.parametrize("name", covered())
def test_neutral_advantages_stay_neutral(name):
    """If all rewards are equal, no method learns anything."""
    method = cases.build(name, **required([name]))
    tokens = random_tokens(on_policy=True)
    tokens = replace(tokens, advantages=torch.zeros_like(tokens.advantages))
    assert method.token_advantages(tokens)[0].abs().max() == 0
    term, _ = method.loss(tokens)
    assert term is None or term.abs().max() == 0 or settings_of(name).ignores_rewards


@pytest.mark.parametrize("name", [name for name in covered() if METHODS[name].overrides("prompts")])
def test_prompts_do_not_depend_on_how_rows_are_spread(name):
    """A group may span two processes: parts of the rows give the same prompts as all rows together."""
    rows = [{"prompt": f"w{row // 4} w5"} for row in range(16)]
    method = cases.build(name, **strong([name]))
    together = method.prompts([dict(row) for row in rows], (7, 3), True)
    apart = [method.prompts([dict(row)], (7, 3), True) for row in rows]
    assert [row for part in apart for row in part] == together and together != rows


OFF_POLICY_ONLY = [
    pytest.param(name, loss_type, id=f"{name}-{loss_type}", marks=() if loss_type == "dapo" else pytest.mark.slow)
    for name in covered()
    if METHODS[name].acts_on_ratio
    for loss_type in settings_of(name).losses
]


@pytest.mark.parametrize("name, loss_type", OFF_POLICY_ONLY)
@pytest.mark.filterwarnings("ignore")
def test_methods_that_act_on_the_ratio_are_trls_loss_on_policy(make_trainer, name, loss_type):
    assert OFF_POLICY_ONLY
    cases.check_neutral(make_trainer, name, loss_type, batches=["on_policy"], **strong([name]))


@pytest.mark.parametrize("name", covered())
def test_inert_on_policy_is_said_once(tmp_path, caplog, name):
    """A method that acts on the ratio warns if there is one update per generation batch, and no other method does."""
    settings = dict(methods=[name], use_cpu=True, bf16=False, **strong([name]))
    for steps in (1, 2):
        caplog.clear()
        EntropyGRPOConfig(str(tmp_path), steps_per_generation=steps, **settings)
        warned = sum(f"Method {name!r} acts on the ratio between" in text for text in caplog.messages)
        assert warned == (METHODS[name].acts_on_ratio and steps == 1)


REPLACING = [name for name in METHODS if METHODS[name].replaces_advantages]


@pytest.mark.parametrize("first", REPLACING)
def test_only_one_method_defines_the_advantages_of_a_group(first):
    assert len(REPLACING) > 5
    for second in REPLACING:
        if second != first:
            message = f"`methods` must not list both '{first}' and '{second}': both define the group's advantage."
            with pytest.raises(ValueError, match=message):
                build_methods(config_of(methods=[first, second], **strong([first, second])))


@pytest.mark.parametrize("name", covered())
@pytest.mark.filterwarnings("ignore")
def test_kl_to_the_reference_stays_that_of_trl(make_trainer, name):
    """Tokens whose advantage a method sets to 0 too: with `beta` the loss gains TRL's term, and nothing else."""
    batch = cases.off_policy_batch(build_model())
    noise = torch.randn(4, 6, generator=torch.Generator().manual_seed(8))
    batch["ref_per_token_logps"] = batch["old_per_token_logps"] + 0.3 * noise
    batch["old_entropies"] = torch.rand(4, 6, generator=torch.Generator().manual_seed(9)) * 3
    batch["rewards"] = torch.tensor([0.0, 1, 0, 1])
    batch["old_second_logps"] = batch["old_per_token_logps"] + 0.2
    gains = []
    for settings in (dict(stock=True), dict(methods=[name], **world([name], single_loss=True))):
        found = []
        for beta in (0.0, 0.4):
            trainer = make_trainer(model=build_model(), **settings)
            trainer.beta = beta
            set_states(trainer.methods if "methods" in settings else [])
            found.append(loss_and_gradients(trainer, batch))
        gains.append(
            (found[1][0] - found[0][0], {key: value - found[0][1][key] for key, value in found[1][1].items()})
        )
    assert gains[0][0] > 0.01
    torch.testing.assert_close(gains[1], gains[0], **FLOAT32)


def facts_of(value):
    """What an object remembers, as text."""
    if isinstance(value, dict):
        return {key: facts_of(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [facts_of(one) for one in value]
    return facts_of(vars(value)) if hasattr(value, "__dict__") and not callable(value) else repr(value)


@pytest.mark.parametrize("name", covered())
@pytest.mark.filterwarnings("ignore")
def test_evaluation_moves_no_method(name):
    """Not even what it counts for its warnings."""
    method = cases.build(name, **strong([name]))
    set_states([method])
    before = facts_of(vars(method)), method.state_dict()
    for seed in range(3):
        tokens = random_tokens(seed=seed, training=False, draw=(0, 7 + seed, 0))
        tokens = replace(tokens, old_entropy=3 * tokens.entropy)
        method.token_advantages(tokens)
        method.loss(tokens)
        method.clip_bounds(tokens)
        rollouts = random_rollouts(seed=seed, training=False)
        squares = (-rollouts.entropy).exp()
        rollouts = replace(rollouts, sum_sq_probs=squares, sum_sq_probs_log_probs=squares * rollouts.logps)
        for _ in range(10):
            method.group_advantages(rollouts)
    assert (facts_of(vars(method)), method.state_dict()) == before


def beside(name):
    """The method with Clip-Cov and EMPG, as far as they can be listed together."""
    found = [name]
    for other in ("clip_cov", "empg"):
        longer = sorted({*found, other}, key=lambda one: (stage(one), list(METHODS).index(one)))
        found = found if error_of(longer) else longer
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", covered())
@pytest.mark.filterwarnings("ignore")
def test_with_clip_cov_empg_and_the_80_20_mask(make_trainer, name):
    names = beside(name)
    assert "clip_cov" in names
    rows, _ = check_training(make_trainer, names, top_entropy_quantile=0.2, **rewarded([name]), **strong(names))
    assert all(math.isfinite(row[key]) for row in rows for key in ("loss", "grad_norm"))
    assert {key.split("/")[0] for row in rows for key in row} >= set(names)


@pytest.mark.parametrize("name", covered())
def test_a_method_leaves_its_tokens_alone(name):
    """Later methods, and the next iteration on the same batch, see the same tensors."""
    method = cases.build(name, **strong([name]))
    set_states([method])
    tokens = random_tokens()
    before = deepcopy(vars(tokens))
    first = cases.outcome(method, tokens)
    for key, value in before.items():
        assert torch.equal(getattr(tokens, key), value) if isinstance(value, torch.Tensor) else True, key
    torch.testing.assert_close(cases.outcome(method, tokens), first, rtol=0, atol=0)


def test_methods_leave_the_shared_batch_alone(make_trainer):
    """TRL reads a micro-batch once per iteration, so changes to it would compound."""
    trainer = make_trainer(methods=ALL, **STRONG)
    batch = cases.off_policy_batch(trainer.model)
    copy = {key: value.clone() for key, value in batch.items()}
    first = loss_and_gradients(trainer, batch)
    assert batch.keys() == copy.keys() and all(torch.equal(batch[key], copy[key]) for key in batch)
    again = loss_and_gradients(trainer, batch)
    assert first[0] == again[0]


def test_evaluation_needs_no_training_before(make_trainer):
    trainer = make_trainer(methods=ALL, eval_dataset=build_dataset(4), per_device_eval_batch_size=4, **STRONG)
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_loss"])
