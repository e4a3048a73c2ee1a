# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""State of methods and controllers: one JSON file next to the weights, in each checkpoint and in each push."""

import json
import os
from functools import cached_property
from typing import Any

from huggingface_hub import hf_hub_download


STATE_FILE = "entropy_methods_state.json"


def save_states(folder: str, parts: dict[str, Any], replace: bool = False) -> None:
    """Writes the `state_dict` of each part under its name.

    With no parts, writes only to overwrite a file that an earlier run left in `folder`, or (`replace`) in the Hub
    repository.
    """
    path = os.path.join(folder, STATE_FILE)
    if parts or replace or os.path.exists(path):
        with open(path, "w") as file:
            json.dump({name: part.state_dict() for name, part in parts.items()}, file)


def load_states(folder: str, parts: dict[str, Any]) -> None:
    """Restores the parts that have a state in the file. Others, added when resuming, keep their initial state."""
    path = os.path.join(folder, STATE_FILE)
    if not os.path.exists(path):
        return
    with open(path) as file:
        states = json.load(file)
    for name in parts.keys() & states.keys():
        parts[name].load_state_dict(states[name])


class SavesStates:
    """The part of a trainer that saves `_stateful`, parts by name. A mixin: it comes before TRL's trainer."""

    @property
    def _stateful(self) -> dict[str, Any]:
        raise NotImplementedError

    @cached_property
    def _states_on_hub(self) -> bool:
        """Whether the Hub repository already holds a state file. If this run has no parts, it is an earlier run's."""
        try:
            hf_hub_download(self.hub_model_id, STATE_FILE, revision=self.args.hub_revision, token=self.args.hub_token)
        except (OSError, ValueError):  # no such file or repository, or the Hub cannot be reached
            return False
        return True

    def _save_states(self, folder: str) -> None:
        parts = self._stateful
        save_states(folder, parts, not parts and self.hub_model_id is not None and self._states_on_hub)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            self._save_states(output_dir or self.args.output_dir)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # A push at a save uploads `output_dir`, to which transformers copies the weights of the checkpoint.
        if self.args.should_save:
            self._save_states(self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_states(checkpoint, self._stateful)
