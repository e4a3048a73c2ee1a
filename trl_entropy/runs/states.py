# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""State of methods and controllers: one JSON file next to the weights, in each checkpoint and in each push.

The file is `{"version": 1, "parts": {"siren": {...}, ...}}`. Files without a version are the inner mapping alone, and
still load.
"""

import json
import math
import os
from functools import cached_property
from typing import Any

from accelerate.logging import get_logger
from huggingface_hub import hf_hub_download

from .base import MixinBase


logger = get_logger(__name__)


STATE_FILE = "entropy_methods_state.json"
STATE_VERSION = 1
UNKNOWN = object()  # the value at the start of a run of an entry that only a later state has
FAULTS = (
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
)  # of a `load_state_dict` that gets another's state


def save_states(folder: str, parts: dict[str, Any], replace: bool = False) -> None:
    """Writes the `state_dict` of each part under its name.

    With no parts, writes only to overwrite a file that an earlier run left in `folder`, or (`replace`) in the Hub
    repository.
    """
    path = os.path.join(folder, STATE_FILE)
    if parts or replace or os.path.exists(path):
        states = {name: part.state_dict() for name, part in parts.items()}
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"version": STATE_VERSION, "parts": states}, file)


def load_states(folder: str, parts: dict[str, Any]) -> None:
    """Restores the parts of a run from a checkpoint.

    Warns about each part that starts fresh because the checkpoint lacks its state, and about each state in the
    checkpoint that this run does not use.

    Args:
        folder: the checkpoint.
        parts: what has a `state_dict` and a `load_state_dict`, by name.

    Raises:
        `ValueError`: the file is damaged or newer than this package, or the state of a part lacks a key or has a value
            that is not finite or of another type.
    """
    path = os.path.join(folder, STATE_FILE)
    states = read_states(path) if os.path.exists(path) else {}
    for name, part in parts.items():
        fresh = part.state_dict()
        if name in states:
            _load_part(path, name, part, fresh, states[name])
        elif fresh:
            logger.warning(f"{path!r} has no state of {name!r}: {name!r} starts fresh.")
    for name in states.keys() - parts.keys():
        if states[name]:
            logger.warning(f"{path!r} has a state of {name!r}, which this run does not use: it is ignored.")


def read_states(path: str) -> dict[str, Any]:
    """The states in a file, by the names of their parts.

    Raises:
        `ValueError`: the file is no JSON, is cut, or was written by a later version of this package.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:  # also text that is not UTF-8
        raise ValueError(f"{path!r} is damaged ({error}). {_other_checkpoint('the file')}") from None
    version = content.get("version", 0) if isinstance(content, dict) else 0
    if isinstance(version, dict):  # in a file without a version, the state of a method of that name
        version = 0
    if version not in (0, STATE_VERSION):
        raise ValueError(
            f"`version` in {path!r} must be {STATE_VERSION} or missing, got {version!r}. Resume with the version of "
            "trl-entropy that wrote it."
        )
    states = content.get("parts") if version else content
    if not isinstance(states, dict):
        raise ValueError(f"{path!r} must hold states by method, got {content!r:.80}. {_other_checkpoint('the file')}")
    return states


def misfit(fresh: Any, state: Any, place: tuple[Any, ...] = ()) -> str | None:
    """How a saved state differs in kind from one at the start of a run; `None` if it fits.

    Mappings may have further keys, and lists any length. A value that is `None` at first may become anything but text.
    """
    free = fresh is UNKNOWN or (fresh is None and isinstance(state, (dict, list)))
    if _kind(state) == "float" or not (free or _kind(fresh) == _kind(state)):
        return f"`{'.'.join(map(str, place)) or 'it'}` is {state!r}"
    if not isinstance(state, (dict, list)):
        return None
    known = fresh if isinstance(fresh, dict) else dict(enumerate(fresh)) if isinstance(fresh, list) else {}
    missing = [key for key in known if key not in state] if isinstance(state, dict) else []
    if missing:
        return f"`{'.'.join(map(str, (*place, missing[0])))}` is missing"
    children = state.items() if isinstance(state, dict) else enumerate(state)
    faults = (misfit(known.get(key, UNKNOWN), value, (*place, key)) for key, value in children)
    return next(filter(None, faults), None)


def _kind(value: Any) -> str:
    """`number` for a finite number and for `None`, which stands for one that is not known yet; else the type.

    So `float` is a number that is not finite.
    """
    finite = isinstance(value, (int, float)) and math.isfinite(value)
    return "number" if finite or value is None else type(value).__name__


def _load_part(path: str, name: str, part: Any, fresh: dict[str, Any], state: Any) -> None:
    """Restores one part. Raises `ValueError` if `state` is not one of such a part."""
    fault = misfit(fresh, state)
    if fault is None:
        try:
            part.load_state_dict(state)
        except FAULTS as error:
            fault = f"{type(error).__name__}: {error}"
    if fault is not None:
        advice = _other_checkpoint(f"{name!r} from the file")
        raise ValueError(f"{path!r} must hold the state of {name!r} as this version saves it, but {fault}. {advice}")


def _other_checkpoint(what: str) -> str:
    return f"Resume from another checkpoint, or remove {what} to start fresh."


class SavesStates(MixinBase):
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
