# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""From the Hub and back with its real client: model and dataset by id, pushes while training, card, reload."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load as load_safetensors
from support.hub_server import HubServer
from support.tiny import VOCABULARY, build_dataset, build_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from trl_entropy.runs import states
from trl_entropy.runs.states import STATE_FILE


ROOT = Path(__file__).parents[2]
SETTINGS = dict(
    model_name_or_path="user/base",
    dataset_name="user/problems",
    reward_funcs=["support.tiny.count_reward"],
    output_dir="out",
    methods=["epo", "clip_cov"],
    epo_coef=0.01,
    hub_model_id="user/tuned",
    push_to_hub=True,
    hub_strategy="every_save",
    save_strategy="steps",
    save_steps=2,
    max_steps=4,
    per_device_train_batch_size=4,
    num_generations=4,
    steps_per_generation=2,
    max_completion_length=8,
    learning_rate=0.01,
    logging_steps=1,
    log_completions=True,
    report_to="none",
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
)
DEFAULTS = ("hub_strategy", "save_strategy", "report_to")  # set above to what they are anyway


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub with a base model, its card and a dataset."""
    folder = tmp_path_factory.mktemp("hub")
    # Not the Qwen2 of other tests, for which `AutoTokenizer` takes a tokenizer of its own.
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "base")
    (folder / "base" / "README.md").write_text("---\nlicense: other\nlicense_name: tiny\n---\n")
    (folder / "problems").mkdir()
    build_dataset().to_parquet(folder / "problems" / "train.parquet")
    with HubServer() as server:
        server.add("model", "user/base", folder / "base")
        server.add("dataset", "user/problems", folder / "problems")
        yield server


def run(server, folder, repository, *arguments):
    """Runs `trl-entropy` in a process that can reach only `server` -> its report."""
    strange = ("HF_", "HUGGING", "WANDB", "TRL_", "CI", "RANK", "WORLD_SIZE")
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(strange) and "proxy" not in key.lower()
    }
    settings = dict(
        HF_ENDPOINT=server.url,
        HF_HOME=str(folder / "cache"),
        HF_TOKEN="hf_" + "x" * 34,
        HF_HUB_DISABLE_XET="1",
        HF_UPDATE_DOWNLOAD_COUNTS="0",  # else `datasets` tells a server of its own what it loads
        PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        OMP_NUM_THREADS="1",
    )
    command = [sys.executable, str(ROOT / "tests" / "support" / "hub_run.py"), repository, "report.json", *arguments]
    done = subprocess.run(command, cwd=folder, env=kept | settings, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    """The report of a run that trained a model from the Hub on a dataset from the Hub and pushed it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(SETTINGS))
    return run(hub, folder, "user/tuned", "grpo", "--config", "recipe.yaml", "--learning_rate", "0.02")


def test_pushed_model_is_the_trained_one(pushed):
    assert pushed["same_weights"] and pushed["moved"]
    assert pushed["tokens"] == build_tokenizer()("w3 w4")["input_ids"]


def test_nothing_goes_to_another_machine(hub, pushed):
    assert pushed["refused"] == []
    assert hub.unknown == []
    # TRL's telemetry goes to the endpoint too.
    assert any(request.startswith("HEAD /api/telemetry/trl/") for request in hub.requests)


def test_each_save_is_a_commit_with_weights_and_state(hub, pushed):
    commits = [(message, files) for _, message, files in hub.repositories["model", "user/tuned"].commits]
    messages = [message for message, _ in commits]
    assert messages[:3] == ["initial commit", "Training in progress, step 2", "Training in progress, step 4"]
    weights = [load_safetensors(files["model.safetensors"])["lm_head.weight"] for _, files in commits[1:]]
    assert not torch.equal(weights[0], weights[1]) and torch.equal(weights[1], weights[-1])
    states = [json.loads(files[STATE_FILE])["parts"] for _, files in commits[1:]]
    assert set(states[0]) == {"epo", "clip_cov"} and states[0]["epo"] != states[1]["epo"]
    assert states[-1] == pushed["state"]
    for _, files in commits[1:]:
        assert {"README.md", "entropy.png", "config.json", "tokenizer.json", "training_args.bin"} <= set(files)
        assert not any(path.startswith("checkpoint-") for path in files)


def test_card_on_the_hub(hub, pushed):
    card = pushed["card"]
    assert {"trl-entropy", "epo", "clip_cov", "trl", "grpo", "generated_from_trainer"} <= set(card["tags"])
    assert (card["base_model"], card["datasets"]) == ("user/base", "user/problems")
    assert (card["license"], card["license_name"]) == ("other", "tiny") and "licence" not in card
    metrics = {metric["type"]: metric["value"] for metric in card["model-index"][0]["results"][0]["metrics"]}
    assert set(metrics) == {"reward", "entropy", "completions_mean_length"} and 0 < metrics["entropy"] < 4
    files = hub.repositories["model", "user/tuned"].files
    text = ModelCard(files["README.md"].decode()).text
    assert "fine-tuned version of [user/base](https://huggingface.co/user/base) on [user/problems]" in text
    assert 'pipeline("text-generation", model="user/tuned")' in text
    assert "trl-entropy grpo --config recipe.yaml --learning_rate 0.02" in text
    recipe = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    changed = {key: value for key, value in SETTINGS.items() if key not in DEFAULTS}
    assert recipe == changed | {"learning_rate": 0.02}
    assert "hf_xxx" not in text
    assert files["entropy.png"].startswith(b"\x89PNG")


def test_completions_with_their_entropies_are_pushed(hub, pushed):
    pandas = pytest.importorskip("pandas")
    files = hub.repositories["model", "user/tuned"].files
    table = pandas.read_parquet(io.BytesIO(files["completions/completions_00004.parquet"]))
    assert len(table) == 8 and (table["token_entropy_max"] >= table["token_entropy_mean"]).all()


@pytest.mark.slow
def test_a_model_trained_further_in_its_repository(hub, pushed, tmp_path):
    """Its card names its base, and the state of methods that it no longer uses is gone."""
    hub.repositories["model", "user/again"].commit("files", hub.repositories["model", "user/tuned"].files)
    settings = SETTINGS | dict(model_name_or_path="user/again", hub_model_id="user/again", methods=[], max_steps=2)
    del settings["epo_coef"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    found = run(hub, tmp_path, "user/again", "grpo", "--config", "recipe.yaml")
    assert (found["card"]["base_model"], found["card"]["license"]) == ("user/base", "other")
    assert pushed["state"] and found["state"] == {} and found["refused"] == []


def test_states_of_an_earlier_run_are_replaced(make_trainer, tmp_path, monkeypatch):
    on_hub, asked = [], []

    def download(repository, name, **_):
        asked.append((repository, name))
        if repository not in on_hub:
            raise FileNotFoundError(repository)

    def saved(trainer, name, repository=None):
        trainer.hub_model_id = repository
        for _ in range(2):
            trainer.save_model(tmp_path / name)
        path = tmp_path / name / STATE_FILE
        return json.loads(path.read_text())["parts"] if path.exists() else None

    monkeypatch.setattr(states, "hf_hub_download", download)
    stock = make_trainer()
    assert saved(stock, "new") is None
    assert set(saved(make_trainer(methods=["siren"]), "new", "user/tuned")) == {"siren"}
    assert saved(stock, "new") == {} and asked == []
    assert saved(stock, "pushed", "user/tuned") is None and asked == [("user/tuned", STATE_FILE)]
    on_hub.append("user/again")
    del stock._states_on_hub
    assert saved(stock, "pushed", "user/again") == {}
