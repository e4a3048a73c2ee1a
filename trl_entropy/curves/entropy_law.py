# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A callback that fits the law between entropy and reward during a run."""

import math
import warnings

from accelerate.logging import get_logger
from transformers import TrainerCallback

from .law import fit_entropy_law
from .logged import entropy_of


logger = get_logger(__name__)


class EntropyLawCallback(TrainerCallback):
    r"""
    Fits the law R = -a exp(H) + b to the logged entropies and rewards of a run.

    The entropy is `entropy/mean`, which our trainers log: the mean over all tokens between two logs, in nats. Without
    it, TRL's `entropy` is read.

    Adds to each log line that has both: `entropy_law/a`, `entropy_law/b`, `entropy_law/ceiling` (b - a, the reward
    that the law predicts at entropy 0) and `entropy_law/r_squared`. A resumed run continues from the log of the run
    before. The law is from [The Entropy Mechanism of Reinforcement Learning for Reasoning Language
    Models](https://huggingface.co/papers/2505.22617).

    The diagnosis of our trainers warns of collapse and explosion, so this callback no longer does. `collapse`,
    `explosion` and `stop` are deprecated. If one is given, `entropy_law/collapsed` and `entropy_law/exploded` (0 or 1)
    are still logged, and `stop` still stops the run.

    Args:
        min_points (`int`, *optional*, defaults to `10`):
            Log lines before the first fit, at least 3.
        collapse (`float`, *optional*):
            Deprecated. Entropy has collapsed below this share of its first value, in [0, 1); 0.1 if another of the
            deprecated arguments is given.
        explosion (`float`, *optional*):
            Deprecated. Entropy has exploded above this multiple of its first value, above 1; 3.0 likewise.
        stop (`bool`, *optional*):
            Deprecated: use `diagnosis: stop`. Whether to stop the run on collapse or explosion.

    Raises:
        `ValueError`: an argument is out of range.

    Example:

    ```python
    trainer = EntropyGRPOTrainer(..., callbacks=[EntropyLawCallback()])
    ```
    """

    adds_to_logs = True  # our trainers then call it before the callbacks that report logs

    def __init__(
        self,
        min_points: int = 10,
        collapse: float | None = None,
        explosion: float | None = None,
        stop: bool | None = None,
    ):
        if min_points < 3:
            raise ValueError(f"`min_points` must be at least 3, got {min_points!r}.")
        if collapse is not None and not 0 <= collapse < 1:
            raise ValueError(f"`collapse` must be a share in [0, 1), got {collapse!r}.")
        if explosion is not None and not explosion > 1:
            raise ValueError(f"`explosion` must be a multiple above 1, got {explosion!r}.")
        deprecated = dict(collapse=collapse, explosion=explosion, stop=stop)
        given = [f"`{name}`" for name, value in deprecated.items() if value is not None]
        self.alarms = bool(given)
        if given:
            warnings.warn(
                f"{', '.join(given)} of `EntropyLawCallback` {'are' if len(given) > 1 else 'is'} deprecated: the "
                "diagnosis of the trainer (`diagnosis: true` or `stop`) reports collapse and explosion.",
                FutureWarning,
                stacklevel=2,
            )
        self.min_points = min_points
        self.collapse = 0.1 if collapse is None else collapse
        self.explosion = 3.0 if explosion is None else explosion
        self.stop = bool(stop)
        self._forget()

    def _forget(self) -> None:
        self.entropies: list[float] = []
        self.rewards: list[float] = []

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
        found = {}
        if len(self.entropies) >= self.min_points:
            a, b, r_squared = fit_entropy_law(self.entropies, self.rewards)
            law = {"a": a, "b": b, "ceiling": b - a, "r_squared": r_squared}
            found = {f"entropy_law/{name}": value for name, value in law.items() if math.isfinite(value)}
        if self.alarms:
            first, last = self.entropies[0], self.entropies[-1]
            alarms = {"collapsed": last < self.collapse * first, "exploded": last > self.explosion * first}
            found |= {f"entropy_law/{name}": int(alarm) for name, alarm in alarms.items()}
            if self.stop and any(alarms.values()):
                name = next(name for name, alarm in alarms.items() if alarm)
                logger.warning(f"`EntropyLawCallback` stops the run at step {state.global_step}: entropy has {name}.")
                control.should_training_stop = True
        logs.update(found)
        state.log_history[-1].update(found)
