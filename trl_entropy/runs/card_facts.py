# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Facts for model cards that the run itself knows: thermostat, diagnosis, hardware, time, what its numbers mean."""

import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..diagnosis.callback import DiagnosisCallback
from ..diagnosis.history import History, training_lines
from ..diagnosis.rules import diagnose


MEANINGS = {
    "reward": "mean reward of the completions, all reward functions together",
    "entropy": "mean token entropy of the policy in nats, at the sampling temperature",
    "completions/mean_length": "mean number of tokens of a completion",
    "pass@k": "unbiased estimate of the chance that one of k completions of a prompt is right, mean over prompts",
}


def meanings_of(names: Iterable[str], given: Mapping[str, str]) -> dict[str, str]:
    """What shown metrics mean, each once: `given` by name, else ours. A prefix `eval_` changes nothing."""
    found = {}
    for name in names:
        name = name.removeprefix("eval_")
        key = name if name in given else "pass@k" if name.startswith("pass@") else name
        if meaning := {**MEANINGS, **given}.get(key):
            found[key] = meaning
    return found


def thermostat_facts(trainer: Any) -> dict[str, Any] | None:
    """How well `entropy_keep` held entropy: the driven field, target and entropy at the end, and how it got there.

    `None` without the thermostat, or before its target is known.
    """
    thermostat = getattr(trainer, "_thermostat", None)
    lines = [line for line in trainer.state.log_history if is_number(line.get("entropy_keep/target"))]
    if thermostat is None or not lines:
        return None
    last = lines[-1]
    entropies = [line.get("entropy_keep/entropy") for line in lines[len(lines) // 2 :]]
    targets = [line["entropy_keep/target"] for line in lines[len(lines) // 2 :]]
    off = [math.log(held / to) for held, to in zip(entropies, targets, strict=True) if is_number(held) and held > 0]
    saturated = [line["entropy_keep/saturated"] for line in lines if is_number(line.get("entropy_keep/saturated"))]
    return {
        "field": thermostat.knob.field,
        "share": trainer.args.entropy_keep,
        "end": trainer.args.entropy_keep_end,
        "target": last["entropy_keep/target"],
        "entropy": last.get("entropy_keep/entropy"),
        "strength": last.get("entropy_keep/strength"),
        "deviation": 100 * math.expm1(sum(off) / len(off)) if off else None,
        "saturated": sum(saturated) / len(saturated) if saturated else None,
    }


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def findings_of(trainer: Any) -> list[str] | None:
    """The findings of the diagnosis, those that were reported in training first; `None` if it is off."""
    callbacks = trainer.callback_handler.callbacks
    callback = next((one for one in callbacks if isinstance(one, DiagnosisCallback)), None)
    if callback is None:
        return None
    history = History(training_lines(trainer.state.log_history), vars(trainer.args), callback.signs)
    found: dict[tuple[str, str], str] = {}
    for finding in (*callback.findings, *diagnose(history)):
        found.setdefault((finding.rule, finding.turn), str(finding))
    return [*found.values()]


def hardware_of(device: torch.device, processes: int) -> str:
    """The hardware that this process sees, as the end of a sentence.

    >>> hardware_of(torch.device("cuda"), 8)  # doctest: +SKIP
    '8 x NVIDIA H200'
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return f"{processes} x {name}" if processes > 1 else name
    cores = f"a CPU with {os.cpu_count()} cores" if device.type == "cpu" else device.type
    return f"{cores} in {processes} processes" if processes > 1 else cores


def time_of(history: list[dict[str, Any]]) -> str | None:
    """The time of the training that ended last; `None` if none has ended."""
    seconds = next((line["train_runtime"] for line in reversed(history) if "train_runtime" in line), None)
    if seconds is None or not is_number(seconds):
        return None
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    shown = [f"{number} {unit}" for number, unit in parts if number]
    return " ".join(shown[:2]) or "less than a second"
