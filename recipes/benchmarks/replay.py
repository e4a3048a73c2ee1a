# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What SPEAR's replay costs: CPU time and saved tensors of runs with it, relative to stock GRPO in the same rounds.

    python recipes/benchmarks/replay.py
    python recipes/benchmarks/replay.py --head fused

A run generates, and trains a small model of random weights for `--steps` steps, one on each generation batch. Rewards
are 0 and 1 by chance, right with probability `--right`. The first `--warm` steps are not counted. Runs alternate, and
ratios are of the same round. "Update": loss, backward, optimizer and what is done with the memory; "step": with
generation. "Saved": bytes that autograd keeps for the backward in the steps with a replay, relative to those without.
"""

import argparse
import random
import statistics
import tempfile
import time

import torch
from overhead import build_trainer
from torch.autograd.graph import saved_tensors_hooks
from trl import GRPOConfig, GRPOTrainer

from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer


class Clock:
    """CPU seconds of the steps of a run, with and without those of generation, and bytes saved for each backward."""

    def __init__(self, trainer):
        self.trainer, self.steps, self.updates, self.saved, self.replays = trainer, [], [], [], []
        self.generating = 0.0
        self.step, self.generate, self.loss = trainer.training_step, trainer._generate, trainer.compute_loss
        trainer.training_step, trainer._generate, trainer.compute_loss = self.timed, self.generated, self.counted

    def generated(self, prompts):
        start = time.process_time()
        output = self.generate(prompts)
        self.generating += time.process_time() - start
        return output

    def counted(self, *args, **kwargs):
        held = {}

        def pack(tensor):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss(*args, **kwargs)
        weights = {weight.untyped_storage().data_ptr() for weight in self.trainer.model.parameters()}
        self.saved.append(sum(size for place, size in held.items() if place not in weights))
        return loss

    def timed(self, *args, **kwargs):
        start, self.generating = time.process_time(), 0.0
        output = self.step(*args, **kwargs)
        elapsed = time.process_time() - start
        self.steps.append(elapsed)
        self.updates.append(elapsed - self.generating)
        self.replays.append(bool(getattr(self.trainer, "_auxiliary", {}).get("spear")))
        return output


def runs(options):
    """Classes and fields of each run by its name."""
    ours, head = (EntropyGRPOTrainer, EntropyGRPOConfig), dict(fused_head=options.head == "fused")
    spear = dict(methods=["spear"], spear_tools_only=False, spear_tool_reward=0.0, spear_replay_steps=0, **head)
    quarter = max(options.rows // 4, 1)
    return {
        "stock": (GRPOTrainer, GRPOConfig, {}),
        "no method": (*ours, head),
        "spear": (*ours, spear),
        f"spear, {quarter} rows": (*ours, {**spear, "spear_buffer_size": quarter}),
    }


def run(options, folder, trainer_class, config_class, fields):
    fields = {"steps_per_generation": 1, "max_steps": options.steps, "save_strategy": "no", **fields}
    trainer = build_trainer(trainer_class, config_class, options, folder, **fields)
    draw = random.Random(0)
    trainer.reward_funcs[0] = lambda completions, **_: [float(draw.random() < options.right) for _ in completions]
    clock = Clock(trainer)
    trainer.train()
    return clock


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    counts = dict(rows=16, length=48, hidden=128, layers=2, vocabulary=4096, rounds=5, steps=24, warm=4)
    for name, default in counts.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--right", type=float, default=0.3)
    parser.add_argument("--head", choices=["fused", "stock"], default="stock")
    options = parser.parse_args()
    options.quantile = 1.0
    torch.set_num_threads(1)
    found = {name: [] for name in runs(options)}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for name, (trainer_class, config_class, fields) in runs(options).items():
                found[name].append(run(options, folder, trainer_class, config_class, fields))
    print(f"\n{'':20}{'replays':>9}{'update':>9}{'step':>9}{'saved':>9}   (medians of {options.rounds} rounds)")
    for name, clocks in found.items():
        ratios = [
            [sum(getattr(clock, kind)[options.warm :]) / sum(getattr(stock, kind)[options.warm :]) for kind in KINDS]
            for clock, stock in zip(clocks, found["stock"], strict=True)
        ]
        update, step = map(statistics.median, zip(*ratios, strict=True))
        replays = statistics.mean(clocks[0].replays[options.warm :])
        print(f"{name:20}{replays:9.2f}{update:9.2f}{step:9.2f}{saved_ratio(clocks[0]):>9}")


KINDS = ("updates", "steps")


def saved_ratio(clock) -> str:
    sizes = {
        replayed: [size for size, one in zip(clock.saved, clock.replays, strict=True) if one == replayed]
        for replayed in (False, True)
    }
    return f"{statistics.mean(sizes[True]) / statistics.mean(sizes[False]):.2f}" if sizes[True] else ""


if __name__ == "__main__":
    main()
