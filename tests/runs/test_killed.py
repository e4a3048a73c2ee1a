# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`kill -9` at any moment: the run resumed from the last checkpoint is the uninterrupted one."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.registry import accepted, covered, method_sets, settings_of, strong, together_sets
from support.tiny import EXACT, build_model, count_reward

from trl_entropy.methods import METHODS


STATEFUL = [name for name in covered() if METHODS[name].overrides("state_dict")]
CONTROLLERS = dict(entropy_forecast=True, use_adaptive_entropy=True, entropy_controller="pi", entropy_target=2.0)


def make_run(make_trainer, folder, methods, draws, **settings):
    """A run of eight steps with a checkpoint after every second. `draws` gets the completions of each generation."""

    def reward(completion_ids, **kwargs):
        draws.append([list(map(int, ids)) for ids in completion_ids])
        return count_reward(completion_ids)

    defaults = dict(max_steps=8, save_strategy="steps", save_steps=2, steps_per_generation=4)
    defaults |= accepted(methods, dict(gradient_accumulation_steps=2, entropy_coef=0.01))
    return make_trainer(
        output_dir=folder, methods=methods, reward_funcs=reward, **{**defaults, **strong(methods), **settings}
    )


def states(trainer):
    return {name: part.state_dict() for name, part in trainer._stateful.items()}


def rows(trainer):
    timed = ("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")
    return [{k: row[k] for k in sorted(row.keys() - set(timed))} for row in trainer.state.log_history if "loss" in row]


def train_until_killed(trainer, step, forward):
    """Ends this process as `kill -9` does, in the loss of one micro-batch of an optimizer step."""
    compute_loss = trainer._compute_loss

    def kill(model, inputs):
        loss = compute_loss(model, inputs)
        if trainer.state.global_step == step and trainer._step % 2 == forward:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    trainer._compute_loss = kill
    trainer.train()
    os._exit(0)  # not killed after all


def check_killed_run(make_trainer, tmp_path, methods, step, forward, **settings):
    expected, found = [], []
    whole = make_run(make_trainer, tmp_path / "whole", methods, expected, **settings)
    whole.train()
    killed = make_run(make_trainer, tmp_path / "killed", methods, [], **settings)
    process = multiprocessing.get_context("fork").Process(target=train_until_killed, args=(killed, step, forward))
    process.start()
    process.join(timeout=600)  # it is quick, unless the machine is busy
    process.kill()
    assert process.exitcode == -signal.SIGKILL
    last = step - step % 2
    checkpoints = sorted(path.name for path in (tmp_path / "killed").glob("checkpoint-*"))
    assert checkpoints == [f"checkpoint-{number}" for number in range(2, last + 1, 2)]
    # Other initial weights: what the resumed run knows comes from the checkpoint.
    resumed = make_run(make_trainer, tmp_path / "killed", methods, found, model=build_model(seed=1), **settings)
    resumed.train(resume_from_checkpoint=True)
    assert found == expected[-len(found) :] and len(found) * 8 == len(expected) * (8 - last)
    # As text, in which NaN equals itself.
    assert str(rows(resumed)) == str(rows(whole)) and len(rows(whole)) == 8
    assert str(states(resumed)) == str(states(whole))
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), **EXACT)
    return whole


@pytest.mark.compatibility("kill and resume")
@pytest.mark.parametrize("methods", method_sets())
def test_killed_run(make_trainer, tmp_path, methods):
    controllers = accepted(methods, CONTROLLERS) if len(methods) > 1 else {}
    whole = check_killed_run(make_trainer, tmp_path, methods, step=5, forward=1, **controllers)
    if controllers:
        bonus = {"entropy_bonus"} if "entropy_controller" in controllers else set()
        assert set(states(whole)) == {*methods, "entropy_forecast"} | bonus
        assert set(STATEFUL) <= {name for names in together_sets() for name in names}
        assert all(state for name, state in states(whole).items() if name not in METHODS or name in STATEFUL)


VARIANTS = [([name], variant) for name in STATEFUL for variant in ({}, *settings_of(name).variants)]
VARIANTS += [([], CONTROLLERS)]


@pytest.mark.slow
@pytest.mark.parametrize("step, forward", [(2, 0), (3, 1), (4, 0), (7, 1)])
@pytest.mark.parametrize("methods, settings", VARIANTS, ids=str)
def test_killed_at_another_step(make_trainer, tmp_path, methods, settings, step, forward):
    check_killed_run(make_trainer, tmp_path, methods, step, forward, **settings)


def test_a_checkpoint_that_passes_for_whole_has_the_states(make_trainer, tmp_path, monkeypatch):
    """States are on disk before the file that makes a checkpoint readable, so no kill leaves one without them."""
    from trl_entropy.runs import states

    save, seen = states.save_states, []
    monkeypatch.setattr(
        states, "save_states", lambda folder, *parts: (seen.append(os.listdir(folder)), save(folder, *parts))
    )
    make_trainer(methods=["siren"], save_strategy="steps", save_steps=1).train()
    assert len(seen) == 2 and all("trainer_state.json" not in names for names in seen)
    assert {"trainer_state.json", "entropy_methods_state.json"} <= set(os.listdir(tmp_path / "checkpoint-2"))


if __name__ == "__main__":
    from support.tiny import build_trainer

    from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer

    output, resume = sys.argv[1], len(sys.argv) > 2
    trainer = make_run(
        lambda **settings: build_trainer(
            EntropyGRPOTrainer, EntropyGRPOConfig, settings.pop("output_dir"), **settings
        ),
        output,
        together_sets()[0],
        [],
        model=build_model(seed=int(resume)),
        max_steps=24,
        **CONTROLLERS,  # three epochs
    )
    trainer.train(resume_from_checkpoint=resume)
    torch.save((rows(trainer), states(trainer), trainer.model.state_dict()), Path(output) / "end.pt")


@pytest.mark.slow
def test_a_process_killed_from_outside(tmp_path):
    here = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": f"{here.parents[1]}:{here.parent}", "OMP_NUM_THREADS": "1"}

    def start(folder, *arguments):
        return subprocess.Popen([sys.executable, __file__, str(tmp_path / folder), *arguments], env=env)

    assert start("whole").wait(timeout=300) == 0
    process = start("killed")
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "killed" / "checkpoint-6" / "trainer_state.json").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        time.sleep(random.random())
    finally:
        process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL
    checkpoint = tmp_path / "killed" / "checkpoint-6"  # whole; and one without the end, wherever the kill has come
    shutil.copytree(checkpoint, checkpoint.with_name("checkpoint-24"), ignore=lambda *_: ["trainer_state.json"])
    assert start("killed", "resume").wait(timeout=300) == 0
    whole, resumed = (torch.load(tmp_path / folder / "end.pt") for folder in ("whole", "killed"))
    assert str(resumed[:2]) == str(whole[:2]) and len(whole[0]) == 24
    torch.testing.assert_close(resumed[2], whole[2], **EXACT)
