# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Logs do not depend on how a batch was split. A bad forward or a window without tokens leaves no trace."""

import json
import math
from copy import deepcopy

import pytest
import torch
from support.cases import off_policy_batch
from support.distilling import build_distiller, make_batch
from support.registry import IN_FORWARD, acts, covered, strong
from support.tensors import make_loss_batch
from support.tiny import build_model, loss_and_gradients
from transformers import PrinterCallback

from trl_entropy import EntropyDistillationConfig, EntropyDistillationTrainer, EntropyLawCallback
from trl_entropy.trainers.window import SAMPLE_SIZE, Least, Mean, Most, Total, join_metrics, quantiles_of


def joined(*values):
    metrics = {"key": list(values)}
    join_metrics(metrics)
    return metrics["key"]


def test_values_are_joined_by_what_they_were_computed_from():
    assert joined(Mean(6.0, 3), Mean(0.0, 0), Mean(math.inf, 1), Mean(4.0, 1)) == [2.5]
    assert joined(Least(3.0), Least(math.nan), Least(1.0)) == [1.0]
    assert joined(Most(3.0), Most(math.nan), Most(1.0)) == [3.0]
    assert joined(Total(3.0), Total(0.0), Total(4.0)) == [7.0]
    assert math.isnan(joined(Mean(0.0, 0))[0])
    assert joined(1.0, 2.0) == [1.0, 2.0]  # TRL's own
    copy = deepcopy([Mean(6.0, 3), Mean(4.0, 1)])
    assert joined(*copy) == [2.5]


@pytest.mark.parametrize("sizes", [(5, 1, 9), (1, 1), (0, 3)])
def test_joined_quantiles_are_those_of_all_values(sizes):
    values = torch.rand(sum(sizes), generator=torch.Generator().manual_seed(0))
    probabilities = (0.1, 0.5, 0.9)
    parts = [quantiles_of(part, probabilities) for part in values.split(list(sizes))]
    for index, expected in enumerate(torch.quantile(values, torch.tensor(probabilities)).tolist()):
        assert joined(*(part[index] for part in parts)) == [pytest.approx(expected, abs=1e-6)]


def test_joined_quantiles_of_many_values():
    values = torch.rand(5 * SAMPLE_SIZE + 700, generator=torch.Generator().manual_seed(0)).square()
    parts = [quantiles_of(part, (0.5,))[0] for part in values.split([5 * SAMPLE_SIZE, 700])]
    assert joined(*parts) == [pytest.approx(values.median().item(), abs=1e-3)]
    assert len(parts[0].sample) == SAMPLE_SIZE


def two_steps(trainer, batch, splits):
    """Two optimizer steps on a batch that is split into micro-batches, at the same weights: their line of the log, and
    the gradients of the second, in which methods use what they measured in the first."""
    trainer.remove_callback(PrinterCallback)
    trainer.state.max_steps = 10
    rows = len(batch["completion_ids"]) // splits
    for step in (1, 2):
        trainer.state.global_step, summed = step, {}
        for index in range(splits):
            trainer._step = (step - 1) * splits + index
            part = {k: v if v.dim() == 0 else v[index * rows :][:rows] for k, v in batch.items()}
            trainer.accelerator.gradient_state._set_sync_gradients(index == splits - 1)
            _, gradients = loss_and_gradients(trainer, part)
            summed = {name: summed.get(name, 0) + value for name, value in gradients.items()}
    trainer.log({})
    return trainer.state.log_history[-1], summed


OF_TOKENS = {"tip/kept_fraction", "tip/selected_tokens", "tip/entropy_kept_mean", "tip/entropy_dropped_mean"}
# What is of a forward by nature, and so depends on how a batch is split; by method and key, with the reason.
OF_A_FORWARD = {
    "clip_cov": {
        "covariance_mean": "log-probability and advantage are centered by their means over the forward",
        "eligible_fraction": "a band of that covariance",
        "kept_fraction": "a share of the forward's tokens is drawn, at least one",
        "selected_tokens": "counts these tokens",
    },
    "kl_cov": {
        "covariance_mean": "as Clip-Cov's",
        "selected_fraction": "a share of the forward's tokens, rounded down, at least one",
        "penalty_mean": "over the selected tokens",
        "selected_tokens": "counts these tokens",
    },
    "steer": {
        "weight_mean": "weights are relative to the largest entropy change in the forward",
        "weight_max": "the weight of the smallest one; `weight_min`, of the largest, is `steer_lambda_min` anyway",
    },
    # Off policy the scores are those of the whole generation batch, and are logged with it.
    "clip_b": {
        "discriminator_std": "about the mean of the forward",
        "kept_fraction": "a threshold in units of that deviation",
        "selected_tokens": "counts the tokens beyond it",
    },
    "clip_v": {
        "discriminator_std": "about the mean of the forward",
        "kept_fraction": "a threshold in units of that deviation, and a share of the forward's tokens, at least one",
        "selected_tokens": "counts these tokens",
        "entropy/predicted_change": "of the kept tokens",
        "entropy/predicted_change_negative": "of the kept tokens with a negative advantage",
    },
    "m2po": {
        "clip_low": "the bound is read off the forward's tokens; the mean over forwards that have one",
        "clip_high": "as `clip_low`",
        "clip_fraction": "the tokens beyond that bound",
        "selected_tokens": "counts these tokens",
        "unclipped_forwards": "counts forwards",
    },
}


def window_batch(on_policy):
    batch = off_policy_batch(build_model(), rows=8)
    if on_policy:
        del batch["old_per_token_logps"]
    else:
        batch["old_second_logps"] = off_policy_batch(build_model(), rows=8)["old_per_token_logps"] + 0.2
    batch["completion_mask"][0, 2:] = 0
    batch["rewards"] = torch.tensor([0.0, 1, 0, 1, 1, 1, 0, 1])
    batch["all_rewards"] = batch["rewards"].expand(8, 8)
    return batch


def differs(value, expected):
    if value is None or expected is None:
        return value is not expected
    return value != pytest.approx(expected, rel=1e-4, abs=1e-6)


# Loss terms that are of a forward by nature, besides those of methods above; with the reason.
GRADIENT_OF_A_FORWARD = {
    "siren": "squares the distance of a forward's mean (`siren_square: ema` that of a running mean)",
    "entropic": "steers by the entropy of the forward, and averages over its likely tokens, as the released code",
}


@pytest.mark.parametrize("name", ["", *(name for name in covered() if acts(name, IN_FORWARD))])
def test_logs_and_gradients_do_not_depend_on_the_split_of_a_batch(make_trainer, name):
    """But for those of `OF_A_FORWARD` and `GRADIENT_OF_A_FORWARD`, which do, on policy or off."""
    methods = [name] if name else []
    settings = strong(methods) | ({"aepo_mode": "reweight"} if name == "aepo" else {})
    found, apart = set(), False
    for batch in (window_batch(on_policy=False), window_batch(on_policy=True)):
        lines, gradients = [], []
        for splits in (1, 2, 4):
            trainer = make_trainer(
                methods=methods, gradient_accumulation_steps=splits, model=build_model(), num_iterations=2, **settings
            )
            line, summed = two_steps(trainer, batch, splits)
            lines.append(line)
            gradients.append(torch.cat([gradient.flatten() for gradient in summed.values()]))
        ours = [key for key in lines[0] if key.startswith(("entropy/", f"{name}/"))]
        assert "entropy/mean" in ours and "entropy/quantile_50" in ours
        found |= {key for key in ours for line in lines[1:] if differs(line[key], lines[0][key])}
        expected = lines[0]["entropy"]  # of one forward TRL's is the mean over its tokens
        assert lines[2]["entropy/mean"] == pytest.approx(expected, rel=1e-5)
        assert lines[2]["entropy"] != pytest.approx(expected, rel=1e-3)
        apart |= any((found - gradients[0]).abs().max() > 1e-5 for found in gradients[1:])
    assert apart == (name in GRADIENT_OF_A_FORWARD or name in OF_A_FORWARD), name
    assert found == {key if "/" in key else f"{name}/{key}" for key in OF_A_FORWARD.get(name, ())}


def test_rewarded_share_is_that_of_the_generation_batch(make_trainer):
    """Advantages of AEPO's `reweight` are those of the whole batch, however it is split."""
    trainer = make_trainer(
        methods=["aepo"], aepo_mode="reweight", aepo_target_entropy=1.0, steps_per_generation=2, max_steps=1
    )
    seen = []
    hook = trainer.methods[0].token_advantages
    trainer.methods[0].token_advantages = lambda tokens: (seen.append(tokens), hook(tokens))[1]
    trainer.train()
    assert seen[0].all_rewards.shape == (8,) and len(seen[0].rewards) == 4
    assert set(seen[0].rewards.tolist()) <= set(seen[0].all_rewards.tolist())


def bad_forward(trainer, values=(math.inf,), steps=6, bad=2):
    """Steps on one batch and one set of weights, one of them with an overflow that a scaler would skip."""
    trainer.accelerator.gradient_state._set_sync_gradients(True)
    trainer.state.max_steps = 10
    batch = make_loss_batch(rewards=torch.tensor([1.0, 0, 1, 0]))
    weight, losses = trainer.model.lm_head.weight, []
    for step in range(steps):
        trainer.state.global_step = trainer._step = step
        before = weight.data.clone()
        if step == bad:
            weight.data[5, 3] = math.inf
        losses.append(loss_and_gradients(trainer, batch)[0].item())
        weight.data.copy_(before)
    return losses


PI = dict(use_adaptive_entropy=True, entropy_target=5.0, entropy_controller="pi", entropy_coef_max=0.5)
STATEFUL = {
    "pi": PI,
    "epo": dict(methods=["epo"]),
    "siren": dict(methods=["siren"]),
    "siren ema": dict(methods=["siren"], siren_square="ema"),
    "aepo": dict(methods=["aepo"], aepo_mode="reweight", aepo_target_entropy=1.0),
    "forecast": dict(entropy_forecast=True),
}


@pytest.mark.parametrize("case", STATEFUL)
def test_one_bad_forward_leaves_no_trace(make_trainer, case):
    """All forwards but the bad one are the same: so are the states, but for the number of steps."""
    found = {}
    for bad in (2, None):
        trainer = make_trainer(model=build_model(), **STATEFUL[case])
        losses = bad_forward(trainer, bad=bad, steps=6 if bad else 5)
        finite = [math.isfinite(loss) for loss in losses]
        assert finite == [step != bad for step in range(len(losses))]
        state = {name: part.state_dict() for name, part in trainer._stateful.items()}
        assert json.loads(json.dumps(state, allow_nan=False)) == state
        found[bad] = losses, state, trainer.entropy_coef
    assert found[2][0][-1] == pytest.approx(found[None][0][-1], rel=1e-5) or case == "epo"
    if case == "epo":
        epo, expected = found[2][1]["epo"], found[None][1]["epo"]
        assert epo["history_steps"] == expected["history_steps"] == 4
        assert epo["history_total"] == pytest.approx(expected["history_total"])
    if case == "pi":
        assert found[2][1]["entropy_bonus"] == pytest.approx(found[None][1]["entropy_bonus"]) and found[2][2] > 0
    if case == "forecast":
        assert found[2][1]["entropy_forecast"]["last"] == pytest.approx(found[None][1]["entropy_forecast"]["last"])
    if case == "aepo":
        assert found[2][1]["aepo"]["entropy"] == pytest.approx(found[None][1]["aepo"]["entropy"])
    if case.startswith("siren"):
        assert found[2][1]["siren"]["average"] == pytest.approx(found[None][1]["siren"]["average"])


def test_windows_without_tokens_do_not_move_the_controller(make_trainer):
    trainer = make_trainer(model=build_model(), **{**PI, "entropy_target": 1.8, "entropy_coef_max": 1.0})
    trainer.accelerator.gradient_state._set_sync_gradients(True)
    trainer.state.max_steps = 100
    batch = make_loss_batch()
    empty = {
        **batch,
        "completion_mask": torch.zeros_like(batch["completion_mask"]),
        "num_items_in_batch": torch.tensor(0),
    }
    seen = []
    for step in range(9):
        trainer.state.global_step = step
        loss_and_gradients(trainer, empty if 2 <= step < 7 else batch)
        seen.append((trainer.entropy_coef, trainer._bonus.controller.integral))
    assert seen[1:7] == [seen[1]] * 6 and seen[7] != seen[6]
    assert trainer._metrics["train"]["entropy_coef"] == [coef for coef, _ in seen]


@pytest.mark.parametrize("truncated", [[True, False, False], [False, True, False]])
def test_law_is_not_alarmed_by_truncated_completions(make_trainer, truncated):
    """TRL logs an entropy of 0 for a window without a valid token."""
    trainer = make_trainer(
        callbacks=[EntropyLawCallback(stop=True)], mask_truncated_completions=True, max_steps=3, learning_rate=0.0
    )
    script, single_turn = iter(truncated), trainer._generate_single_turn

    def generate(prompts, *args, **kwargs):
        ids, logps = single_turn(prompts, *args, **kwargs)
        end = [] if next(script) else [1]
        return [[5, 6, 7, *end] for _ in ids], logps

    trainer._generate_single_turn = generate
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 3 and [row["entropy"] == 0 for row in rows] == truncated
    assert [row["entropy/mean"] is None for row in rows] == truncated
    assert not any(row.get("entropy_law/collapsed") or row.get("entropy_law/exploded") for row in rows)


def test_selection_of_distillation_is_logged_over_its_tokens(tmp_path):
    """TIP by entropies chooses within each row, so that what it logs does not depend on the split."""
    batch, lines = make_batch(lengths=(6, 3, 1, 5)), []
    for splits in (1, 2, 4):
        trainer = build_distiller(
            EntropyDistillationTrainer,
            EntropyDistillationConfig,
            tmp_path,
            gradient_accumulation_steps=splits,
            tip_rule="entropy",
        )
        trainer.model.train()
        for start in range(0, 4, 4 // splits):
            part = {k: v if v.dim() == 0 else v[start : start + 4 // splits] for k, v in batch.items()}
            trainer.compute_loss(trainer.model, part).backward()
        trainer.log({})
        lines.append({key: value for key, value in trainer.state.log_history[-1].items() if key in OF_TOKENS})
    assert lines[0].keys() == OF_TOKENS
    assert lines[1] == pytest.approx(lines[0], rel=1e-5) and lines[2] == pytest.approx(lines[0], rel=1e-5)
