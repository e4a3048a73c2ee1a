# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Norms of the trained matrices, relative to those before training.

[Normalization and effective learning rates in reinforcement learning](https://huggingface.co/papers/2407.01800): the
effective learning rate of a layer whose output does not depend on the scale of its weights is η / ‖W‖². So it falls as
the norm grows:

1. ratio = ‖W‖ / ‖W_0‖, with Frobenius norms;
2. effective_lr_ratio = (‖W_0‖ / ‖W‖)²;
3. change = ‖W - W_0‖ / ‖W_0‖.

Departs from the paper: the projection W <- W ‖W_0‖ / ‖W‖ after each step is off by default, and no normalization layer
is inserted, as that would change a pretrained model. With LoRA, W = W_0 + s B A, where W_0 is the frozen weight.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..paper import Paper
from ..settings import checked, one_of
from .adapters import adapted_weights, adapter_weights
from .base import Run, StepMonitor
from .sharded import local, norms


logger = get_logger(__name__)

FILE = "monitors/weight_norms.safetensors"  # in the folder of a run: the norms before training
REFERENCE = "monitors/weight_norms_reference.safetensors"  # and the weights themselves


def norm_numbers(start: Tensor, now: Tensor) -> dict[str, float]:
    """The numbers to log, from (W,) norms of weights before training and now. Weights that began as 0 are left out."""
    known = start > 0
    ratio = now[known] / start[known]
    if not len(ratio):
        return dict.fromkeys(("ratio_mean", "ratio_max", "effective_lr_ratio"), math.nan)
    return {
        "ratio_mean": float(ratio.mean()),
        "ratio_max": float(ratio.max()),
        "effective_lr_ratio": float(ratio.pow(-2).mean()),
    }


def project(weights: list[Tensor], start: Tensor) -> None:
    """Scales weights, in place, to the (W,) norms that they had before training. A weight or norm of 0 stays."""
    now = norms(weights)
    factors = torch.where((now > 0) & (start > 0), start.to(now) / now, 1.0)
    torch._foreach_mul_([local(weight) for weight in weights], factors.tolist())


@dataclass
class WeightNormsConfig:
    """Fields of the monitor `weight_norms`."""

    weight_norms_reference: str = field(
        default="none",
        metadata={
            "help": "'cpu' keeps a copy of the weights before training, there and in the run's folder, and also logs "
            "how far weights have moved. With LoRA that is logged anyway."
        },
    )
    weight_norms_project: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Experimental, off by default: names of modules, such as q_proj, whose weights are scaled back to "
            "their first norm after each step. Changes training, and what the model computes unless its output does "
            "not depend on the scale of these weights."
        },
    )


class WeightNorms(StepMonitor):
    """Norms of the trained matrices relative to their first ones, and what that makes of the learning rate."""

    name = "weight_norms"
    summary = "growth of the trained matrices, which lowers the effective learning rate behind normalization layers"
    headline = "ratio_mean"
    cost = "one sweep over the trained weights"
    shared = ("monitor_steps",)
    paper = Paper(
        arxiv="2407.01800",
        title="Normalization and effective learning rates in reinforcement learning",
        bibtex="""@inproceedings{lyle2024normalization,
    title     = {Normalization and effective learning rates in reinforcement learning},
    author    = {Clare Lyle and Zeyu Zheng and Khimya Khetarpal and James Martens and Hado van Hasselt and
                 Razvan Pascanu and Will Dabney},
    booktitle = {Advances in Neural Information Processing Systems},
    year      = {2024}
}""",
    )

    def __init__(self, config: Any):
        self.reference = one_of(config, "weight_norms_reference", "cpu", "none")
        self.projected = checked(
            config,
            "weight_norms_project",
            lambda value: isinstance(value, list) and all(isinstance(name, str) and name for name in value),
            "a list of names of modules",
        )
        self.every = config.monitor_steps
        self._start: dict[str, Tensor] = {}  # norm of each weight before training
        self._weights: dict[str, Tensor] = {}  # before training
        self._numbers: dict[str, float] = {}

    def check_model(self, model: nn.Module) -> None:
        if PartialState().distributed_type == DistributedType.DEEPSPEED:
            raise ValueError("`monitors` must leave out 'weight_norms' with DeepSpeed, which keeps weights itself.")
        trained = trained_matrices(model)
        if not trained and not any(True for _ in adapted_weights(model)):
            raise ValueError("`monitors` must leave out 'weight_norms': no matrix is trained.")
        if self.reference == "cpu" and any(isinstance(weight, DTensor) for weight in trained.values()):
            raise ValueError("`weight_norms_reference` must be 'none' if weights are sharded, got 'cpu'.")
        for name in self.projected:
            if not chosen(trained, [name]):
                raise ValueError(f"`weight_norms_project` must name modules with a trained matrix, got {name!r}.")

    def begin(self, model: nn.Module, run: Run) -> None:
        trained, self._numbers = trained_matrices(model), {}
        self._start = dict(zip(trained, norms([*trained.values()]).cpu(), strict=True))
        if self.reference == "cpu":
            self._weights = {name: weight.detach().to("cpu", copy=True) for name, weight in trained.items()}
        self._start = self._kept(run, run.folder / FILE, self._start)
        self._weights = self._kept(run, run.folder / REFERENCE, self._weights)

    def _kept(self, run: Run, path: Path, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """What was found before training, which a resumed run reads from its folder."""
        if not found:
            return found
        if run.step > 0:
            if path.exists() and (kept := load_file(path)).keys() == found.keys():
                return kept
            logger.warning(
                f"{path} does not hold the weights of this run: 'weight_norms' compares with the weights of this step."
            )
        elif run.writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: value.contiguous() for name, value in found.items()}, path)
        return found

    def after_step(self, model: nn.Module, step: int) -> None:
        if self.projected:
            targets = chosen(trained_matrices(model), self.projected)
            project([*targets.values()], torch.stack([self._start[name] for name in targets]))
        if step == 1 or step % self.every == 0:
            self._numbers = self._measured(model)

    def _measured(self, model: nn.Module) -> dict[str, float]:
        trained, change = trained_matrices(model), []
        now = norms([*trained.values()])
        start = torch.stack([self._start[name] for name in trained]).to(now) if trained else now
        for name, kept in self._weights.items():
            if self._start[name] > 0:
                change.append(float((trained[name].detach() - kept.to(trained[name].device)).norm() / kept.norm()))
        adapted = torch.tensor([*adapted_weights(model)], dtype=torch.float64).view(-1, 3)
        change += [moved / before for before, _, moved in adapted.tolist() if before > 0]
        first, last = torch.cat([start.cpu(), adapted[:, 0]]), torch.cat([now.cpu(), adapted[:, 1]])
        numbers = norm_numbers(first, last)
        return numbers | ({"change_mean": sum(change) / len(change)} if change else {})

    def numbers(self) -> dict[str, float]:
        found, self._numbers = self._numbers, {}
        return found


def trained_matrices(model: nn.Module) -> dict[str, Tensor]:
    """The trained 2-D weights by name, without those of adapters."""
    inside = {id(weight) for weight in adapter_weights(model)}
    return {
        name: weight
        for name, weight in model.named_parameters()
        if weight.requires_grad and weight.dim() == 2 and id(weight) not in inside
    }


def chosen(weights: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The weights of modules that have one of these names."""
    return {name: weight for name, weight in weights.items() if {*name.split(".")} & {*names}}
