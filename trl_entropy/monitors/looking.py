# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Forward passes over the probe that leave the model as it was."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from .base import ProbeMonitor
from .layers import language_model
from .probe import Probe


BATCH = 8  # sequences per forward

T = TypeVar("T")


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, without gradients; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """The model without the autocast that accelerate has put around its forward, and products without TF32."""
    cast, precision = model.__dict__.get("forward"), torch.get_float32_matmul_precision()
    plain = model.__dict__.get("_original_forward")
    if plain is not None:
        model.forward = plain
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        if plain is not None:
            model.forward = cast


def keeps_logits(model: nn.Module) -> bool:
    """Whether the model's forward takes `logits_to_keep`."""
    return "logits_to_keep" in inspect.signature(type(language_model(model)).forward).parameters


def on_all_processes(work: Callable[[], T]) -> T:
    """What `work` returns. If it fails on one process, this raises on each, so that none waits for another."""
    result, error = None, None
    try:
        result = work()
    except Exception as caught:
        error = caught
    failed = any(gather_object([error is not None]))
    if error is not None:
        raise error
    if failed:
        raise RuntimeError("it failed in another process")
    return result  # type: ignore[return-value]


def look(
    model: nn.Module, monitor: ProbeMonitor, probe: Probe, rank: int = 0, processes: int = 1, size: int = BATCH
) -> dict[str, Tensor]:
    """What a monitor keeps of one process's share of the probe: (N, K) tensors.

    Args:
        model: the model.
        monitor: the monitor, which says how many sequences it looks at.
        probe: the sequences.
        rank, processes: which share.
        size: sequences per forward.
    """
    device = next(model.parameters()).device
    options: dict[str, Any] = {"use_cache": False}
    if keeps_logits(model):
        options["logits_to_keep"] = 1
    with evaluated(model):
        for batch in probe.batches(monitor.samples, rank, processes, size, device):
            mask = torch.arange(batch.input_ids.size(1), device=device) < batch.lengths[:, None]
            with monitor.collecting(model, batch):
                model(input_ids=batch.input_ids, attention_mask=mask.long(), **options)
    return monitor.collected()
