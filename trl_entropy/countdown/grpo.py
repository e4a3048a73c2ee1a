# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""One GRPO run on Countdown, from the warm-started model."""

import time
from pathlib import Path
from statistics import fmean

from transformers import PreTrainedTokenizerBase, TrainerCallback

from ..trainers.grpo import EntropyGRPOTrainer
from ..trainers.grpo_config import EntropyGRPOConfig
from .chat import calculator
from .common import Progress, train_and_save, write_card
from .evaluation import evaluate
from .model import load_warm_start
from .task import CHAIN, Task, countdown_dataset, countdown_reward, prompts


EVALUATIONS = 5  # of a run, the last of them after it
POINT = ("pass@1", "pass@16", "distinct")


class Trajectory(TrainerCallback):
    """Evaluates the policy on the held-out prompts on its way, which does not change the run.

    Args:
        tokenizer: of the policy.
        task: of the prompts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, task: Task):
        self.tokenizer, self.task = tokenizer, task
        self.points: list[dict[str, float]] = []
        self.seconds = 0.0

    def on_step_end(self, args, state, control, model, **kwargs):
        step = state.global_step
        if step in {state.max_steps * number // EVALUATIONS for number in range(1, EVALUATIONS)}:
            start = time.perf_counter()
            self.add(step, evaluate(model, self.tokenizer, prompts(True, self.task), task=self.task))
            self.seconds += time.perf_counter() - start

    def add(self, step: int, scores: dict[str, float]) -> None:
        self.points.append({"step": step} | {key: scores[key] for key in POINT})


def train(
    label: str, model_path: Path, config: EntropyGRPOConfig, task: Task = CHAIN
) -> tuple[dict[str, float], list[dict[str, float]], list[dict[str, float]]]:
    """Trains, saves, and evaluates one run.

    Args:
        label: name of the run.
        model_path: the warm-started model.
        config: of the trainer.
        task: variant of Countdown.

    Returns:
        The run's row of the table, its logs, and its trajectory: the scores of `POINT` by step. The row's reward is
        the mean over the last tenth of the logs, on training prompts; its seconds are those of training alone; with
        tools, `sampled` and `run` are means per completion of the run: tokens sampled, and tools run. Everything else
        is measured on the held-out prompts.
    """
    model, tokenizer = load_warm_start(model_path)
    progress, trajectory = Progress(label, "reward"), Trajectory(tokenizer, task)
    trainer = EntropyGRPOTrainer(
        model=model,
        reward_funcs=countdown_reward,
        args=config,
        train_dataset=countdown_dataset(task=task),
        processing_class=tokenizer,
        tools=[calculator] if task.tools else None,
        callbacks=[progress, trajectory],
    )
    seconds = train_and_save(trainer) - trajectory.seconds
    last = progress.history[-max(1, len(progress.history) // 10) :]
    held_out = prompts(True, task)
    found = evaluate(model, tokenizer, held_out, task=task)
    trajectory.add(config.max_steps, found)
    write_card(trainer, label, found, len(held_out))
    row = {"reward": fmean(point["reward"] for point in last), "seconds": seconds} | found
    row |= spent(progress.history) if task.tools else {}
    return row, progress.history, trajectory.points


def spent(history: list[dict[str, float]]) -> dict[str, float]:
    """What an agent's run spent per completion: tokens sampled, which branches share with others, and tools run."""
    shares = [1 - point.get("branching/shared_fraction", 0.0) for point in history]
    lengths = [point["completions/mean_length"] for point in history]
    return {
        "sampled": fmean(length * share for length, share in zip(lengths, shares, strict=True)),
        "run": fmean(point["tools/call_frequency"] for point in history),
    }
