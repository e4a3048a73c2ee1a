# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Fused heads against plain logits: the comparison refuses models with logits of their own, and leaves no trace."""

import copy

import peft
import pytest
import torch
import transformers
from support.distilling import build_distiller
from support.tiny import EXACT, build_model, build_trainer
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from trl_entropy import (
    EntropyDistillationConfig,
    EntropyDistillationTrainer,
    EntropyGRPOConfig,
    EntropyGRPOTrainer,
)
from trl_entropy.head import add_entropy_head, agreement, check_head


SIZES = dict(
    vocab_size=24,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    initializer_range=0.5,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=1,
)
HEADS = {
    "ours": add_entropy_head,
    "TRL's": lambda model, temperature: add_fused_lm_head(model, temperature, outputs=("log_probs", "entropy")),
    "none": lambda model, temperature: None,
}


def causal(config, dtype=torch.float32):
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    return transformers.AutoModelForCausalLM.from_config(config).to(dtype)


def recurrent():
    """Its cap of the logits has another name than the one that TRL reads."""
    config = dict(SIZES, num_hidden_layers=3, lru_width=16, attention_window_size=16, head_dim=8, logits_soft_cap=2.0)
    return causal(transformers.RecurrentGemmaConfig(**config, num_key_value_heads=1))


def modern():
    """It has a layer between the backbone and the projection."""
    return causal(transformers.ModernBertDecoderConfig(**SIZES, max_position_embeddings=64))


UNKNOWN = {"RecurrentGemmaForCausalLM": recurrent, "ModernBertDecoderForCausalLM": modern}
KNOWN = {
    "plain": build_model,
    "tied": lambda: build_model(tie_word_embeddings=True),
    "soft cap": lambda: causal(
        transformers.Gemma2Config(**SIZES, head_dim=8, num_key_value_heads=2, final_logit_softcapping=3.0)
    ),
    "scale": lambda: causal(transformers.CohereConfig(**SIZES, logit_scale=0.4)),
    "scaling": lambda: causal(transformers.GraniteConfig(**SIZES, logits_scaling=3.0)),
    "masked": lambda: with_masked_words(build_model()),
    "adapter": lambda: peft.get_peft_model(build_model(), peft.LoraConfig(r=2, target_modules=["q_proj"])),
}
REFUSED = r"`{}` must be a model whose logits .*, got `{}`: .* differ from those of its plain logits by \d[\d.]* nats"


def with_masked_words(model):
    head = torch.nn.Linear(16, 24)
    head.weight.data = model.lm_head.weight.data.clone()
    head.bias.data.zero_()[5:] = -torch.inf
    model.lm_head = head
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", KNOWN)
def test_heads_that_agree(name, head, dtype, recwarn):
    model = KNOWN[name]().to(dtype)
    HEADS[head](model.get_base_model() if name == "adapter" else model, temperature=0.7)
    check_head(model, 0.7)
    assert not [warning for warning in recwarn if "not compared" in str(warning.message)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", UNKNOWN)
def test_heads_that_differ(name, head, dtype):
    model = UNKNOWN[name]().to(dtype)
    HEADS[head](model, temperature=0.7)
    with pytest.raises(ValueError, match=REFUSED.format("model", name)):
        check_head(model, 0.7)


def test_another_temperature_is_found():
    model = build_model()
    add_entropy_head(model, temperature=0.9)
    with pytest.raises(ValueError, match=REFUSED.format("model", "Qwen2ForCausalLM")):
        check_head(model, 1.0)


@pytest.mark.parametrize("head", HEADS)
def test_no_trace(head):
    """Not in modes, which may differ, random state, weights, gradients or attributes."""
    model = build_model(attention_dropout=0.5)
    HEADS[head](model, temperature=1.0)
    model.train()
    model.model.layers[1].eval()
    modes, attributes = [module.training for module in model.modules()], dict(vars(model))
    weights, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    check_head(model)
    assert modes == [module.training for module in model.modules()] and vars(model) == attributes
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), dict(weights), **EXACT)
    assert torch.equal(torch.get_rng_state(), random)
    assert model(input_ids=torch.tensor([[3, 4]])).logits.requires_grad


def test_a_model_that_takes_no_text_alone_is_not_refused():
    model = build_model()
    model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("needs images")))
    with pytest.warns(UserWarning, match="`Qwen2ForCausalLM` was not compared .* failed: needs images"):
        check_head(model)


def test_order_of_plain_forwards_is_forgotten_before_the_fused_one(monkeypatch):
    """ZeRO-3 would gather the weight of the head ahead, which the fused head gathers itself."""
    model, seen = build_model(), []
    add_entropy_head(model, 1.0)
    forward = model.forward
    model.forward = lambda *args, fused_lm_head=False, **kwargs: (
        seen.append("fused" if fused_lm_head else "plain"),
        forward(*args, fused_lm_head=fused_lm_head, **kwargs),
    )[1]
    monkeypatch.setattr(agreement, "_has_head", lambda model: True)
    monkeypatch.setattr(agreement, "forget_order", lambda model: seen.append("forgotten"))
    check_head(model)
    assert seen == ["plain", "plain", "forgotten", "fused"]


# In trainers


@pytest.mark.parametrize("fused_head", [True, False])
@pytest.mark.parametrize("name", UNKNOWN)
def test_grpo_refuses_at_construction(tmp_path, name, fused_head):
    with pytest.raises(ValueError, match=REFUSED.format("model", name)):
        build_trainer(EntropyGRPOTrainer, EntropyGRPOConfig, tmp_path, model=UNKNOWN[name](), fused_head=fused_head)


@pytest.mark.parametrize("field", ["model", "teacher_model"])
@pytest.mark.parametrize("name", UNKNOWN)
def test_distillation_refuses_either_model(tmp_path, name, field):
    models = {"model": None, "teacher": None, field.removesuffix("_model"): UNKNOWN[name]()}
    with pytest.raises(ValueError, match=REFUSED.format(field, name)):
        build_distiller(EntropyDistillationTrainer, EntropyDistillationConfig, tmp_path, **models)


def test_construction_draws_no_random_number(tmp_path):
    """With dropout, losses after it are TRL's to the bit."""
    losses = []
    for trainer_class, config_class, settings in (
        (GRPOTrainer, GRPOConfig, {}),
        (EntropyGRPOTrainer, EntropyGRPOConfig, dict(fused_head=False)),
    ):
        trainer = build_trainer(
            trainer_class, config_class, tmp_path, model=build_model(attention_dropout=0.3).train(), **settings
        )
        losses.append((torch.rand(3), trainer.model.training))
    torch.testing.assert_close(losses[1], losses[0], **EXACT)


@pytest.mark.parametrize("kind", ["grpo", "distillation"])
def test_sharded_models_are_compared_at_their_first_forward(tmp_path, monkeypatch, kind):
    trainers = f"trl_entropy.trainers.{kind}"
    monkeypatch.setattr(f"{trainers}.is_sharded", lambda *_: True)
    if kind == "grpo":
        trainer = build_trainer(EntropyGRPOTrainer, EntropyGRPOConfig, tmp_path, model=recurrent())
    else:
        trainer = build_distiller(EntropyDistillationTrainer, EntropyDistillationConfig, tmp_path, model=recurrent())
    with pytest.raises(ValueError, match=REFUSED.format("model", "RecurrentGemmaForCausalLM")):
        trainer.train()


@pytest.mark.parametrize("gathers", [True, False])
@pytest.mark.parametrize("kind", ["grpo", "distillation"])
def test_order_of_a_generation_in_pieces_is_forgotten(tmp_path, monkeypatch, kind, gathers):
    """If TRL gathers all weights for it, it has the order forgotten itself."""
    forgotten, settings = [], dict(max_steps=2, ds3_gather_for_generation=gathers)
    monkeypatch.setattr(f"trl_entropy.trainers.{kind}.forget_order", forgotten.append)
    if kind == "grpo":
        trainer = build_trainer(EntropyGRPOTrainer, EntropyGRPOConfig, tmp_path, **settings)
    else:
        trainer = build_distiller(EntropyDistillationTrainer, EntropyDistillationConfig, tmp_path, **settings)
    trainer.train()
    assert forgotten == ([] if gathers else [trainer.model_wrapped] * 2)
