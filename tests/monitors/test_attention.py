# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Entropies of attention heads against a literal map and against the maps of eager models."""

import math
from types import SimpleNamespace

import pytest
import torch
from support.tiny import VOCABULARY
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trl_entropy.monitors.attention import Attention, attention_entropy, query_positions
from trl_entropy.monitors.base import ProbeBatch


SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    pad_token_id=0,
)
MODELS = {
    "grouped queries": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "sliding window": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=5)),
    "softcap": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SHAPE, sliding_window=6, attn_logit_softcapping=0.5, query_pre_attn_scalar=1)
    ),
}
LENGTHS = torch.tensor([12, 5, 1])


def make(name, implementation):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # so that heads attend unevenly
    model.set_attn_implementation(implementation)
    return model


def batch():
    ids = torch.randint(2, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(1))
    return ProbeBatch(ids, LENGTHS)


def fields(**changes):
    return SimpleNamespace(**dict(attention_samples=8, attention_queries=64, attention_skip_first=0) | changes)


def run(model, monitor, found=None):
    probe = batch()
    mask = (torch.arange(12) < LENGTHS[:, None]).long()
    with torch.no_grad(), monitor.collecting(model, probe):
        logits = model(input_ids=probe.input_ids, attention_mask=mask).logits
    return logits, monitor.collected()


def literal(maps, skip=0):
    """Sums over all queries of each sequence, from attention maps: (B, layers * heads) entropies and relative ones."""
    entropies, relative = [], []
    for layer in maps:
        for row, length in enumerate(LENGTHS.tolist()):
            for head in range(layer.size(1)):
                total, share = 0.0, 0.0
                for query in range(length):
                    keys = layer[row, head, query, skip : query + 1].double()
                    keys = keys[keys > 0] / keys.sum()
                    h = -(keys * keys.log()).sum().item() if len(keys) else 0.0
                    total += h
                    share += h / math.log(len(keys)) if len(keys) >= 8 else 0.0
                entropies.append(total)
                relative.append(share)
    shape = (len(maps), len(LENGTHS), maps[0].size(1))
    return tuple(torch.tensor(x).view(shape).transpose(0, 1).flatten(1) for x in (entropies, relative))


@pytest.mark.parametrize(
    ("name", "implementation"),
    [(name, kind) for name in MODELS for kind in ("sdpa", "eager") if (name, kind) != ("softcap", "sdpa")],
)
def test_entropies_are_those_of_eager_maps(name, implementation):
    probe, mask = batch(), (torch.arange(12) < LENGTHS[:, None]).long()
    with torch.no_grad():
        maps = make(name, "eager")(probe.input_ids, attention_mask=mask, output_attentions=True).attentions
        plain = make(name, implementation)(probe.input_ids, attention_mask=mask).logits
    before = dict(ALL_ATTENTION_FUNCTIONS)
    logits, found = run(make(name, implementation), Attention(fields()))
    assert torch.equal(logits, plain) and dict(ALL_ATTENTION_FUNCTIONS) == before
    for skip in (0, 2):
        if skip:
            found = run(make(name, implementation), Attention(fields(attention_skip_first=2)))[1]
        entropies, relative = literal(maps, skip)
        torch.testing.assert_close(found["entropy"].double(), entropies.double(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found["relative"].double(), relative.double(), rtol=1e-4, atol=1e-4)
        assert 0.05 < entropies.std() and (name != "grouped queries" or relative.max() > 1)
        assert found["queries"][:, 0].tolist() == [max(0, length - skip) for length in LENGTHS.tolist()]


def test_worked_example():
    """Rows (1, 0, 0), (.5, .5, 0), (.2, .3, .5) of a causal map."""
    scores = torch.tensor([[1.0, 9, 9], [0.5, 0.5, 9], [0.2, 0.3, 0.5]]).log()
    allowed = torch.ones(3, 3).tril().bool()
    found = attention_entropy(scores, allowed)
    assert found.tolist() == pytest.approx([0, 0.6931471806, 1.0296530141], abs=1e-6)
    assert found.mean().item() == pytest.approx(0.5742667315, abs=1e-6)
    assert (found[1:] / torch.tensor([2.0, 3.0]).log()).tolist() == pytest.approx([1, 0.9372305632], abs=1e-6)
    # Without any key, and with a probability of 0
    assert attention_entropy(scores, torch.zeros(3, 3).bool()).tolist() == [0, 0, 0]
    assert attention_entropy(torch.tensor([[0.0, -torch.inf]]), torch.ones(1, 2).bool()).tolist() == [0]


def test_queries_are_evenly_spaced_and_those_of_short_sequences_are_all_their_own():
    positions, valid = query_positions(torch.tensor([9, 3, 4]), 4)
    assert positions[0].tolist() == [0, 3, 5, 8] and positions[2].tolist() == [0, 1, 2, 3]
    assert positions[1, :3].tolist() == [0, 1, 2] and valid.tolist() == [[True] * 4, [True] * 3 + [False], [True] * 4]


def test_numbers_and_a_map_of_the_heads():
    monitor = Attention(fields())
    monitor._heads = [2, 1]
    rows = {
        "entropy": torch.tensor([[1.0, 4, 0.02], [1, 0, 0.02]]),
        "queries": torch.tensor([[2.0, 2, 2], [2, 2, 2]]),
        "relative": torch.tensor([[0.5, 0.9, 0.01], [0.5, 0.5, 0.01]]),
        "relative_queries": torch.tensor([[1.0, 1, 1], [1, 1, 1]]),
    }
    found = monitor.measure(rows)
    assert found["entropy_mean"] == pytest.approx(6.04 / 12) and found["entropy_min_head"] == pytest.approx(0.01)
    assert found["relative_mean"] == pytest.approx(2.42 / 6) and found["collapsed_heads"] == pytest.approx(1 / 3)
    assert found["relative_p10"] == pytest.approx(0.01 + 0.2 * 0.49)  # of 0.01, 0.5, 0.7
    relative = monitor.arrays()["relative"]
    torch.testing.assert_close(relative[0], torch.tensor([0.5, 0.7]))
    assert relative[1, 0].item() == pytest.approx(0.01) and relative[1, 1].isnan()
    rows["relative_queries"] = torch.zeros(2, 3)
    found = monitor.measure(rows)
    assert math.isnan(found["relative_mean"]) and math.isnan(found["collapsed_heads"])


def test_function_is_restored_after_an_error_and_models_without_one_are_refused():
    model, before = make("grouped queries", "sdpa"), dict(ALL_ATTENTION_FUNCTIONS)
    with pytest.raises(RuntimeError, match="on the way"), Attention(fields()).collecting(model, batch()):
        raise RuntimeError("on the way")
    assert dict(ALL_ATTENTION_FUNCTIONS) == before
    mamba = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(ValueError, match="leave out 'attention': MambaForCausalLM"):
        Attention(fields()).check_model(mamba)
