# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""One of several processes, started by test_distributed.py: each holds a part of a batch and writes what it found."""

import os
import sys
from pathlib import Path

import torch
from support.cases import off_policy_batch
from support.distilling import build_distiller, distillation_results
from support.tiny import build_model, build_trainer, loss_and_gradients

from trl_entropy import (
    EntropyDistillationConfig,
    EntropyDistillationTrainer,
    EntropyGRPOConfig,
    EntropyGRPOTrainer,
    KappaTuneCallback,
)
from trl_entropy.trainers.generation import Generation
from trl_entropy.trainers.rollouts import apply_group_hooks


METHODS = ["clip_cov", "steer", "clip_b", "clip_v", "aepo", "kl_cov", "siren", "epo"]
WORLD = dict(
    methods=METHODS,
    clip_cov_ratio=0.2,
    clip_cov_low=0.02,
    clip_cov_high=2.0,
    clip_cov_scope="world",
    kl_cov_ratio=0.3,
    kl_cov_scope="world",
    clip_b_mu=0.4,
    clip_v_mu=0.3,
    clip_v_max_frac=0.1,
    steer_omega="exact",
    aepo_mode="reweight",
    aepo_target_entropy=1.0,
    siren_coef=0.5,
    siren_quantile=0.5,
    epo_coef=0.3,
    epo_low=0.8,
    epo_high=1.2,
)


REWARDS = torch.linspace(0, 1, 8).square().unsqueeze(1)  # of all processes, one function


def set_states(trainer):
    """As if a step had been made: what only acts from the second step on must act here."""
    methods = {method.name: method for method in trainer.methods}
    methods["aepo"].entropy, methods["siren"].anchor = 0.8, 0.4
    methods["epo"].history_total, methods["epo"].history_steps = 1.5, 1


def batches():
    """A batch off policy, one on policy, and one whose second half has no valid token. Ragged by construction."""
    off_policy = off_policy_batch(build_model(), rows=8)
    off_policy["rewards"] = torch.tensor([0.0, 1, 0, 1, 1, 1, 0, 1])
    off_policy["old_second_logps"] = off_policy["old_per_token_logps"] + 0.2
    on_policy = {key: value for key, value in off_policy.items() if key != "old_per_token_logps"}
    half_empty = {key: value.clone() for key, value in off_policy.items()}
    half_empty["completion_mask"][4:] = 0
    half_empty["num_items_in_batch"] = half_empty["completion_mask"].sum()
    return {"off_policy": off_policy, "on_policy": on_policy, "half_empty": half_empty}


def rollouts():
    """A generation batch as TRL leaves it, with entropies, for the hook that acts before the loss."""
    batch = off_policy_batch(build_model(), rows=8)
    return {**batch, "old_entropies": torch.rand(8, 6, generator=torch.Generator().manual_seed(2)) * 3}


def part(batch, rank, processes):
    rows = 8 // processes
    return {k: v if v.dim() == 0 else v[rank * rows : (rank + 1) * rows] for k, v in batch.items()}


# Methods that act on generation batches, with a group of eight that the processes share.
GROUPED = {
    "canon and empg": dict(methods=["canon", "empg"], canon_mu=0.7, canon_alpha=0.9, empg_skip_uniform=True),
    "by length, agentic": dict(
        methods=["canon", "agentic_aepo"], canon_metric="length", canon_mu_schedule="acc_inter_first"
    ),
    "shaped rewards": dict(methods=["pear", "canon"], pear_think_end="w5", canon_mu_schedule="acc_intra_first"),
}


def given_reward(value, **columns):
    return value


def grouped(output_dir, rank, processes, **settings):
    trainer = build_trainer(
        EntropyGRPOTrainer,
        EntropyGRPOConfig,
        output_dir,
        per_device_train_batch_size=8 // processes,
        num_generations=8,
        reward_funcs=given_reward,
        **settings,
    )
    output = part(rollouts(), rank, processes)
    count = 8 // processes
    ids = [row[:length].tolist() for row, length in zip(output["completion_ids"], output["completion_mask"].sum(1), strict=True)]  # fmt: skip
    trainer._generation = generation = Generation(trainer)
    generation.prompt_ids, generation.completion_ids = [[2]] * count, ids
    generation.scores = {"logps": output["old_per_token_logps"], "entropy": output["old_entropies"]}
    rows = [{"prompt": "w1", "value": value} for value in REWARDS[rank * count :][:count, 0].tolist()]
    trainer._calculate_rewards(rows, ["w1"] * count, [""] * count, ids)
    apply_group_hooks(trainer, generation, output)
    logged = {key: value[-1] for key, value in trainer._metrics["train"].items() if key.split("/")[0] in METHODS_HERE}
    return {
        "advantages": trainer.accelerator.gather(output["advantages"]),
        "logged": list(trainer._logs["advantages"]),
        "metrics": logged,
        "rewards": generation.rewards,
    }


METHODS_HERE = ("pear", "canon", "empg", "agentic_aepo")


def results(output_dir, rank, processes):
    trainer = build_trainer(
        EntropyGRPOTrainer,
        EntropyGRPOConfig,
        output_dir,
        per_device_train_batch_size=8 // processes,
        clip_b_renormalize=False,
        **WORLD,
    )
    found = {}
    for name, batch in batches().items():
        trainer._metrics["train"].clear()
        set_states(trainer)
        loss, gradients = loss_and_gradients(trainer, part(batch, rank, processes))
        reduce = trainer.accelerator.reduce
        logged = {k: v[-1] for k, v in trainer._metrics["train"].items() if k.split("/")[0] in (*METHODS, "entropy")}
        states = {method.name: method.state_dict() for method in trainer.methods}
        found[name] = {
            "states": states,
            "loss": reduce(loss, "mean"),
            "gradients": {k: reduce(v, "mean") for k, v in gradients.items()},
            "metrics": logged,
        }
    output = part(rollouts(), rank, processes)
    scores = {"logps": output["old_per_token_logps"], "entropy": output["old_entropies"]}
    scores |= {
        "sum_sq_probs": (-output["old_entropies"]).exp(),
        "sum_sq_probs_log_probs": -output["old_entropies"] / 9,
    }
    lengths = output["completion_mask"].sum(1).tolist()
    generation = Generation(trainer)
    generation.completion_ids, generation.scores = [[2] * length for length in lengths], scores
    generation.rewards = generation.given_rewards = REWARDS
    apply_group_hooks(trainer, generation, output)
    found["group_advantages"] = trainer.accelerator.gather(output["advantages"])
    for name, settings in GROUPED.items():
        found[name] = grouped(output_dir, rank, processes, **settings)
    return found, trainer


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    found, trainer = results(folder / "out", rank, count)
    assert trainer.accelerator.num_processes == count
    torch.save(found, folder / f"rank{rank}.pt")
    # And a run of its own, in which truncated completions are masked and a second rollout is drawn.
    trainer = build_trainer(
        EntropyGRPOTrainer,
        EntropyGRPOConfig,
        folder / "run",
        **{**WORLD, "methods": ["pear", "canon", "empg", *METHODS], "aepo_mode": "rollout"},
        max_steps=4,
        steps_per_generation=2,
        mask_truncated_completions=True,
        ddp_backend="gloo",
    )
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    torch.save(
        {"rows": rows, "weights": trainer.accelerator.unwrap_model(trainer.model).state_dict()},
        folder / f"run{rank}.pt",
    )
    torch.save(distillation_results(folder / "out", rank, count), folder / f"distillation{rank}.pt")
    trainer = build_distiller(
        EntropyDistillationTrainer,
        EntropyDistillationConfig,
        folder / "distillation",
        per_device_train_batch_size=8 // count,
        max_steps=2,
        gradient_accumulation_steps=2,
        tip_scope="ema",
        tip_scatter_steps=1,
        ddp_backend="gloo",
    )
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    torch.save({"rows": rows, "weights": weights}, folder / f"distillation_run{rank}.pt")
    # And one that trains what KappaTune selects: each process computes a part of the condition numbers.
    trainer = build_trainer(
        EntropyGRPOTrainer,
        EntropyGRPOConfig,
        folder / "kappa",
        kappa_mode="freeze",
        kappa_num_modules=3,
        kappa_cache=str(folder / "cache"),
        ddp_backend="gloo",
    )
    trainer.train()
    kappa = next(
        callback for callback in trainer.callback_handler.callbacks if isinstance(callback, KappaTuneCallback)
    )
    weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    torch.save({"layers": kappa.layers, "selected": kappa.selected, "weights": weights}, folder / f"kappa{rank}.pt")
    trainer.accelerator.end_training()
