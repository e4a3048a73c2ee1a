# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A callback that fits the law between entropy and reward during a run."""

import math

from accelerate.logging import get_logger
from transformers import TrainerCallback

from .law import fit_entropy_law
from .logged import entropy_of


logger = get_logger(__name__)


class EntropyLawCallback(TrainerCallback):
    r"""
    Fits the law R = -a exp(H) + b to the logged entropies and rewards of a run, and watches the entropy.

    The entropy is `entropy/mean`, which our trainers log: the mean over all tokens between two logs, in nats. Without
    it, TRL's `entropy` is read.

    Adds to each log line that has both: `entropy_law/a`, `entropy_law/b`, `entropy_law/ceiling` (b - a, the reward
    that the law predicts at entropy 0), `entropy_law/r_squared`, `entropy_law/collapsed` and `entropy_law/exploded`
    (0 or 1). A resumed run continues from the log of the run before. The law is from [The Entropy Mechanism of
    Reinforcement Learning for Reasoning Language Models](https://huggingface.co/papers/2505.22617).

    Args:
        min_points (`int`, *optional*, defaults to `10`):
            Log lines before the first fit, at least 3.
        collapse (`float`, *optional*, defaults to `0.1`):
            Entropy has collapsed below this share of its first value, in [0, 1). 0: never.
        explosion (`float`, *optional*, defaults to `3.0`):
            Entropy has exploded above this multiple of its first value, above 1. `math.inf`: never.
        stop (`bool`, *optional*, defaults to `False`):
            Whether to stop the run on collapse or explosion.

    Raises:
        `ValueError`: an argument is out of range.

    Example:

    ```python
    trainer = EntropyGRPOTrainer(..., callbacks=[EntropyLawCallback(stop=True)])
    ```
    """

    adds_to_logs = True  # our trainers then call it before the callbacks that report logs

    def __init__(self, min_points: int = 10, collapse: float = 0.1, explosion: float = 3.0, stop: bool = False):
        if min_points < 3:
            raise ValueError(f"`min_points` must be at least 3, got {min_points!r}.")
        if not 0 <= collapse < 1:
            raise ValueError(f"`collapse` must be a share in [0, 1), got {collapse!r}.")
        if not explosion > 1:
            raise ValueError(f"`explosion` must be a multiple above 1, got {explosion!r}.")
        self.min_points, self.collapse, self.explosion, self.stop = min_points, collapse, explosion, stop
        self._forget()

    def _forget(self) -> None:
        self.entropies: list[float] = []
        self.rewards: list[float] = []
        self._warned: set[str] = set()

    def _take(self, logs: dict) -> bool:
        """Adds the point of a log line of training; returns whether it has one."""
        entropy, reward = entropy_of(logs), logs.get("reward")
        if entropy is None or reward is None or not math.isfinite(reward):
            return False
        self.entropies.append(entropy)
        self.rewards.append(reward)
        return True

    def on_train_begin(self, args, state, control, **kwargs):
        self._forget()
        for line in state.log_history:
            self._take(line)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or not self._take(logs):
            return
        first, last = self.entropies[0], self.entropies[-1]
        alarms = {"collapsed": last < self.collapse * first, "exploded": last > self.explosion * first}
        found = {f"entropy_law/{name}": int(alarm) for name, alarm in alarms.items()}
        if len(self.entropies) >= self.min_points:
            a, b, r_squared = fit_entropy_law(self.entropies, self.rewards)
            law = {"a": a, "b": b, "ceiling": b - a, "r_squared": r_squared}
            found |= {f"entropy_law/{name}": value for name, value in law.items() if math.isfinite(value)}
        logs.update(found)
        state.log_history[-1].update(found)
        for name in (name for name, alarm in alarms.items() if alarm):
            if name not in self._warned:
                logger.warning(f"Entropy has {name}: {last:.4f} nats at step {state.global_step}, after {first:.4f}.")
            self._warned.add(name)
            control.should_training_stop |= self.stop
