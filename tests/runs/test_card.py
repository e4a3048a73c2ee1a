# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Model cards: their facts and citations, and what they must leave out."""

import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from support.registry import required, together_params
from support.tiny import build_model
from transformers.trainer_utils import SchedulerType

from trl_entropy import METHODS
from trl_entropy.diagnosis.callback import DiagnosisCallback
from trl_entropy.diagnosis.rules import RULES, Finding
from trl_entropy.kappa.config import KappaTune
from trl_entropy.runs import card, card_facts, card_hooks, card_sources, provenance
from trl_entropy.trainers.grpo_config import EntropyGRPOConfig


COLLAPSE = next(rule for rule in RULES if rule.name == "collapse")
HISTORY = [
    {"step": 1, "entropy": 2.0, "reward": 0.25, "completions/mean_length": 8.0},
    {"step": 2, "entropy": 1.5, "completions/mean_length": float("nan")},
    {"step": 2, "eval_reward": 0.75, "eval_entropy": 1.25},
    {"step": 3, "entropy": None, "reward": None},  # as the log of transformers has what is not finite
]


@pytest.fixture
def card_of(make_trainer, tmp_path):
    """`card_of(facts, **settings)` -> the card of a trainer with a history, which has not trained."""

    def make(history=HISTORY, facts=None, **settings):
        trainer = make_trainer(output_dir=tmp_path / "tuned", **settings)
        trainer.state.log_history, trainer.state.global_step = list(history), 2
        trainer.create_model_card(**(facts or {}))
        return ModelCard.load(tmp_path / "tuned" / "README.md")

    return make


@pytest.mark.parametrize("methods", together_params())
def test_every_method_is_cited_by_its_own_paper(card_of, monkeypatch, methods):
    monkeypatch.setattr(card_hooks, "command_line", lambda: "python train.py")  # none in a worker of pytest
    text = card_of(methods=methods, **required(methods)).text
    for name in methods:
        paper = METHODS[name].paper
        assert f"`{name}`: [{paper.title}]({paper.url})." in text
        assert text.count(paper.bibtex) == 1  # once, also where two methods share a paper
    assert text.count("shao2024deepseekmath") == text.count("vonwerra2020trl") == 1
    assert "{{TRL: Transformers Reinforcement Learning}}" in text
    assert text.count("```") == 2 * (3 + 1 + len({METHODS[name].paper.arxiv for name in methods}) + 1)


def test_kappa_tune_is_cited_where_it_chose_the_weights(card_of):
    text = card_of(methods=["clip_cov"], kappa_mode="freeze", kappa_top_p=0.3, kappa_cache="none").text
    assert "under entropy control by `clip_cov`, on weights chosen by KappaTune." in text
    assert f"`kappa`: [{KappaTune.paper.title}]({KappaTune.paper.url})." in text
    assert text.count(KappaTune.paper.bibtex) == 1
    rows = [line.split("` ")[0] for line in text.splitlines() if line.startswith("| `kappa")]
    assert rows == [
        "| `kappa_mode",
        "| `kappa_top_p",
        "| `kappa_cache",
    ]  # the lists at their defaults are not among them
    assert "KappaTune" not in card_of(methods=["clip_cov"]).text


def test_changed_fields_stand_beside_their_defaults(card_of):
    text = card_of(methods=["clip_cov", "kl_cov"], clip_cov_ratio=0.1, clip_cov_scope="world").text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == ["| `clip_cov_ratio` | `0.1` | `0.0002` |", "| `clip_cov_scope` | `world` | `micro_batch` |"]
    assert text.count("All its settings at their defaults.") == 1


def test_fields_of_a_method_whose_name_begins_alike_are_not_taken():
    methods = ["aepo", "agentic_aepo"]
    config = EntropyGRPOConfig("out", methods=methods, aepo_target_entropy=0.5, use_cpu=True, bf16=False)
    assert [row[0] for row in card.changed_fields(METHODS["aepo"](config), config)] == ["aepo_target_entropy"]
    assert card.changed_fields(METHODS["agentic_aepo"](config), config) == []


def test_entropy_is_the_mean_over_tokens_if_it_was_logged(card_of):
    """The last line is of a window without a valid token, where TRL logs 0."""
    history = [
        {"step": 1, "entropy": 2.0, "entropy/mean": 1.75, "reward": 0.25},
        {"step": 2, "entropy": 1.5, "entropy/mean": 1.625, "reward": 0.5},
        {"step": 2, "eval_entropy": 1.25, "eval_entropy/mean": 1.125},
        {"step": 3, "entropy": 0.0, "entropy/mean": None, "reward": 0.5},
    ]
    found = card_of(history)
    metrics = {entry.metric_type: entry.metric_value for entry in found.data.eval_results}
    assert metrics == {"reward": 0.5, "entropy": 1.625, "eval_entropy": 1.125}
    assert "Token entropy went from 1.750 to 1.625 nats in 2 optimizer steps." in found.text


def test_metadata(card_of):
    results = {"pass@1": np.mean([0.0, 1.0]), "pass@4": torch.tensor(0.75), "solved": np.int64(3), "lost": math.nan}
    facts = dict(license="mit", results=results, tags="mine", dataset_name="user/problems")
    found = card_of(facts=facts, methods=["clip_cov"])
    data = found.data.to_dict()
    assert data["tags"] == ["generated_from_trainer", "trl", "grpo", "trl-entropy", "clip_cov", "mine"]
    assert (data["license"], data["datasets"], data["library_name"]) == ("mit", "user/problems", "transformers")
    assert "base_model" not in data and "licence" not in data
    metrics = {(entry.dataset_split, entry.metric_type): entry.metric_value for entry in found.data.eval_results}
    assert metrics == {
        ("train", "reward"): 0.25,
        ("train", "entropy"): 1.5,
        ("train", "completions_mean_length"): 8.0,  # the last finite one
        ("eval", "eval_reward"): 0.75,
        ("eval", "eval_entropy"): 1.25,
        ("test", "pass@1"): 0.5,
        ("test", "pass@4"): 0.75,
        ("test", "solved"): 3,
    }
    assert found.data.model_name == "tuned"
    assert "Token entropy went from 2.000 to 1.500 nats in 2 optimizer steps." in found.text
    assert "| pass@1 | 0.5 |" in found.text and "lost" not in str(found)


@pytest.mark.parametrize(
    ("results", "got"),
    [
        ({"note": "hi"}, "'hi' for 'note'"),
        ({"pass@1": None}, "None for 'pass@1'"),
        ({"all": np.zeros(2)}, r"array\(\[0., 0.\]\) for 'all'"),
        ({"all": torch.zeros(2)}, r"tensor\(\[0., 0.\]\) for 'all'"),
        ([0.5], "list"),
    ],
)
def test_results_must_be_numbers(results, got):
    with pytest.raises(ValueError, match=f"`results` must map names to numbers, got {got}.$"):
        card.finite_results(results)


def test_code_in_settings_stays_in_its_place(card_of, monkeypatch):
    monkeypatch.setattr(card_hooks, "command_line", lambda: "python train.py 'a\n```\nb'")
    splitter = "\n```\n"
    text = card_of(methods=["empg"], empg_splitter=splitter).text
    block = text.split("````yaml\n")[1].split("\n````\n")[0]
    assert yaml.safe_load(block)["empg_splitter"] == splitter
    assert "\n````bash\npython train.py 'a\n```\nb'\n````\n" in text
    assert r"| `empg_splitter` | ```` '\n```\n' ```` | `None` |" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("\n\n", r"`'\n\n'`"),
        ("", "`''`"),
        (" a", "`' a'`"),
        ("a|b c", r"`a\|b c`"),
        ("a`b", "`` a`b ``"),
        ([" "], "`[' ']`"),
    ],
)
def test_cell_shows_what_is_in_a_text(value, shown):
    assert card.cell(value) == shown


def test_a_local_base_model_stays_at_home(card_of, tmp_path):
    build_model().save_pretrained(tmp_path / "secret_base")
    found = card_of(
        model=build_model().from_pretrained(tmp_path / "secret_base"), facts={"dataset_name": str(tmp_path)}
    )
    text = str(found)
    assert "base_model" not in text and "secret_base" not in text and "None" not in text
    assert str(tmp_path) not in text and "datasets:" not in text
    assert found.text.lstrip().startswith("# tuned\n\nA model trained with [TRL]")
    assert "without any entropy method." in found.text


def test_licence_comes_from_the_base_model(card_of, monkeypatch):
    loaded = ModelCard("---\nlicense: other\nlicense_name: tongyi\nlanguage: en\n---\n")
    monkeypatch.setattr(ModelCard, "load", lambda name, **_: {"Qwen/Some": loaded}[name])
    card_sources.metadata_of.cache_clear()
    assert card_sources.license_of("Qwen/Some") == {"license": "other", "license_name": "tongyi"}

    def offline(name, **_):
        raise OSError("no network")

    monkeypatch.setattr(ModelCard, "load", offline)
    assert card_sources.license_of("Qwen/Other") == {}
    card_sources.metadata_of.cache_clear()


@pytest.mark.parametrize(
    ("named", "kept"),
    [("user/base", "user/base"), (["user/base"], "user/base"), ("user/tuned", None), (None, None), (3, None)],
)
def test_a_model_trained_further_in_its_repository_is_not_its_own_base(
    make_trainer, tmp_path, monkeypatch, named, kept
):
    header = yaml.safe_dump({"license": "mit"} | ({"base_model": named} if named else {}))
    monkeypatch.setattr(card_sources.ModelCard, "load", lambda name, **_: ModelCard(f"---\n{header}---\n"))
    monkeypatch.setattr(card_hooks, "draw_curve", lambda *_: None)
    card_sources.metadata_of.cache_clear()
    trainer = make_trainer(hub_model_id="user/tuned")
    trainer.model.config._name_or_path = "user/tuned"
    trainer.create_model_card()
    card_sources.metadata_of.cache_clear()
    data = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])
    assert (data.get("base_model"), data["license"]) == (kept, "mit")


def test_curve_is_drawn_where_there_is_one(card_of, tmp_path, monkeypatch):
    assert "![" not in card_of(history=[]).text
    image = tmp_path / "tuned" / card.CURVE
    assert not image.exists()
    assert f"({card.CURVE})" in card_of().text
    assert image.read_bytes().startswith(b"\x89PNG")
    image.unlink()
    monkeypatch.setattr(card, "find_spec", lambda name: None)
    assert "![" not in card_of().text and not image.exists()


def test_snippet_fits_the_model(card_of, make_trainer):
    assert 'model="path/to/model"' in card_of().text
    text = card_of(hub_model_id="user/tuned").text
    assert 'generator("...", max_new_tokens' in text and 'model="user/tuned"' in text
    trainer = make_trainer()
    trainer.processing_class.chat_template = "{{ messages }}"
    trainer.create_model_card()
    assert '{"role": "user", ' in ModelCard.load(f"{trainer.args.output_dir}/README.md").text


def test_adapter_is_said_to_be_one(card_of):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(build_model(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert card_of(model=model).data.library_name == "peft"


def test_other_processes_write_nothing(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    trainer.create_model_card()
    assert not (tmp_path / "README.md").exists()


def test_facts_given_before_hold_for_cards_of_checkpoints(make_trainer, tmp_path):
    trainer = make_trainer(save_strategy="steps", save_steps=1, max_steps=1)
    trainer.card_facts = {"dataset_name": "user/problems", "recipe": {"model_name_or_path": "user/base"}}
    trainer.train()
    found = ModelCard.load(tmp_path / "README.md")
    assert found.data.datasets == "user/problems"
    recipe = yaml.safe_load(found.text.split("```yaml\n")[1].split("```")[0])
    assert recipe["model_name_or_path"] == "user/base" and recipe["learning_rate"] == 0.05


def test_recipe_is_what_was_set(make_trainer, tmp_path):
    trainer = make_trainer(
        steps_per_generation=2, hub_token="hf_0123456789abcdef", methods=["clip_cov"], lr_scheduler_type="cosine"
    )
    given = trainer.args.given_settings
    # Not what TRL derives from others, with which it would refuse the recipe.
    assert given["steps_per_generation"] == 2 and "generation_batch_size" not in given
    assert given["lr_scheduler_type"] == "cosine" and "hub_token" not in given
    os.chdir(tmp_path)
    again = EntropyGRPOConfig(**given | {"output_dir": str(tmp_path)})
    assert again.generation_batch_size == trainer.args.generation_batch_size


@dataclass
class Settings:
    rate: float = 0.5
    schedule: str = "linear"
    options: dict = field(default_factory=dict)
    parsed: str = ""
    api_key: str | None = None
    eos_token: str | None = None


def test_given_settings_are_plain_and_public(tmp_path):
    given = Settings(
        rate=0.25,
        schedule=SchedulerType.COSINE,
        options={"hub_token": "x", "path": "/home/me/data.json", "url": "https://me:pass@host/x", "items": (1, None)},
        parsed=None,
        api_key="secret",
        eos_token="<eos>",
    )
    assert provenance.given_settings(given) == {
        "rate": 0.25,
        "schedule": "cosine",
        "options": {"path": "/path/to/data.json", "url": "https://<removed>@host/x", "items": [1, None]},
        "eos_token": "<eos>",
    }
    assert provenance.given_settings(Settings()) == {}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("recipes/clip_cov.yaml", "recipes/clip_cov.yaml"),
        ("/home/me/model/", "/path/to/model"),
        ("/no_think", "/no_think"),
        ("hf_abcdefghijklmnop", "<removed>"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
    ],
)
def test_public_text(text, shown):
    assert provenance.public_text(text) == shown


def test_paths_below_the_working_directory_are_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert provenance.public_text(str(tmp_path / "runs" / "a")) == "runs/a"


def main_module(monkeypatch, argv, **attributes):
    monkeypatch.delenv(provenance.LAUNCHED, raising=False)
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(**attributes))
    monkeypatch.setattr(sys, "argv", argv)


def test_command_line(monkeypatch):
    spec = SimpleNamespace(name="trl_entropy.quickstart")
    main_module(monkeypatch, ["/x/quickstart.py", "--set", "learning_rate=1e-4"], __file__="x", __spec__=spec)
    assert provenance.command_line() == "python -m trl_entropy.quickstart --set learning_rate=1e-4"
    spec.name = "trl_entropy.cli"
    argv = ["/x/cli.py", "grpo", "--hub_token", "abc", "--config=/home/me/a b.yaml", "--wandb_api_key=abc"]
    main_module(monkeypatch, argv, __file__="x", __spec__=spec)
    shown = "trl-entropy grpo --hub_token '<removed>' '--config=/path/to/a b.yaml' '--wandb_api_key=<removed>'"
    assert provenance.command_line() == shown
    main_module(monkeypatch, ["/home/me/bin/trl-entropy", "grpo"], __file__="x", __spec__=None)
    assert provenance.command_line() == "trl-entropy grpo"
    main_module(monkeypatch, ["train.py"], __file__="train.py", __spec__=None)
    assert provenance.command_line() == "python train.py"
    main_module(monkeypatch, ["-c"])  # as in a notebook
    assert provenance.command_line() is None
    # Processes that were launched know the command that launched them.
    monkeypatch.setenv(provenance.LAUNCHED, "trl-entropy grpo --num_processes 2 --hub_token abc")
    assert provenance.command_line() == "trl-entropy grpo --num_processes 2 --hub_token '<removed>'"


@pytest.mark.parametrize("label, methods", [("stock", set()), ("clip_cov", {"clip_cov"}), ("soft_or-50", {"tip"})])
def test_cards_in_the_repository_are_whole(label, methods):
    folder = Path(__file__).parents[2] / "model_cards" / f"countdown-{label}"
    found = ModelCard.load(folder / "README.md")
    assert {*found.data.tags} & {*METHODS, "tip"} == methods and "trl-entropy" in found.data.tags
    measured = {entry.metric_type for entry in found.data.eval_results if entry.dataset_split == "test"}
    assert {"entropy", "pass@1", "pass@16"} <= measured
    assert f"({card.CURVE})" in found.text and (folder / card.CURVE).read_bytes().startswith(b"\x89PNG")


def lines_of(entropies, **more):
    return [{"step": step, "entropy": value, "reward": 0.5, **more} for step, value in enumerate(entropies, 1)]


def test_thermostat_states_target_and_entropy(card_of):
    held = {"entropy_keep/target": 0.8, "entropy_keep/strength": 0.0125, "entropy_keep/saturated": 0.0}
    history = [{**line, **held, "entropy_keep/entropy": line["entropy"]} for line in lines_of([1.0, 1.0, 0.84, 0.84])]
    history[0]["entropy_keep/saturated"], history[0]["entropy_keep/target"] = 1.0, None  # not known yet
    history[1]["entropy_keep/saturated"] = 1.0
    history.append({"step": 4, "train_runtime": 3725.4})
    settings = dict(methods=["clip_cov"], entropy_keep=0.8, clip_cov_low=0.1)
    text = card_of(history, **settings).text
    assert "`entropy_keep: 0.8` drove `clip_cov_ratio`, last at 0.0125. Target entropy at the end: 0.800 nats" in text
    assert "0.800 nats; entropy: 0.840 nats. Over the second half of the run entropy was +5.0 % off the target" in text
    assert "The strongest setting did not suffice in 33 % of the logs." in text
    assert "One run with seed 7, on a CPU with" in text and ", in 1 h 2 min." in text
    assert "### Entropy thermostat" not in card_of(lines_of([1.0]), **settings).text
    assert "### Entropy thermostat" not in card_of(history, methods=["clip_cov"]).text


def test_diagnosis_states_its_findings(card_of):
    text = card_of(lines_of([1.0] * 3 + [0.05] * 3)).text
    assert (
        "\n* collapse, step 4: Mean token entropy has fallen from 1 to 0.05 nats. The policy hardly explores" in text
    )
    assert "found nothing wrong in the log of the run." in card_of(lines_of([1.0] * 6)).text
    assert "### Diagnosis" not in card_of(lines_of([0.05] * 6), diagnosis=False).text


def test_findings_of_the_run_come_first_and_once(make_trainer, tmp_path):
    trainer = make_trainer(output_dir=tmp_path / "tuned")
    (callback,) = [one for one in trainer.callback_handler.callbacks if isinstance(one, DiagnosisCallback)]
    early = Finding("truncation", 2, {}, "Seen early.", "Meant.", "Turn.", False)
    collapse = Finding("collapse", 3, {}, "Seen first.", "Meant.", COLLAPSE.turn, True)
    callback.findings = [early, collapse]
    trainer.state.log_history = lines_of([1.0] * 3 + [0.05] * 3)
    told, again, later = card_facts.findings_of(trainer)
    assert (told, again) == (str(early), str(collapse)) and later.startswith("fast fall, step 6: ")


def test_doses_are_stated(card_of):
    settings = dict(methods=["clip_cov"], per_device_train_batch_size=8, max_completion_length=8)
    text = card_of(**settings, clip_cov_ratio=0.001, diagnosis=False).text
    assert "Before the run:\n\n* `clip_cov_ratio` 0.001 of at most 64 tokens (8 completions" in text
    assert "Before the run" not in card_of(**settings, clip_cov_ratio=0.5).text


def test_numbers_say_what_they_mean(card_of):
    facts = dict(results={"pass@1": 0.5, "pass@16": 0.75, "distinct": 1.5, "other": 2.0})
    text = card_of(facts=facts).text
    assert text.count("* pass@k: unbiased estimate") == text.count("* entropy: mean token entropy") == 1
    assert "* distinct" not in text and "* other" not in text


def test_given_facts_about_the_evaluation(make_trainer, tmp_path):
    trainer = make_trainer(output_dir=tmp_path / "tuned")
    trainer.card_facts = {
        "evaluation": "On 10 prompts, 4 samples each.",
        "limitations": "It knows one task.",
        "meanings": {"distinct": "different right answers"},
    }
    trainer.create_model_card(results={"distinct": 1.5})
    text = ModelCard.load(tmp_path / "tuned" / "README.md").text
    assert "\nOn 10 prompts, 4 samples each.\n\n* distinct: different right answers.\n" in text
    limits = text.split("## Limitations\n\n")[1].split("\n\n")[0].splitlines()
    assert limits == [
        "* The numbers are from one run, so they do not show how much seeds differ.",
        "* It knows one task.",
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.2, "less than a second"), (59.6, "1 min"), (61, "1 min 1 s"), (7199, "1 h 59 min"), (math.nan, None)],
)
def test_time(seconds, shown):
    assert card_facts.time_of([{"train_runtime": 9.0}, {"train_runtime": seconds}, {"loss": 1.0}]) == shown


def test_hardware(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    shown = [card_facts.hardware_of(torch.device(kind), count) for kind in ("cuda", "cpu") for count in (1, 8)]
    assert shown == ["NVIDIA X", "8 x NVIDIA X", "a CPU with 2 cores", "a CPU with 2 cores in 8 processes"]
