# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""One distillation run on Countdown, from warm-started models, on all tokens or on those that TIP selects."""

from pathlib import Path
from typing import NamedTuple

from ..trainers.distillation import EntropyDistillationTrainer
from ..trainers.distillation_config import EntropyDistillationConfig
from .common import Progress, train_and_save, write_card
from .evaluation import evaluate
from .model import load_warm_start
from .task import countdown_dataset, prompts


class Selection(NamedTuple):
    """The tokens that a run trains on: a rule of TIP, and the ratio of each completion's tokens that it keeps."""

    rule: str
    ratio: float = 1.0

    @property
    def label(self) -> str:
        """Name of the run."""
        return "all" if self.rule == "none" else f"{self.rule} {self.ratio:.0%}"

    @property
    def settings(self) -> dict:
        """The fields of the trainer's config."""
        return {"tip_rule": self.rule} | ({} if self.rule == "none" else {"tip_ratio": self.ratio})


def folder_name(label: str) -> str:
    """The folder of a run in the folder of results."""
    return label.replace(" ", "-").rstrip("%")


def train(
    label: str, models: dict[str, Path], config: EntropyDistillationConfig
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Trains, saves, and evaluates one run.

    Args:
        label: name of the run.
        models: the warm-started `student` and `teacher`.
        config: of the trainer.

    Returns:
        The run's row of the table, and its logs. The row's seconds are those of training alone; everything else is
        measured on the held-out prompts.
    """
    student, tokenizer = load_warm_start(models["student"])
    progress = Progress(label, "loss")
    trainer = EntropyDistillationTrainer(
        model=student,
        teacher_model=load_warm_start(models["teacher"])[0],
        args=config,
        train_dataset=countdown_dataset(),
        eval_dataset=countdown_dataset(held_out=True),
        processing_class=tokenizer,
        callbacks=[progress],
    )
    seconds = train_and_save(trainer)
    # Evaluation covers all tokens, whichever the run trained on.
    scores = {"divergence": trainer.evaluate()["eval_loss"], "seconds": seconds}
    held_out = prompts(held_out=True)
    scores |= evaluate(student, tokenizer, held_out)
    write_card(trainer, folder_name(label), scores, len(held_out))
    return scores, progress.history
