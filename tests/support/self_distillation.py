# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""TRL's experimental trainers that distill, our versions of them, and texts for both."""

import torch
from datasets import Dataset
from support.tiny import VOCABULARY, build_dataset, build_tokenizer
from trl.experimental import gkd, sdft, sdpo

import trl_entropy


STOCK = {"GKD": (gkd.GKDTrainer, gkd.GKDConfig), "SDFT": (sdft.SDFTTrainer, sdft.SDFTConfig)}
STOCK["SDPO"] = (sdpo.SDPOTrainer, sdpo.SDPOConfig)
OURS = {name: [getattr(trl_entropy, f"Entropy{name}{part}") for part in ("Trainer", "Config")] for name in STOCK}
TEXTS = {"GKD": dict(lmbda=0.0, max_new_tokens=4, beta=1.0), "SDFT": dict(distillation_mode="full_logits")}
TEXTS["SDFT"] |= dict(teacher_model_kind="live", distillation_alpha=1.0, num_generations=2, max_completion_length=4)
TEXTS["SDPO"] = TEXTS["SDFT"]


def texts() -> Dataset:
    """Prompts of three words, for GKD with completions of one to six, and what a teacher sees besides."""
    prompts = build_dataset()["prompt"]
    generator = torch.Generator().manual_seed(1)
    ids = [
        build_tokenizer()(prompt).input_ids
        + torch.randint(2, VOCABULARY, (1 + row % 6,), generator=generator).tolist()
        for row, prompt in enumerate(prompts)
    ]
    masks = [[0] * 3 + [1] * (len(row) - 3) for row in ids]
    privileged = [f"w{index % 9 + 5} w{index % 4}" for index in range(len(prompts))]
    columns = {"prompt": prompts, "input_ids": ids, "completion_mask": masks, "privileged_context": privileged}
    return Dataset.from_dict(columns)


def reward(completion_ids, **kwargs):
    """Every other completion succeeds, so half of them are distilled from a successful one."""
    return [float(index % 2) for index in range(len(completion_ids))]
