# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Resuming beyond transformers: from the last complete checkpoint, and with the right order of prompts.

With `resume_from_checkpoint=True`, transformers takes the highest-numbered folder as the last checkpoint, even if a
kill left it half-written. A checkpoint is written in this order: weights, state of methods, optimizer, random states,
`trainer_state.json`, and with `use_adaptive_entropy` the state of TRL's controller. The controller's file and the
KappaTune selection in `trainer_state.json` are checked before anything is loaded.

TRL's sampler draws a permutation of the data for each epoch, from a generator that checkpoints do not store. Without
this module, a run resumed in a later epoch would see the prompts in the order of the first epoch.
"""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from torch.utils.data import Sampler
from transformers.trainer import TRAINER_STATE_NAME
from trl.trainer.utils import RepeatSampler

from ..kappa.callback import KappaMonitor, KappaTuneCallback
from .base import MixinBase
from .states import STATE_FILE


logger = get_logger(__name__)

CONTROLLER_FILE = "entropy_ctrl_state.json"  # the name that TRL uses
CONTROLLER_KEYS = ("entropy_coef", "last_world_entropy")
KAPPA_MODES = {KappaTuneCallback: "freeze", KappaMonitor: "lora"}


def is_json(path: Path) -> bool:
    """Whether the file exists and holds a whole JSON object."""
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def last_whole_checkpoint(folder: str, controlled: bool = False) -> str | None:
    """The highest-numbered complete checkpoint in `folder`; `None` if `folder` has no checkpoints.

    Args:
        folder: output folder of a run.
        controlled: whether the run has `use_adaptive_entropy`. A checkpoint must then hold the state of the
            controller, unless none does because the controller was turned on later.

    Raises:
        `ValueError`: there are checkpoints, but none is complete.
    """
    found = [path for path in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    found = sorted(filter(Path.is_dir, found), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    needed = [TRAINER_STATE_NAME]
    if controlled and any(is_json(path / CONTROLLER_FILE) for path in found):
        needed.append(CONTROLLER_FILE)
    left_out: list[str] = []
    for path in found:
        there = [name for name in (STATE_FILE, CONTROLLER_FILE) if (path / name).exists()]
        if all(is_json(path / name) for name in (*needed, *there)):
            if left_out:
                logger.warning(f"Resuming from {path.name}, skipping incomplete checkpoints: {', '.join(left_out)}.")
            return str(path)
        left_out.append(path.name)
    if left_out:
        raise ValueError(f"{folder!r} has no complete checkpoint. Incomplete: {', '.join(left_out)}.")
    return None


def read_json(path: str) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint. Raises `ValueError` if it is damaged."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path!r} is damaged ({error}). Resume from another checkpoint.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path!r} must hold a JSON object, got {content!r:.80}. Resume from another checkpoint.")
    return content


def check_controller(checkpoint: str) -> None:
    """Checks the state of TRL's entropy controller. Warns if there is none: the controller then starts fresh.

    Raises:
        `ValueError`: the file is damaged, or a value is not a number. Before the first step the entropy is infinite.
    """
    path = os.path.join(checkpoint, CONTROLLER_FILE)
    if not os.path.exists(path):
        logger.warning(f"{path!r} does not exist: the controller of `use_adaptive_entropy` starts fresh.")
        return
    state = read_json(path)
    for key in CONTROLLER_KEYS:
        value = state.get(key)
        if not isinstance(value, (int, float)) or math.isnan(value):
            raise ValueError(f"`{key}` in {path!r} must be a number, got {value!r}. Resume from another checkpoint.")


def check_selection(checkpoint: str, callbacks: list[Any]) -> None:
    """Compares the KappaTune selection of a checkpoint with that of this run, before weights or optimizer are loaded.

    Raises:
        `ValueError`: `trainer_state.json` is damaged, or was written with another `kappa_mode` or another selection.
    """
    path = os.path.join(checkpoint, TRAINER_STATE_NAME)
    if not os.path.exists(path):  # transformers says so
        return
    states = read_json(path).get("stateful_callbacks") or {}
    saved = {mode: states[kind.__name__] for kind, mode in KAPPA_MODES.items() if kind.__name__ in states}
    own = {KAPPA_MODES[type(callback)]: callback for callback in callbacks if type(callback) in KAPPA_MODES}
    if saved.keys() != own.keys():
        names = [" and ".join(map(repr, modes)) or "'none'" for modes in (saved, own)]
        raise ValueError(
            f"`kappa_mode` must be {names[0]}, as in the run that wrote {path!r}, to resume from it, got {names[1]}."
        )
    for mode, monitor in own.items():
        if isinstance(saved[mode], dict):  # else several of one kind, which are compared when training begins
            try:
                monitor.refuse_other_selection(saved[mode])
            except ValueError as error:
                raise ValueError(f"{path!r} is of another selection: {error}") from None


class ResumesWhole(MixinBase):
    """The part of a trainer that resumes as described above. A mixin: it comes before TRL's trainer."""

    _train_sampler: Sampler | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        if resume_from_checkpoint is True:
            controlled = getattr(self.args, "use_adaptive_entropy", False)
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir, controlled) or True
        if isinstance(resume_from_checkpoint, (str, os.PathLike)) and os.path.isdir(resume_from_checkpoint):
            check_selection(os.fspath(resume_from_checkpoint), self.callback_handler.callbacks)
            if getattr(self.args, "use_adaptive_entropy", False):
                check_controller(os.fspath(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler | None:
        self._train_sampler = super()._get_train_sampler(*args, **kwargs)
        return self._train_sampler

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        epochs, steps = super()._init_training_state(*args, **kwargs)
        sampler = self._train_sampler
        if isinstance(sampler, RepeatSampler) and sampler.shuffle:
            for _ in range(epochs):
                torch.randperm(sampler.num_samples, generator=sampler.generator)
        return epochs, steps
