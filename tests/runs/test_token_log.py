# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Files of a run for the report: its settings, and tokens with the model's entropies at them."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from support.tiny import build_dataset, build_model, build_tokenizer

from trl_entropy import EntropyGRPOConfig
from trl_entropy.report.heat import heat_maps
from trl_entropy.report.runs import read_runs
from trl_entropy.runs.token_log import SettingsCallback, TokenLog, changed_settings


@pytest.mark.parametrize("steps_per_generation", [1, 2])
def test_entropies_are_those_of_a_forward(make_trainer, tmp_path, steps_per_generation):
    temperature = 0.7
    trainer = make_trainer(
        learning_rate=0.0,
        log_token_entropies=3,
        temperature=temperature,
        steps_per_generation=steps_per_generation,
        log_completions=True,
        num_completions_to_print=0,
    )
    trainer.train()
    trainer.save_state()
    paths = sorted((tmp_path / "completions").glob("token_entropies_*.json"))
    assert [path.name for path in paths] == ["token_entropies_00001.json", "token_entropies_00002.json"]
    model, tokenizer = build_model(), build_tokenizer()  # as it was, since nothing was learnt
    for step, path in enumerate(paths, start=1):
        log = json.loads(path.read_text())
        assert log["step"] == step and len(log["completions"]) == 3
        for record in log["completions"]:
            prompt, tokens = (tokenizer(text)["input_ids"] for text in (record["prompt"], "".join(record["tokens"])))
            assert len(prompt) == 3 and len(tokens) == len(record["tokens"]) == len(record["entropies"])
            with torch.no_grad():
                logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1] / temperature
            logps = logits.log_softmax(-1)
            expected = -(logps.exp() * logps).sum(-1)
            torch.testing.assert_close(torch.tensor(record["entropies"]), expected, rtol=1e-5, atol=5e-6)
    runs = read_runs([tmp_path])  # and the report finds all of it
    assert [(shown.step, shown.left_out) for shown in heat_maps(runs, 2)] == [(1, 0), (1, 0), (2, 0), (2, 0)]
    assert runs[0].series("step", "entropy")[0] == [1, 2] and runs[0].settings["temperature"] == temperature


def test_nothing_is_kept_unless_asked_for(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=1)
    trainer.train()
    assert not (tmp_path / "completions").exists() and trainer._token_log.rows == []


def test_completions_of_several_forwards_are_kept_and_none_of_evaluations(make_trainer, tmp_path):
    trainer = make_trainer(
        log_token_entropies=6,
        gradient_accumulation_steps=2,
        max_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=4,
        eval_dataset=build_dataset(4),
    )
    trainer.train()
    (path,) = (tmp_path / "completions").glob("token_entropies_*.json")
    assert len(json.loads(path.read_text())["completions"]) == 6  # of micro-batches of four
    assert any("eval_entropy" in line for line in trainer.state.log_history)


def test_tokens_that_the_loss_leaves_out_have_no_entropy(tmp_path):
    log = TokenLog(1, str(tmp_path), build_tokenizer().decode)
    row = {
        "prompt_ids": torch.tensor([0, 5, 6]),
        "prompt_mask": torch.tensor([0, 1, 1]),
        "completion_ids": torch.tensor([7, 8, 9, 0]),
        "completion_mask": torch.tensor([1, 1, 1, 0]),
        "mask": torch.tensor([True, False, True, False]),
        "entropy": torch.tensor([0.25, 0.5, 1.0, 2.0]),
        "advantage": torch.tensor(-0.5),
    }
    assert log._as_record(row) == {
        "prompt": "w3 w4",
        "advantage": -0.5,
        "tokens": ["w5", " w6", " w7"],
        "entropies": [0.25, None, 1.0],
    }
    row["entropy"][2], row["advantage"] = math.nan, torch.tensor(math.inf)  # of a run that diverged
    record = log._as_record(row)
    assert (record["entropies"], record["advantage"]) == ([0.25, None, None], None)


@pytest.mark.parametrize("value", [-1, 1.5, True, "2"])
def test_number_must_be_whole(tmp_path, value):
    with pytest.raises(ValueError, match="`log_token_entropies` must be a whole number >= 0, got "):
        EntropyGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, log_token_entropies=value)


def test_settings_are_written_when_training_starts(make_trainer, tmp_path):
    trainer = make_trainer(methods=["clip_cov"], clip_cov_ratio=0.1, steps_per_generation=2, max_steps=1)
    assert not (tmp_path / "run_settings.json").exists()
    trainer.train()
    settings = json.loads((tmp_path / "run_settings.json").read_text())
    assert settings["methods"] == ["clip_cov"] and settings["clip_cov_ratio"] == 0.1 and settings["seed"] == 7
    assert settings["learning_rate"] == 0.05 and settings["num_generations"] == 4
    assert not {"clip_cov_low", "output_dir", "use_cpu", "report_to"} & set(settings)


def test_token_logs_of_an_earlier_run_are_removed_when_training_starts(tmp_path):
    folder = tmp_path / "completions"
    folder.mkdir()
    others = ["completions_00005.parquet", "token_entropies_mine.json", "notes_00009.json"]
    for name in (*others, *(f"token_entropies_{step:05d}.json" for step in (1, 2, 3, 100_000))):
        (folder / name).touch()
    args = EntropyGRPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    for step, kept in ((2, ["token_entropies_00001.json", "token_entropies_00002.json"]), (0, [])):
        state = SimpleNamespace(is_world_process_zero=True, global_step=step)  # that of a resumed run, and a new one
        SettingsCallback().on_train_begin(args, state, None)
        assert {path.name for path in folder.iterdir()} == {*others, *kept}


def test_settings_name_no_place(tmp_path):
    places = dict(
        vllm_server_base_url="http://somewhere",
        log_completions_hub_repo="me/mine",
        run_name="secret",
        hub_token="hf_secret",
        model_init_kwargs={"revision": "x"},
    )
    args = EntropyGRPOConfig(
        str(tmp_path), use_cpu=True, bf16=False, importance_sampling_level="sequence", log_completions=True, **places
    )
    settings = changed_settings(args)
    assert settings["importance_sampling_level"] == "sequence" and "lr_scheduler_type" not in settings
    text = json.dumps(settings)
    assert not any(word in text for word in ("somewhere", "me/mine", "secret", "revision", str(tmp_path)))


def test_only_training_keeps_tokens(tmp_path):
    batch = {"prompt_ids": torch.ones(1, 1)}
    for count, training in ((0, True), (2, False)):
        log = TokenLog(count, str(tmp_path), str)
        log.keep(batch, SimpleNamespace(training=training))
        assert log.rows == []
    with pytest.raises(KeyError, match="prompt_mask"):  # which it now reads
        log.keep(batch, SimpleNamespace(training=True))


@pytest.mark.parametrize("main", [True, False])
def test_only_the_main_process_keeps_tokens(make_trainer, monkeypatch, main):
    monkeypatch.setattr(Accelerator, "is_main_process", main)
    assert make_trainer(log_token_entropies=2)._token_log.count == (2 if main else 0)
