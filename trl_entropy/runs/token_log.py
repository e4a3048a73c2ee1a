# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run leaves for `trl-entropy report` besides its log: its settings, and tokens with their entropies.

`run_settings.json`, written when training starts: a mapping of the settings that differ from their defaults, without
paths and names of repositories.

`completions/token_entropies_{step:05d}.json`, one per log where `log_token_entropies` is above 0:

    {"step": 4, "completions": [{"prompt": "2 + 2?", "advantage": 0.7, "tokens": [" 4", "."], "entropies": [0.1, null]}]}

with entropies in nats of the policy that was trained at that moment, at the sampling temperature; `null` at tokens that
the loss leaves out, such as the answers of tools, and for any number that is not finite. The texts of the tokens join to
the text of the completion. When a training starts, files of later steps are removed: they are of an earlier run.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from ..methods.pieces import token_texts
from ..tokens import TokenBatch


SETTINGS_FILE = "run_settings.json"
COMPLETIONS, TOKEN_FILE = "completions", "token_entropies_"  # folder, and how the names of files in it begin
# Of the fields of transformers, those that say how a run learns.
LEARNING_FIELDS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "max_steps"),
    *("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "seed", "logging_steps"),
)
PRIVATE_WORDS = {"path", "name", "repo", "url", "host", "port", "dir", "hub", "kwargs", "funcs"}


def is_private(name: str) -> bool:
    """Whether a setting names a place, and says nothing of how a run learns."""
    return not PRIVATE_WORDS.isdisjoint(name.split("_"))


def is_plain(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return all(isinstance(item, bool | int | float | str) for item in items)


def changed_settings(args: TrainingArguments) -> dict[str, Any]:
    """The settings by which a run learns that differ from their defaults and are plain values."""
    left_out = {field.name for field in fields(TrainingArguments)} - set(LEARNING_FIELDS)
    found = {}
    for field in fields(args):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        value = getattr(args, field.name)
        value = value.value if isinstance(value, Enum) else value
        if value != default and is_plain(value) and field.name not in left_out and not is_private(field.name):
            found[field.name] = value
    return found


def number_of(path: Path) -> int | None:
    """The step at the end of a file's name, `None` where there is none."""
    number = path.stem.rpartition("_")[2]
    return int(number) if number.isdecimal() else None


def finite(value: float | None, digits: int | None = None) -> float | None:
    """The value, rounded where `digits` are given; `None` for what is not finite, which JSON does not have."""
    if value is None or not math.isfinite(value):
        return None
    return value if digits is None else round(value, digits)


class SettingsCallback(TrainerCallback):
    """Writes the settings of a run into its folder when training starts, so that a run that ends early has them too.

    Token logs of later steps, left there by an earlier run, are removed.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            os.makedirs(args.output_dir, exist_ok=True)
            with open(os.path.join(args.output_dir, SETTINGS_FILE), "w") as file:
                json.dump(changed_settings(args), file, indent=1)
            for path in Path(args.output_dir, COMPLETIONS).glob(f"{TOKEN_FILE}*.json"):
                if (number_of(path) or 0) > state.global_step:
                    path.unlink()


class TokenLog:
    """Keeps tokens with their entropies, and writes them when a trainer logs.

    Args:
        count: how many completions to keep for each log; 0: none, and nothing is written.
        folder: `output_dir` of the run.
        decode: token ids to text, special tokens included.
    """

    def __init__(self, count: int, folder: str, decode: Callable[[list[int]], str]):
        self.count, self.folder, self.decode = count, folder, decode
        self.rows: list[dict[str, Tensor]] = []

    def keep(self, batch: dict[str, Any], tokens: TokenBatch) -> None:
        """Keeps the first sequences of a forward of training, and those of forwards before up to the number asked."""
        if not self.count or not tokens.training:
            return
        kept = {key: batch[key] for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")}
        kept |= {"mask": tokens.mask, "entropy": tokens.entropy.detach().float(), "advantage": batch["advantages"]}
        rows = min(self.count, len(tokens.mask))
        new = [{key: value[row].clone() for key, value in kept.items()} for row in range(rows)]
        self.rows = (self.rows + new)[-self.count :]

    def write(self, step: int) -> None:
        """One file with what was kept since the last one, if anything was."""
        if not self.rows:
            return
        found = [self._as_record(row) for row in self.rows if row["completion_mask"].any()]
        self.rows = []
        folder = os.path.join(self.folder, COMPLETIONS)
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, f"{TOKEN_FILE}{step:05d}.json"), "w") as file:
            json.dump({"step": step, "completions": found}, file)

    def _as_record(self, row: dict[str, Tensor]) -> dict[str, Any]:
        valid = row["completion_mask"].bool()
        counted, entropies = row["mask"][valid].tolist(), row["entropy"][valid].tolist()
        prompt = row["prompt_ids"][row["prompt_mask"].bool()].tolist()
        return {
            "prompt": self.decode(prompt),
            "advantage": finite(row["advantage"].mean().item()),
            "tokens": token_texts(row["completion_ids"][valid].tolist(), self.decode),
            "entropies": [finite(value, 6) if own else None for value, own in zip(entropies, counted, strict=True)],
        }
