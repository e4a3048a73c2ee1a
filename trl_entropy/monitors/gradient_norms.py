# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Gradient norms of every optimizer step, from which a refined schedule is made.

[Optimal Linear Decay Learning Rate Schedules and Further Refinements](https://huggingface.co/papers/2310.07831). The
norms l1 = Σ|g| and l2 = (Σ g²)^½ are over all trained weights, before clipping.

Callbacks see gradients after clipping, so the norms are divided by what clipping has multiplied gradients by: the
ratio of the L2 norm that remains to the one that `Accelerator.clip_grad_norm_` has returned.
"""

import csv
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, reduce
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..paper import Paper
from .base import Run, StepMonitor
from .sharded import copies_of


FILE = "gradient_norms.csv"  # in the folder of a run
COLUMNS = ("step", "l1", "l2")


def norm_sums(gradients: list[Tensor]) -> Tensor:
    """(2,) Σ|g| and Σ g² in float64, over all processes where gradients are sharded."""
    if not gradients:
        return torch.zeros(2, dtype=torch.float64)
    sharded = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    plain = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    flat = not sharded and PartialState().distributed_type == DistributedType.FSDP  # FSDP1: shards without a type
    local = _sums([gradient.to_local() for gradient in sharded], [1 / copies_of(gradient) for gradient in sharded])
    total = _sums(plain)
    if sharded or flat:
        local = local + total if flat else local
        local = reduce(local.to(gradients[0].device), "sum")
        total = local if flat else local + total.to(local.device)
    return total


def _sums(gradients: list[Tensor], shares: list[float] | None = None) -> Tensor:
    """(2,) Σ|g| and Σ g² of this process, each tensor times its share."""
    shares = shares or [1.0] * len(gradients)
    if not gradients:
        return torch.zeros(2, dtype=torch.float64)
    device = gradients[0].device
    # Two sweeps over all tensors at once. Half precision would round the sums.
    norms = [
        torch.stack([norm.to(device) for norm in torch._foreach_norm(gradients, order, dtype=torch.float32)]).double()
        for order in (1, 2)
    ]
    weights = torch.tensor(shares, dtype=torch.float64, device=device)
    return torch.stack([(weights * norms[0]).sum(), (weights * norms[1].square()).sum()])


class ClippingWatch:
    """Keeps the last norm that accelerate's clipping has returned, which is that before clipping."""

    _active: ClassVar[list["ClippingWatch"]] = []

    def __init__(self):
        self.norm: Any = None

    def start(self) -> None:
        """Watches all accelerators until `stop`. A run that ends in an error may leave this on, which does no harm."""
        self.norm = None
        if not self._active:
            _watch_clipping(self._active)
        if self not in self._active:
            self._active.append(self)

    def stop(self) -> None:
        if self in self._active:
            self._active.remove(self)
            if not self._active:
                Accelerator.clip_grad_norm_ = Accelerator.clip_grad_norm_.__wrapped__


def _watch_clipping(watches: list[ClippingWatch]) -> None:
    own = Accelerator.clip_grad_norm_

    @wraps(own)
    def watched(accelerator, *arguments, **keywords):
        norm = own(accelerator, *arguments, **keywords)
        for watch in watches:
            watch.norm = norm
        return norm

    Accelerator.clip_grad_norm_ = watched


class GradientNorms(StepMonitor):
    """L1 and L2 norms of each step's gradients, in `gradient_norms.csv` and in the log."""

    name = "gradient_norms"
    summary = "gradient norms of every step before clipping, for a refined schedule of the learning rate"
    headline = "l1"
    cost = "two sweeps over the gradients at each optimizer step"
    shared = ()
    paper = Paper(
        arxiv="2310.07831",
        title="Optimal Linear Decay Learning Rate Schedules and Further Refinements",
        bibtex="""@article{defazio2023optimal,
    title   = {Optimal Linear Decay Learning Rate Schedules and Further Refinements},
    author  = {Aaron Defazio and Ashok Cutkosky and Harsh Mehta and Konstantin Mishchenko},
    journal = {arXiv preprint arXiv:2310.07831},
    year    = {2023}
}""",
    )

    def __init__(self, config: Any):
        self._watch = ClippingWatch()
        self._path: Path | None = None  # on the process that writes
        self._rows: list[tuple[int, Tensor]] = []  # since the file was written; on the device, which need not wait
        self._last: Tensor | None = None

    def check_model(self, model: nn.Module) -> None:
        if PartialState().distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(
                "`monitors` must leave out 'gradient_norms' with DeepSpeed, which keeps gradients itself."
            )

    def begin(self, model: nn.Module, run: Run) -> None:
        self._rows, self._last = [], None
        self._path = run.folder / FILE if run.writes else None
        if self._path is not None:
            kept = _rows_until(self._path, run.step)
            run.folder.mkdir(parents=True, exist_ok=True)
            with self._path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([COLUMNS, *kept])

    def before_gradients(self) -> None:
        self._watch.start()

    def before_step(self, model: nn.Module, step: int) -> None:
        self._watch.stop()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        l1, square = norm_sums(gradients).unbind()
        l2 = square.sqrt()
        if self._watch.norm is None:  # clipped in another way, by an unknown factor
            l1, l2 = l1 * torch.nan, l2 * torch.nan
        else:
            norm = torch.as_tensor(self._watch.norm)
            norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).to(l2)
            l1, l2 = torch.where(l2 > 0, l1 * norm / l2, l1), norm
        self._last = torch.stack([l1, l2])
        self._rows.append((step, self._last))

    def numbers(self) -> dict[str, float]:
        return {} if self._last is None else dict(zip(COLUMNS[1:], self._last.tolist(), strict=True))

    def save(self) -> None:
        rows, self._rows = self._rows, []
        if self._path is not None and rows:
            values = torch.stack([norms for _, norms in rows]).tolist()
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([step, *norms] for (step, _), norms in zip(rows, values, strict=True))

    def end(self) -> None:
        self._watch.stop()


def _rows_until(path: Path, step: int) -> list[list[str]]:
    """The rows of an earlier run up to a step, which a resumed run goes on with."""
    if step == 0 or not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    return [row for row in rows if len(row) == len(COLUMNS) and row[0].isdecimal() and int(row[0]) <= step]
