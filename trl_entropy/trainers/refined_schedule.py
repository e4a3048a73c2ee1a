# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A learning-rate schedule that `trl-entropy curves refine` has written, in our trainers."""

from dataclasses import dataclass, field, fields
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments

from ..curves.refinement import RefinedSchedule, refined_schedule
from ..runs.base import MixinBase
from ..settings import checked, default_of


REPLACED = ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")


@dataclass
class RefinedConfig:
    """The field of a refined schedule: a mixin of the trainer's config."""

    lr_refined: str | None = field(
        default=None,
        metadata={
            "help": "File of a schedule that `trl-entropy curves refine` wrote. It replaces `lr_scheduler_type` and "
            "warm-up; `learning_rate` is its peak."
        },
    )


def check_refined(config: Any) -> list[str]:
    """Checks the field, and returns a warning for each set field that a refined schedule replaces.

    Raises:
        `ValueError`: the file is missing or holds no schedule.
    """
    path = checked(
        config, "lr_refined", lambda value: value is None or isinstance(value, str), "the path of a file, or none"
    )
    if path is None:
        return []
    try:
        RefinedSchedule.load(path)
    except OSError as error:
        raise ValueError(f"`lr_refined` must be a file that can be read, got {path!r}: {error.strerror}.") from None
    except ValueError as error:
        raise ValueError(f"`lr_refined` must be the file of a schedule, got {path!r}: {error}") from None
    defaults = {item.name: default_of(item) for item in fields(TrainingArguments)}
    return [
        f"`{name}` is set to {getattr(config, name)!r}, but `lr_refined` replaces it: it does nothing."
        for name in REPLACED
        if getattr(config, name) and getattr(config, name) != defaults[name]
    ]


class RefinesSchedule(MixinBase):
    """The part of a trainer that takes its schedule from `lr_refined`. A mixin: it comes before TRL's trainer."""

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.args.lr_refined is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        factors = refined_schedule(self.args.lr_refined, num_training_steps)
        self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, factors)
        self._created_lr_scheduler = True
        return self.lr_scheduler
