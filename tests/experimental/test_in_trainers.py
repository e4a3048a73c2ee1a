# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the page shows, in TRL's trainer: converted weights are trained and folded back, the penalty joins the loss."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from support.tiny import build_model, build_tokenizer
from trl import SFTConfig, SFTTrainer

from trl_entropy.experimental import attention_penalty, ldr, sigma_reparam
from trl_entropy.experimental.attention_penalty import AttentionPenalty
from trl_entropy.experimental.sigma_reparam import apply_sigma_reparam, remove_sigma_reparam


ROWS = {"text": ["w3 w4 w5 w6", "w7 w8", "w9 w3 w4", "w5 w5 w6"] * 3}


def build(trainer_class, model, folder, **settings):
    config = SFTConfig(
        str(folder), logging_steps=1, use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
        per_device_train_batch_size=2, learning_rate=0.02, disable_tqdm=True, **{"max_steps": 2, **settings},
    )  # fmt: skip
    rows = Dataset.from_dict(ROWS)
    return trainer_class(model, config, train_dataset=rows, processing_class=build_tokenizer())


def test_converted_weights_are_trained_saved_and_folded_back(tmp_path):
    model = build_model()
    names = apply_sigma_reparam(model)
    start = {name: weight.detach().clone() for name, weight in model.named_parameters() if "q_proj" in name}
    trainer = build(SFTTrainer, model, tmp_path, save_steps=1, gradient_accumulation_steps=2)
    trainer.train()
    assert len(start) == 6  # weight, bias and γ of two layers
    for name, weight in model.named_parameters():
        assert name not in start or not weight.equal(start[name]), name
    assert (tmp_path / "checkpoint-1").exists()
    ids = torch.tensor([[3, 4, 5]])
    trained = model.eval()(ids).logits
    assert remove_sigma_reparam(model) == names
    trainer.save_model(str(tmp_path / "end"))
    again = type(model).from_pretrained(tmp_path / "end").eval()
    torch.testing.assert_close(again(ids).logits, trained, rtol=1e-5, atol=1e-5)


class Penalized(SFTTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with self.penalty.watching(inputs["attention_mask"]):
            loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        return loss + self.penalty.loss() / self.args.gradient_accumulation_steps


def test_penalty_joins_the_loss(tmp_path):
    losses, steps = {}, 2
    for coef in (0.0, 0.5):
        trainer = build(Penalized, build_model(), tmp_path / str(coef), gradient_accumulation_steps=steps, max_steps=1)
        trainer.penalty = AttentionPenalty(trainer.model, coef=coef, threshold=1.0)
        terms, own = [], trainer.penalty.loss
        trainer.penalty.loss = lambda own=own, terms=terms: terms.append(own()) or terms[-1]
        trainer.train()
        losses[coef] = trainer.state.log_history[0]["loss"], torch.stack(terms).mean().item(), len(terms)
    (plain, nothing, count), (guided, term, _) = losses.values()
    assert count == steps and nothing == 0 and term > 0.01
    assert guided == pytest.approx(plain + term, rel=1e-4)


def test_page_says_what_there_is():
    page = (Path(__file__).parents[2] / "docs" / "experimental.md").read_text()
    for module in (attention_penalty, ldr, sigma_reparam):
        assert module.PAPER.url in page and f"from {module.__name__} import " in page
