# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The memory of sequences in checkpoints: a resumed run is the uninterrupted one, or says what it lacks."""

import logging
import re
import shutil
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny import EXACT, build_model, build_trainer

from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer
from trl_entropy.trainers.replay import Row
from trl_entropy.trainers.replay_files import file_of, load_replay, read_rows, save_replay


SETTINGS = dict(
    methods=["spear"],
    spear_tool_reward=0.0,
    spear_tools_only=False,
    spear_replay_steps=20,
    spear_buffer_size=6,
    spear_clip_cov_low=-1.0,
    steps_per_generation=2,
    max_steps=10,
)


def build(folder, **settings):
    # Other initial weights than those of the run: what is known comes from the checkpoint
    given = dict(model=build_model(seed=1), save_strategy="no", **SETTINGS)
    return build_trainer(EntropyGRPOTrainer, EntropyGRPOConfig, folder, **{**given, **settings})


def history(trainer):
    keys = ("step", "loss", "grad_norm", "spear/stored", "spear/replayed_rows", "spear/baseline", "spear/ratio_mean")
    return [[row.get(key) for key in keys] for row in trainer.state.log_history if "loss" in row]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of ten optimizer steps on five generation batches, with a checkpoint after each of these."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = build(folder, model=build_model(), save_strategy="steps", save_steps=2)
    trainer.train()
    return trainer, folder


def test_it_replays_what_was_stored_before_a_checkpoint(whole):
    trainer, folder = whole
    rows = {step: read_rows(file_of(folder / f"checkpoint-{step}", "spear", 0)) for step in (2, 4, 6, 8, 10)}
    replayed = [row["spear/replayed_rows"] for row in trainer.state.log_history if "spear/replayed_rows" in row]
    at = 2 * replayed.index(6)  # the first step of that generation batch
    assert at >= 4 and len(rows[at]) > 9 and {row.step for row in rows[at]} >= {0, 2} and len(rows[at + 2]) < 6


@pytest.mark.parametrize("step", [2, 4, 6, 8])
def test_resumed_run_is_the_uninterrupted_one(whole, tmp_path, step):
    trainer, folder = whole
    resumed = build(tmp_path)
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert history(resumed) == history(trainer) and len(history(trainer)) == 10
    torch.testing.assert_close(resumed.model.state_dict(), trainer.model.state_dict(), **EXACT)
    check_rows(resumed._replays["spear"].rows, trainer._replays["spear"].rows)


def check_rows(found, expected):
    assert len(found) == len(expected) > 0
    for row, other in zip(found, expected, strict=True):
        for field in fields(Row):
            one, two = getattr(row, field.name), getattr(other, field.name)
            assert torch.equal(one, two) and one.dtype == two.dtype if isinstance(one, torch.Tensor) else one == two


def loaded(whole, tmp_path, caplog, change=lambda checkpoint: None, **settings):
    """The memory that a run resumed from step 4 begins with, and its warnings."""
    checkpoint = tmp_path / "checkpoint-4"
    shutil.copytree(whole[1] / "checkpoint-4", checkpoint)
    change(checkpoint)
    resumed = build(tmp_path / "out", **{"max_steps": 5, **settings})
    rows, load = [], resumed._load_optimizer_and_scheduler
    resumed._load_optimizer_and_scheduler = lambda *args: (load(*args), rows.extend(resumed._replays["spear"].rows))
    with caplog.at_level(logging.WARNING, "trl_entropy"):
        resumed.train(resume_from_checkpoint=str(checkpoint))
    said = [record.getMessage() for record in caplog.records if "replay_" in record.getMessage()]
    return rows, said


def test_the_memory_of_a_checkpoint(whole, tmp_path, caplog):
    rows, said = loaded(whole, tmp_path, caplog)
    check_rows(rows, read_rows(file_of(whole[1] / "checkpoint-4", "spear", 0)))
    assert said == []


def other_weights(checkpoint: Path):
    """The weights of another training, in a checkpoint that is otherwise the same."""
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"][0, 0] += 1e-3
    save_file(weights, path, metadata={"format": "pt"})


def remove(checkpoint: Path):
    (checkpoint / "spear_replay_0.safetensors").unlink()


@pytest.mark.parametrize(
    "change, settings, expected",
    [
        (remove, {}, r"has no file spear_replay_\*.safetensors: the memory of 'spear' starts empty"),
        (lambda checkpoint: None, dict(temperature=0.9), "is of a run with `temperature` 1.0, not 0.9"),
        (other_weights, {}, "is of other weights: the memory of 'spear' starts empty"),
    ],
    ids=["missing", "temperature", "weights"],
)
def test_a_memory_that_does_not_fit_is_left_out_with_one_warning(whole, tmp_path, caplog, change, settings, expected):
    rows, said = loaded(whole, tmp_path, caplog, change, **settings)
    assert rows == [] and len(said) == 1
    assert re.search(expected, said[0])


def test_a_damaged_file_is_an_error(whole, tmp_path, caplog):
    def damage(checkpoint):
        path = checkpoint / "spear_replay_0.safetensors"
        path.write_bytes(path.read_bytes()[:100])

    with pytest.raises(ValueError, match=r"spear_replay_0.safetensors' is damaged \(.*\). Resume from another"):
        loaded(whole, tmp_path, caplog, damage)


def test_no_file_if_it_is_not_wanted(whole, tmp_path, caplog):
    trainer = build(tmp_path / "off", max_steps=2, save_strategy="steps", save_steps=2, spear_save_buffer=False)
    trainer.train()
    checkpoint = tmp_path / "off" / "checkpoint-2"
    assert checkpoint.is_dir() and not list(checkpoint.glob("spear_*"))
    rows, said = loaded(whole, tmp_path, caplog, remove, spear_save_buffer=False)
    assert rows == [] and said == []


# Other numbers of processes


def row(step, ratio=False):
    tokens = torch.arange(2, 5 + step, dtype=torch.int32)
    own = torch.ones(len(tokens), dtype=torch.bool)
    return Row(tokens[:2], tokens, own, -tokens.float(), tokens.float() if ratio else None, 0.5 + step, 0.25, step)


def memory(trainer, rank, count, rows=()):
    """The memory of one of several processes, whose accelerator is replaced."""
    accelerator = SimpleNamespace(
        process_index=rank,
        num_processes=count,
        distributed_type=trainer.accelerator.distributed_type,
        unwrap_model=lambda model: model,
    )
    run = SimpleNamespace(accelerator=accelerator, model=trainer.model, temperature=1.0)
    return SimpleNamespace(trainer=run, method=SimpleNamespace(name="spear"), rows=list(rows))


@pytest.mark.parametrize("ratio", [False, True], ids=["", "engine"])
def test_files_go_to_the_processes_of_their_number_modulo(whole, tmp_path, caplog, ratio):
    trainer = whole[0]
    parts = {0: [row(0, ratio), row(3, ratio)], 1: [row(1, ratio)], 2: []}
    for rank, rows in parts.items():
        save_replay(memory(trainer, rank, 3, rows), tmp_path)
    for count, expected in {1: [[0, 1, 3]], 2: [[0, 3], [1]], 4: [[0, 3], [1], [], []]}.items():
        for rank, steps in enumerate(expected):
            found = memory(trainer, rank, count)
            load_replay(found, tmp_path)
            assert [one.step for one in found.rows] == steps
            if steps:
                check_rows(found.rows, [row(step, ratio) for step in steps])
    assert not caplog.records and not list(tmp_path.glob("*.part"))
    Path(file_of(tmp_path, "spear", 1)).unlink()
    found = memory(trainer, 1, 2)
    with caplog.at_level(logging.WARNING, "trl_entropy"):
        load_replay(found, tmp_path)
    assert found.rows == [] and "has no spear_replay_1.safetensors" in caplog.records[0].getMessage()
