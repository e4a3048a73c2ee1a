# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The memory of a method in a checkpoint: one file per process, `<method>_replay_<process>.safetensors`.

Sequences are concatenated, with their lengths. Log-probabilities belong to the weights and the temperature that
generated the sequences, so the file has a fingerprint of the weights, and a memory of others is not restored.
"""

import math
import os
import re
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..functional import accumulator_dtype
from ..head.agreement import is_sharded
from .replay import Replay, Row


logger = get_logger(__name__)

PIECES = ("completion_ids", "own", "logps", "engine_ratio")  # one value per completion token
FACTS = ("reward", "advantage", "step")  # one value per sequence


def file_of(folder: str, name: str, process: int) -> str:
    return os.path.join(folder, f"{name}_replay_{process}.safetensors")


def files_of(folder: str, name: str) -> dict[int, str]:
    """The files of a method in a checkpoint, by process."""
    found = (re.fullmatch(rf"{name}_replay_(\d+)\.safetensors", path.name) for path in Path(folder).glob("*"))
    return {int(match[1]): file_of(folder, name, int(match[1])) for match in found if match}


def weights_sum(model: nn.Module) -> float:
    """The sum of all weights: another model, or another adapter, has another one."""
    sums = [weight.detach().sum(dtype=accumulator_dtype(weight.device)) for weight in model.parameters()]
    return math.fsum(value.item() for value in sums)


def facts_of_run(trainer: Any) -> dict[str, str]:
    """What the log-probabilities of a memory belong to. Sharded weights have no fingerprint."""
    sharded = is_sharded(trainer.accelerator, trainer.model)
    weights = "unknown" if sharded else repr(weights_sum(trainer.accelerator.unwrap_model(trainer.model)))
    return {
        "processes": str(trainer.accelerator.num_processes),
        "temperature": repr(float(trainer.temperature)),
        "weights": weights,
    }


def save_replay(memory: Replay, folder: str) -> None:
    """Writes the sequences of this process."""
    trainer, rows = memory.trainer, memory.rows
    os.makedirs(folder, exist_ok=True)
    path = file_of(folder, memory.method.name, trainer.accelerator.process_index)
    save_file(flat(rows), f"{path}.part", metadata=facts_of_run(trainer))
    os.replace(f"{path}.part", path)  # a file that a kill cuts short has another name


def load_replay(memory: Replay, folder: str) -> None:
    """Restores the memory of this process from a checkpoint. File r goes to process r modulo their number.

    Warns if a file is missing, or if the log-probabilities are of other weights or another temperature: the memory is
    then empty.

    Raises:
        `ValueError`: a file is damaged.
    """
    trainer, name = memory.trainer, memory.method.name
    rank, count = trainer.accelerator.process_index, trainer.accelerator.num_processes
    memory.rows = []
    files = files_of(folder, name)
    if not files:
        logger.warning(f"{folder!r} has no file {name}_replay_*.safetensors: the memory of {name!r} starts empty.")
        return
    now, rows = facts_of_run(trainer), []
    written = int(read_facts(files[min(files)])["processes"])
    for process in range(rank, written, count):
        if process not in files:
            missing = os.path.basename(file_of(folder, name, process))
            text = f"{folder!r} has no {missing}: its part of the memory of {name!r} is lost."
            logger.warning(text, main_process_only=False)  # another process may have its own
            continue
        facts = read_facts(files[process])
        if reason := other_policy(facts, now):
            logger.warning(f"{files[process]!r} is of {reason}: the memory of {name!r} starts empty.")
            return
        rows += read_rows(files[process])
    memory.rows = sorted(rows, key=lambda row: row.step)


def other_policy(facts: dict[str, str], now: dict[str, str]) -> str | None:
    """Why log-probabilities from a file are not those of this run's policy; `None` if they are."""
    if facts["temperature"] != now["temperature"]:
        return f"a run with `temperature` {facts['temperature']}, not {now['temperature']}"
    known = "unknown" not in (facts["weights"], now["weights"])
    if known and not math.isclose(float(facts["weights"]), float(now["weights"]), rel_tol=1e-9):
        return "other weights"
    return None


def flat(rows: list[Row]) -> dict[str, Tensor]:
    """Rows as a few tensors."""
    found = {
        "prompt_lengths": torch.tensor([len(row.prompt_ids) for row in rows], dtype=torch.long),
        "completion_lengths": torch.tensor([len(row.completion_ids) for row in rows], dtype=torch.long),
        "prompt_ids": joined([row.prompt_ids for row in rows], torch.int32),
        "completion_ids": joined([row.completion_ids for row in rows], torch.int32),
        "own": joined([row.own for row in rows], torch.bool),
        "logps": joined([row.logps for row in rows], torch.float32),
        **{name: torch.tensor([getattr(row, name) for row in rows], dtype=torch.float64) for name in FACTS},
    }
    if any(row.engine_ratio is not None for row in rows):
        ratios = [torch.ones_like(row.logps) if row.engine_ratio is None else row.engine_ratio for row in rows]
        found["engine_ratio"] = joined(ratios, torch.float32)
    return found


def joined(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat(tensors) if tensors else torch.empty(0, dtype=dtype)


def opened(path: str) -> Any:
    """The file. Raises `ValueError` if it is damaged."""
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path!r} is damaged ({error}). Resume from another checkpoint, or remove the file to start with an "
            "empty memory."
        ) from None


def read_facts(path: str) -> dict[str, str]:
    with opened(path) as file:
        return file.metadata()


def read_rows(path: str) -> list[Row]:
    """The inverse of `flat`."""
    with opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    prompts = tensors["prompt_ids"].split(tensors["prompt_lengths"].tolist())
    lengths = tensors["completion_lengths"].tolist()
    pieces = {name: tensors[name].split(lengths) for name in PIECES if name in tensors}
    rows = []
    for place, prompt in enumerate(prompts):
        own = {name: pieces[name][place].clone() if name in pieces else None for name in PIECES}
        facts = {name: tensors[name][place].item() for name in FACTS}
        rows.append(Row(prompt_ids=prompt.clone(), **own, **{**facts, "step": int(facts["step"])}))
    return rows
