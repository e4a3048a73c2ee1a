# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`resume_from_checkpoint=True` after a kill in the middle of a save.

transformers takes the folder of the highest number for the last checkpoint, whatever is in it. A checkpoint is written
in the order weights, state of methods, optimizer, random states, `trainer_state.json`, and, by TRL with
`use_adaptive_entropy`, the state of its controller.
"""

import json
import re
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from transformers.trainer import TRAINER_STATE_NAME

from .states import STATE_FILE


logger = get_logger(__name__)

CONTROLLER_FILE = "entropy_ctrl_state.json"  # TRL's


def is_json(path: Path) -> bool:
    """Whether the file exists and was written to its end."""
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def last_whole_checkpoint(folder: str, controlled: bool = False) -> str | None:
    """The checkpoint of the highest number in `folder` that was written to its end; `None` where there is no folder of one.

    `controlled`: of a run with `use_adaptive_entropy`, whose checkpoints hold the state of its controller unless none
    of them does, as where it was turned on later.

    Raises:
        `ValueError`: there are checkpoints, but none is whole.
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
                logger.warning(f"Resuming from {path.name}: {', '.join(left_out)} was not written to its end.")
            return str(path)
        left_out.append(path.name)
    if left_out:
        raise ValueError(f"{folder!r} has no whole checkpoint: {', '.join(left_out)} was not written to its end.")
    return None


class ResumesWhole:
    """The part of a trainer that resumes from the last whole checkpoint. Mixed in before TRL's trainer."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        if resume_from_checkpoint is True:
            controlled = getattr(self.args, "use_adaptive_entropy", False)
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir, controlled) or True
        return super().train(resume_from_checkpoint, *args, **kwargs)
