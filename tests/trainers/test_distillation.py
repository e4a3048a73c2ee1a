# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The distillation trainer: stock if no token is selected, else the paper's loss over full logits."""

import json
import math
from collections import Counter

import pytest
import torch
from support.distilling import LENGTHS, TEACHER, build_distiller, distributions, jsd, kept_by_hand, kl, make_batch
from support.tensors import make_tokens
from support.tiny import EXACT, FLOAT32, build_dataset, build_model
from torch.utils._python_dispatch import TorchDispatchMode
from trl import DistillationConfig, DistillationTrainer
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from trl_entropy import EntropyDistillationConfig, EntropyDistillationTrainer
from trl_entropy.collectives import SINGLE_PROCESS
from trl_entropy.head.divergence import Head, divergences, entropy_first_is_cheaper
from trl_entropy.methods.tip import Tip, TipConfig, TipTokens
from trl_entropy.runs.states import STATE_FILE
from trl_entropy.trainers.distillation import SelectingKernel
from trl_entropy.trainers.metrics import reduce_metrics
from trl_entropy.trainers.quadrants import SCATTER_FILE, quadrants, selection_metrics


def loss_and_gradients(trainer, batch):
    trainer.model.zero_grad()
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def history(trainer, keys=("loss", "grad_norm", "entropy")):
    return [{key: row[key] for key in keys} for row in trainer.state.log_history if "loss" in row]


# Nothing chosen


NEUTRAL = [dict(tip_rule="none"), dict(tip_ratio=1.0)]


@pytest.mark.parametrize("neutral", NEUTRAL, ids=["none", "all"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_all_tokens_are_stock_to_the_bit(make_distiller, beta, neutral):
    stock = loss_and_gradients(make_distiller(stock=True, beta=beta), make_batch())
    found = loss_and_gradients(make_distiller(beta=beta, **neutral), make_batch())
    torch.testing.assert_close(found, stock, **EXACT)


# The other combinations are slow tests.
RUNS = [(0.0, NEUTRAL[1]), (0.5, NEUTRAL[0]), (1.0, NEUTRAL[1])]
RUNS += [pytest.param(beta, NEUTRAL[1 - NEUTRAL.index(n)], marks=pytest.mark.slow) for beta, n in RUNS]


@pytest.mark.parametrize("beta, neutral", RUNS)
def test_runs_on_all_tokens_are_stock_to_the_bit(make_distiller, beta, neutral):
    settings = dict(beta=beta, gradient_accumulation_steps=2, per_device_train_batch_size=2)
    stock = make_distiller(stock=True, **settings)
    stock.train()
    trainer = make_distiller(**settings, **neutral)  # set here because it seeds generation
    trainer.train()
    assert history(trainer) == history(stock) and len(history(stock)) == 3
    torch.testing.assert_close(trainer.model.state_dict(), stock.model.state_dict(), **EXACT)
    assert trainer.state.log_history[0]["tip/kept_fraction"] == 1


def test_half_of_the_tokens_are_not_stock(make_distiller):
    batch = make_batch()
    stock, trainer = make_distiller(stock=True), make_distiller()
    assert loss_and_gradients(trainer, batch)[0] != loss_and_gradients(stock, batch)[0]
    # As in TRL, the logged entropy covers all tokens
    assert trainer._metrics["train"]["entropy"] == stock._metrics["train"]["entropy"]
    assert trainer._metrics["train"]["tip/kept_fraction"] == [5 / 12]


def test_evaluation_is_over_all_tokens(make_distiller, tmp_path):
    found = []
    for stock in (True, False):
        torch.manual_seed(0)
        ours = {} if stock else dict(tip_scope="ema")
        trainer = make_distiller(stock=stock, output_dir=tmp_path / str(stock), eval_dataset=build_dataset(4), **ours)
        found.append(trainer.evaluate())
        assert "num_items_in_batch" in trainer._generate_and_score_completions([{"prompt": "w1 w2"}] * 4)
    assert found[0]["eval_loss"] == found[1]["eval_loss"] and found[0]["eval_entropy"] == found[1]["eval_entropy"]
    assert not any("tip" in key for key in found[1]) and trainer._tip.ranges == {}


# The paper's loss


def reference(trainer, batch, rule, ratio, beta, temperature):
    """The loss from full logits, the kept tokens, and the gradients of all parameters."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    student = distributions(model, batch, temperature)
    with torch.no_grad():
        teacher = distributions(trainer.teacher_model, batch, temperature)
    mask = (batch["completion_mask"] * batch.get("tool_mask", 1)).bool()
    p = student.detach()
    keep = kept_by_hand(rule, ratio, -(p.exp() * p).sum(-1), kl(p, teacher), kl(teacher, p), mask)
    loss = jsd(student, teacher, beta)[keep].sum() / batch["num_items_in_batch"]
    parameters = dict(trainer.model.named_parameters())
    used = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    gradients = torch.autograd.grad(loss, list(used.values()))
    return loss.detach(), keep, dict(zip(used, gradients, strict=True))


VARIANTS = {
    "soft_or": dict(),
    "soft_or, forward KL": dict(beta=0.0),
    "soft_or, JSD": dict(beta=0.3, tip_ratio=0.3),
    "q3": dict(tip_rule="q3"),
    "divergence": dict(tip_rule="divergence", tip_ratio=0.2),
    "bottom": dict(tip_rule="bottom"),
    "entropy, few": dict(tip_rule="entropy", tip_ratio=0.2),
    "entropy, many": dict(tip_rule="entropy", tip_ratio=0.8),
    "entropy, JSD, few": dict(tip_rule="entropy", tip_ratio=0.4, beta=0.5),
    "temperature": dict(temperature=0.7, tip_ratio=0.4),
    "temperature, entropy": dict(temperature=0.7, tip_rule="entropy", tip_ratio=0.4),
}


def check_against_reference(trainer, batch):
    args = trainer.args
    loss, keep, gradients = reference(trainer, batch, args.tip_rule, args.tip_ratio, args.beta, args.temperature)
    chosen = []
    log = trainer._log_selection
    trainer._log_selection = lambda kernel: (chosen.append(kernel.keep), log(kernel))
    found_loss, found = loss_and_gradients(trainer, batch)
    assert chosen[0].tolist() == keep.tolist() and 0 < keep.sum() < batch["completion_mask"].sum()
    torch.testing.assert_close(found_loss.double(), loss, **FLOAT32)
    torch.testing.assert_close(found, {name: g for name, g in gradients.items() if name in found}, **FLOAT32)
    missing = {name: g for name, g in gradients.items() if name not in found}
    assert all(g.abs().max() == 0 for g in missing.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradients(make_distiller, name):
    check_against_reference(make_distiller(**VARIANTS[name]), make_batch())


@pytest.mark.parametrize("rule", ["soft_or", "entropy"])
def test_softcapped_and_scaled_logits(make_distiller, rule):
    trainer = make_distiller(tip_rule=rule, tip_ratio=0.4)
    trainer.model.config.final_logit_softcapping, trainer.model.config.logit_scale = 2.0, 0.7
    trainer.teacher_model.config.final_logit_softcapping = 3.0
    check_against_reference(trainer, make_batch())


@pytest.mark.parametrize("rule", ["soft_or", "entropy"])
def test_lora(make_distiller, rule):
    from peft import LoraConfig

    trainer = make_distiller(
        tip_rule=rule, tip_ratio=0.4, peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0)
    )
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    assert not trainer.model.get_output_embeddings().weight.requires_grad
    check_against_reference(trainer, make_batch())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_for_entropies_agree(make_distiller, dtype):
    """The teacher's head gives logits of the same precision on all tokens (for the scatter plot) and on kept ones."""
    batch, found, entropies = make_batch(), [], []
    tolerance = FLOAT32 if dtype == torch.float32 else dict(rtol=2e-2, atol=1e-3)
    for every in (None, 1):
        trainer = make_distiller(
            model=build_model().to(dtype),
            teacher=build_model(**TEACHER).to(dtype),
            tip_rule="entropy",
            tip_ratio=0.4,
            tip_scatter_steps=every,
        )
        found.append(loss_and_gradients(trainer, batch))
        logged = trainer._metrics["train"]
        assert ("tip/divergence_kept_mean" in logged) == (every is not None)
        entropies.append([logged[key][0] for key in ("entropy", "tip/entropy_kept_mean", "tip/entropy_dropped_mean")])
    torch.testing.assert_close(*found, **tolerance)
    assert entropies[0] == pytest.approx(entropies[1], rel=1e-5)


def test_rollouts_without_a_token(make_distiller):
    """A micro-batch without tokens to train on contributes a differentiable zero under every rule."""
    batch = make_batch(lengths=(0, 0, 3), tools=False)
    batch["completion_mask"][:] = 0
    for rule in ("soft_or", "entropy", "entropy_sample", "q3"):
        trainer = make_distiller(tip_rule=rule, tip_ratio=0.2)
        loss, gradients = loss_and_gradients(trainer, batch)
        assert loss == 0 and all(gradient.abs().max() == 0 for gradient in gradients.values())
        assert math.isnan(trainer._metrics["train"]["tip/kept_fraction"][0])


def test_equal_entropies_keep_the_earlier_tokens(make_distiller):
    """With a head of zeros all distributions are uniform, and all tokens tie on every axis."""
    model, teacher = build_model(), build_model(**TEACHER)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        teacher.lm_head.weight.zero_()
    for dtype in (torch.float32, torch.bfloat16):
        trainer = make_distiller(model=model.to(dtype), teacher=teacher.to(dtype))
        kept = []
        trainer._log_selection = lambda kernel, kept=kept: kept.append(kernel.keep)
        loss_and_gradients(trainer, make_batch(tools=False))
        expected = [[column < length // 2 or column < min(length, 1) for column in range(6)] for length in LENGTHS]
        assert kept[0].tolist() == expected


def test_bfloat16(make_distiller):
    """bf16 rows repeat. The loss is a finite mean over the right number of tokens."""
    trainer = make_distiller(model=build_model().bfloat16(), teacher=build_model(**TEACHER).bfloat16())
    loss, gradients = loss_and_gradients(trainer, make_batch())
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients.values())
    assert trainer._metrics["train"]["tip/kept_fraction"] == [5 / 12]  # 2 of 4, 1 of 3, 0, 2 of 5


def test_mean_is_over_the_kept_tokens_of_the_update(make_distiller, monkeypatch):
    """TRL divides by the count set after generation, without tool tokens."""
    trainer = make_distiller(gradient_accumulation_steps=2)
    generate, outputs = DistillationTrainer._generate_and_score_completions, []

    def with_tools(self, inputs):
        output = generate(self, inputs)
        output["tool_mask"] = torch.ones_like(output["completion_mask"])
        output["tool_mask"][:, 1] = 0
        outputs.append({**output})
        return output

    monkeypatch.setattr(DistillationTrainer, "_generate_and_score_completions", with_tools)
    batch = trainer._prepare_inputs([{"prompt": f"w{index} w2"} for index in range(8)])
    mask = (outputs[0]["completion_mask"] * outputs[0]["tool_mask"]).sum(1).tolist()
    assert batch["num_items_in_batch"] == sum(max(1, length // 2) if length else 0 for length in mask)
    assert batch["num_items_in_batch"] != outputs[0]["num_items_in_batch"]


# Tokens that are not finite


@pytest.mark.parametrize("rule", ["soft_or", "q3", "divergence", "random"])
def test_tokens_that_are_not_finite_leave_no_trace(rule):
    torch.manual_seed(0)
    hidden, teacher = torch.randn(6, 5, requires_grad=True), torch.randn(6, 4)
    teacher[1] = torch.inf
    weight, teacher_weight = torch.randn(30, 5, requires_grad=True), torch.randn(30, 4)
    tip = Tip(TipConfig(tip_rule=rule, tip_ratio=0.7))
    kernel = SelectingKernel(tip, torch.ones(2, 3).bool(), (0, 0, 0), SINGLE_PROCESS, False)
    loss, _ = kernel.apply(hidden, weight, None, teacher, teacher_weight, None, 1.0)
    loss.sum().backward()
    assert kernel.keep.sum(1).tolist() == [2, 2] and not kernel.keep[0, 1]
    assert loss.isfinite().all() and loss[1] == 0
    assert weight.grad.isfinite().all() and hidden.grad.isfinite().all() and hidden.grad[1].abs().max() == 0
    assert selection_metrics(kernel.tokens, kernel.keep)["nonfinite_tokens"] == 1


@pytest.mark.parametrize("rule", ["entropy", "entropy_sample", "random"])
def test_kept_tokens_whose_teacher_is_not_finite_leave_no_trace(rule):
    """The teacher's head runs on kept tokens only. The divisor depends on lengths, so it is the same both ways."""
    torch.manual_seed(0)
    hidden, teacher = torch.randn(6, 5, requires_grad=True), torch.randn(6, 4)
    weight, teacher_weight = torch.randn(30, 5, requires_grad=True), torch.randn(30, 4)
    tip, kernels = Tip(TipConfig(tip_rule=rule, tip_ratio=0.4)), []
    for _ in range(2):
        kernels.append(SelectingKernel(tip, torch.ones(2, 3).bool(), (0, 0, 0), SINGLE_PROCESS, False))
        loss, entropy = kernels[-1].apply(hidden, weight, None, teacher, teacher_weight, None, 1.0)
        row = kernels[0].keep[0].nonzero().item()
        teacher[row] = torch.inf
    loss.sum().backward()
    assert kernels[0].keep.sum(1).tolist() == [1, 1] and kernels[1].tokens.divergence is None
    assert kernels[1].keep[0].tolist() == [False] * 3 and torch.equal(kernels[1].keep[1], kernels[0].keep[1])
    assert loss.isfinite().all() and loss[row] == 0 < loss.sum() and entropy.isfinite().all()
    assert weight.grad.isfinite().all() and hidden.grad.isfinite().all() and hidden.grad[row].abs().max() == 0
    assert selection_metrics(kernels[1].tokens, kernels[1].keep)["nonfinite_tokens"] == 1


# The kernel


def example_head(rows=40, vocabulary=50, beta=1.0, bias=True, **extra):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return Head(
        normal(rows, 8).requires_grad_(),
        normal(vocabulary, 8).requires_grad_(),
        normal(vocabulary).requires_grad_() if bias else None,
        normal(rows, 12),
        normal(vocabulary, 12),
        normal(vocabulary) if bias else None,
        beta,
        **extra,
    )


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_backward_on_live_rows_equals_the_masked_one(beta, share, monkeypatch):
    monkeypatch.setattr("trl.kernels.chunked_divergence.TOKEN_CHUNK_SIZE", 16)  # several blocks of rows
    monkeypatch.setattr("trl.kernels.chunked_divergence.VOCAB_CHUNK_SIZE", 20)
    head = example_head(beta=beta, temperature=0.7, student_softcap=3.0, teacher_softcap=4.0)
    inputs = [head.student_hidden, head.student_weight, head.student_bias]
    grad = torch.rand(40) * (torch.rand(40) < share)
    stock, entropy = ChunkedDivergenceFunction.apply(*head)
    expected = torch.autograd.grad(stock, inputs, grad)
    found = divergences(head, live_rows=True)
    torch.testing.assert_close((found.loss, found.entropy), (stock, entropy), **EXACT)
    torch.testing.assert_close(torch.autograd.grad(found.loss, inputs, grad), expected, rtol=1e-5, atol=1e-6)
    found = divergences(head, live_rows=False)
    torch.testing.assert_close(torch.autograd.grad(found.loss, inputs, grad), expected, **EXACT)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_statistics_of_the_sweep(beta, monkeypatch):
    monkeypatch.setattr("trl.kernels.chunked_divergence.TOKEN_CHUNK_SIZE", 16)
    monkeypatch.setattr("trl.kernels.chunked_divergence.VOCAB_CHUNK_SIZE", 20)
    head = example_head(beta=beta, temperature=0.7, student_softcap=3.0)
    found = divergences(head, live_rows=True)
    logits = head.student_hidden.double() @ head.student_weight.double().t() + head.student_bias
    student = (3 * torch.tanh(logits / 3) / 0.7).log_softmax(-1)
    teacher = (
        (head.teacher_hidden.double() @ head.teacher_weight.double().t() + head.teacher_bias) / 0.7
    ).log_softmax(-1)
    expected = (
        jsd(student, teacher, beta),
        -(student.exp() * student).sum(-1),
        kl(student, teacher),
        kl(teacher, student),
    )
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value.double(), wanted, rtol=2e-5, atol=2e-5)
    assert found.loss.requires_grad and not any(x.requires_grad for x in found[1:])


class CountProducts(TorchDispatchMode):
    """Matrix products with the vocabulary by width, in units of rows x vocabulary x width."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary, self.work = vocabulary, Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("mm", "addmm", "addmm_"):
            a, b = args[-2:]
            sizes = [*a.shape, b.shape[1]]
            assert self.vocabulary in sizes
            rows, width = (size for size in sizes if size != self.vocabulary)
            rows, width = (rows, width) if width in (8, 12) else (width, rows)
            self.work[width] += rows * self.vocabulary * width
        return function(*args, **(kwargs or {}))


def counted(rule, ratio, beta=1.0, frozen=False, stock=False):
    """Products of student and teacher, in units of one projection of all rows."""
    head = example_head(rows=100, vocabulary=51, beta=beta, bias=False)
    if frozen:
        head = head._replace(student_weight=head.student_weight.detach())
    kernel = SelectingKernel(
        Tip(TipConfig(tip_rule=rule, tip_ratio=ratio)), torch.ones(5, 20).bool(), (0, 0, 0), SINGLE_PROCESS, False
    )
    with CountProducts(51) as count:
        loss, _ = (ChunkedDivergenceFunction if stock else kernel).apply(*head)
        loss.sum().backward()
    return [count.work[width] / (100 * 51 * width) for width in (8, 12)]


COUNTS = [
    (dict(stock=True), 1.0, [4, 2]),
    (dict(stock=True, frozen=True), 1.0, [3, 2]),
    (dict(stock=True, beta=0.5), 1.0, [5, 3]),
    (dict(), 1.0, [4, 2]),
    (dict(), 0.5, [2.5, 1.5]),
    (dict(), 0.2, [1.6, 1.2]),
    (dict(frozen=True), 0.5, [2, 1.5]),
    (dict(frozen=True), 0.2, [1.4, 1.2]),
    (dict(beta=0.5), 0.5, [3.5, 2.5]),
    (dict(beta=0.5), 0.2, [2.6, 2.2]),
    (dict(rule="q3"), 0.5, [2.5, 1.5]),
    (dict(rule="q3", beta=0.5), 0.5, [3.5, 2.5]),
    (dict(rule="entropy"), 0.5, [3, 1]),  # widths 8 and 12: cheaper below 0.6
    (dict(rule="entropy"), 0.2, [1.8, 0.4]),
    (dict(rule="entropy", frozen=True), 0.2, [1.6, 0.4]),
    (dict(rule="entropy"), 0.7, [3.1, 1.7]),
    (dict(rule="entropy", beta=0.5), 0.7, [1 + 5 * 0.7, 3 * 0.7]),
    (dict(rule="entropy", beta=0.5), 0.9, [2 + 3 * 0.9, 2 + 0.9]),
]


@pytest.mark.parametrize("settings, ratio, expected", COUNTS)
def test_products_of_the_heads(settings, ratio, expected):
    assert counted(**{"rule": "soft_or", **settings}, ratio=ratio) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("student, teacher, bound", [(2560, 4096, 4096 / 6656), (64, 64, 0.5)])
def test_when_entropies_come_first(student, teacher, bound):
    empty = torch.empty(0)
    head = Head(torch.empty(0, student), empty, None, torch.empty(0, teacher), empty, None, 1.0)
    assert entropy_first_is_cheaper(head, bound - 0.01) and not entropy_first_is_cheaper(head, bound + 0.01)
    assert not entropy_first_is_cheaper(head, 1.0) and not entropy_first_is_cheaper(head, bound)


# Metrics


def tip_tokens(entropy, divergence, mask=None):
    tokens = make_tokens(entropy, entropy, [0.0], mask=mask)
    return TipTokens(tokens.logps, tokens.mask, torch.atleast_2d(torch.tensor(divergence, dtype=torch.float64)))


def test_quadrants_by_hand():
    tokens = tip_tokens([3.0, 2.0, 0.1, 0.2, 9.0], [5.0, 0.1, 4.0, 0.2, 9.0], [1, 1, 1, 1, 0])
    assert quadrants(tokens).tolist() == [[1, 2, 3, 4, 0]]  # medians 1.1 and 2.1
    keep = torch.tensor([[True, False, True, False, False]])
    found = reduce_metrics(selection_metrics(tokens, keep), tokens.mask, SINGLE_PROCESS)
    assert found["kept_fraction"] == 0.5 and found["nonfinite_tokens"] == 0
    assert [found[f"q{number}_fraction"] for number in (1, 2, 3, 4)] == [0.25] * 4
    assert [found[f"q{number}_kept_fraction"] for number in (1, 2, 3, 4)] == [1, 0, 1, 0]
    assert found["divergence_kept_mean"] == pytest.approx(4.5) and found["divergence_dropped_mean"] == pytest.approx(
        0.15
    )
    assert found["entropy_kept_mean"] == pytest.approx(1.55) and found["entropy_dropped_mean"] == pytest.approx(1.1)


def test_quadrants_of_equal_values_are_solved():
    assert quadrants(tip_tokens([1.0] * 3, [2.0] * 3)).tolist() == [[4, 4, 4]]


def test_scatter_file(make_distiller, tmp_path):
    trainer = make_distiller(tip_scatter_steps=2, max_steps=3, gradient_accumulation_steps=2)
    trainer.train()
    content = json.loads((tmp_path / SCATTER_FILE).read_text())
    assert content["step"] == 2
    assert 0 < len(content["entropy"]) == len(content["divergence"]) == len(content["kept"]) <= 32
    assert 0.3 < sum(content["kept"]) / len(content["kept"]) <= 0.5
    ordered = sorted(content["entropy"])
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    assert content["entropy_threshold"] == pytest.approx(middle, abs=1e-5) and content["divergence_threshold"] > 0


# Configuration and checkpoints


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(tip_ratio=1.0), "'soft_or' does nothing, since `tip_ratio` 1.0 keeps all"),
        (dict(tip_rule="none", tip_ratio=0.2), "`tip_ratio` is set to 0.2, but `tip_rule` is 'none'"),
        (dict(tip_min_tokens=8), r"`tip_min_tokens` \(8\) is not below `max_completion_length` \(8\)"),
    ],
)
def test_setting_without_effect_warns_once(tmp_path, caplog, settings, message):
    import logging

    logging.getLogger("trl_entropy").propagate = True
    with caplog.at_level("WARNING"):
        EntropyDistillationConfig(str(tmp_path), use_cpu=True, max_completion_length=8, **settings)
    assert len([record for record in caplog.records if "does nothing" in record.getMessage()]) == 1
    caplog.clear()
    EntropyDistillationConfig(str(tmp_path), use_cpu=True, max_completion_length=8)
    EntropyDistillationConfig(str(tmp_path), use_cpu=True, tip_rule="none")
    assert not [record for record in caplog.records if "does nothing" in record.getMessage()]


def test_bad_settings_are_named(tmp_path):
    with pytest.raises(ValueError, match="`tip_ratio` must be a ratio"):
        EntropyDistillationConfig(str(tmp_path), use_cpu=True, tip_ratio=2.0)
    with pytest.raises(ValueError, match="`gradient_accumulation_steps` must be an integer >= 1, got 0"):
        EntropyDistillationConfig(str(tmp_path), use_cpu=True, gradient_accumulation_steps=0)
    with pytest.raises(ValueError, match="`temperature` must be a finite number > 0, got 0"):
        EntropyDistillationConfig(str(tmp_path), use_cpu=True, temperature=0)
    with pytest.raises(ValueError, match="`tip_scatter_steps` must be an integer > 0 or null, got 0"):
        EntropyDistillationConfig(str(tmp_path), use_cpu=True, tip_scatter_steps=0)
    with pytest.raises(TypeError, match="must be an `EntropyDistillationConfig`, got `DistillationConfig`"):
        build_distiller(EntropyDistillationTrainer, DistillationConfig, tmp_path)


def test_replaced_loss_is_refused(make_distiller, monkeypatch):
    trainer = make_distiller()
    zero = torch.tensor(0.0), torch.tensor(0.0), torch.tensor(1)
    monkeypatch.setattr(DistillationTrainer, "_compute_loss", lambda *_: zero)
    with pytest.raises(RuntimeError, match="another package has replaced parts of TRL's trainer"):
        loss_and_gradients(trainer, make_batch())


SAMPLED = pytest.param(dict(tip_rule="entropy_sample", tip_ratio=0.4), marks=pytest.mark.slow)
TWO_EPOCHS = dict(tip_scope="ema", train_dataset=build_dataset(8))  # of two steps each


@pytest.mark.parametrize("settings", [TWO_EPOCHS, SAMPLED], ids=["two epochs", "sampled"])
def test_resumed_run_equals_uninterrupted_run(make_distiller, tmp_path, settings):
    settings = dict(max_steps=4, save_strategy="steps", save_steps=2, **settings)
    whole = make_distiller(output_dir=tmp_path / "whole", **settings)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert (checkpoint / STATE_FILE).exists() == ("tip_scope" in settings)
    resumed = make_distiller(output_dir=tmp_path / "resumed", model=build_model(seed=1), **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert history(resumed) == history(whole) and len(history(whole)) == 4
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), **EXACT)
    if "tip_scope" in settings:
        assert resumed._tip.state_dict() == whole._tip.state_dict() and whole._tip.ranges


@pytest.mark.slow
def test_evaluation_does_not_move_training(make_distiller, tmp_path):
    weights = []
    for strategy in ("no", "steps"):
        torch.manual_seed(0)
        trainer = make_distiller(
            output_dir=tmp_path / strategy,
            tip_scope="ema",
            max_steps=2,
            eval_strategy=strategy,
            eval_steps=2,
            eval_dataset=build_dataset(4),
        )
        trainer.train()
        weights.append((trainer.model.state_dict(), trainer._tip.state_dict()))
    torch.testing.assert_close(*weights, **EXACT)
