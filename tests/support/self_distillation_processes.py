# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""One of two processes, started by test_experimental.py: the second's rollouts are too short to keep a token of."""

import os
import sys
from pathlib import Path

import torch
from support.self_distillation import OURS, TEXTS, reward, texts
from support.tiny import TRAINING, build_model, build_tokenizer


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    for name, extra in (("SDFT", {}), ("SDPO", dict(reward_funcs=reward))):
        trainer_class, config_class = OURS[name]
        args = config_class(
            str(folder / name),
            per_device_train_batch_size=2,
            max_steps=2,
            **TRAINING,
            ddp_backend="gloo",
            tip_ratio=0.2,
            tip_min_tokens=0,
            **{**TEXTS[name], "max_completion_length": 5},
        )
        trainer = trainer_class(
            model=build_model(), args=args, train_dataset=texts(), processing_class=build_tokenizer(), **extra
        )
        trainer.generation_config.min_new_tokens = trainer.generation_config.max_new_tokens = 5 - rank
        kept, choose = [], trainer._choose
        trainer._choose = lambda *tensors, kept=kept, choose=choose: kept.append(choose(*tensors)) or kept[-1]
        trainer.train()
        rows = [
            {key: value for key, value in row.items() if key.startswith(("tip/", "loss", "self_distillation/"))}
            for row in trainer.state.log_history
            if "loss" in row
        ]
        weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
        found = {"rows": rows, "weights": weights, "kept": sum(int(keep.sum()) for keep in kept)}
        torch.save(found, folder / f"{name}{rank}.pt")
    trainer.accelerator.end_training()
