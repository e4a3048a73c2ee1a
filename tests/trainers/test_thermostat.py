# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The entropy thermostat in the trainer: what it measures, when it acts, and what it remembers."""

import json
import logging
import math

import pytest
import torch
from support.cases import off_policy_batch
from support.reference import dense_logps_and_entropy
from support.registry import required
from support.tensors import config_of, make_loss_batch
from support.tiny import EXACT, build_dataset, build_model, loss_and_gradients

from trl_entropy.methods import METHODS
from trl_entropy.runs.states import STATE_FILE
from trl_entropy.trainers.keep_controller import KeepController


KEEP = dict(entropy_keep=0.9, entropy_keep_batches=2)
OFF, ON = dict(steps_per_generation=2), {}
KNOBS = {method.knob.field: name for name, method in METHODS.items() if method.knob and method.knob.scale != "target"}


def logged(trainer, key):
    return [row[f"entropy_keep/{key}"] for row in trainer.state.log_history if f"entropy_keep/{key}" in row]


def measured(trainer):
    """A list that gets the mean entropy of each generation batch that `trainer` makes, from a dense forward."""
    found, generate = [], trainer._generate_and_score_completions

    def spy(inputs):
        output = generate(inputs)
        if trainer.model.training:
            with torch.no_grad():
                _, entropy = dense_logps_and_entropy(trainer.model, output, trainer.temperature)
            mask = output["completion_mask"] * output.get("tool_mask", 1)
            found.append(((entropy * mask).sum() / mask.sum()).item())
        return output

    trainer._generate_and_score_completions = spy
    return found


def all_knobs(fields):
    return [pytest.param(field, id=field) for field in fields]


# Measuring


@pytest.mark.parametrize(
    "settings, delay",
    [
        (dict(steps_per_generation=2, max_steps=6), 0),
        (dict(steps_per_generation=2, num_iterations=2, max_steps=8, methods=["clip_cov"], temperature=0.7), 0),
        (dict(gradient_accumulation_steps=2, steps_per_generation=2, max_steps=4), 1),
        (dict(gradient_accumulation_steps=2, steps_per_generation=1, max_steps=2, methods=["epo"]), 1),
        (dict(max_steps=3, methods=["clip_v"], clip_v_renormalize=True), 0),
        (dict(steps_per_generation=2, max_steps=4, mask_truncated_completions=True), 0),
    ],
    ids=["off_policy", "iterations", "accumulated", "batches_within_a_step", "scored_for_a_method", "truncated"],
)
def test_entropy_is_the_token_mean_of_the_generation_batch(make_trainer, settings, delay):
    """`delay`: on policy a batch is measured when the next one begins. Each batch counts once."""
    trainer = make_trainer(**KEEP, learning_rate=0.02, **settings)
    expected = measured(trainer)
    trainer.train()
    count = trainer._thermostat.controller.count
    assert count == len(expected) - delay
    controller = KeepController(0, 1, 0, 0.9, batches=2)
    for value in expected[:count]:
        controller.update(value, 0.0)
    assert trainer._thermostat.controller.recent == pytest.approx(controller.recent, rel=1e-5)
    assert trainer._thermostat.controller.reference == pytest.approx(sum(expected[:2]) / 2, rel=1e-5)
    if settings.get("steps_per_generation", 1) == 2 or not delay:
        assert logged(trainer, "entropy") == pytest.approx(expected[:count], rel=1e-5)


def test_micro_batches_of_uneven_lengths_count_by_tokens(make_trainer):
    """On policy: forwards of 2 and of 22 tokens. A mean of their means would be another number."""
    trainer = make_trainer(**KEEP, gradient_accumulation_steps=2)
    long, short = make_loss_batch(), make_loss_batch()
    short["completion_mask"] = torch.zeros_like(short["completion_mask"])
    short["completion_mask"][:2, 0] = 1
    total = count = 0
    for batch in (long, short):
        _, entropy = dense_logps_and_entropy(build_model(), batch)
        total, count = total + entropy.sum().item(), count + batch["completion_mask"].sum().item()
    trainer.args.steps_per_generation = 2
    for number, batch in enumerate((long, short, long)):
        trainer._step = number % 2
        trainer.state.global_step = number // 2
        loss_and_gradients(trainer, batch)
    assert math.exp(trainer._thermostat.controller.smoothed) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("how", ["nan", "no_tokens"])
def test_batch_that_cannot_be_measured_changes_nothing(make_trainer, how):
    thermostat = make_trainer(**KEEP, **OFF)._thermostat
    entropy, mask = torch.full((4, 3), 0.5), torch.ones(4, 3).bool()
    for number in range(4):
        thermostat.after_rollouts(entropy * (1 - 0.1 * number), mask, number)
    before, strength = thermostat.state_dict(), thermostat.trainer.entropy_coef
    if how == "nan":
        thermostat.after_rollouts(torch.where(torch.arange(3) == 1, torch.nan, entropy), mask, 4)
    else:
        thermostat.after_rollouts(entropy, ~mask, 4)
    assert thermostat.state_dict() == before and thermostat.trainer.entropy_coef == strength
    thermostat.after_rollouts(entropy * 0.3, mask, 4)
    assert thermostat.controller.count == 5 and thermostat.trainer.entropy_coef > strength


def test_forward_that_is_not_finite_does_not_count(make_trainer):
    trainer = make_trainer(**KEEP)
    batch = make_loss_batch()
    trainer._thermostat.window.add(0, torch.tensor(math.nan), 5, trainer._world)
    loss_and_gradients(trainer, batch)
    trainer.state.global_step = 1
    loss_and_gradients(trainer, batch)
    _, entropy = dense_logps_and_entropy(build_model(), batch)
    mean = (entropy.sum() / batch["completion_mask"].sum()).item()
    assert math.exp(trainer._thermostat.controller.smoothed) == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("settings", [OFF, ON], ids=["off_policy", "on_policy"])
def test_evaluation_moves_nothing(make_trainer, settings):
    trainer = make_trainer(**KEEP, **settings, max_steps=3, eval_dataset=build_dataset(4))
    trainer.train()
    before = json.dumps(trainer._thermostat.state_dict())
    trainer.evaluate()
    assert json.dumps(trainer._thermostat.state_dict()) == before


def test_second_training_measures_its_own_start(make_trainer):
    trainer = make_trainer(**KEEP, **OFF, max_steps=4, learning_rate=0.05)
    trainer.train()
    first = trainer._thermostat.controller.reference
    expected = measured(trainer)
    trainer.train()
    assert trainer._thermostat.controller.reference == pytest.approx(sum(expected) / 2, rel=1e-5) != first


# Driving


def set_strength(trainer, value):
    """Gives the thermostat an output, as after a generation batch."""
    thermostat = trainer._thermostat
    thermostat.controller.output = thermostat.knob.log_strength(value)
    thermostat._apply()


# (value, settings, on policy): a share of the 21 tokens of the batch is a whole number of tokens.
STRENGTHS = {
    "entropy_coef": (0.2, {}, False),
    "clip_cov_ratio": (4 / 21, dict(clip_cov_low=-0.5), False),
    "kl_cov_ratio": (2 / 21, {}, False),
    "clip_b_mu": (0.5, {}, True),
    "clip_v_max_ratio": (3 / 21, dict(clip_v_mu=0.1), True),
    "siren_coef": (0.7, {}, False),
    "epo_coef": (0.2, {}, False),
}


@pytest.mark.parametrize("field", all_knobs(["entropy_coef", *KNOBS]))
def test_driven_strength_is_the_same_strength_fixed(make_trainer, field):
    value, settings, on_policy = STRENGTHS[field]
    settings = {**settings, "methods": [KNOBS[field]] if field in KNOBS else []}
    batch = make_loss_batch() if on_policy else off_policy_batch(build_model())
    assert batch["completion_mask"].sum() == 21
    fixed = make_trainer(**settings, **{field: value}, model=build_model())
    driven = make_trainer(**settings, entropy_keep=0.9, model=build_model())
    results = []
    for trainer in (fixed, driven):
        for method in trainer.methods:
            if method.name == "siren":
                method.anchor = 0.4
        if trainer is driven:
            set_strength(trainer, value)
        results.append(loss_and_gradients(trainer, batch))
    rounding = dict(rtol=1e-6, atol=1e-7) if field in ("siren_coef", "epo_coef", "entropy_coef") else EXACT
    torch.testing.assert_close(results[1], results[0], **rounding)  # exp(log(value)) may differ in the last digit
    set_strength(driven, 8.0 if field == "clip_b_mu" else driven._thermostat.knob.low)
    weak = loss_and_gradients(driven, batch)[1]["lm_head.weight"]
    assert not torch.equal(weak, results[0][1]["lm_head.weight"])


@pytest.mark.parametrize("field", ["entropy_coef", pytest.param("siren_coef", marks=pytest.mark.slow)])
def test_range_of_one_point_is_the_run_with_that_strength(make_trainer, tmp_path, field):
    settings = dict(methods=[KNOBS[field]] if field in KNOBS else [], max_steps=5, **OFF)
    value = 0.1
    fixed = make_trainer(output_dir=tmp_path / "fixed", model=build_model(), **settings, **{field: value})
    fixed.train()
    narrow = [value, math.nextafter(value, 1)]
    kept = make_trainer(
        output_dir=tmp_path / "kept", model=build_model(), **settings, **KEEP, entropy_keep_range=narrow
    )
    kept.train()
    losses = [[row["loss"] for row in trainer.state.log_history if "loss" in row] for trainer in (fixed, kept)]
    assert losses[0] == losses[1]
    torch.testing.assert_close(kept.model.state_dict(), fixed.model.state_dict(), **EXACT)


def test_strength_of_a_batch_acts_in_the_batch_and_in_all_its_updates(make_trainer):
    """Clip_V chooses tokens once per generation batch, before the first loss."""
    trainer = make_trainer(
        methods=["clip_v"], clip_v_mu=0.0, num_iterations=2, max_steps=8, entropy_keep_reference=2.2, **OFF, **KEEP
    )
    method, at_choice, at_loss = trainer.methods[0], [], []
    choose, act = method.group_advantages, method.token_advantages
    method.group_advantages = lambda rollouts: (at_choice.append(method.max_ratio), choose(rollouts))[1]
    method.token_advantages = lambda tokens: (at_loss.append(method.max_ratio), act(tokens))[1]
    trainer.train()
    assert at_choice == logged(trainer, "strength") and len(set(at_choice)) == 2
    assert at_loss == [value for value in at_choice for _ in range(4)]


def test_bonus_that_is_zero_in_the_config_acts(make_trainer):
    trainer = make_trainer(entropy_coef=0.0, **KEEP, model=build_model())
    plain = make_trainer(entropy_coef=0.0, model=build_model())
    batch = make_loss_batch()
    assert trainer.entropy_coef == 1e-6  # until the starting value is known
    set_strength(trainer, 0.4)
    _, entropy = dense_logps_and_entropy(build_model(), batch)
    bonus = 0.4 * entropy.sum() / batch["completion_mask"].sum()
    difference = loss_and_gradients(plain, batch)[0] - loss_and_gradients(trainer, batch)[0]
    assert difference.item() == pytest.approx(bonus.item(), rel=1e-4)


def test_share_that_is_driven_may_choose_no_token(make_trainer):
    """A tenth of a token on average: none in nine of ten draws, where a fixed share takes one."""
    trainer = make_trainer(methods=["clip_cov"], clip_cov_low=-9.0, **KEEP)
    method, batch, kept = trainer.methods[0], off_policy_batch(build_model()), []
    set_strength(trainer, 0.1 / 21)
    for step in range(40):
        trainer.state.global_step = step
        trainer._metrics["train"].clear()
        loss_and_gradients(trainer, batch)
        kept.append(trainer._metrics["train"]["clip_cov/kept_fraction"][0])
    dropped = [round((1 - value) * 21) for value in kept]
    assert set(dropped) == {0, 1} and 0 < sum(dropped) < 12
    method.driven = False
    trainer._metrics["train"].clear()
    loss_and_gradients(trainer, batch)
    assert round((1 - trainer._metrics["train"]["clip_cov/kept_fraction"][0]) * 21) == 1


def test_target_follows_the_schedule(make_trainer):
    trainer = make_trainer(entropy_keep=0.9, entropy_keep_end=0.4, entropy_keep_reference=2.0, max_steps=8, **OFF)
    trainer.train()
    # The generation batches begin at 0, 1/4, 1/2 and 3/4 of the run.
    assert logged(trainer, "target") == pytest.approx([1.8, 1.469693846, 1.2, 0.979795897])


@pytest.mark.parametrize("name", ["aepo", "entropic"])
def test_method_with_a_target_gets_it(make_trainer, name):
    trainer = make_trainer(methods=[name], **KEEP, **OFF)
    thermostat, method = trainer._thermostat, trainer.methods[0]
    entropy, mask = torch.full((4, 3), 0.5), torch.ones(4, 3).bool()
    thermostat.after_rollouts(entropy, mask, 0)
    assert method.target == pytest.approx(0.5)  # until the starting value is known, entropy as it is
    thermostat.after_rollouts(entropy * 0.6, mask, 1)
    assert method.target == pytest.approx(0.9 * 0.4)
    resumed = make_trainer(methods=[name], **KEEP, **OFF)
    resumed._thermostat.load_state_dict(json.loads(json.dumps(thermostat.state_dict())))
    assert resumed.methods[0].target == method.target
    assert not any(key.endswith(("strength", "saturated")) for key in trainer._metrics["train"])


# Saturation


def saturate(trainer, batches):
    mask = torch.ones(4, 3).bool()
    for number in range(batches):
        trainer._thermostat.after_rollouts(torch.full((4, 3), 0.5 if number < 2 else 0.3), mask, number)


def warnings_of(caplog, text):
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


def test_saturation_is_logged_and_warned_of_once(make_trainer, caplog):
    trainer = make_trainer(methods=["kl_cov"], entropy_keep=0.9, entropy_keep_batches=2, **OFF)
    caplog.set_level(logging.WARNING)
    caplog.clear()
    saturate(trainer, 60)
    saturated = trainer._metrics["train"]["entropy_keep/saturated"]
    assert saturated[:2] == [0, 0] and set(saturated[-21:]) == {1}
    (warning,) = warnings_of(caplog, "end of its range")
    assert warning.removeprefix("[RANK 0] ") == (
        "`kl_cov_ratio` has been at 0.1, the end of its range, for 20 generation batches, but entropy is 0.3 nats, "
        "below the target of 0.45. What may help: a method that can raise entropy, or a wider `entropy_keep_range`, "
        "or a lower `entropy_keep`."
    )
    first = saturated.index(1)
    fresh = make_trainer(methods=["kl_cov"], entropy_keep=0.9, entropy_keep_batches=2, **OFF)
    caplog.clear()
    saturate(fresh, first + 19)
    assert warnings_of(caplog, "end of its range") == []


def test_run_that_never_came_down_says_so(make_trainer, caplog):
    trainer = make_trainer(entropy_keep=0.1, entropy_keep_batches=1, max_steps=4, learning_rate=1e-6, **OFF)
    caplog.set_level(logging.WARNING)
    trainer.train()
    (warning,) = warnings_of(caplog, "nothing to do")
    assert "of its start, above `entropy_keep` 0.1." in warning


# Resuming


@pytest.mark.parametrize("settings", [OFF, dict(gradient_accumulation_steps=2)], ids=["off_policy", "on_policy"])
def test_resumed_run_equals_the_uninterrupted_one(make_trainer, tmp_path, settings):
    settings = dict(methods=["clip_cov"], clip_cov_low=-9.0, entropy_keep_reference=4.0, **KEEP, **settings)
    settings |= dict(max_steps=6, save_strategy="steps", save_steps=4)
    whole = make_trainer(output_dir=tmp_path / "whole", **settings)
    whole.train()
    settings["save_strategy"] = "no"
    resumed = make_trainer(output_dir=tmp_path / "resumed", model=build_model(seed=1), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for key in ("strength", "entropy", "target"):
        assert logged(resumed, key) == logged(whole, key)
    assert resumed._thermostat.state_dict() == whole._thermostat.state_dict()
    assert whole.methods[0].ratio == resumed.methods[0].ratio == whole._thermostat.strength != 1e-4
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), **EXACT)


def test_resumed_within_a_generation_batch_counts_it_once(make_trainer, tmp_path):
    settings = dict(**KEEP, **OFF, max_steps=6, save_strategy="steps", save_steps=3)
    whole = make_trainer(output_dir=tmp_path / "whole", **settings)
    whole.train()
    assert whole._thermostat.controller.count == 3
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    state = json.loads((checkpoint / STATE_FILE).read_text())["parts"]["entropy_keep"]
    assert state["controller"]["count"] == 2 and state["last"] == 1
    settings["save_strategy"] = "no"
    resumed = make_trainer(output_dir=tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed._thermostat.controller.count == 3
    assert resumed._thermostat.controller.reference == whole._thermostat.controller.reference


@pytest.mark.parametrize(
    "change",
    [dict(entropy_keep=0.5), dict(methods=["epo"]), dict(entropy_keep_end=0.7)],
    ids=lambda change: [*change][0],
)
def test_state_of_other_settings_keeps_what_was_measured(make_trainer, caplog, change):
    settings = {**KEEP, **OFF}
    first, second = make_trainer(**settings), make_trainer(**{**settings, **change})
    mask = torch.ones(4, 3).bool()
    for number in range(15):
        first._thermostat.after_rollouts(torch.full((4, 3), 0.5 if number < 2 else 0.4), mask, number)
    state = json.loads(json.dumps(first._thermostat.state_dict()))
    caplog.set_level(logging.WARNING)
    caplog.clear()
    second._thermostat.load_state_dict(state)
    old, new = first._thermostat.controller, second._thermostat.controller
    assert (new.reference, new.smoothed, new.recent, new.fall) == (old.reference, old.smoothed, old.recent, old.fall)
    assert new.memory == new.start != old.memory and new.log_strength == new.low
    (warning,) = warnings_of(caplog, "the strength starts again")
    assert "The checkpoint was written with `entropy_keep` 0.9 driving `entropy_coef`" in warning
    same = make_trainer(**settings)
    same._thermostat.load_state_dict(state)
    assert same.entropy_coef == first.entropy_coef == math.exp(old.output) and same._thermostat.state_dict() == state


# Settings of all knobs


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.knob])
def test_knob_is_what_its_method_reads(name):
    """The attribute holds the field's value, at both ends of the range and at the start."""
    knob = METHODS[name].knob
    for value in (knob.low, knob.start, knob.high):
        config = config_of(**{**required([name]), knob.field: value})
        assert getattr(METHODS[name](config), knob.attribute) == value
        assert knob.scale == "target" or knob.value(knob.log_strength(value)) == pytest.approx(value, rel=1e-12)
