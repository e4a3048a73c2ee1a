# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Models that mask tokens of their vocabulary by a bias: each trainer computes as without these tokens."""

import pytest
import torch
from support.distilling import TEACHER, build_distiller, make_batch
from support.self_distillation import OURS, STOCK, TEXTS, reward, texts
from support.tensors import make_loss_batch
from support.tiny import FLOAT32, TRAINING, build_model, build_tokenizer, loss_and_gradients
from trl import DistillationConfig, DistillationTrainer

from trl_entropy import EntropyDistillationConfig, EntropyDistillationTrainer


KEPT = 20  # of 24 words
MASKS = {"-inf": -torch.inf, "lowest": torch.finfo(torch.float32).min}  # the second overflows at a temperature below 1


def masked(value, **overrides):
    """A model whose last words have the bias `value`, or are cut from its head if it is `None`."""
    model = build_model(**overrides)
    head = torch.nn.Linear(model.config.hidden_size, 24 if value is not None else KEPT)
    head.weight.data = model.lm_head.weight.data[: head.out_features].clone()
    head.bias.data = torch.linspace(-0.5, 0.5, 24)[: head.out_features].clone()
    head.bias.data[KEPT:] = value or 0.0
    model.lm_head = head
    return model


def without_masked(batch):
    """The batch with no masked word in it."""
    return {key: value.clamp(max=KEPT - 1) if key.endswith("ids") else value for key, value in batch.items()}


def compare(found, expected):
    """(loss, gradients) of a model with masked words and of the model without them."""
    for name in ("lm_head.weight", "lm_head.bias"):
        assert found[1][name][KEPT:].abs().max() == 0
        found[1][name] = found[1][name][:KEPT]
    torch.testing.assert_close(found, expected, **FLOAT32)
    assert expected[0] != 0 and expected[1]["lm_head.bias"].abs().max() > 0


GRPO = {
    "bonus": dict(entropy_coef=0.3),
    "adaptive bonus": dict(use_adaptive_entropy=True, entropy_target=5.0, entropy_coef=0.3),
    "80/20": dict(entropy_coef=0.3, top_entropy_quantile=0.5),
    "epo": dict(methods=["epo"], epo_coef=0.3),
}


@pytest.mark.parametrize("fused_head", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("run", GRPO)
def test_grpo(make_trainer, run, mask, fused_head):
    batch, settings = without_masked(make_loss_batch()), dict(temperature=0.7, **GRPO[run])
    trainer = make_trainer(model=masked(MASKS[mask]), fused_head=fused_head, **settings)
    reference = make_trainer(model=masked(None), stock="methods" not in settings, **settings)
    compare(loss_and_gradients(trainer, batch), loss_and_gradients(reference, batch))
    entropies = [found._metrics["train"]["entropy"] for found in (trainer, reference)]
    assert entropies[0] == pytest.approx(entropies[1], rel=1e-5) and 1 < entropies[0][0] < 3


@pytest.mark.parametrize("fused_head", [False, True])
def test_grpo_trains(make_trainer, fused_head):
    trainer = make_trainer(model=masked(-torch.inf), fused_head=fused_head, entropy_coef=0.1, max_steps=3)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 3 and all(1 < row["entropy"] < 3 and row["grad_norm"] > 0 for row in rows)
    assert trainer.model.lm_head.bias[KEPT:].isneginf().all()
    assert all(value.isfinite().all() for name, value in trainer.model.named_parameters() if name != "lm_head.bias")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_distillation(tmp_path, beta, mask, training):
    batch, found = without_masked(make_batch()), []
    for ours in (True, False):
        value = MASKS[mask] if ours else None
        classes = (EntropyDistillationTrainer, EntropyDistillationConfig)
        classes = classes if ours else (DistillationTrainer, DistillationConfig)
        settings = dict(beta=beta, temperature=0.7, **(dict(tip_rule="none") if ours else {}))
        models = dict(model=masked(value), teacher=masked(value, **TEACHER))
        trainer = build_distiller(*classes, tmp_path, **models, **settings)
        trainer.model.train(training)
        if training:
            found.append(loss_and_gradients(trainer, batch))
        else:
            with torch.no_grad():
                found.append(trainer.compute_loss(trainer.model, batch))
        entropies = trainer._metrics["train" if training else "eval"]["entropy"]
        assert len(entropies) == 1 and 1 < entropies[0] < 3
    if training:
        compare(*found)
    else:
        torch.testing.assert_close(*found, **FLOAT32)


EXPERIMENTAL = {
    "GKD": ("GKD", {}),
    "GKD, JSD": ("GKD", dict(beta=0.5)),
    "GKD, forward KL": ("GKD", dict(beta=0.0)),
    "SDFT": ("SDFT", {}),
    "SDFT, JSD": ("SDFT", dict(distillation_alpha=0.5)),
    "SDFT, top-k": ("SDFT", dict(distillation_mode="topk_logits", distillation_topk=5, distillation_alpha=0.5)),
    "SDPO": ("SDPO", dict(distillation_weight=0.7)),
}


def build_experimental(name, stock, value, folder, **settings):
    trainer_class, config_class = STOCK[name] if stock else OURS[name]
    extra = {"GKD": dict(teacher_model=masked(value, **TEACHER)), "SDPO": dict(reward_funcs=reward)}
    sizes = dict(per_device_train_batch_size=4, per_device_eval_batch_size=4, max_steps=2, learning_rate=0.05)
    trainer = trainer_class(
        model=masked(value),
        args=config_class(str(folder), **sizes, **TRAINING, seed=7, **{**TEXTS[name], **settings}),
        train_dataset=texts(),
        processing_class=build_tokenizer(),
        **extra.get(name, {}),
    )
    trainer.model.train()
    return trainer


def inputs_of(name):
    batch = without_masked(make_batch(tools=False))
    ids, mask = (torch.cat([batch[f"prompt_{kind}"], batch[f"completion_{kind}"]], 1) for kind in ("ids", "mask"))
    if name == "GKD":
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :3] = -100
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}
    hint = torch.randint(2, KEPT, (len(ids), 2), generator=torch.Generator().manual_seed(4))
    teacher = {"ids": torch.cat([hint, ids], 1), "mask": torch.cat([torch.ones_like(hint), mask], 1)}
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5])
    extra = dict(teacher_input_ids=teacher["ids"], teacher_attention_mask=teacher["mask"], advantages=advantages)
    return batch | extra


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("run", EXPERIMENTAL)
def test_experimental_trainers_on_all_tokens(tmp_path, run, mask):
    name, settings = EXPERIMENTAL[run]
    settings = settings | ({} if name == "GKD" else dict(temperature=0.7))
    ours = build_experimental(name, False, MASKS[mask], tmp_path, tip_rule="none", **settings)
    reference = build_experimental(name, True, None, tmp_path, **settings)
    found = [loss_and_gradients(trainer, inputs_of(name)) for trainer in (ours, reference)]
    compare(*found)
    with torch.no_grad():
        losses = [trainer.compute_loss(trainer.model.eval(), inputs_of(name)) for trainer in (ours, reference)]
    torch.testing.assert_close(*losses, **FLOAT32)


@pytest.mark.parametrize("run", EXPERIMENTAL)
def test_experimental_trainers_on_half_of_the_tokens(tmp_path, run):
    name, settings = EXPERIMENTAL[run]
    found, logged = [], []
    for value in (-torch.inf, None):
        trainer = build_experimental(name, False, value, tmp_path, **settings)
        found.append(loss_and_gradients(trainer, inputs_of(name)))
        logged.append({key: values for key, values in trainer._metrics["train"].items() if key.startswith("tip/")})
    compare(*found)
    assert logged[0] == {key: pytest.approx(values, rel=1e-4, abs=1e-6) for key, values in logged[1].items()}
    assert logged[0]["tip/nonfinite_tokens"] == [0] and 0 < logged[0]["tip/kept_fraction"][0] < 0.8


@pytest.mark.parametrize("name", OURS)
def test_logits_are_copied_only_if_some_are_masked(tmp_path, name):
    for value, copied in ((None, False), (-torch.inf, True)):
        trainer = build_experimental(name, False, value, tmp_path)
        loss_and_gradients(trainer, inputs_of(name))
        assert list(trainer._masked.values()) == [copied] * 2
