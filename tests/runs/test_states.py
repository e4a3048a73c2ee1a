# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A state that does not fit a run is one error or one warning, and never a silent fresh start."""

import json
import logging

import pytest
from accelerate import PartialState
from support.distilling import build_distiller
from support.self_distillation import OURS, TEXTS, texts
from support.tiny import TRAINING, build_model, build_tokenizer
from transformers.trainer import TRAINER_STATE_NAME

from trl_entropy import EntropyDistillationConfig, EntropyDistillationTrainer
from trl_entropy.runs.resuming import CONTROLLER_FILE, check_controller
from trl_entropy.runs.states import STATE_FILE, STATE_VERSION, load_states, save_states


class Part:
    """Has one number, one number that is not known yet, a list and a mapping."""

    def __init__(self):
        self.state = {"total": 0.0, "anchor": None, "moments": [0.0, 0.0], "ranges": {}, "mode": "a"}

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        first, second = state["moments"]
        self.state = state


LATER = {"total": 2, "anchor": 0.5, "moments": [1.0, 2.0], "ranges": {"entropy": [0.0, 1.0]}, "mode": "b", "more": "x"}


@pytest.fixture
def warned(caplog):
    PartialState()  # without which accelerate does not log
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        yield lambda: [
            record.getMessage().removeprefix("[RANK 0] ")
            for record in caplog.records
            if record.name.startswith("trl_entropy")
        ]


def write(folder, content):
    (folder / STATE_FILE).write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder)


@pytest.mark.parametrize("content", [{"siren": LATER}, {"version": STATE_VERSION, "parts": {"siren": LATER}}])
def test_files_with_and_without_a_version_load(tmp_path, warned, content):
    part = Part()
    load_states(write(tmp_path, content), {"siren": part})
    assert part.state == LATER and warned() == []


def test_what_is_saved_loads(tmp_path, warned):
    saved, part = Part(), Part()
    saved.state = LATER
    save_states(str(tmp_path), {"version": saved, "parts": saved})  # names that the file itself uses
    load_states(str(tmp_path), {"version": part, "parts": part})
    assert part.state == LATER and warned() == []


def test_an_older_file_may_have_a_method_named_version(tmp_path):
    part = Part()
    load_states(write(tmp_path, {"version": LATER}), {"version": part})
    assert part.state == LATER


@pytest.mark.parametrize(
    "content, message",
    [
        ("", f"{STATE_FILE}' is damaged (Expecting value"),
        ('{"siren": {"total": 1', f"{STATE_FILE}' is damaged ("),
        ("[]", "must hold states by method, got []."),
        ({"version": 1}, "must hold states by method, got {'version': 1}."),
        (
            {"version": 2, "parts": {}},
            "must be 1 or missing, got 2. Resume with the version of trl-entropy that wrote it.",
        ),
        ({"version": "1", "parts": {}}, "must be 1 or missing, got '1'."),
    ],
)
def test_damaged_file(tmp_path, content, message):
    with pytest.raises(ValueError) as error:
        load_states(write(tmp_path, content), {"siren": Part()})
    assert message in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).endswith(("or remove the file to start fresh.", "that wrote it."))


@pytest.mark.parametrize(
    "state, fault",
    [
        (None, "`it` is None"),
        ([], "`it` is []"),
        ({}, "`total` is missing"),
        ({"old": 1}, "`total` is missing"),
        ({**LATER, "total": None, "anchor": "0.5"}, "`anchor` is '0.5'"),
        ({**LATER, "total": "2"}, "`total` is '2'"),
        ({**LATER, "total": float("nan")}, "`total` is nan"),
        ({**LATER, "anchor": float("inf")}, "`anchor` is inf"),
        ({**LATER, "more": float("inf")}, "`more` is inf"),
        ({**LATER, "moments": [1.0, float("nan")]}, "`moments.1` is nan"),
        ({**LATER, "moments": {}}, "`moments` is {}"),
        ({**LATER, "ranges": {"entropy": [0.0, float("nan")]}}, "`ranges.entropy.1` is nan"),
        ({**LATER, "ranges": None}, "`ranges` is None"),
        ({**LATER, "moments": [1.0]}, "ValueError: not enough values to unpack (expected 2, got 1)"),
    ],
)
def test_state_that_does_not_fit(tmp_path, state, fault):
    part = Part()
    with pytest.raises(ValueError) as error:
        load_states(write(tmp_path, {"siren": state}), {"siren": part})
    assert str(error.value) == (
        f"{str(tmp_path / STATE_FILE)!r} must hold the state of 'siren' as this version saves it, but {fault}. Resume "
        "from another checkpoint, or remove 'siren' from the file to start fresh."
    )
    assert part.state == Part().state


class Stateless:
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize("content", [None, {}, {"clip_cov": {}}, {"version": 1, "parts": {}}])
def test_missing_states_are_said(tmp_path, warned, content):
    if content is not None:
        write(tmp_path, content)
    part = Part()
    load_states(str(tmp_path), {"siren": part, "clip_cov": Stateless()})
    assert warned() == [f"{str(tmp_path / STATE_FILE)!r} has no state of 'siren': 'siren' starts fresh."]
    assert part.state == Part().state


def test_states_that_the_run_does_not_use_are_said(tmp_path, warned):
    load_states(write(tmp_path, {"siren": LATER, "clip_cov": {}}), {})
    path = str(tmp_path / STATE_FILE)
    assert warned() == [f"{path!r} has a state of 'siren', which this run does not use: it is ignored."]


def test_grpo_is_not_resumed_from_a_broken_state(make_trainer, tmp_path, warned):
    settings = dict(methods=["epo"], save_strategy="steps", save_steps=1)
    make_trainer(max_steps=1, **settings).train()
    checkpoint = tmp_path / "checkpoint-1"
    state = json.loads((checkpoint / STATE_FILE).read_text())
    state["parts"]["epo"]["history_total"] = float("nan")
    write(checkpoint, state)
    for path in (True, str(checkpoint)):
        with pytest.raises(ValueError, match="the state of 'epo' .* but `history_total` is nan. Resume from another"):
            make_trainer(max_steps=2, **settings).train(resume_from_checkpoint=path)
    assert warned() == []
    other = make_trainer(max_steps=2, **{**settings, "methods": ["siren"]})
    other.train(resume_from_checkpoint=str(checkpoint))
    started, ignored = warned()
    assert "has no state of 'siren': 'siren' starts fresh." in started and "has a state of 'epo'" in ignored


def test_distillation_is_not_resumed_from_a_broken_state(make_distiller, tmp_path, warned):
    settings = dict(tip_scope="ema", save_strategy="steps", save_steps=1)
    make_distiller(max_steps=1, **settings).train()
    checkpoint = tmp_path / "checkpoint-1"
    write(checkpoint, {"tip": {"ranges": {"entropy": [0.0, float("nan")]}}})
    with pytest.raises(ValueError, match="the state of 'tip' .* but `ranges.entropy.1` is nan."):
        make_distiller(max_steps=2, **settings).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / STATE_FILE).unlink()
    make_distiller(max_steps=2, **settings).train(resume_from_checkpoint=str(checkpoint))
    assert [message for message in warned() if "'tip' starts fresh" in message]


def test_self_distillation_is_not_resumed_from_a_broken_state(tmp_path):
    trainer_class, config_class = OURS["SDFT"]

    def run(steps):
        settings = {**TRAINING, **TEXTS["SDFT"], "save_strategy": "steps", "save_steps": 1, "tip_scope": "ema"}
        args = config_class(str(tmp_path), per_device_train_batch_size=4, max_steps=steps, seed=7, **settings)
        return trainer_class(model=build_model(), args=args, train_dataset=texts(), processing_class=build_tokenizer())

    run(1).train()
    write(tmp_path / "checkpoint-1", "{")
    with pytest.raises(ValueError, match=f"{STATE_FILE}' is damaged"):
        run(2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is damaged"),
        ("[]", "must hold a JSON object, got []."),
        ('{"entropy_coef": 0.1}', "`last_world_entropy` in"),
        ('{"entropy_coef": NaN, "last_world_entropy": 1}', "must be a number, got nan."),
    ],
)
def test_state_of_the_controller(tmp_path, text, message, warned):
    (tmp_path / CONTROLLER_FILE).write_text(text)
    with pytest.raises(ValueError) as error:
        check_controller(str(tmp_path))
    assert message in str(error.value) and CONTROLLER_FILE in str(error.value)
    (tmp_path / CONTROLLER_FILE).write_text('{"entropy_coef": 0.1, "last_world_entropy": Infinity}')
    check_controller(str(tmp_path))
    assert warned() == []
    (tmp_path / CONTROLLER_FILE).unlink()
    check_controller(str(tmp_path))
    assert len(warned()) == 1 and "starts fresh" in warned()[0]


def test_another_kappa_selection_is_refused_before_the_optimizer_is_loaded(make_trainer, tmp_path):
    settings = dict(save_strategy="steps", save_steps=1)
    frozen = dict(kappa_mode="freeze", kappa_num_modules=3)
    make_trainer(output_dir=tmp_path / "frozen", max_steps=1, **settings, **frozen).train()
    make_trainer(output_dir=tmp_path / "full", max_steps=1, **settings).train()

    def refused(folder, **other):
        checkpoint = tmp_path / folder / "checkpoint-1"
        with pytest.raises(ValueError) as error:
            make_trainer(output_dir=tmp_path / "x", max_steps=2, **settings, **other).train(
                resume_from_checkpoint=str(checkpoint)
            )
        assert str(checkpoint / TRAINER_STATE_NAME) in str(error.value)
        return str(error.value)

    assert "The checkpoint was trained on 3 selected modules, this run selects 2" in refused(
        "frozen", **{**frozen, "kappa_num_modules": 2}
    )
    assert "`kappa_mode` must be 'freeze', as in the run that wrote" in refused("frozen")
    assert "`kappa_mode` must be 'none', as in the run that wrote" in refused("full", **frozen)
    (tmp_path / "full" / "checkpoint-1" / TRAINER_STATE_NAME).write_text("{")
    assert "is damaged" in refused("full")


def test_checkpoint_of_the_distiller_with_another_tip_scope(tmp_path, warned):
    """A state is written with `ema` alone."""

    def run(scope, steps):
        return build_distiller(
            EntropyDistillationTrainer,
            EntropyDistillationConfig,
            tmp_path,
            tip_scope=scope,
            max_steps=steps,
            save_strategy="steps",
            save_steps=1,
        )

    run("ema", 1).train()
    run("global", 2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert [message for message in warned() if "has a state of 'tip', which this run does not use" in message]
