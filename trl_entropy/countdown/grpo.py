# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""One GRPO run on Countdown, from the warm-started model."""

from pathlib import Path
from statistics import fmean

from ..trainers.grpo import EntropyGRPOTrainer
from ..trainers.grpo_config import EntropyGRPOConfig
from .chat import calculator
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
        training prompts; its seconds are those of training alone; with tools, `sampled` and `run` are means per
        completion of the run: tokens sampled, and tools run. Everything else is measured on the held-out prompts.
    """
    model, tokenizer = load_warm_start(model_path)
    progress = Progress(label, "reward")
    trainer = EntropyGRPOTrainer(
        model=model,
        reward_funcs=countdown_reward,
        args=config,
        train_dataset=countdown_dataset(task=task),
        processing_class=tokenizer,
        tools=[calculator] if task.tools else None,
        callbacks=[progress],
    )
    seconds = train_and_save(trainer)
    last = progress.history[-max(1, len(progress.history) // 10) :]
    found = evaluate(model, tokenizer, prompts(True, task), task=task)
    write_card(trainer, label, found)
    row = {"reward": fmean(point["reward"] for point in last), "seconds": seconds} | found
    return row | (spent(progress.history) if task.tools else {}), progress.history


def spent(history: list[dict[str, float]]) -> dict[str, float]:
    """What an agent's run spent per completion: tokens sampled, which branches share with others, and tools run."""
    shares = [1 - point.get("branching/shared_fraction", 0.0) for point in history]
    lengths = [point["completions/mean_length"] for point in history]
    return {
        "sampled": fmean(length * share for length, share in zip(lengths, shares, strict=True)),
        "run": fmean(point["tools/call_frequency"] for point in history),
    }
