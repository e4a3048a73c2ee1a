# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters sit on exactly the selected weights and act, or are refused with the names of these weights."""

import logging

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from support.tiny import EXACT, build_model, build_moe
from torch import nn

from trl_entropy import kappa_peft_config
from trl_entropy.kappa.direct import directly_read
from trl_entropy.kappa.inventory import layers_of
from trl_entropy.kappa.selection import Selection
from trl_entropy.kappa.sources import LiveSource
from trl_entropy.kappa.targets import adapted, check_adapters


pytestmark = pytest.mark.usefixtures("cache_folder")

SIZES = dict(
    vocab_size=24,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
    num_experts_per_tok=2,
    moe_intermediate_size=8,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=None,
)


def qwen3_moe():
    return build_moe(mlp_only_layers=[0])


def qwen2_moe():
    torch.manual_seed(0)
    config = transformers.Qwen2MoeConfig(**SIZES, num_experts=3, shared_expert_intermediate_size=8)
    return transformers.Qwen2MoeForCausalLM(config)


def glm4_moe():
    torch.manual_seed(0)
    sizes = dict(n_routed_experts=3, n_group=1, topk_group=1, first_k_dense_replace=1, head_dim=8)
    return transformers.Glm4MoeForCausalLM(transformers.Glm4MoeConfig(**SIZES, **sizes))


def mamba():
    torch.manual_seed(0)
    sizes = dict(vocab_size=24, hidden_size=64, num_hidden_layers=2, state_size=4, pad_token_id=0)
    return transformers.MambaForCausalLM(transformers.MambaConfig(**sizes, eos_token_id=1, bos_token_id=None))


def logits_of(model):
    return model(input_ids=torch.arange(2, 10)[None]).logits


@pytest.mark.parametrize(
    "make, target",
    [
        (qwen3_moe, "model.layers.0.mlp.down_proj"),
        (qwen3_moe, "model.layers.0.mlp.gate_proj"),
        (qwen3_moe, "model.layers.1.mlp.experts.down_proj"),
        (qwen3_moe, "model.layers.1.self_attn.q_proj"),
        (qwen2_moe, "model.layers.1.mlp.shared_expert.down_proj"),
        (glm4_moe, "model.layers.1.mlp.shared_experts.down_proj"),
    ],
)
def test_adapter_sits_on_the_selected_weight_acts_and_is_loaded_again(make, target, tmp_path):
    peft_config = kappa_peft_config(make(), LoraConfig(r=2), include=[f"^{target}$"], num_modules=1)
    (chosen,) = [layer for layer in layers_of(make()) if layer.name == target]
    model = get_peft_model(make(), peft_config)
    check_adapters(model, [chosen])
    assert adapted(model).keys() <= {chosen.name, chosen.parameter}
    logits_of(model).square().sum().backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    owner = chosen.parameter.rpartition(".")[0]
    assert trained and all(owner in name and weight.grad is not None for name, weight in trained.items())
    with torch.no_grad():
        for weight in trained.values():
            weight.add_(0.1)
    before, expected = logits_of(make()), logits_of(model)
    assert (expected - before).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(PeftModel.from_pretrained(make(), tmp_path)), expected, **EXACT)


def test_target_of_a_rewritten_name_takes_no_dropout():
    with pytest.raises(ValueError, match="`lora_dropout` of `peft_config` must be 0 if a layer that PEFT targets by"):
        kappa_peft_config(qwen3_moe(), LoraConfig(lora_dropout=0.1), include=["layers.0.mlp.down"], top_p=1)


def test_layers_whose_weights_the_model_reads_directly():
    read = {"x_proj", "dt_proj", "out_proj"}  # by the slow path or by the fast kernels
    assert {name.rpartition(".")[2] for name in directly_read(mamba())} >= read
    candidates = {layer.type.rpartition(".")[2] for layer in layers_of(mamba()) if Selection().candidate(layer)}
    assert candidates == {"in_proj"}
    with pytest.raises(
        ValueError, match=r"Adapters on `backbone.layers.0.mixer.dt_proj` would never act, because the"
    ):
        kappa_peft_config(mamba(), LoraConfig(r=2), include=["layers.0.mixer.dt_proj"], top_p=1)
    assert not directly_read(build_model()) and not directly_read(
        transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=24, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
        )
    )  # T5 reads the type of a weight only


def test_adapters_of_a_directly_read_layer_do_not_act():
    """The reason for the refusal: with such an adapter, nothing depends on a trained weight."""
    model = get_peft_model(mamba(), LoraConfig(r=2, target_modules=["dt_proj"]))
    assert any(weight.requires_grad for weight in model.parameters()) and not logits_of(model).requires_grad


def test_freeze_trains_a_directly_read_layer(make_trainer):
    trainer = make_trainer(model=mamba(), kappa_mode="freeze", kappa_include=["dt_proj"], kappa_num_modules=1)
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    changed = [name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])]
    assert len(changed) == 1 and "dt_proj.weight" in changed[0]


def nested():
    """A model that holds another one, whose names end like its own."""
    model = build_model()
    model.twin = nn.Module()
    model.twin.model = build_model().model
    return model


@pytest.mark.parametrize(
    "make, settings, message",
    [
        (nested, {}, "`twin.model.layers.0.mlp.up_proj` would get an adapter, although it is not selected"),
        (build_model, dict(exclude_modules=["up_proj"]), "`model.layers.0.mlp.up_proj` gets no adapter, although it"),
        (build_model, dict(inference_mode=True), "`model.layers.0.mlp.up_proj` has an adapter that is frozen"),
    ],
)
def test_what_peft_cannot_train_is_refused_by_name(make, settings, message):
    include = [r"^model\.layers\.0\.mlp\.(up|down)_proj"]
    with pytest.raises(ValueError, match="PEFT cannot train exactly the weights that KappaTune selects: .*") as error:
        kappa_peft_config(make(), LoraConfig(r=2, **settings), include=include, num_modules=2)
    assert message in str(error.value)


def quantized():
    model = build_model()
    for layer in model.model.layers:
        weight = layer.mlp.gate_proj.weight.detach()
        layer.mlp.gate_proj.weight = nn.Parameter((weight * 40).to(torch.int8), requires_grad=False)
    return model


def test_adapters_on_a_quantized_model_are_tried_out_without_its_data():
    """The model itself stays as it is."""
    chosen = dict(include=[r"^model\.layers\.0\.mlp\.(up|down)_proj"], num_modules=2)
    model = quantized()
    found = kappa_peft_config(model, LoraConfig(r=2), **chosen)
    assert found.target_modules == {"model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"}
    with pytest.raises(ValueError, match="`model.layers.0.mlp.down_proj` gets no adapter, although it is selected"):
        kappa_peft_config(model, LoraConfig(r=2, exclude_modules=["down_proj"]), **chosen)
    assert not any("lora" in name for name, _ in model.named_modules())
    model.model.layers[0].mlp.spare = nn.Linear(4, 4)  # its config does not say so, and it cannot be tried out
    assert LiveSource(model).skeleton() is None
    assert kappa_peft_config(model, LoraConfig(r=2, exclude_modules=["down_proj"]), **chosen).target_modules


def test_trainer_checks_the_adapters_that_it_was_given(make_trainer, monkeypatch):
    from trl_entropy.kappa import wiring

    monkeypatch.setattr(wiring, "with_targets", lambda given, *_: LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="up_proj.*gets no adapter, although it is selected"):
        make_trainer(kappa_mode="lora", kappa_include=["layers.0.mlp.up"], kappa_top_p=1, peft_config=LoraConfig(r=2))


def test_modules_to_save_train_too():
    peft_config = LoraConfig(r=2, modules_to_save=["lm_head"], bias="lora_only")
    model = get_peft_model(build_model(), kappa_peft_config(build_model(), peft_config, num_modules=2))
    assert any(weight.requires_grad for weight in model.get_base_model().lm_head.parameters())


def test_weights_without_gradient_are_reported(make_trainer, caplog):
    model = build_model()
    model.model.layers[0].mlp.spare = nn.Linear(4, 4, bias=False)
    trainer = make_trainer(model=model, kappa_mode="freeze", kappa_include=["spare", "layers.1.mlp.up"], kappa_top_p=1)
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        trainer.train()
    (shown,) = [record.getMessage() for record in caplog.records if "no gradient" in record.getMessage()]
    assert "1 of 2 selected weights got no gradient in the first update: model.layers.0.mlp.spare." in shown
