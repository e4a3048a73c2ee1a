# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Kinds of weights in a model: candidates, routers, stacks of experts, and parts for other modalities."""

import pytest
import torch
import transformers
from support.tiny import build_model, build_moe
from torch import nn

from trl_entropy.kappa.inventory import layers_of
from trl_entropy.kappa.selection import Selection


SIZES = dict(
    vocab_size=24,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)
LOW_RANK = dict(q_lora_rank=4, kv_lora_rank=4, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=4)


def empty(name, **settings):
    """A model of transformers without data."""
    architecture = getattr(transformers, name)
    with torch.device("meta"):
        return architecture(architecture.config_class(**settings))


def gemma4():
    with torch.device("meta"):
        sizes = dict(num_experts=3, top_k_experts=1, moe_intermediate_size=8, hidden_size_per_layer_input=8)
        return transformers.Gemma4ForCausalLM(
            transformers.Gemma4TextConfig(**SIZES, enable_moe_block=True, vocab_size_per_layer_input=24, **sizes)
        )


def jetmoe():
    sizes = dict(num_local_experts=3, num_experts_per_tok=2, kv_channels=8, num_key_value_heads=1)
    return empty("JetMoeForCausalLM", **{**SIZES, **sizes})


def longcat():
    sizes = dict(ffn_hidden_size=24, expert_ffn_hidden_size=8, n_routed_experts=3, moe_topk=1, zero_expert_num=0)
    return empty("LongcatFlashForCausalLM", **{**SIZES, "num_hidden_layers": 2}, **sizes, **LOW_RANK)


def of_kind(model, *kinds):
    return {layer.name.removeprefix("model.layers.0.") for layer in layers_of(model) if layer.kind in kinds}


@pytest.mark.parametrize(
    "make, routers, experts",
    [
        (gemma4, {"router.proj"}, {"experts.gate_up_proj", "experts.down_proj"}),
        (
            jetmoe,
            {"mlp.router.layer", "self_attention.experts.router.layer"},
            {
                f"{block}.{side}_linear.weight"
                for block in ("mlp", "self_attention.experts")
                for side in ("input", "output")
            },
        ),
        (longcat, {"mlp.router.classifier"}, {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}),
    ],
)
def test_routers_and_experts_whatever_they_are_called(make, routers, experts):
    model = make()
    assert of_kind(model, "router") == routers and of_kind(model, "experts") == experts
    linear = of_kind(model, "linear")
    assert linear and not any("router" in name or "classifier" in name for name in linear)
    assert all(name in linear for name in ("mlp.gate_proj", "per_layer_input_gate")) == (make is gemma4)


class TopKGating(nn.Module):
    """A router that only its type identifies."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)


def test_other_parts_named_alike_are_none():
    model = build_model()
    block = model.model.layers[0].mlp
    block.choose, block.gating, block.gate_bias = TopKGating(), nn.Linear(4, 4), nn.Linear(4, 4)
    block.conv1d, block.conv = nn.Conv1d(4, 1, 3), nn.Conv1d(6, 4, 3)
    block.position_embeddings_weight = nn.Parameter(torch.ones(2, 4, 4))
    block.A_log, block.depthwise_weight = nn.Parameter(torch.ones(2, 4, 4)), nn.Parameter(torch.ones(6, 1, 4))
    block.block_weight = nn.Parameter(torch.ones(2, 4, 4))
    assert of_kind(model, "router") == {"mlp.choose.layer"}
    assert of_kind(model, "experts") == {"mlp.block_weight"}
    assert {"mlp.gating", "mlp.gate_bias", "mlp.gate_proj"} < of_kind(model, "linear")


TEXT = {**SIZES, "pad_token_id": 0}
VISION = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
)


def smolvlm():
    return empty("SmolVLMForConditionalGeneration", text_config=dict(**TEXT, model_type="llama"), vision_config=VISION)


def blip2():
    formers = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=24)
    text = dict(
        model_type="opt",
        vocab_size=24,
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=24,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    return empty("Blip2ForConditionalGeneration", vision_config=VISION, qformer_config=formers, text_config=text)


def gemma4_with_vision():
    text = dict(**SIZES, hidden_size_per_layer_input=8, vocab_size_per_layer_input=24)
    return empty("Gemma4ForConditionalGeneration", text_config=text, vision_config={**VISION, "head_dim": 8})


@pytest.mark.parametrize(
    "make, towers, inside",
    [
        (smolvlm, ["model.connector.modality_projection.proj"], "model.text_model."),
        (blip2, ["language_projection", "qformer.encoder.layer.0.attention.attention.key"], "language_model."),
        (gemma4_with_vision, ["model.embed_vision.embedding_projection"], "model.language_model."),
    ],
)
def test_what_lies_outside_the_language_model_is_a_tower(make, towers, inside):
    layers = layers_of(make())
    kinds = {layer.name: layer.kind for layer in layers}
    assert [kinds[name] for name in towers] == ["tower"] * len(towers)
    candidates = [layer.name for layer in filter(Selection().candidate, layers)]
    assert candidates and all(name.startswith(inside) for name in candidates)
    assert any("per_layer_projection" in name for name in candidates) == (make is gemma4_with_vision)


def test_names_decide_where_the_model_does_not_tell():
    model = build_model()
    model.connector, model.aligner, model.model.lm_head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    kinds = {layer.name: layer.kind for layer in layers_of(model)}
    assert (kinds["connector"], kinds["aligner"], kinds["model.lm_head"]) == ("tower", "linear", "head")


def test_inventory_names_every_kind():
    kinds = {layer.name: layer.kind for layer in layers_of(build_moe())}
    assert kinds["lm_head"] == "head" and kinds["model.embed_tokens"] == "embedding"
    assert kinds["model.layers.0.mlp.experts.down_proj"] == "experts"
    assert {kind for name, kind in kinds.items() if "mlp.gate" in name} == {"router"}
    tied = layers_of(build_model(tie_word_embeddings=True))
    assert "lm_head" not in {layer.name for layer in tied}
