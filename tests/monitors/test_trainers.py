# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""All monitors with gradient checkpointing, with LoRA, and in TRL's DPO trainer: the run is the same to the bit."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from support.tiny import EXACT, build_model, build_tokenizer, build_trainer
from transformers import set_seed
from trl import DPOConfig, DPOTrainer

from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer, MonitorCallback
from trl_entropy.monitors.config import MONITORS


PAIRS = {
    "prompt": ["w3 w4 w5", "w6 w7", "w8 w3 w9", "w4 w4"] * 3,
    "chosen": ["w3 w5", "w6", "w9 w9", "w4 w5 w6"] * 3,
    "rejected": ["w7", "w8 w8", "w3", "w10 w11"] * 3,
}
SHARED = dict(
    max_steps=2, logging_steps=1, use_cpu=True, bf16=False, report_to="none", per_device_train_batch_size=2,
    gradient_accumulation_steps=2, learning_rate=0.01, save_strategy="no", disable_tqdm=True,
)  # fmt: skip


def grpo(folder, callbacks, peft_config, **settings):
    return build_trainer(
        EntropyGRPOTrainer, EntropyGRPOConfig, folder, callbacks=callbacks, peft_config=peft_config, **settings
    )


def dpo(folder, callbacks, peft_config, **settings):
    return DPOTrainer(
        build_model(),
        None if peft_config else build_model(),
        args=DPOConfig(str(folder), **SHARED, **settings),
        train_dataset=Dataset.from_dict(PAIRS),
        processing_class=build_tokenizer(),
        callbacks=callbacks,
        peft_config=peft_config,
    )


CASES = {
    "grpo-checkpointing": (grpo, False, True),
    "grpo-lora": (grpo, True, False),
    "dpo": (dpo, False, False),
    "dpo-lora-checkpointing": (dpo, True, True),
}


def run(build, folder, lora, checkpointing, monitors):
    set_seed(0)
    peft_config = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.1) if lora else None
    features = dict(effective_features_encoder="torch.relu", effective_features_layer=0)
    settings = dict(every=1, geometry_dse=True, step_radius_samples=3, **features)
    callbacks = [MonitorCallback(monitors, **settings)] if monitors else []
    trainer = build(folder, callbacks, peft_config, gradient_checkpointing=checkpointing)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "train_runtime" not in line]
    return trainer, lines, torch.get_rng_state()


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_the_same_to_the_bit(case, tmp_path, caplog):
    build, lora, checkpointing = CASES[case]
    plain, lines, state = run(build, tmp_path / "plain", lora, checkpointing, [])
    watched, seen, after = run(build, tmp_path / "watched", lora, checkpointing, [*MONITORS])
    assert torch.equal(state, after)
    assert watched.model.is_gradient_checkpointing is checkpointing
    for name, weight in plain.model.state_dict().items():
        torch.testing.assert_close(watched.model.state_dict()[name], weight, **EXACT)
    first, *seen = seen
    prefixes = tuple(f"{name}/" for name in MONITORS)
    for one, other in zip(lines, seen, strict=True):
        assert {key: value for key, value in other.items() if not key.startswith(prefixes) and "time" not in key} == {
            key: value for key, value in one.items() if "time" not in key
        }
        for name, monitor in MONITORS.items():
            value = other[f"{name}/{monitor.headline}"]
            assert value == value and value > 0
        assert other["step_radius/r_max"] >= other["step_radius/r_99"]
        assert ("weight_norms/change_mean" in other) is lora
    assert first["step"] == 0 and first["geometry/samples"] == len(watched.train_dataset)
    assert seen[-1]["geometry/rankme"] != first["geometry/rankme"] and "is off" not in caplog.text
