# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Resuming beyond transformers: from the last complete checkpoint, and with the right order of prompts.

With `resume_from_checkpoint=True`, transformers takes the highest-numbered folder as the last checkpoint, even if a
kill left it half-written. A checkpoint is written in this order: weights, state of methods, optimizer, random states,
`trainer_state.json`, and with `use_adaptive_entropy` the state of TRL's controller.

TRL's sampler draws a permutation of the data for each epoch, from a generator that checkpoints do not store. Without
this module, a run resumed in a later epoch would see the prompts in the order of the first epoch.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from torch.utils.data import Sampler
from transformers.trainer import TRAINER_STATE_NAME
from trl.trainer.utils import RepeatSampler

from .states import STATE_FILE


logger = get_logger(__name__)

CONTROLLER_FILE = "entropy_ctrl_state.json"  # the name that TRL uses


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
    left_out = []
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


class ResumesWhole:
    """The part of a trainer that resumes as described above. A mixin: it comes before TRL's trainer."""

    _train_sampler: Sampler | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        if resume_from_checkpoint is True:
            controlled = getattr(self.args, "use_adaptive_entropy", False)
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir, controlled) or True
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
