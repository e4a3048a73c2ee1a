# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The state of methods and controllers, one JSON file beside the weights of each checkpoint and of what is pushed."""

import json
import os
from typing import Any


STATE_FILE = "entropy_methods_state.json"


def save_states(folder: str, parts: dict[str, Any]) -> None:
    """Writes the `state_dict` of each part under its name; nothing where there is no part."""
    if parts:
        with open(os.path.join(folder, STATE_FILE), "w") as file:
            json.dump({name: part.state_dict() for name, part in parts.items()}, file)


def load_states(folder: str, parts: dict[str, Any]) -> None:
    """Restores the parts that the file knows: others, which joined on resume, stay at their start."""
    path = os.path.join(folder, STATE_FILE)
    if not os.path.exists(path):
        return
    with open(path) as file:
        states = json.load(file)
    for name in parts.keys() & states.keys():
        parts[name].load_state_dict(states[name])


class SavesStates:
    """The part of a trainer that saves `_stateful`, parts by name, beside its weights. Mixed in before TRL's trainer."""

    @property
    def _stateful(self) -> dict[str, Any]:
        raise NotImplementedError

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            save_states(output_dir or self.args.output_dir, self._stateful)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # What is pushed at a save is `output_dir`, to which the weights of the checkpoint are copied.
        if self.args.should_save:
            save_states(self.args.output_dir, self._stateful)
        super()._push_from_checkpoint(checkpoint_folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_states(checkpoint, self._stateful)
