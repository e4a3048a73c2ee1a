# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A callback that tells how well a model's own entropy tells right answers from wrong ones, at each evaluation."""

import math
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback

from ..settings import one_reward
from .completions import BATCH, score_rows
from .contributions import ranked_contributions
from .epr import epr_score
from .quality import FEWEST, auroc


logger = get_logger(__name__)

RIGHT = 0.5  # reward from which an answer is right


class HallucinationCallback(TrainerCallback):
    r"""
    Scores the completions of an evaluation by EPR, and compares it for right and wrong answers. Fits nothing, and
    changes nothing. It costs one forward of the completions, at temperature 1.

    Adds to the log line of the evaluation, after its prefix such as `eval_`: `epr/mean_right` and `epr/mean_wrong`, in
    nats, and `epr/auroc`: the probability that a wrong answer has the higher score. It is `None` with fewer than 20
    right or 20 wrong answers.

    Args:
        reward (`str`, *optional*):
            Name of the reward function that says whether an answer is right: from 0.5 on. May be left out if there is
            only one.
        every (`int`, *optional*, defaults to `1`):
            Evaluations between two measurements.
        k (`int`, *optional*, defaults to `15`):
            Likeliest tokens at each position whose entropy counts.

    Raises:
        `ValueError`: an argument is out of range, or the trainer has no such reward function.

    Example:

    ```python
    trainer = EntropyGRPOTrainer(..., callbacks=[HallucinationCallback(reward="accuracy_reward")])
    ```

    With TRL's own `GRPOTrainer`, call `callback.attach(trainer)` afterwards.
    """

    adds_to_logs = True  # our trainers then call it before the callbacks that report logs

    def __init__(self, reward: str | None = None, every: int = 1, k: int = 15):
        for name, value in (("every", every), ("k", k)):
            if type(value) is not int or value < 1:
                raise ValueError(f"`{name}` must be a whole number >= 1, got {value!r}.")
        self.reward, self.every, self.k = reward, every, k
        self._trainer: Any = None
        self._evaluations = 0
        self._rewards: Tensor
        self._rows: list[tuple[float, float]] = []  # EPR and reward of this process's completions
        self._warned = False

    def attach(self, trainer: Any) -> None:
        """Lets the callback see the completions and rewards of a GRPO trainer's evaluations."""
        if self._trainer is trainer:
            return
        if not hasattr(trainer, "_generate_and_score_completions"):
            raise ValueError(f"`HallucinationCallback` needs a GRPO trainer, got {type(trainer).__name__}.")
        self._place = trainer.reward_func_names.index(one_reward(self.reward, "reward", trainer.reward_func_names))
        self._trainer = trainer
        generate, reward = trainer._generate_and_score_completions, trainer._calculate_rewards

        def calculate_rewards(*args: Any) -> Tensor:
            self._rewards = reward(*args)
            return self._rewards

        def generate_and_score(inputs: Any) -> dict[str, Any]:
            batch = generate(inputs)
            if not trainer.model.training and self._evaluations % self.every == 0:
                self._score(batch)
            return batch

        trainer._calculate_rewards, trainer._generate_and_score_completions = calculate_rewards, generate_and_score

    # Events

    def on_train_begin(self, args, state, control, **kwargs):
        if self._trainer is None:
            raise ValueError("`HallucinationCallback` must know its trainer: call `callback.attach(trainer)`.")

    def on_log(self, args, state, control, logs=None, **kwargs):
        prefix = next((key[: -len("runtime")] for key in logs or () if key.endswith("_runtime")), "train_")
        if prefix == "train_":
            return
        if self._evaluations % self.every == 0:
            found = {f"{prefix}{key}": value for key, value in self._numbers().items()}
            logs.update(found)
            state.log_history[-1].update(found)
        self._evaluations, self._rows = self._evaluations + 1, []

    def _score(self, batch: dict[str, Any]) -> None:
        """Scores this process's completions of one evaluation batch."""
        trainer, count = self._trainer, len(batch["completion_ids"])
        world = trainer.accelerator
        if len(self._rewards) != count * world.num_processes or "pixel_values" in batch:
            if not self._warned:
                logger.warning("`HallucinationCallback` scores no completions with images or of uneven batches.")
            self._warned = True
            return
        own = self._rewards[world.process_index * count :][:count, self._place].tolist()
        prompts = [ids[mask.bool()] for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
        real = batch["completion_mask"].bool()
        completions = [ids[mask] for ids, mask in zip(batch["completion_ids"], real, strict=True)]
        tools = batch.get("tool_mask", real).bool()
        written = [row[mask].cpu() for row, mask in zip(tools, real, strict=True)]
        for start in range(0, count, BATCH):
            part = slice(start, start + BATCH)
            with trainer.compute_loss_context_manager():
                found, _ = score_rows(trainer.model, prompts[part], completions[part], self.k)
            for log_probs, mask, reward in zip(found, written[part], own[part], strict=True):
                ranked = ranked_contributions(log_probs.double(), self.k)
                if len(ranked):  # with `mask_truncated_completions`, TRL leaves nothing of a truncated one
                    self._rows.append((float(epr_score(ranked, mask)), reward))

    def _numbers(self) -> dict[str, float | None]:
        """The numbers to log, over the completions of all processes. `None` is undefined, as in TRL's own logs."""
        rows = [row for row in gather_object(self._rows) if not math.isnan(row[1])]
        scores, rewards = torch.tensor(rows, dtype=torch.float64).view(-1, 2).unbind(1)
        wrong = rewards < RIGHT
        enough = min(int(wrong.sum()), int((~wrong).sum())) >= FEWEST
        return {
            "epr/mean_right": None if wrong.all() else float(scores[~wrong].mean()),
            "epr/mean_wrong": float(scores[wrong].mean()) if wrong.any() else None,
            "epr/auroc": auroc(scores, wrong) if enough else None,
        }


def attach_callbacks(trainer: Any) -> None:
    """Attaches the callbacks of this kind to a trainer of ours."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, HallucinationCallback):
            callback.attach(trainer)
