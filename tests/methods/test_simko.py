# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st
from support import cases
from support.fuzzing import ENTROPIES, LOGPS, covers, draw_flags, draw_shape, draw_tensor, finite_gradients, spoiled
from support.reference import dense_log_policy, dense_logps_and_entropy, policy_terms, reduce_terms
from support.registry import MethodSettings
from support.tensors import make_tokens, random_tokens
from support.tiny import EXACT, FLOAT32, FLOAT64, LOSS_TYPES, build_dataset, build_model, loss_and_gradients

from trl_entropy import EntropyGRPOConfig
from trl_entropy.functional import row_quantiles
from trl_entropy.methods import simko
from trl_entropy.methods.simko import fork_mask
from trl_entropy.tokens import CLIPPING_LOSSES


STRONG = dict(simko_mix=0.4, simko_quantile=0.3, simko_penalty=2.0)
METHOD_SETTINGS = {
    "simko": MethodSettings(
        strong=STRONG,
        variants=(dict(STRONG, simko_mix=0.0), dict(STRONG, simko_penalty=1.0, simko_k=1)),
        batches=(2048, 8192),
        reaches="loss",
    )
}


def forks_by_hand(entropy, mask, quantile):
    forks = torch.zeros_like(mask)
    for row in range(len(mask)):
        own = entropy[row][mask[row]].detach()
        if len(own):
            forks[row] = mask[row] & (entropy[row] > torch.quantile(own, quantile))
    return forks


def mixed_terms(loss_type, logps, old_logps, entropy, advantages, mask, log_policy, settings=STRONG, count=3):
    """The authors' form: the ratio is a mixture with those of the likeliest tokens, old log-probabilities included."""
    forks = forks_by_hand(entropy, mask, settings["simko_quantile"])
    weight = settings["simko_mix"] * forks
    top = log_policy.topk(count).values
    old_top = top.detach() + 0.3 * torch.randn(top.shape, generator=torch.Generator().manual_seed(5))  # they cancel
    ratio, others = (logps - old_logps).exp(), (top - old_top).exp()
    shares = (ratio.unsqueeze(-1).detach() / others.detach() * others).mean(-1)
    mixed = torch.where(advantages > 0, (1 - weight) * ratio + weight * shares, ratio)
    penalized = forks & (advantages < 0) & (logps.detach() >= top[..., 0].detach() - 1e-6)
    assert 0 < penalized.sum() < (forks & (advantages < 0)).sum() and 0 < (forks & (advantages > 0)).sum()
    factor = torch.where(penalized, settings["simko_penalty"], 1.0)
    if loss_type in CLIPPING_LOSSES:
        return -torch.minimum(mixed * advantages * factor, mixed.clamp(0.8, 1.2) * advantages * factor)
    # The loss weighs ∇ℓ by g, not by the ratio. A share of that gradient goes to the likeliest tokens.
    terms = policy_terms(loss_type, logps, old_logps, advantages * factor, mask)
    (gradient,) = torch.autograd.grad(terms.sum(), logps, retain_graph=True)
    positive = weight * (advantages > 0) * gradient  # -A w g
    return terms + positive * without_value(top.mean(-1) - logps)


def without_value(values):
    return values - values.detach()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradients(make_trainer, loss_type):
    def reference(*arguments):
        return mixed_terms(loss_type, *arguments)

    cases.check_against_reference(
        make_trainer, "simko", loss_type, reference, STRONG, batch_keys=greedy(), policy=True
    )


def greedy():
    """Batch keys under which half of the tokens of each row are the likeliest."""
    batch = cases.off_policy_batch(build_model())
    with torch.no_grad():
        likeliest = dense_log_policy(build_model(), batch).argmax(-1)
    for place in range(0, 6, 2):  # a token changes the distributions of those after it
        batch["completion_ids"][:, place] = likeliest[:, place] * batch["completion_mask"][:, place]
        with torch.no_grad():
            likeliest = dense_log_policy(build_model(), batch).argmax(-1)
    with torch.no_grad():
        logps, _ = dense_logps_and_entropy(build_model(), batch)
    noise = 0.3 * torch.randn(logps.shape, generator=torch.Generator().manual_seed(1))
    return {"completion_ids": batch["completion_ids"], "old_per_token_logps": logps + noise}


@pytest.mark.parametrize("model", ["tied", "LoRA"])
def test_gradients_through_the_head_of(make_trainer, model):
    from peft import LoraConfig, get_peft_model

    def build():
        if model == "tied":
            return build_model(tie_word_embeddings=True)
        torch.manual_seed(0)
        adapted = get_peft_model(build_model(), LoraConfig(r=2, target_modules="all-linear"))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        return adapted

    batch = cases.off_policy_batch(build())
    trainer = make_trainer(model=build(), methods=["simko"], loss_type="bnpo", simko_penalty=1.0, simko_mix=0.4)
    _, gradients = loss_and_gradients(trainer, batch)
    other = build()
    logps, entropy = dense_logps_and_entropy(other, batch)
    mask, advantages = batch["completion_mask"].bool(), batch["advantages"][:, None].expand(logps.shape)
    top = dense_log_policy(other, batch).topk(3).values
    terms = policy_terms("bnpo", logps, batch["old_per_token_logps"], advantages, mask)
    ratio = (logps - batch["old_per_token_logps"]).exp().detach()
    mixed = forks_by_hand(entropy, mask, 0.8) & (advantages > 0) & (ratio <= 1.2)
    assert mixed.any()
    terms = terms - 0.4 * mixed * advantages * ratio * (top.mean(-1) - logps - (top.mean(-1) - logps).detach())
    reduce_terms("bnpo", terms, mask).backward()
    trained = {name: p.grad for name, p in other.named_parameters() if p.requires_grad}
    assert trained.keys() == gradients.keys()
    torch.testing.assert_close(gradients, trained, **FLOAT32)


LOGITS = [[2, 1, 0.5, 0, -1], [0.5, 0.4, 0.3, 0.2, 0.1], [4, 0, -1, -2, -3]]
OLD_LOGITS = [[1.8, 1, 0.5, 0, -1], [0.5, 0.4, 0.2, 0.2, 0.1], [4, 0.3, -1, -2, -3]]


def example(advantage=1.5, sampled=(0, 2, 1), count=3, **extra):
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    policy, old = logits.log_softmax(-1), torch.tensor(OLD_LOGITS, dtype=torch.float64).log_softmax(-1)
    picks = torch.tensor(sampled)[:, None]
    tokens = make_tokens(
        policy.gather(1, picks).T,
        old.gather(1, picks).T,
        [[advantage] * 3],
        entropy=-(policy.exp() * policy).sum(-1)[None],
        top_logps=policy.sort(-1, descending=True).values[None, :, :count],
        **extra,
    )
    return logits, tokens


def loss_of(method, tokens):
    """The whole loss, PPO's with the method's advantages plus the method's term, as a mean over tokens."""
    advantages, _ = method.token_advantages(tokens)
    tokens = replace(tokens, advantages=advantages)
    ratio = (tokens.logps - tokens.old_logps).exp()
    terms = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    term, _ = method.loss(tokens)
    return (terms if term is None else terms + term).mean()


def test_worked_example():
    logits, tokens = example()
    torch.testing.assert_close(
        tokens.ratio, torch.tensor([[1.096748305, 1.084345579, 0.7454340081]], dtype=torch.float64), **FLOAT64
    )
    torch.testing.assert_close(
        tokens.entropy, torch.tensor([[1.206489208, 1.599502485, 0.1527092566]], dtype=torch.float64), **FLOAT64
    )
    assert row_quantiles(tokens.entropy, tokens.mask, 0.5).item() == pytest.approx(1.206489208, abs=1e-9)
    assert logits.topk(3).indices.tolist() == [[0, 1, 2]] * 3
    method = cases.build("simko", simko_mix=0.3, simko_quantile=0.5)
    _, logs = method.token_advantages(tokens)
    assert logs["fork_fraction"].tolist() == [[False, True, False]]  # token 0 sits on the threshold
    gradients = {}
    for name, one in (("PPO", cases.build("simko", simko_mix=0.0, simko_penalty=1.0)), ("SimKO", method)):
        loss = loss_of(one, tokens)
        assert loss.item() == pytest.approx(-1.4632639456, abs=1e-9)
        gradients[name] = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    expected = {
        "PPO": [0.13113, 0.11865, -0.43481, 0.09714, 0.08790],
        "SimKO": [0.07691, 0.06443, -0.32638, 0.09714, 0.08790],
    }
    for name, values in expected.items():
        torch.testing.assert_close(gradients[name][1], torch.tensor(values, dtype=torch.float64), rtol=0, atol=6e-6)
    torch.testing.assert_close(gradients["SimKO"][[0, 2]], gradients["PPO"][[0, 2]], **EXACT)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_1_at_forks_the_likeliest_tokens_share_the_gradient(count):
    """Against the authors' mixture of ratios in float64, with old log-probabilities of the likeliest tokens."""
    logits, tokens = example(count=count)
    method = cases.build("simko", simko_mix=0.3, simko_quantile=0.5, simko_k=count)
    ours = torch.autograd.grad(loss_of(method, tokens), logits, retain_graph=True)[0]
    ratio = (tokens.logps - tokens.old_logps).exp()
    others = (tokens.top_logps - torch.tensor(OLD_LOGITS, dtype=torch.float64).log_softmax(-1)[None, :, :count]).exp()
    weight = torch.tensor([[0.0, 0.3, 0.0]], dtype=torch.float64)
    mixed = (1 - weight) * ratio + weight * (ratio.unsqueeze(-1).detach() / others.detach() * others).mean(-1)
    loss = -torch.minimum(1.5 * mixed, 1.5 * mixed.clamp(0.8, 1.2)).mean()
    torch.testing.assert_close(ours, torch.autograd.grad(loss, logits)[0], **FLOAT64)


def test_1_clipped_tokens_keep_no_gradient():
    logits, tokens = example(clip_high=1.05)
    term, _ = cases.build("simko", simko_mix=0.3, simko_quantile=0.5).loss(tokens)
    assert torch.autograd.grad(term.sum(), logits)[0].abs().max() == 0


def test_1_masks_and_weights_of_the_loss_hold_for_the_share():
    tokens = random_tokens()
    leaf = tokens.top_logps.clone().requires_grad_()
    tokens = replace(tokens, top_logps=leaf, clip_high=math.inf, advantages=tokens.advantages.abs())
    method = cases.build("simko", simko_mix=0.3, simko_quantile=0.2)

    def gradient(tokens):
        return torch.autograd.grad(method.loss(tokens)[0].sum(), leaf)[0]

    kept = torch.rand(4, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    weighted = gradient(replace(tokens, loss_weights=lambda advantages: 0.5 * tokens.ratio))
    plain = gradient(tokens)
    torch.testing.assert_close(weighted, 0.5 * plain)
    masked = gradient(replace(tokens, loss_weights=lambda advantages: 0.5 * tokens.ratio * kept))
    assert torch.equal(masked, weighted * kept.unsqueeze(-1)) and 0 < masked.count_nonzero() < weighted.count_nonzero()
    expected = -0.5 * 0.3 * (tokens.advantages * tokens.ratio)[weighted[..., 0] != 0] / 3
    torch.testing.assert_close(weighted[weighted[..., 0] != 0][:, 1], expected)


def test_tokens_that_a_mask_takes_out_of_the_loss_are_no_forks():
    tokens = random_tokens()
    tokens = replace(tokens, mask=torch.ones_like(tokens.mask), advantages=-tokens.advantages.abs())
    tokens = replace(tokens, top_logps=torch.stack([tokens.logps, tokens.logps - 1], -1))  # all are the likeliest
    method = cases.build("simko", **STRONG)
    kept = torch.rand(4, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    plain, plain_logs = method.token_advantages(tokens)
    masked, logs = method.token_advantages(replace(tokens, loss_weights=lambda advantages: tokens.ratio * kept))
    assert torch.equal(masked, torch.where(kept, plain, tokens.advantages)) and not torch.equal(masked, plain)
    for name in ("fork_fraction", "top1_fraction"):
        assert torch.equal(logs[name], plain_logs[name] & kept) and logs[name].any()
    assert logs["candidate_mass"][~kept].isnan().all()
    torch.testing.assert_close(logs["candidate_mass"][kept], plain_logs["candidate_mass"][kept], **EXACT)


def test_1_tokens_that_the_80_20_mask_leaves_out_get_no_share(make_trainer):
    batch = cases.off_policy_batch(build_model())
    trainer = make_trainer(
        methods=["simko"], loss_type="bnpo", top_entropy_quantile=0.3, simko_mix=0.4, simko_quantile=0.3,
        simko_penalty=1.0,
    )  # fmt: skip
    loss, gradients = loss_and_gradients(trainer, batch)
    model = build_model()
    logps, entropy = dense_logps_and_entropy(model, batch)
    mask, advantages = batch["completion_mask"].bool(), batch["advantages"][:, None].expand(logps.shape)
    kept = mask & (entropy >= entropy[mask].quantile(0.7))
    ratio = (logps - batch["old_per_token_logps"]).exp().detach()
    mixed = forks_by_hand(entropy, mask, 0.3) & (advantages > 0) & (ratio <= 1.2)
    assert (mixed & kept).any() and (mixed & ~kept).any()
    top = dense_log_policy(model, batch).topk(3).values
    terms = policy_terms("bnpo", logps, batch["old_per_token_logps"], advantages, mask)
    terms = terms - 0.4 * mixed * advantages * ratio * (top.mean(-1) - logps - (top.mean(-1) - logps).detach())
    expected = reduce_terms("bnpo", terms * kept, mask)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), **FLOAT32)
    torch.testing.assert_close(gradients, {n: p.grad for n, p in model.named_parameters()}, **FLOAT32)


def test_1_tokens_that_another_method_drops_get_no_share():
    logits, tokens = example()
    tokens = replace(tokens, advantages=tokens.advantages * torch.tensor([[1.0, 0.0, 1.0]]))
    term, _ = cases.build("simko", simko_mix=0.3, simko_quantile=0.5).loss(tokens)
    assert torch.autograd.grad(term.sum(), logits)[0].abs().max() == 0


def test_2_negative_advantages_grow_only_at_forks_whose_token_is_the_likeliest():
    method = cases.build("simko", simko_mix=0.3, simko_quantile=0.5, simko_penalty=1.1)
    _, tokens = example(advantage=-1.0, sampled=(0, 0, 0))
    advantages, logs = method.token_advantages(tokens)
    assert advantages.tolist() == [[-1.0, -1.1, -1.0]]
    assert logs["top1_fraction"].tolist() == [[False, True, False]]
    assert method.loss(tokens)[0].abs().max() == 0
    _, tokens = example(advantage=-1.0, sampled=(0, 1, 0))
    assert method.token_advantages(tokens)[0].tolist() == [[-1.0] * 3]
    _, tokens = example(advantage=1.0, sampled=(0, 0, 0))
    assert method.token_advantages(tokens)[0].tolist() == [[1.0] * 3]


def test_2_equal_logits_are_all_the_likeliest():
    tokens = make_tokens([[-1.0, -2.0]], [[-1.0, -2.0]], [[-1.0, -1.0]], entropy=[[1.0, 0.5]])
    tokens = replace(tokens, top_logps=torch.tensor([[[-1.0, -1.0], [-0.1, -2.0]]], dtype=torch.float64))
    assert cases.build("simko", simko_quantile=0.5).token_advantages(tokens)[0].tolist() == [[-1.1, -1.0]]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_3_the_mix_does_not_change_the_value_of_the_loss(make_trainer, loss_type):
    batch = cases.off_policy_batch(build_model())
    plain = loss_and_gradients(make_trainer(loss_type=loss_type), batch)
    mixed = loss_and_gradients(
        make_trainer(methods=["simko"], loss_type=loss_type, simko_mix=0.5, simko_penalty=1.0), batch
    )
    assert mixed[0] == plain[0]
    assert any(not torch.equal(mixed[1][name], gradient) for name, gradient in plain[1].items())


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_neutral_settings_are_trls_loss(make_trainer, loss_type):
    """And need nothing from the head."""
    batch = cases.off_policy_batch(build_model())
    trainer = make_trainer(methods=["simko"], loss_type=loss_type, simko_mix=0.0, simko_penalty=1.0, fused_head=False)
    expected = loss_and_gradients(make_trainer(stock=True, loss_type=loss_type), batch)
    torch.testing.assert_close(loss_and_gradients(trainer, batch), expected, **EXACT)
    assert not any(key.startswith("simko/") for key in trainer._metrics["train"])


def test_the_head_computes_what_the_settings_need(make_trainer):
    found = []
    for settings in ({}, dict(simko_k=5), dict(simko_mix=0.0)):
        trainer = make_trainer(methods=["simko"], **settings)
        seen = trainer.methods[0].token_advantages

        def spy(tokens, seen=seen):
            found.append(tokens.top_logps)
            return seen(tokens)

        trainer.methods[0].token_advantages = spy
        loss_and_gradients(trainer, cases.off_policy_batch(build_model()))
    assert [top.shape for top in found] == [(4, 6, 3), (4, 6, 5), (4, 6, 1)]
    assert all((top[..., :-1] >= top[..., 1:]).all() and top.requires_grad for top in found)
    torch.testing.assert_close(found[1][..., :3], found[0], **EXACT)


# Edge cases


def test_rows_without_a_fork():
    """One valid token, equal entropies, and no valid token at all."""
    entropy = torch.tensor([[1.0, 9.0, 9.0], [0.5, 0.5, 0.5], [1.0, 2.0, 3.0]], dtype=torch.float64)
    mask = torch.tensor([[True, False, False], [True, True, True], [False, False, False]])
    for quantile in (0.0, 0.5, 0.9):
        assert not fork_mask(entropy, mask, quantile).any()


def test_forks_are_above_the_interpolated_quantile_of_their_row():
    tokens = random_tokens(rows=6, length=9)
    for quantile in (0.0, 0.3, 0.5, 0.8):
        by_hand = forks_by_hand(tokens.entropy, tokens.mask, quantile)
        assert torch.equal(fork_mask(tokens.entropy, tokens.mask, quantile), by_hand) and by_hand.any()


def test_likely_tokens_of_probability_0_get_nothing():
    logits, tokens = example()
    top = tokens.top_logps.clone()
    top[..., 2] = -math.inf
    term, _ = cases.build("simko", simko_mix=0.3, simko_quantile=0.5).loss(replace(tokens, top_logps=top))
    gradient = torch.autograd.grad(term.sum(), logits)[0]
    assert term.abs().max() == 0 and gradient.isfinite().all() and gradient[1].abs().max() > 0


def test_properties(make_trainer):
    for settings in (STRONG, dict(STRONG, simko_mix=0.0)):
        method = cases.build("simko", **settings)
        cases.check_padding_does_not_matter(method)
        cases.check_rows_permute(method)
        cases.check_extremes_stay_finite(method)
        cases.check_extremes_stay_finite(method, clip_low=-math.inf, clip_high=math.inf)
    cases.check_empty_mask(make_trainer, "simko", **STRONG)
    neutral = replace(random_tokens(), advantages=torch.zeros(4, 7, dtype=torch.float64))
    assert cases.outcome(cases.build("simko", **STRONG), neutral)[0].abs().max() == 0


def test_evaluation_moves_nothing(make_trainer):
    trainer = make_trainer(methods=["simko"], eval_dataset=build_dataset(4), per_device_eval_batch_size=4)
    before = vars(trainer.methods[0]).copy()
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    assert vars(trainer.methods[0]) == before and trainer.methods[0].state_dict() == {}


def test_accumulation_does_not_matter(make_trainer):
    """Two micro-batches of two rows give the gradient of one of four: the quantile is one of each row."""
    batch = cases.off_policy_batch(build_model())
    whole = loss_and_gradients(make_trainer(methods=["simko"], **STRONG), batch)[1]
    trainer = make_trainer(
        methods=["simko"],
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        steps_per_generation=2,
        **STRONG,
    )
    halves = [{k: v if v.dim() == 0 else v[rows] for k, v in batch.items()} for rows in (slice(0, 2), slice(2, 4))]
    parts = [loss_and_gradients(trainer, half)[1] for half in halves]
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], gradient, **FLOAT32)


def test_metrics(make_trainer):
    trainer = make_trainer(methods=["simko"], max_steps=2, steps_per_generation=2, **STRONG)
    trainer.train()
    for row in trainer.state.log_history[:2]:
        assert 0 < row["simko/fork_fraction"] < 0.7 and 0 <= row["simko/top1_fraction"] < row["simko/fork_fraction"]
        assert 0.2 < row["simko/candidate_mass"] < 1


# Errors

BASE = dict(output_dir="out", methods=["simko"], use_cpu=True, bf16=False)


@pytest.mark.parametrize(
    "name, value, accepted",
    [
        *(("simko_k", value, "an integer >= 1") for value in (0, -1, 2.0, "3", True, None)),
        *(("simko_mix", value, r"a share in \[0, 1\]") for value in (-0.1, 1.1, math.nan, "0.1", True)),
        *(("simko_quantile", value, r"a quantile in \[0, 1\)") for value in (-0.1, 1, 1.0, math.nan, False)),
        *(("simko_penalty", value, "a finite number >= 1") for value in (0.9, -2, math.inf, math.nan, True)),
    ],
)
def test_each_field_is_checked(name, value, accepted):
    with pytest.raises(ValueError, match=f"`{name}` must be {accepted}, got"):
        EntropyGRPOConfig(**BASE, **{name: value})


def test_sequence_level_ratios_are_refused():
    with pytest.raises(ValueError, match="`importance_sampling_level` must be 'token' with method 'simko'"):
        EntropyGRPOConfig(**BASE, importance_sampling_level="sequence")


def test_it_needs_the_fused_head_unless_it_does_nothing(caplog):
    with pytest.raises(ValueError, match="`fused_head` must be true for method 'simko', got False"):
        EntropyGRPOConfig(**BASE, fused_head=False)
    EntropyGRPOConfig(**BASE, fused_head=False, simko_mix=0, simko_penalty=1)
    assert "Method 'simko' does nothing" in caplog.text


def test_more_tokens_than_the_vocabulary_has(make_trainer):
    with pytest.raises(ValueError, match="`top_k` must be at most 24, the size of the vocabulary, got 25."):
        loss_and_gradients(make_trainer(methods=["simko"], simko_k=25), cases.off_policy_batch(build_model()))


# Searched by test_fuzzing.py


@covers(simko.fork_mask)
def simko_forks(draw):
    shape, quantile = draw_shape(draw), draw(st.floats(0, 0.99))
    entropy, mask = draw_tensor(draw, shape, ENTROPIES), draw_flags(draw, shape)
    forks = fork_mask(spoiled(draw, entropy, mask), mask, quantile)
    assert torch.equal(forks, fork_mask(entropy, mask, quantile)) and not (forks & ~mask).any()
    assert (forks.sum(1) < mask.sum(1).clamp(min=1)).all()


@covers(simko.without_value)
def simko_zeros(draw):
    shape = draw_shape(draw)
    values, where = draw_tensor(draw, shape, LOGPS), draw_flags(draw, shape)
    leaf = values.clone().requires_grad_()
    zeros = simko.without_value(leaf, where)
    (gradient,) = finite_gradients(zeros, leaf)
    assert (zeros == 0).all() and torch.equal(gradient, where.float())
    assert (simko.without_value(values.masked_fill(where, -math.inf), where) == 0).all()
