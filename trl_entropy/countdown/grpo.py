# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""One GRPO run on Countdown, from the warm-started model."""

from pathlib import Path
from statistics import fmean

from ..trainers.grpo import EntropyGRPOTrainer
from ..trainers.grpo_config import EntropyGRPOConfig
from .common import Progress, train_and_save, write_card
from .evaluation import evaluate
from .model import load_warm_start
from .task import CHAIN, Task, countdown_dataset, countdown_reward, prompts


def train(
    label: str, model_path: Path, config: EntropyGRPOConfig, task: Task = CHAIN
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Trains, saves, and evaluates one run.

    Args:
        label: name of the run.
        model_path: the warm-started model.
        config: of the trainer.
        task: variant of Countdown.

    Returns:
        The run's row of the table, and its logs. The row's reward is the mean over the last tenth of the logs, on
        training prompts; its seconds are those of training alone; everything else is measured on the held-out prompts.
    """
    model, tokenizer = load_warm_start(model_path)
    progress = Progress(label, "reward")
    trainer = EntropyGRPOTrainer(
        model=model,
        reward_funcs=countdown_reward,
        args=config,
        train_dataset=countdown_dataset(task=task),
        processing_class=tokenizer,
        callbacks=[progress],
    )
    seconds = train_and_save(trainer)
    last = progress.history[-max(1, len(progress.history) // 10) :]
    held_out = prompts(True, task)
    found = evaluate(model, tokenizer, held_out, task=task)
    write_card(trainer, label, found, len(held_out))
    return {"reward": fmean(point["reward"] for point in last), "seconds": seconds} | found, progress.history
