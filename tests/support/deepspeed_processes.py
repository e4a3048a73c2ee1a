# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""One of two processes, started by test_deepspeed.py: runs under DDP, and the same under DeepSpeed's ZeRO stages."""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from support.distilling import build_distiller
from support.registry import rewarded, strong
from support.sharded_processes import run
from support.tiny import build_model, build_trainer
from transformers import Qwen2ForCausalLM

from trl_entropy import EntropyDistillationConfig, EntropyDistillationTrainer, EntropyGRPOConfig, EntropyGRPOTrainer


STAGES = {f"zero{stage}": stage for stage in (1, 2, 3)}
PI = dict(use_adaptive_entropy=True, entropy_target=5.0, entropy_controller="pi", entropy_coef_max=0.5)
ADAPTER = dict(peft_config=dict(r=4, target_modules=["q_proj", "up_proj"]))
FLOAT32 = dict(dtype="float32")
ON_POLICY = dict(steps_per_generation=None, gradient_accumulation_steps=2)
# Settings of the runs under every stage, by name.
RUNS = {
    "none": {},
    "clip_cov": dict(methods=["clip_cov"]),
    "kl_cov": dict(methods=["kl_cov"]),
    "siren": dict(methods=["siren"]),
    "epo": dict(methods=["epo"]),
    "aepo reweight": dict(methods=["aepo"], aepo_mode="reweight", **ON_POLICY),
    "pi": dict(**PI, **ON_POLICY),
    "thermostat": dict(entropy_keep=0.9, entropy_keep_batches=1),
    "thermostat on policy": dict(methods=["siren"], entropy_keep=0.9, entropy_keep_batches=1, **ON_POLICY),
    "adapter": dict(methods=["siren"], **ADAPTER),
    "tip": {},
}
# And those of runs under ZeRO-3.
ZERO3_RUNS = {
    "not gathered": dict(methods=["siren"], ds3_gather_for_generation=False),
    "tip not gathered": dict(ds3_gather_for_generation=False),
}
# A gradient that is next to nothing must not move a weight by its rounding: AdamW divides it by its size
OPTIMIZER = dict(adam_epsilon=1e-4)


def engine(stage):
    """The settings with which the trainer takes DeepSpeed; none for DDP."""
    if stage is None:
        return {}
    auto = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")
    zero = dict(stage=stage, stage3_gather_16bit_weights_on_model_save=True, stage3_param_persistence_threshold=0)
    return dict(deepspeed=dict(zero_optimization=zero, **dict.fromkeys(auto, "auto")))


def take_engine(stage):
    """accelerate takes DDP if it is told to use the CPU by the environment, whatever the config says."""
    if stage is None:
        os.environ["ACCELERATE_USE_CPU"] = "1"
    else:
        import deepspeed

        # Else it is compiled at the first collective, and a run killed meanwhile leaves a lock that stops all others
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        os.environ.pop("ACCELERATE_USE_CPU", None)
        deepspeed.init_distributed(dist_backend="gloo")  # as accelerate does, unless DDP has made the group before


def grpo(folder, stage, methods=(), peft_config=None, **settings):
    take_engine(stage)
    if peft_config is not None:
        from peft import LoraConfig

        settings["peft_config"] = LoraConfig(**peft_config)
    methods = list(methods)
    return build_trainer(
        EntropyGRPOTrainer,
        EntropyGRPOConfig,
        folder,
        methods=methods,
        ddp_backend="gloo",
        **{"max_steps": 3, "steps_per_generation": 2, **strong(methods), **OPTIMIZER, **settings, **engine(stage)},
    )


def distiller(folder, stage, **settings):
    take_engine(stage)
    return build_distiller(
        EntropyDistillationTrainer,
        EntropyDistillationConfig,
        folder,
        ddp_backend="gloo",
        **{"tip_ratio": 0.5, **OPTIMIZER, **settings, **engine(stage)},
    )


class Scaled(Qwen2ForCausalLM):
    """A model that does to its logits what the head does not know."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        if outputs.logits is not None:
            outputs.logits = outputs.logits * 0.5
        return outputs


def loaded(folder, stage):
    """A run of a model that is loaded from a folder, under ZeRO-3 in parts, and its reference model."""
    return grpo(folder / "out", stage, ["clip_cov"], model=str(folder / "model"), beta=0.1, model_init_kwargs=FLOAT32)


def resumed(folder):
    """A run under ZeRO-3 that is saved, one that goes on from its checkpoint, and the weights in its last one."""
    settings = dict(methods=["siren", "epo"], entropy_keep=0.9, entropy_keep_batches=1, entropy_keep_knob="epo_coef")
    saves = dict(max_steps=4, save_strategy="steps", save_steps=2)
    whole = run(grpo(folder / "whole", 3, **settings, **saves))
    half = str(folder / "whole" / "checkpoint-2")
    found = {"whole": whole, "resumed": run(grpo(folder / "resumed", 3, **settings, **saves), half)}
    saved = folder / "whole" / "checkpoint-4"
    return {**found, "saved": load_file(saved / "model.safetensors")}


def refusals(folder):
    """What the trainers say to a model under ZeRO-3 whose logits are not those of the head."""
    found = {}
    for kind, build, field in (("GRPO", grpo, "model"), ("TIP", distiller, "model"), ("TIP", distiller, "teacher")):
        wrong = Scaled(build_model().config)
        wrong.load_state_dict(build_model().state_dict())
        trainer = build(folder, 3, **{field: wrong})
        try:
            trainer.train()
            found[kind, field] = None
        except ValueError as error:
            found[kind, field] = str(error)
    return found


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    chosen, found = json.loads((folder / "chosen.json").read_text()), {}
    for kind, stage in {"ddp": None, **STAGES}.items() if chosen["others"] else ():
        for name, settings in (RUNS | (ZERO3_RUNS if stage in (None, 3) else {})).items():
            build = distiller if name.startswith("tip") else grpo
            found[kind, name] = run(build(folder / "out", stage, **settings))
    for kind, stage in (("ddp", None), ("zero3", 3)):
        for name in chosen["methods"]:
            if (kind, name) not in found:
                found[kind, name] = run(grpo(folder / "out", stage, [name], **rewarded([name])))
        if chosen["others"]:
            found[kind, "loaded"] = run(loaded(folder, stage))
    if chosen["others"]:
        found |= resumed(folder) | {"refusals": refusals(folder / "out")}
    torch.save(found, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()
