# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""With no method on, `EntropyGRPOTrainer` is `GRPOTrainer`: to the bit with TRL's head, to rounding with ours."""

import pytest
import torch
from support.tensors import make_loss_batch
from support.tiny import EXACT, FLOAT32, LOSS_TYPES, build_dataset, build_model, loss_and_gradients


def old_logps(batch, spread=0.4):
    noise = torch.randn(batch["completion_ids"].shape, generator=torch.Generator().manual_seed(5))
    return -2.0 + spread * noise


@pytest.mark.parametrize("fused_head", [False, True], ids=["stock_head", "fused_head"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("off_policy", [True, False], ids=["off_policy", "on_policy"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradients_are_those_of_trl(make_trainer, loss_type, off_policy, training, fused_head):
    batch = make_loss_batch()
    if off_policy:
        batch["old_per_token_logps"] = old_logps(batch)
    results = []
    for stock in (True, False):
        ours = {} if stock else dict(fused_head=fused_head)
        trainer = make_trainer(stock=stock, loss_type=loss_type, model=build_model(), entropy_coef=0.01, **ours)
        trainer.model.train(training)
        results.append(loss_and_gradients(trainer, batch))
    (stock_loss, stock_gradients), (loss, gradients) = results
    assert stock_loss.item() != 0
    # Our head accumulates entropies relative to the largest logit, which rounds them differently.
    torch.testing.assert_close(loss, stock_loss, **(FLOAT32 if fused_head else EXACT))
    torch.testing.assert_close(gradients, stock_gradients, **(FLOAT32 if fused_head else EXACT))


@pytest.mark.parametrize(
    "accumulation, settings",
    [
        (1, dict()),
        (2, dict()),
        (2, dict(top_entropy_quantile=0.5, beta=0.1)),
        (1, dict(use_adaptive_entropy=True)),
        pytest.param(1, dict(top_entropy_quantile=0.5, beta=0.1), marks=pytest.mark.slow),
        pytest.param(2, dict(use_adaptive_entropy=True), marks=pytest.mark.slow),
    ],
)
def test_four_optimizer_steps_are_bit_equal(make_trainer, tmp_path, accumulation, settings):
    if "beta" in settings:  # the reference model is loaded from disk
        build_model().save_pretrained(tmp_path / "model")
    weights, losses = [], []
    for stock in (True, False):
        model = build_model()
        model.config._name_or_path = str(tmp_path / "model")
        trainer = make_trainer(
            stock=stock,
            model=model,
            **({} if stock else dict(fused_head=False)),
            max_steps=4,
            gradient_accumulation_steps=accumulation,
            steps_per_generation=2 * accumulation,
            eval_strategy="steps",
            eval_steps=2,
            per_device_eval_batch_size=4,
            eval_dataset=build_dataset(4),
            **settings,
        )
        trainer.train()
        weights.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
        losses.append([{k: v for k, v in row.items() if k in ("loss", "eval_loss", "grad_norm", "entropy", "reward")}
                       for row in trainer.state.log_history])  # fmt: skip
    torch.testing.assert_close(weights[1], weights[0], **EXACT)
    assert losses[0][:-1] == losses[1][:-1]
    assert sum("eval_loss" in row for row in losses[1]) == 2
    assert not torch.equal(weights[1]["lm_head.weight"], build_model().lm_head.weight)


def test_without_args_it_builds_its_own_config(tmp_path, monkeypatch):
    from support.tiny import build_tokenizer, count_reward

    from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "transformers.training_args.is_torch_bf16_gpu_available", lambda: True
    )  # TRL's default is bf16
    trainer = EntropyGRPOTrainer(
        build_model(), count_reward, None, build_dataset(), processing_class=build_tokenizer()
    )
    assert type(trainer.args) is EntropyGRPOConfig and trainer.args.methods == []


def test_metrics_with_no_method_on(make_trainer):
    trainer = make_trainer(max_steps=1)
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["entropy/quantile_10"] < row["entropy/quantile_50"] < row["entropy/quantile_90"]
    assert row["entropy/quantile_10"] < row["entropy"] < row["entropy/quantile_90"]
    assert row["entropy/positive_advantage_mean"] != row["entropy/negative_advantage_mean"]
