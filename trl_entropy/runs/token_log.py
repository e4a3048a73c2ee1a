# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Files that a run leaves for `trl-entropy report`: settings, its log so far, and tokens with their entropies.

`run_settings.json` is written when training starts. It maps settings that differ from their defaults to their values,
without paths and names of repositories.

`trainer_state.json` is written while training goes on, so that `trl-entropy report --watch` sees it.

`completions/token_entropies_{step:05d}.json` is written at each log if `log_token_entropies` is above 0:

    {"step": 4, "completions": [
        {"prompt": "2 + 2?", "advantage": 0.7, "tokens": [" 4", "."], "entropies": [0.1, null]}]}

Entropies are in nats, of the policy in training at that step, at the sampling temperature. They are `null` at tokens
outside the loss mask, such as tool results; numbers that are not finite are `null` too. The token texts concatenate to
the completion. Starting a run deletes token logs of later steps that an earlier run left in the same folder.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from ..methods.pieces import token_texts
from ..settings import default_of
from ..tokens import TokenBatch
from .files import COMPLETIONS, SETTINGS_FILE, TOKEN_FILE, finite, is_private, number_of


LIVE_SECONDS = 5

# The fields of transformers that say how a run learns.
LEARNING_FIELDS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "max_steps"),
    *("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "seed", "logging_steps"),
)


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a text or a truth value, or a list of them."""
    items = value if isinstance(value, list) else [value]
    return all(isinstance(item, bool | int | float | str) for item in items)


def changed_settings(args: TrainingArguments) -> dict[str, Any]:
    """The settings that say how a run learns, are plain values and differ from their defaults."""
    left_out = {field.name for field in fields(TrainingArguments)} - set(LEARNING_FIELDS)
    found = {}
    for field in fields(args):
        value = getattr(args, field.name)
        value = value.value if isinstance(value, Enum) else value
        if (
            value != default_of(field)
            and is_plain(value)
            and field.name not in left_out
            and not is_private(field.name)
        ):
            found[field.name] = value
    return found


def write_state(args: TrainingArguments, state: TrainerState) -> None:
    """Writes the trainer state into the run's folder, in one step, so that no one reads a half of it."""
    if state.is_world_process_zero and state.log_history:
        path = os.path.join(args.output_dir, TRAINER_STATE_NAME)
        state.save_to_json(f"{path}.part")
        os.replace(f"{path}.part", path)


class SettingsCallback(TrainerCallback):
    """Writes the settings of a run into its folder when training starts, so a run that ends early has them too.

    Deletes token logs of later steps that an earlier run left there. While the run logs, writes its trainer state into
    the folder at most every `LIVE_SECONDS`, and more rarely if writing takes more than a hundredth of the time.
    """

    def __init__(self):
        self._next = 0.0  # time before which the state is not written again

    def on_log(self, args, state, control, **kwargs):
        began = time.monotonic()
        if began >= self._next:
            write_state(args, state)
            self._next = began + max(LIVE_SECONDS, 100 * (time.monotonic() - began))

    def on_train_end(self, args, state, control, **kwargs):
        write_state(args, state)

    def on_train_begin(self, args, state, control, **kwargs):
        self._next = 0.0
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
        """Keeps the latest `count` sequences, taking the first ones of each forward in training."""
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
        """One kept sequence as an entry of `completions`."""
        valid = row["completion_mask"].bool()
        counted, entropies = row["mask"][valid].tolist(), row["entropy"][valid].tolist()
        prompt = row["prompt_ids"][row["prompt_mask"].bool()].tolist()
        return {
            "prompt": self.decode(prompt),
            "advantage": finite(row["advantage"].mean().item()),
            "tokens": token_texts(row["completion_ids"][valid].tolist(), self.decode),
            "entropies": [finite(value, 6) if own else None for value, own in zip(entropies, counted, strict=True)],
        }
