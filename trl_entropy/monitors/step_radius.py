# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Length of the optimizer's update relative to a radius within which the softmax is smooth.

[Ghosts of Softmax: Complex Singularities That Limit Safe Step Sizes in
Cross-Entropy](https://huggingface.co/papers/2603.13552). For an update p, and at each position of the probe:

1. a = J_z p is the change of the logits z to first order;
2. the spread is Δ = max_k a_k - min_k a_k;
3. the step size relative to the radius ρ = π / Δ is r = Δ / π. The loss may be far from its expansion for r ≥ 1;
4. the controller takes θ + s p instead of θ + p, with s = min(1, 1 / max r) (Eq. 19).

Departs from the paper: a comes from a finite difference, (z(θ + h p) - z(θ)) / h with h = 0.01, as attention kernels
have no forward derivative. With h = 1 large updates saturate, and r reads too low.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, gather
from torch import Tensor, nn

from ..paper import Paper
from ..settings import checked, flag, one_of, whole
from .attention import query_positions
from .base import Run, StepMonitor
from .copies import WeightCopies
from .looking import evaluated, full_precision, keeps_logits, on_all_processes
from .sharded import local, reshard


NONE = -1.0  # in the place of a position that a short sequence lacks


def step_radius(change: Tensor) -> Tensor:
    """(..., V) change of the logits by an update, to first order -> (...) r = (max - min) / π of each position."""
    return (change.amax(-1) - change.amin(-1)) / math.pi


def largest_and_99th(radii: Tensor) -> tuple[float, float]:
    """The largest of (N,) values, and their 99th percentile."""
    return float(radii.max()), float(radii.double().quantile(0.99))


def step_scale(largest: float) -> float:
    """The factor s of the update (Eq. 19). 1 if r is not finite: then nothing is known of the step."""
    return min(1.0, 1 / largest) if 0 < largest < math.inf else 1.0


@dataclass
class StepRadiusConfig:
    """Fields of the monitor `step_radius`."""

    step_radius_samples: int = field(default=8, metadata={"help": "Sequences of the probe."})
    step_radius_positions: int = field(
        default=32,
        metadata={"help": "Evenly spaced positions of each sequence. The logits of all of them are kept in float32."},
    )
    step_radius_fraction: float = field(
        default=0.01,
        metadata={"help": "Share h of the update in the finite difference. Smaller rounds, larger saturates."},
    )
    step_radius_copy: str = field(
        default="device",
        metadata={
            "help": "Where the trained weights are copied to: 'device', 'cpu', or 'none', which measures only the "
            "whole update."
        },
    )
    step_radius_control: bool = field(
        default=False,
        metadata={"help": "Shorten each update to r = 1 at most. Changes training; measures at every step."},
    )
    step_radius_allow_low_precision: bool = field(
        default=False, metadata={"help": "Measure although weights or logits are in half precision. r reads too high."}
    )


class StepRadius(StepMonitor):
    """The size of updates relative to the softmax's radius: the largest of all positions, and a percentile."""

    name = "step_radius"
    summary = "size of the optimizer's step relative to the radius within which the softmax is smooth"
    headline = "r_99"
    cost = "three forwards of 8 sequences, and a copy of the trained weights"
    paper = Paper(
        arxiv="2603.13552",
        title="Ghosts of Softmax: Complex Singularities That Limit Safe Step Sizes in Cross-Entropy",
        bibtex="""@article{sao2026ghosts,
    title   = {Ghosts of Softmax: Complex Singularities That Limit Safe Step Sizes in Cross-Entropy},
    author  = {Piyush Sao},
    journal = {arXiv preprint arXiv:2603.13552},
    year    = {2026}
}""",
    )

    def __init__(self, config: Any):
        self.samples = whole(config, "step_radius_samples", 1)
        self.positions = whole(config, "step_radius_positions", 1)
        self.fraction = checked(config, "step_radius_fraction", lambda value: 0 < value < 1, "a number in (0, 1)")
        self.copy = one_of(config, "step_radius_copy", "device", "cpu", "none")
        self.control = flag(config, "step_radius_control")
        self.low_precision = flag(config, "step_radius_allow_low_precision")
        if self.control and self.copy == "none":
            raise ValueError("`step_radius_copy` must be 'device' or 'cpu' with `step_radius_control`, got 'none'.")
        self.every = config.monitor_steps
        self._copies: WeightCopies | None = None
        self._logits: list[Tensor] = []  # before the step, if it is measured
        self._numbers: dict[str, float] = {}

    def check_model(self, model: nn.Module) -> None:
        if PartialState().distributed_type == DistributedType.DEEPSPEED:
            raise ValueError("`monitors` must leave out 'step_radius' with DeepSpeed, which updates weights itself.")
        small = [name for name, x in model.named_parameters() if x.is_floating_point() and x.element_size() < 4]
        if small:
            self._refuse_low_precision(f"{small[0]} in {model.get_parameter(small[0]).dtype}")

    def _refuse_low_precision(self, found: str) -> None:
        if not self.low_precision:
            raise ValueError(
                "`monitors` must leave out 'step_radius' unless the model computes in float32: in half precision r "
                f"reads far too high. Got {found}. `step_radius_allow_low_precision: true` measures all the same."
            )

    def begin(self, model: nn.Module, run: Run) -> None:
        assert run.probe is not None
        self.probe, self._logits, self._numbers = run.probe, [], {}
        dtype = self._look(model)[0].dtype
        if dtype != torch.float32 and dtype != torch.float64:
            self._refuse_low_precision(f"logits in {dtype}")

    def before_step(self, model: nn.Module, step: int) -> None:
        self._copies, self._logits = None, []
        if not (self.control or step == 1 or step % self.every == 0):
            return
        # Before the forward, which gathers sharded weights
        weights = [local(weight) for weight in model.parameters() if weight.requires_grad]
        self._logits = on_all_processes(partial(self._start, model, weights))

    def _start(self, model: nn.Module, weights: list[Tensor]) -> list[Tensor]:
        """Copies the weights, and returns the logits."""
        if self.copy != "none":
            self._copies = WeightCopies(weights, self.copy == "cpu", self.control)
        return self._look(model)

    def after_step(self, model: nn.Module, step: int) -> None:
        if not self._logits:
            return
        if self.copy == "none" or step == 1 or step % self.every == 0:
            self._keep("full", self._radii(model, 1.0))
        if self._copies is not None:
            self._keep("r", self._radii(model, self.fraction))
            if self.control:
                scale = step_scale(self._numbers["r_max"])
                if scale < 1:
                    self._copies.shorten(scale)  # what the optimizer remembers stays as it is
                self._numbers["scale"] = min(scale, self._numbers.get("scale", 1.0))
        self._copies, self._logits = None, []

    def _keep(self, name: str, radii: Tensor) -> None:
        self._numbers |= dict(zip((f"{name}_max", f"{name}_99"), largest_and_99th(radii), strict=True))

    def _look(self, model: nn.Module) -> list[Tensor]:
        """(P, V) logits of each sequence of this process's share."""
        world, found = PartialState(), []
        device, short = next(model.parameters()).device, keeps_logits(model)
        with evaluated(model), full_precision(model):
            for batch in self.probe.batches(self.samples, world.process_index, world.num_processes, 1, device):
                positions, valid = query_positions(batch.lengths, self.positions)
                chosen = positions[valid]
                options = {"logits_to_keep": chosen} if short else {}
                mask = torch.ones_like(batch.input_ids)
                logits = model(input_ids=batch.input_ids, attention_mask=mask, use_cache=False, **options).logits[0]
                found.append(logits if short else logits[chosen])
        reshard(model)
        return found

    def _radii(self, model: nn.Module, share: float) -> Tensor:
        """(N,) r of all positions of all processes, from the logits after this share of the update."""

        def own() -> Tensor:
            with nullcontext() if share == 1 or self._copies is None else self._copies.between(share):
                after = self._look(model)
            rows = [step_radius((new - old) / share).double() for new, old in zip(after, self._logits, strict=True)]
            return torch.stack([torch.cat([row, row.new_full((self.positions - len(row),), NONE)]) for row in rows])

        rows = gather(on_all_processes(own))
        rows = self.probe.in_order(rows, self.samples, PartialState().num_processes)
        return rows[rows != NONE]

    def numbers(self) -> dict[str, float]:
        found, self._numbers = self._numbers, {}
        return found
