# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import json
import math
from dataclasses import replace

import pytest
import torch
from support.tensors import random_tokens
from support.tiny import loss_and_gradients

from trl_entropy.trainers.forecast import EntropyForecast
from trl_entropy.trainers.metrics import entropy_metrics


def test_forecast_is_the_first_order_change_of_a_tabular_softmax():
    """The worked example: the measured entropy change of a step of 1e-5 on each token's own logits."""
    logits = torch.tensor([[2, 1, 0, -1], [0.5, 0.4, 0.3, 0.2], [4, 0, -1, -2]], dtype=torch.float64)
    old = torch.tensor([[1.8, 1, 0, -1], [0.5, 0.4, 0.2, 0.2], [4, 0.3, -1, -2]], dtype=torch.float64)
    picks, advantages = torch.tensor([[0], [2], [1]]), torch.tensor([[1.0, 1, -1]], dtype=torch.float64)
    policy = logits.log_softmax(-1)
    logps, old_logps = policy.gather(1, picks).T, old.log_softmax(-1).gather(1, picks).T

    def entropy_of(z):
        return -(z.softmax(-1) * z.log_softmax(-1)).sum(-1)

    ratio = (logps - old_logps).exp()
    leaf = logits.clone().requires_grad_()
    objective = (leaf.log_softmax(-1).gather(1, picks).T - old_logps).exp() * advantages
    (gradient,) = torch.autograd.grad(objective.sum(), leaf)
    measured = (entropy_of(logits + 1e-5 * gradient) - entropy_of(logits)) / 1e-5
    tokens = replace(
        random_tokens(rows=1, length=3),
        logps=logps,
        old_logps=old_logps,
        entropy=entropy_of(logits)[None],
        advantages=advantages,
        ratio=ratio,
        mask=torch.ones(1, 3, dtype=torch.bool),
        sum_sq_probs=policy.exp().square().sum(-1)[None],
        sum_sq_probs_log_probs=(policy.exp().square() * policy).sum(-1)[None],
        clip_low=-math.inf,
        clip_high=math.inf,
    )
    forecast = EntropyForecast()
    assert forecast.update(tokens) == {}
    logged = forecast.update(replace(tokens, draw=(0, 1, 0)))
    assert logged["entropy/predicted_change"] == pytest.approx(measured.mean().item(), abs=1e-6)
    expected = torch.tensor([-0.1703169443, 0.0192991586, -0.1341795518], dtype=torch.float64)
    assert logged["entropy/predicted_change"] == pytest.approx(expected.mean().item(), abs=1e-9)
    assert logged["entropy/predicted_change_positive"] == pytest.approx(expected[:2].sum().item() / 3, abs=1e-9)
    assert logged["entropy/predicted_change_negative"] == pytest.approx(expected[2].item() / 3, abs=1e-9)


def test_realized_change_and_correlation():
    forecast, rows, state = EntropyForecast(), [], None
    batches = [random_tokens(seed=seed) for seed in range(6)]
    for step, batch in enumerate(batches):
        rows.append(forecast.update(replace(batch, draw=(0, step, 0))))
        if step == 3:
            state = json.loads(json.dumps(forecast.state_dict()))
    means = [batch.entropy[batch.mask].mean().item() for batch in batches]
    realized = [row["entropy/realized_change"] for row in rows[2:]]
    assert realized == pytest.approx([means[i] - means[i - 1] for i in (1, 2, 3, 4)])
    predicted = [row["entropy/predicted_change"] for row in rows[1:5]]  # step k forecasts the change after it
    expected = torch.corrcoef(torch.tensor([predicted, realized], dtype=torch.float64))[0, 1].item()
    assert rows[5]["entropy/change_correlation"] == pytest.approx(expected)
    assert math.isnan(rows[3]["entropy/change_correlation"])  # two points always lie on a line
    resumed = EntropyForecast()
    resumed.load_state_dict(state)
    for step in (4, 5):
        assert resumed.update(replace(batches[step], draw=(0, step, 0))) == rows[step]


@pytest.mark.parametrize("settings", [dict(entropy_forecast=True), dict(methods=["steer"], steer_omega="exact")])
def test_training_logs_it(make_trainer, settings):
    trainer = make_trainer(max_steps=5, steps_per_generation=2, **settings)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert "entropy/predicted_change" not in rows[0]
    assert rows[4]["entropy/realized_change"] == pytest.approx(rows[3]["entropy"] - rows[2]["entropy"], abs=1e-5)
    parts = rows[3]["entropy/predicted_change_positive"] + rows[3]["entropy/predicted_change_negative"]
    assert rows[3]["entropy/predicted_change"] == pytest.approx(parts, abs=1e-6)
    assert -1 <= rows[4]["entropy/change_correlation"] <= 1


def test_off_by_default(make_trainer):
    trainer = make_trainer(max_steps=3)
    trainer.train()
    assert not any("predicted" in key for row in trainer.state.log_history for key in row)


def test_tsallis_entropy_comes_with_the_second_moments(make_trainer):
    """1 - Σp² of the worked example, and of a forward of the loss; without Σp² it is not computed."""
    probs = torch.tensor([0.7, 0.1, 0.1, 0.1], dtype=torch.float64)
    tokens = random_tokens(rows=1, length=2)
    example = replace(tokens, sum_sq_probs=probs.square().sum().expand(1, 2))
    logged = entropy_metrics(example, tokens.advantages)["entropy/tsallis_2"]
    torch.testing.assert_close(logged, torch.full((1, 2), 0.48, dtype=torch.float64), rtol=0, atol=1e-9)

    trainer = make_trainer(entropy_forecast=True, temperature=0.7)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    loss_and_gradients(trainer, batch)
    (found,) = trainer._metrics["train"]["entropy/tsallis_2"]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():
        logits = trainer.model(ids, attention_mask=mask).logits[:, -batch["completion_ids"].size(1) - 1 : -1]
    index = 1 - (logits / 0.7).softmax(-1).square().sum(-1)
    assert float(found) == pytest.approx(index[batch["completion_mask"].bool()].mean().item(), rel=1e-5)

    plain = make_trainer()
    loss_and_gradients(plain, plain._prepare_inputs(next(iter(plain.get_train_dataloader()))))
    assert "entropy/tsallis_2" not in plain._metrics["train"] and "entropy/mean" in plain._metrics["train"]
