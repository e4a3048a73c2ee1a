# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The diagnosis of a run while it trains: quiet unless something is wrong, and without effect on the training."""

import logging

import pytest
from accelerate import PartialState
from support.tiny import count_reward
from transformers import TrainerControl, TrainerState

from trl_entropy import EntropyDistillationConfig, EntropyGKDConfig, EntropyGRPOConfig
from trl_entropy.diagnosis.callback import DiagnosisCallback
from trl_entropy.signs import Sign, Signs


def run(callback, entropies, history=()):
    """Log lines as a trainer makes them, until the control stops."""
    PartialState()  # without which accelerate's loggers do not log
    state, control = TrainerState(log_history=[*history]), TrainerControl()
    callback.on_train_begin(None, state, control)
    for entropy in entropies:
        state.global_step += 1
        logs = {"entropy": entropy, "reward": 0.5}
        callback.on_log(None, state, control, logs=logs)
        assert logs == {"entropy": entropy, "reward": 0.5}
        callback.on_log(None, state, control, logs={"eval_entropy": 0.0})
        if control.should_training_stop:
            break
    return state.global_step, control


def messages(caplog):
    return [record.getMessage().removeprefix("[RANK 0] ") for record in caplog.records]


@pytest.mark.parametrize("stop", [False, True])
def test_collapse_warns_once_and_may_stop(caplog, stop):
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        step, control = run(DiagnosisCallback(stop=stop), [1.0] * 3 + [0.9 * 0.97**k for k in range(90)])
    assert control.should_training_stop == stop
    (message,) = messages(caplog)
    assert message.startswith("Diagnosis: collapse, step 77: Mean token entropy has fallen from 1 to 0.0974 nats.")
    assert step == (78 if stop else 93)


def test_it_is_quiet_if_nothing_is_wrong(caplog):
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        _, control = run(DiagnosisCallback(stop=True), [1.0 - 0.001 * k for k in range(300)])
    assert messages(caplog) == [] and not control.should_training_stop


def test_a_finding_that_is_not_severe_does_not_stop(caplog):
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        _, control = run(DiagnosisCallback(stop=True), [1.0] * 20 + [0.4] * 20)
    assert [message.split(",")[0] for message in messages(caplog)] == ["Diagnosis: fast fall"]
    assert not control.should_training_stop


def test_a_resumed_run_knows_its_first_entropies(caplog):
    history = [{"step": step, "entropy": 1.0} for step in range(1, 4)]
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        run(DiagnosisCallback(), [0.05] * 3, history)
    assert "Diagnosis: collapse" in " ".join(messages(caplog))


def test_signs_of_methods(caplog):
    sign = Sign({"entropy": (1.0, 1.0)}, "change it")
    callback = DiagnosisCallback({"tip": Signs((sign,))})
    PartialState()
    state, control = TrainerState(), TrainerControl()
    callback.on_train_begin(None, state, control)
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        for step in range(1, 9):
            state.global_step = step
            callback.on_log(None, state, control, logs={"loss": 0.1, "tip/entropy": 1.0})
    (message,) = messages(caplog)
    assert message.endswith("The run is what it would be without the method. Change it.") and "step 5" in message


@pytest.mark.parametrize("kind", [EntropyGRPOConfig, EntropyDistillationConfig, EntropyGKDConfig])
def test_values_of_the_setting(tmp_path, kind):
    for value, expected in ((True, "true"), (False, "false"), ("stop", "stop"), ("true", "true")):
        assert kind(str(tmp_path), use_cpu=True, bf16=False, diagnosis=value).diagnosis == expected
    assert kind(str(tmp_path), use_cpu=True, bf16=False).diagnosis == "true"
    for value in ("yes", 1, None, ["stop"]):
        with pytest.raises(ValueError) as error:
            kind(str(tmp_path), use_cpu=True, bf16=False, diagnosis=value)
        assert str(error.value) == f"`diagnosis` must be true, false or 'stop', got {value!r}."


def kinds(trainer):
    return [type(callback) for callback in trainer.callback_handler.callbacks]


def test_losses_are_the_same_with_and_without_it(make_trainer, tmp_path):
    histories = []
    for value in (True, False):
        trainer = make_trainer(
            output_dir=tmp_path / str(value), methods=["clip_cov"], diagnosis=value, max_steps=3, learning_rate=0.05
        )
        assert (DiagnosisCallback in kinds(trainer)) == value
        trainer.train()
        histories.append(
            [
                {key: value for key, value in line.items() if "time" not in key and "per_second" not in key}
                for line in trainer.state.log_history
            ]
        )
    assert len(histories[0]) == 4 and str(histories[0]) == str(histories[1])


def test_it_stops_a_run(make_trainer, caplog):
    """Two bad gradients in a row. The reward keeps the entropy within its bounds."""
    trainer = make_trainer(diagnosis="stop", max_steps=8, reward_funcs=count_reward)
    clip = trainer.accelerator.clip_grad_norm_
    trainer.accelerator.clip_grad_norm_ = lambda *args, **kwargs: clip(*args, **kwargs) * float("nan")
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        trainer.train()
    assert trainer.state.global_step == 2
    (message,) = [message for message in messages(caplog) if message.startswith("Diagnosis")]
    assert "divergence, step 2: `grad_norm` is not a finite number in 2 log lines in a row." in message


def test_distillation_has_it_too(make_distiller):
    trainer = make_distiller()
    (callback,) = [one for one in trainer.callback_handler.callbacks if isinstance(one, DiagnosisCallback)]
    assert callback.signs.keys() == {"tip"} and not callback.stop
    assert DiagnosisCallback not in kinds(make_distiller(diagnosis=False))
