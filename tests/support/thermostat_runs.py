# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Strengths that a thermostat sets in one of several processes, each of which holds a part of a batch."""

import torch
from support.tensors import make_loss_batch, part
from support.tiny import build_trainer, loss_and_gradients

from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer


def strengths(output_dir, rank, processes):
    """What a thermostat makes of four generation batches, off policy and on policy.

    The later rows are shorter, so processes hold different numbers of tokens.
    """
    rows, found = 8, {}
    batch = make_loss_batch(rows)
    lengths = torch.tensor([6, 6, 5, 6, 3, 2, 1, 1])
    batch["completion_mask"] = (torch.arange(6) < lengths[:, None]).long()
    batch["num_items_in_batch"] = batch["completion_mask"].sum()
    entropies = torch.rand(4, rows, 6, generator=torch.Generator().manual_seed(5))
    for name, steps in (("off_policy", 2), ("on_policy", 1)):
        trainer = build_trainer(
            EntropyGRPOTrainer,
            EntropyGRPOConfig,
            output_dir,
            per_device_train_batch_size=rows // processes,
            steps_per_generation=steps,
            entropy_keep=0.97,
            entropy_keep_batches=2,
            max_steps=100,
        )
        thermostat, rows_found = trainer._thermostat, []
        for number in range(4):
            own = part(batch, rank, processes)
            if name == "off_policy":
                mask = own["completion_mask"].bool()
                thermostat.after_rollouts(
                    part({"entropy": entropies[number]}, rank, processes)["entropy"], mask, number
                )
            else:
                trainer.state.global_step = number
                trainer.model.get_output_embeddings().weight.data.mul_(1.1)
                loss_and_gradients(trainer, own)
            controller = thermostat.controller
            rows_found.append((trainer.entropy_coef, controller.smoothed or 0.0, controller.count))
        found[name] = rows_found
    return found
