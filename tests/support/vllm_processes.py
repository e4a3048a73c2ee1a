# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""One of two processes, started by test_vllm_engine.py: DDP runs, for which each process has an engine of its own."""

import os
import sys
from pathlib import Path

import torch
from support.registry import strong
from support.vllm_engine import SharedEngine, build_vllm_trainer, save_model, sharing
from trl import GRPOConfig, GRPOTrainer

from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer


OURS = (EntropyGRPOTrainer, EntropyGRPOConfig)
RUNS = {
    "stock": (GRPOTrainer, GRPOConfig, {}),
    "none": (*OURS, dict(fused_head=False)),
    "clip_cov": (*OURS, dict(methods=["clip_cov"])),
    "together": (*OURS, dict(methods=["pear", "canon", "empg", "epo"])),
    "spear": (*OURS, dict(methods=["spear"])),
}


def run(trainer):
    given = []
    generate = trainer.vllm_generation.generate
    trainer.vllm_generation.generate = lambda prompts, *a, **k: (given.extend(prompts), generate(prompts, *a, **k))[1]
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    rows = [{key: value for key, value in row.items() if key != "step_time"} for row in rows]
    kind = str(trainer.accelerator.distributed_type)
    weights = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    return {"rows": rows, "weights": weights, "prompts": given}, kind


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    source = save_model(folder / f"model{rank}")
    found, kinds, engine = {}, set(), SharedEngine()
    with sharing(engine):
        settings = dict(ddp_backend="gloo", max_steps=3, steps_per_generation=2)
        build_vllm_trainer(GRPOTrainer, GRPOConfig, folder / "first", source, **settings)
        for name, (trainer_class, config_class, own) in RUNS.items():
            own = {**own, **strong(own.get("methods", []))}
            trainer = build_vllm_trainer(trainer_class, config_class, folder / "out", source, **settings, **own)
            found[name], kind = run(trainer)
            kinds.add(kind)
    torch.save({**found, "kinds": kinds}, folder / f"rank{rank}.pt")
    engine.close()  # which closes the process group too
