# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""TIP in TRL's experimental trainers: stock if it selects nothing, else the same loss over fewer rows."""

import inspect
import logging
import re
from dataclasses import fields, replace

import pytest
import torch
from support.distilling import LENGTHS, TEACHER, jsd, kept_by_hand, kl, make_batch
from support.processes import run_processes
from support.self_distillation import OURS, STOCK, TEXTS, reward, texts
from support.tiny import EXACT, FLOAT32, TRAINING, VOCABULARY, build_model, build_tokenizer
from torch.nn.functional import kl_div
from trl.experimental import gkd, sdft, sdpo
from trl.experimental.sdft.sdft_trainer import DistillationLogits

from trl_entropy.collectives import Collectives
from trl_entropy.methods.tip import NEEDS
from trl_entropy.runs.states import STATE_FILE, load_states
from trl_entropy.trainers.logits_selection import compact, rows_at, token_statistics


@pytest.fixture
def make(tmp_path):
    """`make("GKD", **settings)` gives our trainer, `make("GKD", stock=True)` TRL's."""

    def build(name, stock=False, peft_config=None, model=None, **settings):
        trainer_class, config_class = STOCK[name] if stock else OURS[name]
        defaults = dict(
            per_device_train_batch_size=4,
            per_device_eval_batch_size=4,
            learning_rate=0.05,
            max_steps=2,
            **TRAINING,
            seed=7,
        )
        extra = {"GKD": dict(teacher_model=build_model(**TEACHER)), "SDPO": dict(reward_funcs=reward)}
        folder = str(settings.pop("output_dir", tmp_path))
        return trainer_class(
            model=build_model() if model is None else model,
            args=config_class(folder, **{**defaults, **TEXTS[name], **settings}),
            train_dataset=texts(),
            eval_dataset=texts().select(range(4)),
            processing_class=build_tokenizer(),
            peft_config=peft_config,
            **extra.get(name, {}),
        )

    return build


def loss_and_gradients(trainer, batch, **keywords):
    trainer.model.zero_grad()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # set when training starts
    loss = trainer.compute_loss(trainer.model, batch, **keywords)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def make_inputs(name):
    """A batch as the trainer's `compute_loss` takes it: ragged, one rollout without a token."""
    batch = make_batch(tools=False)
    ids, mask = (torch.cat([batch[f"prompt_{kind}"], batch[f"completion_{kind}"]], 1) for kind in ("ids", "mask"))
    if name == "GKD":
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :3] = -100
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}
    hint = torch.randint(2, VOCABULARY, (len(ids), 2), generator=torch.Generator().manual_seed(4))
    batch |= {"teacher_input_ids": torch.cat([hint, ids], 1)}
    batch |= {"teacher_attention_mask": torch.cat([torch.ones_like(hint), mask], 1)}
    batch["advantages"] = torch.tensor([1.0, -1.0, 0.5, -0.5])
    return batch


# Nothing chosen

RUNS = {
    "GKD": ("GKD", dict()),
    "GKD on-policy": ("GKD", dict(lmbda=1.0, beta=0.5)),
    "SDFT top-k": ("SDFT", dict(distillation_mode="topk_logits", distillation_topk=5, distillation_alpha=0.5)),
    "SDPO": ("SDPO", dict(distillation_weight=0.7)),
}
FAST = ("GKD on-policy", "SDPO")


@pytest.mark.parametrize("neutral", [dict(tip_rule="none"), dict(tip_ratio=1.0)], ids=["none", "all"])
@pytest.mark.parametrize("name", STOCK)
def test_all_tokens_are_stock_to_the_bit(make, name, neutral):
    batch = make_inputs(name)
    stock = loss_and_gradients(make(name, stock=True), batch)
    torch.testing.assert_close(loss_and_gradients(make(name, **neutral), batch), stock, **EXACT)
    assert stock[0] != loss_and_gradients(make(name), batch)[0]


@pytest.mark.parametrize(
    "run", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_runs_on_all_tokens_are_stock_to_the_bit(make, run):
    name, settings = RUNS[run]
    stock, ours = make(name, stock=True, **settings), make(name, tip_rule="none", **settings)
    for trainer in (stock, ours):
        torch.manual_seed(0)
        trainer.train()
    losses = [[row["loss"] for row in trainer.state.log_history if "loss" in row] for trainer in (stock, ours)]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    torch.testing.assert_close(ours.model.state_dict(), stock.model.state_dict(), **EXACT)
    assert any((a != b).any() for a, b in zip(ours.model.parameters(), build_model().parameters(), strict=True))
    assert not any("tip/" in key for row in ours.state.log_history for key in row)


@pytest.mark.parametrize("run", ["GKD on-policy", "SDFT top-k", "SDPO"])
def test_runs_on_half_of_the_tokens(make, run):
    name, settings = RUNS[run]
    trainer = make(name, **settings)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 2 and all(0 < row["tip/kept_fraction"] < 0.8 for row in rows)
    assert all(row["tip/entropy_kept_mean"] > 0 and row["tip/nonfinite_tokens"] == 0 for row in rows)
    assert trainer._tag_names == ["trl", name.lower(), "trl-entropy", "tip"] == trainer.model.model_tags[-4:]


@pytest.mark.parametrize("name", STOCK)
def test_evaluation_is_over_all_tokens(make, name, tmp_path):
    found = []
    for stock in (True, False):
        torch.manual_seed(0)
        found.append(make(name, stock=stock, output_dir=tmp_path / str(stock)).evaluate())
    assert found[0]["eval_loss"] == found[1]["eval_loss"]
    assert not any("tip" in key for key in found[1])


# The paper's loss


def logits_of(trainer, batch, name, temperature):
    """(B, T, V) log-probabilities of student and teacher, (B, T) mask and ids of the tokens that the loss counts."""
    if name == "GKD":
        kind = dict(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        student, teacher = (model(**kind).logits[:, :-1] for model in (trainer.model, trainer.teacher_model))
        labels = batch["labels"][:, 1:]
        mask = labels != -100
    else:
        ids, seen = (torch.cat([batch[f"prompt_{k}"], batch[f"completion_{k}"]], 1) for k in ("ids", "mask"))
        length = batch["completion_ids"].size(1)
        student = trainer.model(input_ids=ids, attention_mask=seen).logits[:, -length - 1 : -1]
        seen = batch["teacher_attention_mask"]
        teacher = trainer.model(input_ids=batch["teacher_input_ids"], attention_mask=seen).logits[:, -length - 1 : -1]
        labels, mask = batch["completion_ids"], batch["completion_mask"].bool()
    student, teacher = ((x.double() / temperature).log_softmax(-1) for x in (student, teacher.detach()))
    return student, teacher, mask, labels


def reference(trainer, batch, name, rule, ratio, beta, temperature=1.0, num_items=None, old_logps=None):
    """Loss over the selected tokens from full logits, those tokens, and the gradients of all parameters."""
    student, teacher, mask, labels = logits_of(trainer, batch, name, temperature)
    p = student.detach()
    keep = kept_by_hand(rule, ratio, -(p.exp() * p).sum(-1), kl(p, teacher), kl(teacher, p), mask)
    terms = jsd(student, teacher, beta)
    if old_logps is not None:
        logps = student.detach().gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        terms = terms * (logps - old_logps).exp().clamp(max=2.0)
    if name == "GKD":
        loss = terms[keep].sum() / (keep.sum() if num_items is None else num_items)
    else:
        loss = torch.stack(
            [row[kept].mean() if kept.any() else 0 * row.sum() for row, kept in zip(terms, keep, strict=True)]
        ).mean()
    parameters = dict(trainer.model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return loss.detach(), keep, dict(zip(parameters, gradients, strict=True))


VARIANTS = {
    "GKD": ("GKD", dict(), {}),
    "GKD, of an update": ("GKD", dict(tip_ratio=0.3), dict(num_items=9)),
    "GKD, JSD": ("GKD", dict(beta=0.3, tip_rule="q3"), {}),
    "GKD, forward KL": ("GKD", dict(beta=0.0, tip_rule="entropy", tip_ratio=0.4), {}),
    "SDFT": ("SDFT", dict(), {}),
    "SDFT, JSD": ("SDFT", dict(distillation_alpha=0.3, tip_rule="q3"), {}),
    "SDFT, temperature": ("SDFT", dict(temperature=0.7, tip_ratio=0.3), {}),
    "SDFT, off-policy": ("SDFT", dict(tip_rule="entropy"), dict(old_logps=torch.linspace(-3, -2, 24).view(4, 6))),
    "SDPO": ("SDPO", dict(tip_rule="divergence", distillation_weight=1.0), {}),
    "SDPO, bottom": ("SDPO", dict(tip_rule="bottom", tip_ratio=0.3, distillation_weight=1.0), {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients(make, variant):
    name, settings, extra = VARIANTS[variant]
    trainer, batch = make(name, **settings), make_inputs(name)
    args = trainer.args
    beta = args.beta if name == "GKD" else args.distillation_alpha
    temperature = 1.0 if name == "GKD" else args.temperature
    loss, keep, gradients = reference(trainer, batch, name, args.tip_rule, args.tip_ratio, beta, temperature, **extra)
    chosen, choose = [], trainer._choose
    trainer._choose = lambda *arguments: chosen.append(choose(*arguments)) or chosen[-1]
    if "old_logps" in extra:
        batch["old_per_token_logps"] = extra["old_logps"]
    number = dict(num_items_in_batch=torch.tensor(extra["num_items"])) if "num_items" in extra else {}
    found_loss, found = loss_and_gradients(trainer, batch, **number)
    assert chosen[0].tolist() == keep.tolist() and 0 < keep.sum() < sum(LENGTHS)
    torch.testing.assert_close(found_loss.double(), loss, **FLOAT32)
    torch.testing.assert_close(found, gradients, **FLOAT32)


@pytest.mark.parametrize("name", ["SDFT", "SDPO"])
@pytest.mark.parametrize("mode", ["full_logits", "topk_logits", "sampled_token"])
def test_dropping_rows_is_masking_them(make, name, mode):
    """In each of TRL's objectives, importance weights included, the loss is the stock loss with tokens masked."""
    settings = dict(distillation_mode=mode, tip_ratio=0.4)
    settings |= dict(distillation_topk=5, distillation_add_tail=True) if mode == "topk_logits" else {}
    batch = make_inputs(name) | {"old_per_token_logps": torch.linspace(-4, -2, 24).view(4, 6)}
    ours = make(name, **settings)
    chosen, choose = [], ours._choose
    ours._choose = lambda *arguments: chosen.append(choose(*arguments)) or chosen[-1]
    found = loss_and_gradients(ours, batch)
    masked = make(name, stock=True, **{key: value for key, value in settings.items() if key != "tip_ratio"})
    compute = masked._compute_teacher_student_logits
    masked._compute_teacher_student_logits = lambda *arguments: replace(
        compute(*arguments), loss_mask=chosen[0].long()
    )
    torch.testing.assert_close(found, loss_and_gradients(masked, batch), **FLOAT32)
    assert 0 < chosen[0].sum() < sum(LENGTHS) and found[0] != 0


@pytest.mark.parametrize("rule", [rule for rule in NEEDS if rule != "none"])
def test_quadrants_are_logged_for_each_rule(make, rule):
    trainer = make("GKD", tip_rule=rule)
    loss_and_gradients(trainer, make_inputs("GKD"))
    logged = {key: values for key, (*_, values) in trainer._metrics["train"].items() if key.startswith("tip/")}
    assert sum(logged[f"tip/q{number}_fraction"] for number in (1, 2, 3, 4)) == pytest.approx(1)
    assert logged["tip/divergence_kept_mean"] > 0 < logged["tip/divergence_dropped_mean"]


@pytest.mark.parametrize("rule", ["entropy", "random", "q3"])
def test_tokens_whose_teacher_is_not_finite_are_not_kept(make, rule):
    student, teacher = torch.randn(2, 1, 6, 5, generator=torch.Generator().manual_seed(0))
    teacher[0, :3] = torch.inf
    kept = make("GKD", tip_rule=rule)._choose(student, teacher, torch.ones(1, 6).bool(), 1.0)
    assert kept.tolist() == [[False] * 3 + [True] * 3]


def test_policy_loss_is_over_all_tokens(make):
    """At weight w the loss is (1 - w) times TRL's policy loss and w times the distillation loss over kept tokens."""
    batch = make_inputs("SDPO")
    policy, _ = loss_and_gradients(make("SDPO", stock=True, distillation_weight=0.0), batch)
    distilled, _ = loss_and_gradients(make("SDPO", distillation_weight=1.0), batch)
    both, _ = loss_and_gradients(make("SDPO", distillation_weight=0.25), batch)
    torch.testing.assert_close(both, 0.75 * policy + 0.25 * distilled, **FLOAT32)
    assert policy != 0 != distilled


def test_loss_of_gkd_is_a_mean_over_the_kept_tokens_of_the_update(make):
    """Rows of 1 to 6 tokens in two micro-batches of an update. Half of each row is kept, and at least one token.

    The count does not depend on the mode in which loading or evaluation leaves the model.
    """
    settings = dict(gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=1)
    trainer = make("GKD", model=build_model().eval(), **settings)
    counted, kept, compute = [], [], trainer.compute_loss

    def spy(model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"][:, 1:] != -100
        if model.training:
            counted.append(int(num_items_in_batch))
            kept.append(sum(max(1, int(row) // 2) for row in labels.sum(1)))
        else:
            assert num_items_in_batch is None or num_items_in_batch == labels.sum()
        return compute(model, inputs, return_outputs, num_items_in_batch)

    trainer.compute_loss = spy
    trainer.train()
    assert len(kept) == 4 and counted == [kept[0] + kept[1]] * 2 + [kept[2] + kept[3]] * 2


@pytest.mark.parametrize("settings", [dict(), dict(tip_ratio=0.1, tip_min_tokens=0)], ids=["none there", "none kept"])
@pytest.mark.parametrize("name", STOCK)
def test_batches_without_a_token(make, name, settings):
    """They have no gradient, and a process that got one enters every collective that the others enter."""
    batch, trainer, calls = make_inputs(name), make(name, tip_scope="world"), []

    def recorded(trainer, batch):
        calls.clear()
        trainer._world = Collectives(*(lambda x, call=call: calls.append(call) or x for call in ("sum", "gather")))
        trainer.accelerator.gather = lambda x: calls.append("metric") or x
        return *loss_and_gradients(trainer, batch), calls[:]

    *_, entered = recorded(trainer, batch)
    assert {"sum", "gather"} <= set(entered) and ("metric" in entered) == (name != "GKD")
    if settings:
        trainer = make(name, tip_scope="world", **settings)
    else:
        key, nothing = ("labels", -100) if name == "GKD" else ("completion_mask", 0)
        batch = {**batch, key: torch.full_like(batch[key], nothing)}
    loss, gradients, found = recorded(trainer, batch)
    assert loss == 0 and gradients and all((gradient == 0).all() for gradient in gradients.values())
    assert found == entered


@pytest.mark.parametrize("mode", ["full_logits", "topk_logits", "sampled_token"])
def test_nothing_kept_is_a_loss_of_zero_in_each_mode(make, mode):
    alpha = 1.0 if mode == "sampled_token" else 0.5
    settings = dict(distillation_mode=mode, distillation_alpha=alpha, tip_ratio=0.1, tip_min_tokens=0)
    settings |= dict(distillation_topk=5, distillation_add_tail=True) if mode == "topk_logits" else {}
    trainer, batch = make("SDFT", **settings), make_inputs("SDFT")
    batch["old_per_token_logps"] = torch.linspace(-4, -2, 24).view(4, 6)
    loss, gradients = loss_and_gradients(trainer, batch)
    assert loss == 0 and gradients and all((gradient == 0).all() for gradient in gradients.values())
    assert trainer._metrics["train"]["self_distillation/distillation_loss"] == [pytest.approx(0, abs=1e-6)]


def test_updates_of_gkd_that_keep_nothing(make):
    trainer = make("GKD", tip_ratio=0.1, tip_min_tokens=0, max_steps=1, logging_nan_inf_filter=False)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == 0 == trainer.state.log_history[0]["grad_norm"]


@pytest.mark.slow
def test_a_process_that_keeps_nothing_does_not_hold_up_the_others(tmp_path):
    run_processes("self_distillation_processes.py", 2, tmp_path)
    for name in ("SDFT", "SDPO"):
        first, other = (torch.load(tmp_path / f"{name}{rank}.pt", weights_only=False) for rank in range(2))
        torch.testing.assert_close(first["weights"], other["weights"], **EXACT)
        assert first["rows"] == other["rows"] and len(first["rows"]) == 2
        assert first["kept"] > 0 == other["kept"] and all(row["loss"] > 0 for row in first["rows"])


@pytest.mark.parametrize("broken_tokens", [[7], range(24)], ids=["one", "all"])
def test_tokens_that_are_not_finite_leave_no_trace(make, broken_tokens):
    """A row without finite statistics is neither kept nor used to pad shorter rows."""
    trainer, batch = make("SDFT"), make_inputs("SDFT")
    forward = trainer._forward_logits

    def broken(*arguments, **keywords):
        logits = forward(*arguments, **keywords)  # 7: the second token of the second row
        return logits.masked_fill(
            torch.isin(torch.arange(24), torch.tensor([*broken_tokens])).view(4, 6, 1), torch.inf
        )

    trainer._forward_logits = broken
    loss, gradients = loss_and_gradients(trainer, batch)
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients.values())
    assert trainer._metrics["train"]["tip/nonfinite_tokens"] == [1 if len(broken_tokens) == 1 else sum(LENGTHS)]


def test_lora_with_the_base_model_as_teacher(make):
    from peft import LoraConfig

    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make("SDFT", peft_config=config, teacher_model_kind="base")
    trainer.train()
    assert trainer.state.global_step == 2 and 0 < trainer.state.log_history[0]["tip/kept_fraction"] < 0.8


# Statistics, rows and memory


def test_statistics_by_hand(monkeypatch):
    """Three words: H = -Σ p ln p; KL(S||T) = Σ p (ln p - ln q); KL(T||S) = Σ q (ln q - ln p)."""
    monkeypatch.setattr("trl_entropy.trainers.logits_selection.CHUNK", 3)  # a row at a time
    p, q = torch.tensor([0.5, 0.25, 0.25]).double(), torch.tensor([0.25, 0.5, 0.25]).double()
    student, teacher = (torch.stack([x.log() + 3, torch.full_like(x, torch.nan)])[None] for x in (p, q))
    mask = torch.tensor([[True, False]])
    found = token_statistics(student, teacher, mask, ("divergence", "forward_divergence"))
    assert found["entropy"][0].tolist() == pytest.approx([1.0397207708, 0], rel=1e-9)  # 1.5 ln 2
    assert found["divergence"][0].tolist() == pytest.approx([0.1732867951, 0], rel=1e-9)  # ln 2 / 4
    assert found["forward_divergence"][0].tolist() == pytest.approx([0.1732867951, 0], rel=1e-9)
    # Words of probability 0 change none of them, unless one model alone has them
    needs = ("divergence", "forward_divergence")
    impossible = torch.full((1, 2, 1), -torch.inf)
    wider = [torch.cat([x, impossible], -1) for x in (student, teacher)]
    torch.testing.assert_close(token_statistics(*wider, mask, needs), found, rtol=0, atol=1e-12)
    alone = token_statistics(wider[0], torch.cat([teacher, torch.zeros(1, 2, 1)], -1), mask, needs)
    assert alone["forward_divergence"][0, 0] == torch.inf and alone["divergence"][0, 0].isfinite()
    hot = token_statistics(student, teacher, mask, (), temperature=1e9)
    assert set(hot) == {"entropy"} and hot["entropy"][0, 0].item() == pytest.approx(1.0986122887, rel=1e-6)  # ln 3


def test_compact_by_hand():
    positions, real = compact(torch.tensor([[0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]).bool())
    assert positions.tolist() == [[1, 3], [2, 2], [0, 0]]
    assert real.tolist() == [[True, True], [True, False], [False, False]]
    values = torch.arange(24).view(3, 4, 2)
    assert rows_at(values, positions)[:2].tolist() == [[[2, 3], [6, 7]], [[12, 13], [12, 13]]]
    positions, real = compact(torch.zeros(3, 4).bool())
    assert positions.shape == real.shape == (3, 0)
    assert rows_at(values, positions).tolist() == [[[0, 0]]] * 3


def saved_bytes(compute):
    """Bytes of the tensors that autograd saves for the backward of what `compute` returns."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = compute()
    return sum(storages.values()), loss


@pytest.mark.parametrize("name", STOCK)
def test_memory_of_the_loss_falls_with_the_ratio(make, name):
    """The loss saves tensors with one row per token it counts."""
    rows, length, words = 4, 40, 512
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(rows, length, words, generator=generator) for _ in range(2))
    labels = torch.zeros(rows, length, dtype=torch.long)

    def loss_of(trainer):
        trainer.model.train()
        logits = student.clone().requires_grad_()
        if name == "GKD":
            return trainer.generalized_jsd_loss(logits, teacher, labels=labels, beta=trainer.beta)
        kind = sdft.sdft_trainer if name == "SDFT" else sdpo.sdpo_trainer
        masks = {item.name: torch.ones_like(labels) for item in fields(kind.DistillationLogits)}
        batch = kind.DistillationLogits(**{**masks, "student_logits": logits, "teacher_logits": teacher})
        return trainer._compute_self_distillation_loss(trainer.model, {}, batch)

    full, _ = saved_bytes(lambda: loss_of(make(name, stock=True)))
    assert full > 3 * 4 * rows * length * words
    for ratio in (0.5, 0.2):
        kept, loss = saved_bytes(lambda ratio=ratio: loss_of(make(name, tip_ratio=ratio)))
        assert loss.requires_grad and kept / full == pytest.approx(ratio, rel=0.03)


# Configuration and checkpoints


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("GKD", dict(packing=True), "`packing` must be false with `tip_rule` 'soft_or', got True: tokens are chosen"),
        ("GKD", dict(padding_free=True), "`padding_free` must be false with `tip_rule` 'soft_or', got True"),
        ("GKD", dict(tip_ratio=0.0), "`tip_ratio` must be a ratio"),
        ("GKD", dict(gradient_accumulation_steps=0), "`gradient_accumulation_steps` must be an integer >= 1, got 0"),
        ("SDFT", dict(num_generations=0), "`num_generations` must be an integer >= 1, got 0"),
        ("SDPO", dict(steps_per_generation=0), "`steps_per_generation` must be an integer >= 1 or none, got 0"),
        ("SDFT", dict(use_teacher_server=True), "`use_teacher_server` must be false with `tip_rule` 'soft_or'"),
        ("SDPO", dict(use_teacher_server=True), "`use_teacher_server` must be false with `tip_rule` 'soft_or'"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, name, settings, message):
    with pytest.raises(ValueError, match=message):
        OURS[name][1](str(tmp_path), use_cpu=True, bf16=False, **settings)


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("GKD", dict(tip_ratio=1.0), "'soft_or' does nothing, since `tip_ratio` 1.0 keeps all"),
        ("SDFT", dict(tip_min_tokens=300), r"`tip_min_tokens` \(300\) is not below `max_completion_length` \(256\)"),
        ("SDPO", dict(distillation_weight=0.0), "does nothing, since `distillation_weight` is 0"),
    ],
)
def test_setting_without_effect_warns_once(tmp_path, caplog, name, settings, message):
    logging.getLogger("trl_entropy").propagate = True
    with caplog.at_level("WARNING"):
        OURS[name][1](str(tmp_path), use_cpu=True, bf16=False, **settings)
        OURS[name][1](str(tmp_path), use_cpu=True, bf16=False, tip_rule="none")
    found = [record.getMessage() for record in caplog.records if "does nothing" in record.getMessage()]
    assert len(found) == 1 and re.search(message, found[0])


@pytest.mark.parametrize("name", STOCK)
def test_stock_configs_are_refused(make, name, monkeypatch):
    monkeypatch.setitem(OURS, name, [OURS[name][0], STOCK[name][1]])
    with pytest.raises(TypeError, match=f"`args` must be an `Entropy{name}Config`, got `{name}Config`"):
        make(name)


def test_running_ranges_are_saved_with_checkpoints(make, tmp_path):
    trainer = make("SDFT", tip_scope="ema", max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    assert (tmp_path / "checkpoint-1" / STATE_FILE).exists()
    fresh = make("SDFT", tip_scope="ema")
    load_states(str(tmp_path / "checkpoint-1"), fresh._stateful)
    assert fresh._tip.ranges == trainer._tip.ranges != {}


def test_random_draws_differ_between_forwards_and_repeat_in_another_run(make):
    found = []
    for _ in range(2):
        trainer, batch = make("SDFT", tip_rule="random"), make_inputs("SDFT")
        found.append([loss_and_gradients(trainer, batch)[0].item() for _ in range(4)])
    assert found[0] == found[1] and len(set(found[0])) > 1


# Assumptions about TRL


def test_gkd_calls_its_divergence_once_with_shifted_labels(make):
    trainer, batch = make("GKD", stock=True), make_inputs("GKD")
    calls, divergence = [], trainer.generalized_jsd_loss
    trainer.generalized_jsd_loss = lambda **keywords: calls.append(keywords) or divergence(**keywords)
    trainer.compute_loss(trainer.model, batch, num_items_in_batch=3)
    (call,) = calls
    assert set(call) == {"student_logits", "teacher_logits", "labels", "beta", "num_items_in_batch"}
    assert torch.equal(call["labels"], batch["labels"][:, 1:]) and call["student_logits"].shape[:2] == (4, 8)
    parameters = inspect.signature(gkd.GKDTrainer.generalized_jsd_loss).parameters
    assert list(parameters)[:3] == ["student_logits", "teacher_logits", "labels"]
    assert parameters["temperature"].default == 1.0


def test_gkd_takes_rows_without_a_batch(make):
    """Its divergence is the same over (N, V) rows as over (B, T, V) with a mask."""
    student, teacher = torch.randn(2, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, 4, 1], [2, -100, 3]])
    mask = labels != -100
    loss = gkd.GKDTrainer.generalized_jsd_loss
    torch.testing.assert_close(loss(student[mask], teacher[mask], labels=labels[mask]), loss(student, teacher, labels))
    expected = kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True)[mask].sum()
    torch.testing.assert_close(loss(student[mask], teacher[mask], labels[mask], beta=0), expected / 4)


def test_items_of_an_update_are_counted_from_labels_before_generation():
    from transformers import Trainer

    assert list(inspect.signature(Trainer._get_num_items_in_batch).parameters) == ["self", "batch_samples", "device"]
    assert list(inspect.signature(Trainer.get_batch_samples).parameters)[1:] == [
        "epoch_iterator",
        "num_batches",
        "device",
    ]
    assert "get_batch_samples" not in inspect.getsource(Trainer.evaluation_loop)


@pytest.mark.parametrize("name", ["SDFT", "SDPO"])
def test_self_distillation_hands_over_logits_with_one_row_per_token(make, name):
    trainer, batch = make(name, stock=True), make_inputs(name)
    found = trainer._compute_teacher_student_logits(trainer.model, trainer.teacher_model, batch)
    assert [item.name for item in fields(DistillationLogits)] == [
        item.name for item in fields(found) if item.name != "completion_mask"
    ]
    assert all(getattr(found, item.name).shape[:2] == (4, 6) for item in fields(found))
    parameters = inspect.signature(type(trainer)._compute_self_distillation_loss).parameters
    assert list(parameters) == ["self", "model", "inputs", "distillation_logits"]
    source = inspect.getsource(type(trainer)._compute_self_distillation_loss)
    assert "completion_mask" not in source and source.count("inputs") == source.count("inputs:") + 1
