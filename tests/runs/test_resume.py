# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A resumed run is the uninterrupted one."""

import json

import pytest
import torch
import transformers
from accelerate import PartialState
from support.registry import method_sets, strong, together_sets
from support.tiny import EXACT, build_dataset, build_model, count_reward

from trl_entropy.methods import METHODS, Method
from trl_entropy.runs.resuming import CONTROLLER_FILE, last_whole_checkpoint
from trl_entropy.runs.states import STATE_FILE


def losses(trainer):
    return [(row["step"], row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("methods", method_sets())
def test_resumed_run_equals_uninterrupted_run(make_trainer, tmp_path, methods):
    settings = dict(
        methods=methods,
        max_steps=6,
        save_strategy="steps",
        save_steps=2,
        steps_per_generation=2,
        **strong(methods),
    )
    whole = make_trainer(output_dir=tmp_path / "whole", **settings)
    whole.train()
    settings["save_strategy"] = "no"
    # Other initial weights: what the resumed run knows comes from the checkpoint.
    resumed = make_trainer(output_dir=tmp_path / "resumed", model=build_model(seed=1), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert losses(resumed) == losses(whole) and len(losses(whole)) == 6
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), **EXACT)


def test_resumed_in_a_later_epoch(make_trainer, tmp_path):
    """At the start of an epoch and within it. Each epoch has four prompts in a new order, and four steps."""
    settings = dict(max_steps=10, save_strategy="steps", save_steps=2, steps_per_generation=2)
    settings |= dict(train_dataset=build_dataset(4), reward_funcs=count_reward)
    whole = make_trainer(output_dir=tmp_path / "whole", **settings)
    whole.train()
    assert whole.state.epoch == 2.5
    settings["save_strategy"] = "no"
    for last in (4, 6):
        resumed = make_trainer(output_dir=tmp_path / "resumed", model=build_model(seed=1), **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{last}"))
        assert losses(resumed) == losses(whole)
        torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), **EXACT)


class Counter(Method):
    """Counts the forwards of training."""

    name = "clip_b"  # stands in for a method of the registry
    paper = METHODS["clip_b"].paper

    def __init__(self, config):
        self.count = 0

    def token_advantages(self, tokens):
        self.count += tokens.training
        return tokens.advantages, {}

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_state_of_methods_is_saved_and_restored(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "clip_b", Counter)
    settings = dict(methods=["clip_b"], save_strategy="steps", save_steps=2)
    first = make_trainer(max_steps=2, **settings)
    first.train()
    checkpoint = tmp_path / "checkpoint-2"
    assert json.loads((checkpoint / STATE_FILE).read_text()) == {"version": 1, "parts": {"clip_b": {"count": 2}}}
    second = make_trainer(max_steps=5, **settings)
    second.train(resume_from_checkpoint=str(checkpoint))
    assert second.methods[0].count == 5
    # A checkpoint written without the method is resumed with the method at its start.
    (checkpoint / STATE_FILE).write_text("{}")
    third = make_trainer(max_steps=4, **settings)
    third.train(resume_from_checkpoint=str(checkpoint))
    assert third.methods[0].count == 2


def test_without_methods_no_state_is_written(make_trainer, tmp_path):
    make_trainer(max_steps=2, save_strategy="steps", save_steps=2).train()
    assert (tmp_path / "checkpoint-2").exists() and not (tmp_path / "checkpoint-2" / STATE_FILE).exists()


def test_evaluation_does_not_move_training(make_trainer, tmp_path):
    methods, weights = together_sets()[0], []
    for strategy in ("no", "steps"):
        torch.manual_seed(0)
        trainer = make_trainer(
            output_dir=tmp_path / strategy,
            methods=methods,
            steps_per_generation=2,
            max_steps=2,
            eval_strategy=strategy,
            eval_steps=2,
            per_device_eval_batch_size=4,
            eval_dataset=build_dataset(4),
            **strong(methods),
        )
        trainer.train()
        weights.append(trainer.model.state_dict())
    torch.testing.assert_close(*weights, **EXACT)


def checkpoint(folder, number, **files):
    """A made-up checkpoint; `files` replaces the text of its JSON files by their stems."""
    path = folder / f"checkpoint-{number}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"")
    for stem, text in {"trainer_state": '{"global_step": 1}', **files}.items():
        (path / f"{stem}.json").write_text(text)
    return str(path)


def test_last_whole_checkpoint(tmp_path, caplog):
    PartialState()  # without which accelerate does not log
    assert last_whole_checkpoint(str(tmp_path / "nothing")) is last_whole_checkpoint(str(tmp_path)) is None
    state, controller = STATE_FILE.removesuffix(".json"), CONTROLLER_FILE.removesuffix(".json")
    checkpoint(tmp_path, 3, trainer_state='{"global_step": 1')
    (tmp_path / "checkpoint-old").mkdir()
    with pytest.raises(ValueError, match="has no complete checkpoint. Incomplete: checkpoint-3."):
        last_whole_checkpoint(str(tmp_path))
    controlled = checkpoint(tmp_path, 4, **{state: "{}", controller: "{}"})
    whole = checkpoint(tmp_path, 9)
    assert last_whole_checkpoint(str(tmp_path)) == whole and not caplog.records
    (tmp_path / "checkpoint-10").mkdir()
    checkpoint(tmp_path, 11, **{state: '{"siren": {'})
    checkpoint(tmp_path, 12, **{controller: ""})
    assert last_whole_checkpoint(str(tmp_path)) == whole
    (record,) = caplog.records
    incomplete = "checkpoint-12, checkpoint-11, checkpoint-10"
    assert f"from checkpoint-9, skipping incomplete checkpoints: {incomplete}." in record.getMessage()
    assert last_whole_checkpoint(str(tmp_path), controlled=True) == controlled
    (tmp_path / "checkpoint-4" / CONTROLLER_FILE).unlink()  # the controller was turned on later
    assert last_whole_checkpoint(str(tmp_path), controlled=True) == whole


@pytest.mark.parametrize("make", ["make_trainer", "make_distiller"])
def test_resumes_from_the_last_whole_checkpoint(make, tmp_path, monkeypatch, request):
    trainer, resumed = request.getfixturevalue(make)(), []
    monkeypatch.setattr(transformers.Trainer, "train", lambda self, *args, **kwargs: resumed.append((*args, kwargs)))
    whole = checkpoint(tmp_path, 2)
    (tmp_path / "checkpoint-4").mkdir()
    for given in (True, False, None, "elsewhere"):
        trainer.train(given)
    trainer.train(resume_from_checkpoint=True)
    trainer.train()
    assert resumed == [(found, {}) for found in (whole, False, None, "elsewhere", whole, None)]
