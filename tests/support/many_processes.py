# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""One of several processes, started by test_distributed.py: each holds a part of a batch and writes what it found."""

import os
import sys
from pathlib import Path

import torch
from support import registry
from support.cases import off_policy_batch
from support.distilling import build_distiller, distillation_results
from support.reference import dense_logps_and_entropy
from support.tensors import part
from support.thermostat_runs import strengths
from support.tiny import build_model, build_trainer, loss_and_gradients

from trl_entropy import (
    EntropyDistillationConfig,
    EntropyDistillationTrainer,
    EntropyGRPOConfig,
    EntropyGRPOTrainer,
    HallucinationCallback,
    KappaTuneCallback,
    MonitorCallback,
)
from trl_entropy.trainers.generation import Generation
from trl_entropy.trainers.replay import Row
from trl_entropy.trainers.rollouts import apply_group_hooks


CONTROLLERS = {
    "pi": dict(entropy_controller="pi"),
    "band": dict(
        entropy_controller="band",
        entropy_controller_low=3.0,
        entropy_controller_high=3.1,
        entropy_controller_lr=0.1,
        entropy_controller_box=[0.0, 1.0],
    ),
}
REWARDS = torch.linspace(0, 1, 8).square().unsqueeze(1)  # of all processes, one function


def batches():
    """A batch off policy, one on policy, and one whose second half has no valid token. Ragged by construction."""
    off_policy = off_policy_batch(build_model(), rows=8)
    noise = torch.randn(8, 6, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        off_policy["old_entropies"] = dense_logps_and_entropy(build_model(), off_policy)[1] * (1 + 0.1 * noise)
    off_policy["rewards"] = torch.tensor([0.0, 1, 0, 1, 1, 1, 0, 1])
    off_policy["old_second_logps"] = off_policy["old_per_token_logps"] + 0.2
    old = ("old_per_token_logps", "old_entropies")
    on_policy = {key: value for key, value in off_policy.items() if key not in old}
    half_empty = {key: value.clone() for key, value in off_policy.items()}
    half_empty["completion_mask"][4:] = 0
    half_empty["num_items_in_batch"] = half_empty["completion_mask"].sum()
    return {"off_policy": off_policy, "on_policy": on_policy, "half_empty": half_empty}


def rollouts():
    """A generation batch as TRL leaves it, with entropies, for the hook that acts before the loss."""
    batch = off_policy_batch(build_model(), rows=8)
    return {**batch, "old_entropies": torch.rand(8, 6, generator=torch.Generator().manual_seed(2)) * 3}


def rewards_of(rewards):
    """(8, 1): `REWARDS`, unless others are given."""
    return REWARDS if rewards is None else torch.tensor(rewards).expand(8).unsqueeze(1)


def given_reward(value, **columns):
    return value


def scores_of(output):
    """The scores of the rollouts, including statistics of the whole vocabulary."""
    entropy = output["old_entropies"]
    moments = {"sum_sq_probs": (-entropy).exp(), "sum_sq_probs_log_probs": -entropy / 9}
    return {"logps": output["old_per_token_logps"], "entropy": entropy, **moments}


def logged_by(trainer, names):
    return {key: value[-1] for key, value in trainer._metrics["train"].items() if key.split("/")[0] in names}


def grouped(output_dir, rank, processes, rewards=None, **settings):
    """The results of methods for a generation batch of one group of eight, shared by the processes.

    `rewards`, one for all completions or one for each, take the place of `REWARDS`.
    """
    trainer = build_trainer(
        EntropyGRPOTrainer,
        EntropyGRPOConfig,
        output_dir,
        per_device_train_batch_size=8 // processes,
        num_generations=8,
        pad_to_multiple_of=6,  # all parts are as wide as the batch
        reward_funcs=given_reward,
        **settings,
    )
    output = part(rollouts(), rank, processes)
    count = 8 // processes
    lengths = output["completion_mask"].sum(1)
    ids = [row[:length].tolist() for row, length in zip(output["completion_ids"], lengths, strict=True)]
    trainer._generation = generation = Generation(trainer)
    generation.prompt_ids, generation.completion_ids = [[2]] * count, ids
    generation.scores = scores_of(output)
    values = rewards_of(rewards)[rank * count :][:count, 0].tolist()
    rows = [{"prompt": "w1", "value": value} for value in values]
    for method in trainer.methods:
        rows = method.prompts(rows, (0, 0), True)
    trainer._calculate_rewards(rows, ["w1"] * count, [""] * count, ids)
    apply_group_hooks(trainer, generation, output)
    return {
        "advantages": trainer.accelerator.gather(output["advantages"]),
        "logged": list(trainer._logs["advantages"]),
        "metrics": logged_by(trainer, settings["methods"]),
        "rewards": generation.rewards,
    }


def controlled(output_dir, rank, processes, controller):
    """The coefficient that a controller of TRL's entropy bonus sets after a step, and its state."""
    trainer = build_trainer(
        EntropyGRPOTrainer,
        EntropyGRPOConfig,
        output_dir,
        per_device_train_batch_size=8 // processes,
        use_adaptive_entropy=True,
        entropy_target=3.0,
        **CONTROLLERS[controller],
    )
    found = {}
    for name, batch in batches().items():
        loss_and_gradients(trainer, part(batch, rank, processes))
        found[name] = {"entropy_coef": trainer.entropy_coef, **trainer._stateful["entropy_bonus"].state_dict()}
    return found


def monitored(output_dir, rank, processes):
    """What monitors measure on the sequences that the processes share: six, so that some of four have one less.

    And of a first step in which each weight grows by a tenth.
    """
    trainer = build_trainer(
        EntropyGRPOTrainer,
        EntropyGRPOConfig,
        output_dir / "monitored",
        per_device_train_batch_size=8 // processes,
        monitors=["geometry", "attention", "step_radius", "weight_norms", "effective_features"],
        geometry_samples=6,
        attention_samples=5,
        step_radius_samples=5,
        weight_norms_reference="cpu",
        effective_features_encoder="torch.relu",
        effective_features_layer=0,
        effective_features_samples=5,
    )
    callback = next(found for found in trainer.callback_handler.callbacks if isinstance(found, MonitorCallback))
    kept = {"model": trainer.model, "processing_class": trainer.processing_class}
    callback.on_train_begin(trainer.args, trainer.state, trainer.control, **kept)
    callback.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control, **kept)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.mul_(1.1)
    callback.on_optimizer_step(trainer.args, trainer.state, trainer.control, **kept)
    callback.on_log(trainer.args, trainer.state, trainer.control, logs={"loss": 0.0})
    return trainer.state.log_history[-1]


def uncertain(output_dir, rank, processes):
    """What the callback logs of six evaluation batches that the processes share."""
    callback = HallucinationCallback(k=5)
    trainer = build_trainer(
        EntropyGRPOTrainer,
        EntropyGRPOConfig,
        output_dir / "uncertain",
        per_device_train_batch_size=8 // processes,
        callbacks=[callback],
    )
    trainer.model.eval()
    for seed in range(6):
        batch = off_policy_batch(build_model(seed), rows=8)
        callback._rewards = REWARDS.roll(seed, 0) * 2
        callback._score(part(batch, rank, processes))
    trainer.state.log_history.append({})
    callback.on_log(trainer.args, trainer.state, trainer.control, logs={"eval_runtime": 1.0})
    return trainer.state.log_history[-1]


def results(output_dir, rank, processes, methods):
    """Losses with their gradients, and the advantages of a generation batch."""
    trainer = build_trainer(
        EntropyGRPOTrainer,
        EntropyGRPOConfig,
        output_dir,
        per_device_train_batch_size=8 // processes,
        methods=methods,
        **registry.world(methods, single_loss=True),
    )
    found = {}
    for name, batch in batches().items():
        trainer._metrics["train"].clear()
        registry.set_states(trainer.methods)
        loss, gradients = loss_and_gradients(trainer, part(batch, rank, processes))
        reduce = trainer.accelerator.reduce
        found[name] = {
            "states": {method.name: method.state_dict() for method in trainer.methods},
            "loss": reduce(loss, "mean"),
            "gradients": {k: reduce(v, "mean") for k, v in gradients.items()},
            "metrics": logged_by(trainer, (*methods, "entropy")),
        }
    output = part(rollouts(), rank, processes)
    lengths = output["completion_mask"].sum(1).tolist()
    generation = Generation(trainer)
    generation.completion_ids, generation.scores = [[2] * length for length in lengths], scores_of(output)
    generation.rewards = generation.given_rewards = REWARDS
    apply_group_hooks(trainer, generation, output)
    found["group_advantages"] = trainer.accelerator.gather(output["advantages"])
    return found, trainer


def remembered(number, lengths=(3, 5, 2, 4, 1, 4, 3, 2, 5)):
    """A sequence to be replayed. The stored log-probabilities lie on both sides of the clip bounds."""
    generator = torch.Generator().manual_seed(number)
    size = lengths[number]
    ids = torch.randint(2, 20, (size + 2,), generator=generator, dtype=torch.int32)
    own = torch.ones(size, dtype=torch.bool)
    own[1:2] = size < 3  # a tool's result
    logps = -3 * torch.rand(size, generator=generator)
    return Row(ids[:2], ids[2:], own, logps, None, reward=0.6 + 0.1 * number, advantage=0.5, step=number // 4)


def replayed(output_dir, rank, processes, split, loss_type, rows=9):
    """Loss, gradients and choice of a replay whose sequences lie on the processes as `split` counts them."""
    trainer = build_trainer(
        EntropyGRPOTrainer,
        EntropyGRPOConfig,
        output_dir,
        per_device_train_batch_size=8 // processes,
        loss_type=loss_type,
        methods=["spear"],
        **{**registry.world(["spear"]), "spear_buffer_size": 4, "spear_clip_cov_ratio": 0.2},
    )
    memory, method = trainer._replays["spear"], trainer.methods[0]
    method.baseline = [[0.2, 0.5], [0.9]]
    first = sum(split[:rank])
    memory.rows = [remembered(number) for number in range(rows)][first:][: split[rank]]
    parts = memory.recall(torch.ones(1, 1, dtype=torch.bool))
    trainer._auxiliary["spear"] = parts
    loss, gradients = loss_and_gradients(trainer, part(batches()["off_policy"], rank, processes))
    reduce = trainer.accelerator.reduce
    return {
        "advantages": trainer.accelerator.gather(parts[0]["advantages"]),
        "items": parts[0]["num_items_in_batch"],
        "left": len(memory.rows),
        "loss": reduce(loss, "mean"),
        "gradients": {k: reduce(v, "mean") for k, v in gradients.items()},
        "metrics": logged_by(trainer, ["spear"]),
    }


# How the processes hold the nine sequences: also one that holds none.
SPLITS = {2: {"uneven": (3, 6), "none": (9, 0)}, 4: {"uneven": (2, 4, 0, 3), "none": (0, 9, 0, 0)}}


def replaying_run(folder, count):
    """A run in which groups span processes, with what each process remembers before each optimizer step."""
    trainer = build_trainer(
        EntropyGRPOTrainer,
        EntropyGRPOConfig,
        folder,
        num_generations=4 * count,
        methods=["spear"],
        **{**registry.world(["spear"]), "spear_buffer_size": 2 * count},
        steps_per_generation=2,
        max_steps=8,
        save_strategy="steps",
        save_steps=4,
        ddp_backend="gloo",
    )
    trainer.train()
    return {
        "rows": [row for row in trainer.state.log_history if "loss" in row],
        "weights": trainer.accelerator.unwrap_model(trainer.model).state_dict(),
        "baseline": trainer.methods[0].baseline,
        "stored": len(trainer._replays["spear"].rows),
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    found = {}
    for number, methods in enumerate(registry.forward_sets()):
        found[number], trainer = results(folder / "out", rank, count, methods)
        assert trainer.accelerator.num_processes == count
    for name, run in registry.group_runs().items():
        found[name] = grouped(folder / "out", rank, count, **run)
    for name in CONTROLLERS:
        found[name] = controlled(folder / "out", rank, count, name)
    found["monitors"] = monitored(folder / "out", rank, count)
    found["uncertainty"] = uncertain(folder / "out", rank, count)
    found["thermostat"] = strengths(folder / "out", rank, count)
    for name, split in SPLITS[count].items():
        for loss_type in ("dapo", "dr_grpo"):
            found["replay", name, loss_type] = replayed(folder / "out", rank, count, split, loss_type)
    torch.save(found, folder / f"rank{rank}.pt")
    torch.save(replaying_run(folder / "replay", count), folder / f"replay{rank}.pt")
    # And a run of its own, in which truncated completions are masked and a second rollout is drawn.
    trainer = build_trainer(
        EntropyGRPOTrainer,
        EntropyGRPOConfig,
        folder / "run",
        methods=registry.world_run(),
        **registry.world(registry.world_run()),
        max_steps=4,
        steps_per_generation=2,
        mask_truncated_completions=True,
        monitors=["gradient_norms", "step_radius", "weight_norms"],
        monitor_steps=2,
        step_radius_control=True,
        max_grad_norm=0.01,
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
    # And one that trains KappaTune's selection: each process computes some of the condition numbers.
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
