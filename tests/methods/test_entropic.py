# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st
from support import cases
from support.fuzzing import ADVANTAGES, LOGPS, covers, draw_flags, draw_shape, draw_tensor, finite_gradients
from support.reference import policy_terms
from support.registry import MethodSettings
from support.tensors import make_tokens, random_tokens
from support.tiny import EXACT, FLOAT32, FLOAT64, LOSS_TYPES, build_dataset, build_model, loss_and_gradients

from trl_entropy import EntropyGRPOConfig
from trl_entropy.methods import entropic
from trl_entropy.methods.entropic import EntropyController


STRONG = dict(entropic_target=1.0, entropic_kp=0.3, entropic_threshold=0.05)
METHOD_SETTINGS = {
    "entropic": MethodSettings(
        strong=STRONG,
        state=dict(integral=0.4),
        refuses=("entropy_coef", "use_adaptive_entropy", "entropy_controller", "entropy_target"),
        reaches="batch",
        batches=(1024, 1024),
    )
}


def likely_loss(logps, old_logps, advantages, mask, threshold):
    """L₊, token by token."""
    terms = [
        -(ell - old).clamp(-20, 20).exp() * advantage.abs()
        for ell, old, advantage in zip(logps[mask], old_logps[mask], advantages[mask], strict=True)
        if ell.item() > math.log(threshold)
    ]
    assert terms
    return sum(terms) / len(terms)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradients(make_trainer, loss_type):
    seen = {}

    def reference(logps, old_logps, entropy, advantages, mask):
        seen.update(logps=logps, old_logps=old_logps, advantages=advantages)
        return policy_terms(loss_type, logps, old_logps, advantages, mask)

    def scalar(entropy, log_policy, mask):
        found = likely_loss(**seen, mask=mask, threshold=0.05)
        alpha = 0.3 * (entropy[mask].mean().item() - 1.0) + 0.01 * 0.4
        assert 0.05 < abs(alpha) < 1
        return alpha * found

    def prepare(method):
        method.controller.integral = 0.4

    cases.check_against_reference(
        make_trainer, "entropic", loss_type, reference, STRONG, prepare=prepare, scalar=scalar
    )


def example(**extra):
    tokens = make_tokens(
        [-0.05, -0.10, -3.0, -0.02, -5.0, -0.4], [-0.06, -0.30, -2.9, -0.02, -4.8, -0.5], [1.5] * 3 + [-0.75] * 3
    )
    return replace(tokens, logps=tokens.logps.clone().requires_grad_(), **extra)


@pytest.mark.parametrize(
    "alpha, loss, gradient",
    [
        (0.0, -0.4132341874, [-0.2525125418, 0, -0.2262093545, 0.125, 0.1023413441, 0.1381463648]),
        (0.3, -0.7529954750, [-0.4797738294, 0, -0.2262093545, 0.0125, 0.1023413441, 0.1381463648]),
        (-0.3, -0.0734728999, [-0.0252512542, 0, -0.2262093545, 0.2375, 0.1023413441, 0.1381463648]),
    ],
)
def test_worked_example_of_the_term(alpha, loss, gradient):
    tokens = example()
    term, logs = cases.build("entropic", entropic_target=1 - alpha, entropic_ki=0.0).loss(tokens)
    assert logs["alpha"].tolist() == [[pytest.approx(alpha)] * 6]
    assert logs["likely_fraction"][0].tolist() == [True, False, False, True, False, False]
    if alpha:
        assert term.item() / alpha == pytest.approx(-1.1325376253, abs=1e-9)
    ratio = (tokens.logps - tokens.old_logps).exp()
    total = -torch.minimum(ratio * tokens.advantages, ratio.clamp(0.8, 1.2) * tokens.advantages).mean() + term
    assert total.item() == pytest.approx(loss, abs=1e-9)
    (found,) = torch.autograd.grad(total, tokens.logps)
    torch.testing.assert_close(found[0], torch.tensor(gradient, dtype=torch.float64), **FLOAT64)


def with_entropy(value, step, **extra):
    return replace(random_tokens(), entropy=torch.full((4, 7), value, dtype=torch.float64), draw=(0, step, 0), **extra)


def test_worked_example_of_the_controller():
    entropies = [0.5, 0.3, 0.15, 0.08, 0.02, 0.02, 3, 3, 0.1]
    alphas = [0.4, 0.204, 0.056, -0.0135, -0.0737, -0.0745, 1, 1, 0.0047]
    sums = [0.4, 0.6, 0.65, 0.63, 0.55, 0.47, 0.47, 0.47, 0.47]
    method = cases.build("entropic")
    found, exact = [], []
    for step, value in enumerate([*entropies, 0.1]):
        found.append(method.loss(with_entropy(value, step))[1])
        exact.append((method.controller.coefficient(value), method.controller.integral))
    assert [alpha for alpha, _ in exact[:-1]] == pytest.approx(alphas, abs=1e-9)
    assert [integral for _, integral in exact[1:]] == pytest.approx(sums, abs=1e-9)
    assert [logs["alpha"][0, 0].item() for logs in found[:-1]] == pytest.approx(alphas, abs=1e-6)
    assert [logs["integral"].item() for logs in found[1:]] == pytest.approx(sums, abs=1e-6)  # after each step
    assert method.controller.integral == pytest.approx(0.47, abs=1e-9)


def test_departure_1_a_term_on_likely_tokens_whatever_the_sign():
    (gradient,) = torch.autograd.grad(cases.build("entropic").loss(tokens := example())[0], tokens.logps)
    assert (gradient != 0)[0].tolist() == [True, False, False, True, False, False]
    assert (tokens.advantages[0, [0, 3]].sign() == torch.tensor([1, -1])).all() and (gradient <= 0).all()


@pytest.mark.parametrize("entropy, sign", [(2.0, 1), (0.05, -1)])
def test_departure_2_the_controller_decides_the_sign(entropy, sign):
    tokens = example(entropy=torch.full((1, 6), entropy, dtype=torch.float64))
    term, logs = cases.build("entropic").loss(tokens)
    (gradient,) = torch.autograd.grad(term, tokens.logps)
    assert logs["alpha"][0, 0].sign() == sign and gradient[0, 0].sign() == -sign


def test_departure_3_no_clip_up_to_the_largest_log_ratio():
    tokens = example(old_logps=torch.tensor([[-3.0, -1, -1, -25, -1, -1]], dtype=torch.float64))
    tokens = replace(tokens, ratio=(tokens.logps - tokens.old_logps).exp().detach())
    (gradient,) = torch.autograd.grad(cases.build("entropic").loss(tokens)[0], tokens.logps)
    alpha = 0.9
    assert gradient[0, 0].item() == pytest.approx(-alpha * math.exp(2.95) * 1.5 / 2)
    assert gradient[0, 3] == 0  # beyond 20, where r stands still


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_alpha_0_is_grpo_to_the_bit(make_trainer, loss_type):
    """The sum is 0 at the start of a run, and nothing else acts."""
    cases.check_neutral(make_trainer, "entropic", loss_type, **{**STRONG, "entropic_kp": 0.0})


def test_each_micro_batch_is_a_mean_over_its_own_likely_tokens(make_trainer):
    """With accumulation, each is scaled as TRL scales its own loss."""
    batch, found = cases.off_policy_batch(build_model()), []
    for parts in (1, 2):
        trainer = make_trainer(
            model=build_model(), loss_type="grpo", methods=["entropic"], gradient_accumulation_steps=parts, **STRONG
        )
        found.append(loss_and_gradients(trainer, batch))
    torch.testing.assert_close(found[1][0] * 2, found[0][0], **FLOAT32)
    torch.testing.assert_close({k: v * 2 for k, v in found[1][1].items()}, found[0][1], **FLOAT32)


def test_the_sum_grows_by_the_mean_over_the_tokens_of_a_step():
    """In two micro-batches as in one."""
    tokens = random_tokens(rows=6)
    whole, halves = (cases.build("entropic", entropic_kp=0.1) for _ in range(2))
    whole.loss(tokens)
    for rows in (slice(0, 2), slice(2, 6)):
        halves.loss(cases.map_rows(tokens, lambda value, rows=rows: value[rows]))
    for method in (whole, halves):
        assert method.controller.integral == 0
        method.loss(replace(tokens, draw=(0, 1, 0)))
    expected = tokens.entropy[tokens.mask].mean().item() - 0.1
    assert whole.controller.integral == pytest.approx(expected)
    assert halves.controller.integral == pytest.approx(expected)


def test_saturation_leaves_nothing_to_undo():
    controller = EntropyController(0.1, 1.0, 0.01)
    for _ in range(50):
        controller.add(9.0)
    steps = [(controller.coefficient(0.05), controller.add(0.05))[0] for _ in range(5)]
    assert controller.integral == pytest.approx(-0.25) and max(steps) < 0


def closed_loop(gap, steps=400):
    """Mean entropy over the last quarter of a run of one softmax over 8 entries with random rewards of 1 and -1."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(8, dtype=torch.float64)
    logits[0] = gap
    method, seen = cases.build("entropic", entropic_kp=5.0, entropic_ki=0.1), []
    for step in range(steps):
        leaf = logits.clone().requires_grad_()
        policy = leaf.log_softmax(0)
        picks = policy.exp().detach().multinomial(512, replacement=True, generator=generator)
        entropy = -(policy.exp() * policy).sum().detach()
        advantages = torch.randint(2, (1, 512), generator=generator).double() * 2 - 1
        logps = policy[picks][None]
        tokens = make_tokens(logps, logps.detach(), advantages, entropy=entropy.expand(1, 512), draw=(0, step, 0))
        loss = -((logps - logps.detach()).exp() * advantages).mean() + method.loss(tokens)[0]
        logits -= 5.0 * torch.autograd.grad(loss, leaf)[0]
        seen.append(entropy.item())
    return seen[0], sum(seen[-steps // 4 :]) / (steps // 4)


@pytest.mark.parametrize("gap", [5.2, 9.0])
def test_closed_loop_approaches_the_target_from_both_sides(gap):
    first, last = closed_loop(gap)
    assert (first > 0.2) if gap == 5.2 else (first < 0.02)
    assert last == pytest.approx(0.1, abs=0.02)


def test_state_survives_json_in_the_middle_of_a_step():
    method, other = (cases.build("entropic", **STRONG) for _ in range(2))
    for draw in [(0, 0, 0), (0, 0, 1), (0, 1, 0)]:
        method.loss(replace(random_tokens(seed=draw[1]), draw=draw))
    other.load_state_dict(json.loads(json.dumps(method.state_dict())))
    for draw in [(0, 1, 1), (0, 2, 0)]:
        tokens = replace(random_tokens(seed=7), draw=draw)
        assert other.loss(tokens)[0].item() == method.loss(tokens)[0].item()
    assert other.state_dict() == method.state_dict() and method.controller.integral != 0


def test_evaluation_moves_nothing(make_trainer):
    method = cases.build("entropic", **STRONG)
    method.loss(random_tokens())
    before = method.state_dict()
    term, logs = method.loss(replace(random_tokens(seed=3), draw=(0, 5, 0), training=False))
    assert method.state_dict() == before and term != 0 and (logs["alpha"] != 0).all()
    trainer = make_trainer(methods=["entropic"], eval_dataset=build_dataset(4), per_device_eval_batch_size=4, **STRONG)
    before = trainer.methods[0].state_dict()
    assert "eval_entropic/alpha" in trainer.evaluate() and trainer.methods[0].state_dict() == before


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_entropy_that_is_not_finite_counts_for_nothing(bad):
    method, other = cases.build("entropic", **STRONG), cases.build("entropic", **STRONG)
    for instance in (method, other):
        instance.loss(with_entropy(1.5, 0))
    before = method.state_dict()
    tokens = with_entropy(1.5, 1)
    entropy = tokens.entropy.clone()
    entropy[0, 0] = bad
    term, logs = method.loss(replace(tokens, entropy=entropy))
    assert method.state_dict() == before and logs["skipped_fraction"] == 1 and term.isfinite()
    for instance in (method, other):
        _, logs = instance.loss(with_entropy(1.5, 2))
        assert logs["skipped_fraction"] == 0
    assert method.state_dict() == other.state_dict() and method.controller.integral == pytest.approx(0.5)


def test_a_forward_without_valid_tokens_is_no_entropy_of_0():
    method = cases.build("entropic", **STRONG)
    tokens = random_tokens()
    term, logs = method.loss(replace(tokens, mask=torch.zeros_like(tokens.mask)))
    assert term == 0 and logs["skipped_fraction"] == 0
    method.loss(replace(tokens, draw=(0, 1, 0)))
    assert method.controller.integral == 0


def test_no_likely_token_gives_a_differentiable_zero():
    tokens = example(old_logps=torch.full((1, 6), -5.0, dtype=torch.float64))
    tokens = replace(tokens, logps=(tokens.logps.detach() - 3).requires_grad_())
    term, _ = cases.build("entropic").loss(tokens)
    (gradient,) = torch.autograd.grad(term, tokens.logps)
    assert term == 0 and gradient.abs().max() == 0


def test_advantages_of_0_give_no_term_while_the_sum_moves():
    method = cases.build("entropic", entropic_kp=0.1)
    for step in range(2):
        tokens = random_tokens(draw=(0, step, 0))
        assert method.loss(replace(tokens, advantages=tokens.advantages * 0))[0] == 0
    assert method.controller.integral > 0.5


def test_correction_for_the_engine_weighs_the_term():
    tokens, method = example(), cases.build("entropic")
    engine = torch.full((1, 1), 0.4, dtype=torch.float64)
    plain = method.loss(tokens)[0]
    torch.testing.assert_close(method.loss(replace(tokens, engine_ratio=engine))[0], 0.4 * plain, **FLOAT64)


def test_properties(make_trainer):
    method = cases.build("entropic", **STRONG)
    cases.check_padding_does_not_matter(method)
    cases.check_rows_permute(method)
    cases.check_extremes_stay_finite(method)
    cases.check_empty_mask(make_trainer, "entropic", **STRONG)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(entropic_target=0), "`entropic_target` must be an entropy in nats > 0, got 0."),
        (dict(entropic_kp=-1.0), "`entropic_kp` must be a finite number >= 0, got -1.0."),
        (dict(entropic_ki=math.inf), "`entropic_ki` must be a finite number >= 0, got inf."),
        (dict(entropic_kp=0.0, entropic_ki=0.0), "`entropic_ki` must be above 0 if `entropic_kp` is 0, got 0.0."),
        (dict(entropic_threshold=0.99991), "`entropic_threshold` must be a probability in (0, 0.9999], got 0.99991."),
        (dict(entropy_coef=0.01),
         "`entropy_coef` must be 0 with method 'entropic', which steers entropy itself, got 0.01."),
        (dict(use_adaptive_entropy=True),
         "`use_adaptive_entropy` must be false with method 'entropic', which steers entropy itself, got True."),
        (dict(methods=["entropic", "aepo"]), "`methods` must not list both 'entropic' and 'aepo': both steer entropy"),
    ],
)  # fmt: skip
def test_wrong_settings_give_one_error(tmp_path, settings, message):
    with pytest.raises(ValueError) as error:
        EntropyGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **{"methods": ["entropic"], **settings})
    assert message in str(error.value)


def test_metrics_and_resume(make_trainer, tmp_path):
    settings = dict(methods=["entropic"], max_steps=4, save_strategy="steps", save_steps=2, **STRONG)
    settings |= dict(gradient_accumulation_steps=2)
    whole = make_trainer(output_dir=tmp_path / "whole", **settings)
    whole.train()
    rows = [row for row in whole.state.log_history if "loss" in row]
    assert rows[0]["entropic/integral"] == 0 != rows[1]["entropic/integral"]
    assert 0 < rows[0]["entropic/likely_fraction"] < 1 and rows[0]["entropic/skipped_fraction"] == 0
    resumed = make_trainer(output_dir=tmp_path / "resumed", model=build_model(seed=1), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    again = [row for row in resumed.state.log_history if "loss" in row]
    assert [row["entropic/alpha"] for row in again] == [row["entropic/alpha"] for row in rows]
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), **EXACT)
    assert resumed.methods[0].state_dict() == whole.methods[0].state_dict()


def test_plots_show_the_target():
    assert entropic.Entropic.entropy_band.ends(dict(entropic_target=0.3), {}) == (0.3, 0.3)


# Searched by test_fuzzing.py


@covers(entropic.likely_terms)
def terms_of_likely_tokens(draw):
    shape = draw_shape(draw)
    logps, old_logps = draw_tensor(draw, shape, LOGPS).requires_grad_(), draw_tensor(draw, shape, LOGPS)
    advantages, likely = draw_tensor(draw, shape, ADVANTAGES), draw_flags(draw, shape)
    terms = entropic.likely_terms(logps, old_logps, advantages, likely)
    (gradient,) = finite_gradients(terms, logps)
    assert (terms <= 0).all() and (terms[~likely] == 0).all() and (gradient[~likely] == 0).all()
    controller = EntropyController(draw(st.floats(1e-3, 13)), draw(st.floats(0, 10)), draw(st.floats(0, 1)))
    for entropy in draw(st.lists(st.floats(0, 13), max_size=5)):
        controller.add(entropy)
        assert -1 <= controller.coefficient(entropy) <= 1 and math.isfinite(controller.integral)
