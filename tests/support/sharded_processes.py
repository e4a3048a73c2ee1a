# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""One of two processes, started by test_sharded.py: runs of the chosen methods under DDP, and the same under FSDP2."""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from support.registry import covered, rewarded, strong
from support.tiny import build_trainer
from torch.distributed.tensor import DTensor

from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer


FSDP = dict(
    fsdp=True,
    fsdp_config=dict(
        version=2,
        auto_wrap_policy="TRANSFORMER_BASED_WRAP",
        transformer_layer_cls_to_wrap=["Qwen2DecoderLayer"],
        reshard_after_forward=True,
    ),
)


def method_sets() -> dict[str, list[str]]:
    """The methods of each run by its name: each by itself, and none."""
    return {name: [name] for name in covered()} | {"none": []}


class ShardedTrainer(EntropyGRPOTrainer):
    """accelerate offers FSDP to several accelerators only, and quietly takes DDP for several CPUs instead."""

    def create_accelerator_and_postprocess(self):
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()


def train(trainer_class, output_dir, methods, resume=None, **settings):
    trainer = build_trainer(
        trainer_class,
        EntropyGRPOConfig,
        output_dir,
        methods=methods,
        steps_per_generation=2,
        monitors=["gradient_norms", "step_radius", "weight_norms"],
        monitor_steps=1,
        max_grad_norm=0.01,
        **{"max_steps": 3, **settings, **strong(methods)},
        ddp_backend="gloo",
    )
    return run(trainer, resume)


def run(trainer, resume=None):
    """What the trainer logs, and the weights that it ends with."""
    trainer.train(resume_from_checkpoint=resume)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    kind = str(trainer.accelerator.distributed_type)
    if trainer.is_deepspeed_enabled:
        from deepspeed.runtime.zero import GatheredParameters

        parameters = dict(trainer.accelerator.unwrap_model(trainer.model_wrapped).named_parameters())
        sharded = all(hasattr(value, "ds_id") for value in parameters.values())
        with GatheredParameters(list(parameters.values())):
            weights = {name: value.detach().clone() for name, value in parameters.items()}
        return {"rows": rows, "weights": weights, "sharded": sharded, "kind": kind}
    weights = {
        name.removeprefix("module."): value.full_tensor() if isinstance(value, DTensor) else value.clone()
        for name, value in trainer.model_wrapped.state_dict().items()
    }
    sharded = all(isinstance(value, DTensor) for value in trainer.model_wrapped.parameters())
    return {"rows": rows, "weights": weights, "sharded": sharded, "kind": kind}


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    found = {}
    # accelerate remembers in the environment that FSDP was asked for once: so DDP goes first.
    for kind, trainer_class, settings in (("ddp", EntropyGRPOTrainer, {}), ("fsdp", ShardedTrainer, FSDP)):
        for name in json.loads((folder / "chosen.json").read_text()):
            methods = method_sets()[name]
            reward = rewarded(methods)
            found[kind, name] = train(trainer_class, folder / "out", methods, **settings, **reward)
            if reward:
                found[kind, f"none, as {name}"] = train(trainer_class, folder / "out", [], **settings, **reward)
    saves = dict(max_steps=4, save_strategy="steps", save_steps=2)
    for part, resume in (("whole", None), ("resumed", str(folder / "whole" / "checkpoint-2"))):
        found[part] = train(ShardedTrainer, folder / part, ["siren", "epo"], resume, **FSDP, **saves)
    torch.save(found, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()
