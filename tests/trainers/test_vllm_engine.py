# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""vLLM itself, on the CPU: what it samples is trained on as in stock TRL, by every method. `make test-vllm`.

test_vllm.py has the same with an engine that is simulated, and needs no vLLM. test_vllm_agents.py has tools.
"""

import math

import pytest
import torch
from support.processes import run_processes
from support.reference import dense_logps_and_entropy
from support.registry import covered, rewarded, steps, strong
from support.scoring import dense_entropies, entropy_reward, scored, seen
from support.tiny import EXACT
from support.vllm_engine import NEEDS_VLLM, build_vllm_distiller, load_model, sharing
from trl import DistillationConfig, DistillationTrainer

from trl_entropy import EntropyDistillationConfig, EntropyDistillationTrainer


pytestmark = NEEDS_VLLM


def lines(trainer):
    """The log lines of training, without times."""
    return [
        {key: value for key, value in row.items() if key != "step_time"}
        for row in trainer.state.log_history
        if "loss" in row
    ]


def trained(make, **settings):
    trainer = make(**settings)
    trainer.train()
    return trainer


# Stock TRL

PARITY = [
    dict(),
    dict(steps_per_generation=2),
    dict(gradient_accumulation_steps=2, num_iterations=2),
    dict(vllm_importance_sampling_correction=False),
    dict(vllm_importance_sampling_mode="token_mask", loss_type="vespo", steps_per_generation=2),
    dict(mask_truncated_completions=True, max_completion_length=64, beta=0.1),
]


@pytest.mark.parametrize("settings", PARITY, ids=str)
def test_no_method_is_stock_trl(make_vllm_trainer, settings):
    """Without the fused head logs and weights are equal to the bit. With it the first step differs by rounding.

    After an update other rounding may lead the engine to sample another token.
    """
    stock = trained(make_vllm_trainer, stock=True, max_steps=3, **settings)
    plain = trained(make_vllm_trainer, fused_head=False, max_steps=3, **settings)
    for row, other in zip(lines(plain), lines(stock), strict=True):
        assert {key: row[key] for key in other} == other
    assert len(lines(stock)) == 3
    torch.testing.assert_close(plain.model.state_dict(), stock.model.state_dict(), **EXACT)
    fused = trained(make_vllm_trainer, max_steps=3, **settings)
    row, other = lines(fused)[0], lines(stock)[0]
    assert {key: row[key] for key in other} == pytest.approx(other, rel=1e-4, abs=1e-5, nan_ok=True)
    assert any(row["grad_norm"] > 0 for row in lines(stock))


# What the engine samples


def correction(mode, off, low, high):
    """(B, T) ratio of the trained model to the engine, of tokens or of sequences, cut at its bounds or left out."""
    ratio = (off if mode.startswith("token") else off.sum(1, keepdim=True)).exp().expand_as(off)
    return ratio.clamp(low, high) if mode.endswith("truncate") else ratio * ((ratio <= high) & (ratio >= low))


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_entropies_and_corrections(make_vllm_trainer, mode):
    """Entropies are those of the trained model. The correction is for the log-probabilities of the engine."""
    low, high = (0.97, 1.02) if mode.startswith("token") else (0.9, 1.1)  # some ratios are beyond
    settings = dict(
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_max=high,
        vllm_importance_sampling_clip_min=low,
        max_completion_length=16,
    )
    trainer, output, forwards = scored(make_vllm_trainer, entropy_reward, **settings)
    assert forwards == 1
    ((completion_ids, entropies, masks),) = seen
    expected = dense_entropies(trainer, output, completion_ids)
    for row, ids in enumerate(completion_ids):
        assert len(entropies[row]) == len(masks[row]) == len(ids) > 0 and all(masks[row])
        torch.testing.assert_close(torch.tensor(entropies[row]), expected[row, : len(ids)], rtol=0, atol=1e-5)
    with torch.no_grad():
        logps, _ = dense_logps_and_entropy(trainer.model, output, trainer.temperature)
    mask = output["completion_mask"].bool()
    off = (logps - output["sampling_per_token_logps"]) * mask
    assert 1e-3 < off[mask].abs().mean() < 0.1  # bfloat16 against float32
    ratio = output["importance_sampling_ratio"].expand_as(mask)
    expected = correction(mode, off, low, high)
    torch.testing.assert_close(ratio[mask], expected[mask], rtol=1e-4, atol=1e-5)
    cut = [0.0] if mode.endswith("mask") else [low, high]
    shares = [((ratio[mask] - value).abs() < 1e-6).float().mean() for value in cut]
    assert 0 < sum(shares) < 1


def test_the_engine_has_the_weights_that_are_trained(make_vllm_trainer, vllm):
    """After an update it samples from the new weights: by its log-probabilities, which are far from the old ones."""
    trainer = trained(make_vllm_trainer, methods=["clip_cov"], max_steps=3, learning_rate=0.05)
    rows = [{"prompt": row["prompt"]} for row in trainer.train_dataset.select([0] * 4)]
    output = trainer._generate_and_score_completions(rows)
    mask, off = output["completion_mask"].bool(), []
    for model in (trainer.model, load_model(vllm.folder)):
        with torch.no_grad():
            logps, _ = dense_logps_and_entropy(model, output, trainer.temperature)
        off.append((logps - output["sampling_per_token_logps"])[mask].abs().mean())
    assert off[0] < 0.1 and off[1] > 5 * off[0] and off[1] > 0.3


# Methods


@pytest.fixture(scope="module")
def plain_runs():
    return {}


@pytest.fixture
def check_acts(make_vllm_trainer, plain_runs):
    """`check_acts(methods, **settings)`: finite, moves, and differs from the run without the methods."""

    def run(methods, settings):
        trainer = make_vllm_trainer(methods=methods, **settings, **strong(methods))
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.train()
        weights = trainer.model.state_dict()
        assert all(value.isfinite().all() for value in weights.values())
        assert any(not torch.equal(value, weights[name]) for name, value in before.items())
        rows = lines(trainer)
        assert len(rows) == settings["max_steps"] and all(math.isfinite(row["loss"]) for row in rows)
        assert all(any(key.startswith(f"{name}/") for row in rows for key in row) for name in methods)
        return trainer

    def check(methods, **settings):
        settings = {"steps_per_generation": 2, "max_steps": steps(methods), **rewarded(methods), **settings}
        key = repr(settings)
        if key not in plain_runs:
            plain_runs[key] = run([], settings).model.state_dict()
        trainer = run(methods, settings)
        weights = trainer.model.state_dict()
        assert any(not torch.equal(value, plain_runs[key][name]) for name, value in weights.items())
        return trainer

    return check


@pytest.mark.compatibility("vLLM")
@pytest.mark.parametrize("methods", [[name] for name in covered()], ids="+".join)
def test_methods(check_acts, methods):
    rows = lines(check_acts(methods))
    key = "sampling/importance_sampling_ratio/max"
    assert any(abs(row[key] - 1) > 1e-3 for row in rows if key in row)  # the engine is off


COMBINATIONS = {
    "methods that reward, shape and penalize": dict(methods=["pear", "canon", "empg", "epo"]),
    "thermostat": dict(methods=["siren"], entropy_keep=0.9, entropy_keep_batches=1),
    "entropy bonus": dict(use_adaptive_entropy=True, entropy_target=2.0, entropy_controller="pi"),
    "KappaTune": dict(methods=["clip_cov"], kappa_mode="freeze", kappa_num_modules=2),
    "reward from entropies": dict(methods=["steer"], reward_funcs=entropy_reward, log_token_entropies=2),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_combinations(make_vllm_trainer, cache_folder, name):
    settings = COMBINATIONS[name]
    methods = settings.get("methods", [])
    trainer = make_vllm_trainer(max_steps=4, steps_per_generation=2, **settings, **strong(methods))
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train()
    rows, weights = lines(trainer), trainer.model.state_dict()
    moved = {key for key, value in before.items() if not torch.equal(value, weights[key])}
    assert all(math.isfinite(row["loss"]) for row in rows) and all(weights[key].isfinite().all() for key in moved)
    assert len(moved) == 2 if name == "KappaTune" else len(moved) > 20
    marks = [f"{method}/" for method in methods]
    marks += {"thermostat": ["entropy_keep/"], "entropy bonus": ["entropy_coef"]}.get(name, [])
    assert all(any(key.startswith(mark) for row in rows for key in row) for mark in marks)


def test_lora(make_vllm_trainer, vllm):
    """Only the adapter moves. The engine samples from the merged weights."""
    from peft import LoraConfig

    adapter = LoraConfig(r=4, target_modules="all-linear")
    trainer = trained(
        make_vllm_trainer, methods=["clip_cov", "siren"], peft_config=adapter, max_steps=3, learning_rate=0.1
    )
    base, weights = load_model(vllm.folder).state_dict(), trainer.model.state_dict()
    kept = [key for key in weights if "lora_" not in key]
    plain = {key.removeprefix("base_model.model.").replace(".base_layer", ""): key for key in kept}
    assert len(plain) == len(base)
    for name, key in plain.items():
        torch.testing.assert_close(weights[key], base[name], rtol=1e-5, atol=1e-6)  # merging and back rounds
    assert any(value.any() for key, value in weights.items() if "lora_B" in key)
    output = trainer._generate_and_score_completions([{"prompt": trainer.train_dataset[0]["prompt"]}] * 4)
    mask, off = output["completion_mask"].bool(), []
    for model in (trainer.model, load_model(vllm.folder)):
        with torch.no_grad():
            logps, _ = dense_logps_and_entropy(model, output, trainer.temperature)
        off.append((logps - output["sampling_per_token_logps"])[mask].abs().mean())
    assert off[0] < 0.1 and off[1] > 5 * off[0]


def test_prompts_of_methods_reach_the_engine(make_vllm_trainer):
    trainer = make_vllm_trainer(methods=["prompt_augmentation"], max_steps=1, per_device_train_batch_size=8)
    given = []
    generate = trainer.vllm_generation.generate
    trainer.vllm_generation.generate = lambda prompts, *a, **k: (given.extend(prompts), generate(prompts, *a, **k))[1]
    trainer.train()
    plain = {tuple(trainer.processing_class(row["prompt"]).input_ids) for row in trainer.train_dataset}
    assert len(given) == 8 and all(tuple(ids) not in plain for ids in given)
    assert all(given[start] == other for start in (0, 4) for other in given[start : start + 4])


def test_recording_during_generation_is_refused(make_vllm_trainer):
    with pytest.raises(ValueError, match="`record_entropies` must be false with `use_vllm`, got True"):
        make_vllm_trainer(record_entropies=True)


# Distillation


@pytest.mark.parametrize("settings", [dict(), dict(beta=0.5, gradient_accumulation_steps=2)], ids=str)
def test_distillation(vllm, tmp_path, settings):
    """On all tokens it is stock TRL to the bit. On half of them it differs."""

    def run(*classes, **own):
        with sharing(vllm.shared):
            trainer = build_vllm_distiller(*classes, tmp_path, vllm.folder, **settings, **own)
            trainer.train()
        return lines(trainer), trainer.model.state_dict()

    ours = (EntropyDistillationTrainer, EntropyDistillationConfig)
    stock, everything = run(DistillationTrainer, DistillationConfig), run(*ours, tip_ratio=1.0)
    for row, other in zip(everything[0], stock[0], strict=True):
        assert {key: row[key] for key in other} == other
    torch.testing.assert_close(everything[1], stock[1], **EXACT)
    rows, half = run(*ours, tip_ratio=0.5)
    assert len(rows) == 3 and all(math.isfinite(row["loss"]) and 0.3 < row["tip/kept_fraction"] < 0.7 for row in rows)
    assert not torch.equal(half["lm_head.weight"], stock[1]["lm_head.weight"])


# Two processes


def test_two_processes_have_an_engine_each(tmp_path):
    run_processes("vllm_processes.py", 2, tmp_path, timeout=500)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert first["kinds"] == {"DistributedType.MULTI_CPU"} and first.keys() == second.keys()
    for name in first.keys() - {"kinds"}:
        torch.testing.assert_close(first[name]["weights"], second[name]["weights"], **EXACT)
        assert len(first[name]["rows"]) == 3 and all(math.isfinite(row["loss"]) for row in first[name]["rows"])
        if name not in ("stock", "none"):
            key = "lm_head.weight"
            assert not torch.equal(first[name]["weights"][key], first["none"]["weights"][key]), name
    for row, other in zip(first["none"]["rows"], first["stock"]["rows"], strict=True):
        assert {key: row[key] for key in other} == other
    torch.testing.assert_close(first["none"]["weights"], first["stock"]["weights"], **EXACT)
    assert first["none"]["prompts"] != second["none"]["prompts"]
