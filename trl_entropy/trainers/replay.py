# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`Replay`: sequences that outlive their generation batch, to be trained on again beside later ones.

A sequence is remembered when its micro-batch has its first forward: until the update that follows, the policy is the
one that generated it, so its old log-probabilities cost no forward. Each process keeps its own sequences. Facts about
all of them are gathered, every process makes the same choice, and only the chosen sequences are exchanged.
"""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl.trainer.utils import pad

from ..functional import row_means
from ..methods import Method
from ..methods.base import Choice
from ..tokens import Rollouts, Stored, TokenBatch
from .rollouts import FORWARD_KEYS


IMAGE_COLUMNS = ("image", "images")


@dataclass(frozen=True)
class Row:
    """One sequence with T completion tokens, on the CPU, without padding. No tensor shares memory with a batch.

    Attributes:
        prompt_ids: (L,) int32.
        completion_ids: (T,) int32.
        own: (T,) bool, the tokens that the loss counts: those of the policy, not of tools.
        logps: (T,) float32, under the policy that generated the sequence.
        engine_ratio: (T,) float32 correction for the inference engine, if there is one.
        reward, advantage, step: as in [`Stored`].
    """

    prompt_ids: Tensor
    completion_ids: Tensor
    own: Tensor
    logps: Tensor
    engine_ratio: Tensor | None
    reward: float
    advantage: float
    step: int


class Replay:
    """The memory of one method, as far as this process holds it.

    Args:
        trainer: the trainer.
        method: the method, with `replay` among its `needs`.

    Attributes:
        key: where TRL's batch carries the facts of the sequences to remember, until they are.
        rows: the sequences, oldest first.
    """

    def __init__(self, trainer: Any, method: Method):
        self.trainer, self.method = trainer, method
        self.key = f"{method.name}_kept"
        self.rows: list[Row] = []

    # Once per generation batch

    def recall(self, mask: Tensor) -> list[dict[str, Any]] | None:
        """Lets the method choose what to replay, and ages the memory. `mask` (B, T) is that of the generation batch.

        Returns:
            As many parts as TRL splits its batch into, on the CPU; `None` if nothing is replayed.
        """
        stored, first = self._stored()
        choice, logs = self.method.replays(stored)
        self.trainer._log_values(self.method.prefixed(logs), mask)
        parts = None
        if choice is not None:
            rows, advantages = self._exchanged(choice, stored.multiple, first)
            parts = self._split(rows, advantages) if rows else None
            self.rows = []
        elif len(stored.step):
            oldest = stored.step.max().item() - self.method.max_age
            self.rows = [row for row in self.rows if row.step >= oldest]
        return parts

    def mark(self, rollouts: Rollouts, output: dict[str, Any]) -> None:
        """Lets the method choose what to remember, and puts the facts of these sequences into TRL's batch.

        Raises:
            `ValueError`: the batch holds images, which the memory does not.
        """
        if found := [key for key in FORWARD_KEYS if key in output]:
            raise ValueError(
                f"`methods` must not list {self.method.name!r} with images, which its memory does not hold, got "
                f"{found[0]!r} in a batch."
            )
        kept, logs = self.method.keeps(rollouts)
        self.trainer._log_values(self.method.prefixed(logs), rollouts.mask)
        advantages = row_means(rollouts.advantages, rollouts.mask)
        steps = torch.full_like(advantages, self.trainer.state.global_step)
        facts = torch.stack([rollouts.rewards.to(advantages), advantages, steps], dim=1)
        kept = kept & rollouts.mask.any(1) & facts.isfinite().all(1)
        output[self.key] = facts.masked_fill(~kept.unsqueeze(1), torch.nan)

    def _stored(self) -> tuple[Stored, int]:
        """Facts about the sequences of all processes, and the index of this process' first one among them."""
        trainer, world = self.trainer, self.trainer._world
        facts = [value for row in self.rows for value in (row.reward, row.advantage, row.step)]
        own = torch.tensor(facts, dtype=torch.float32, device=trainer.accelerator.device)
        reward, advantage, step = world.gather(own).cpu().double().view(-1, 3).T
        counts = world.gather(torch.tensor([len(self.rows)], device=own.device))
        args = trainer.args
        multiple = trainer.accelerator.num_processes * args.steps_per_generation
        stored = Stored(
            reward=reward,
            advantage=advantage,
            step=step,
            now=trainer.state.global_step,
            capacity=multiple * args.per_device_train_batch_size,
            multiple=multiple,
            draw=(args.seed, trainer.state.global_step),
        )
        return stored, int(counts[: world.rank].sum())

    def _exchanged(self, choice: Choice, multiple: int, first: int) -> tuple[list[Row], list[float]]:
        """The chosen sequences of all processes with their advantages, cut to a multiple of `multiple`."""
        indices, advantages = choice
        count = len(indices) // multiple * multiple
        if not count:
            return [], []
        places = ((index, index - first) for index in indices[:count])
        own = [(index, self.rows[place]) for index, place in places if 0 <= place < len(self.rows)]
        found = dict(gather_object(own))
        return [found[index] for index in indices[:count]], advantages[:count]

    def _split(self, rows: list[Row], advantages: list[float]) -> list[dict[str, Any]]:
        """This process' share of a replay, in parts."""
        trainer, parts = self.trainer, self.trainer.args.steps_per_generation
        items = torch.stack([row.own.sum() for row in rows]).sum()
        size = len(rows) // (trainer.accelerator.num_processes * parts)
        start = trainer._world.rank * size * parts
        found = []
        for place in range(start, start + size * parts, size):
            padded = padded_batch(
                rows[place : place + size], trainer._tokenizer.pad_token_id, trainer.pad_to_multiple_of
            )
            padded["advantages"] = torch.tensor(advantages[place : place + size])
            found.append(padded | {"num_items_in_batch": items})
        return found

    # In the loss

    def remember(self, facts: Tensor, batch: dict[str, Any], tokens: TokenBatch) -> None:
        """Remembers the sequences of a micro-batch whose `facts` (B, 3) are not NaN, after its first forward."""
        chosen = (~facts.isnan().any(1)).nonzero().flatten()
        if not len(chosen):
            return
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        columns = {name: batch[name][chosen].cpu() for name in names}
        own, logps = tokens.mask[chosen].cpu(), tokens.old_logps.detach()[chosen].float().cpu()
        ratio = tokens.engine_ratio
        if ratio is not None:
            ratio = ratio.detach().expand_as(tokens.mask)[chosen].float().cpu()
        for place, (reward, advantage, step) in enumerate(facts[chosen].tolist()):
            prompt, valid = columns["prompt_mask"][place].bool(), columns["completion_mask"][place].bool()
            self.rows.append(  # a mask as the index copies: a view would keep the whole batch
                Row(
                    prompt_ids=columns["prompt_ids"][place][prompt].int(),
                    completion_ids=columns["completion_ids"][place][valid].int(),
                    own=own[place][valid],
                    logps=logps[place][valid],
                    engine_ratio=None if ratio is None else ratio[place][valid],
                    reward=reward,
                    advantage=advantage,
                    step=int(step),
                )
            )


def padded_batch(rows: list[Row], pad_token: int, multiple: int | None) -> dict[str, Tensor]:
    """Rows as TRL's loss takes a micro-batch: prompts padded on the left, completions on the right."""

    def padded(tensors: list[Tensor], value: float, side: str = "right") -> Tensor:
        return pad(tensors, padding_value=value, padding_side=side, pad_to_multiple_of=multiple)

    prompts, completions = [row.prompt_ids.long() for row in rows], [row.completion_ids.long() for row in rows]
    found = {
        "prompt_ids": padded(prompts, pad_token, "left"),
        "prompt_mask": padded([torch.ones_like(ids) for ids in prompts], 0, "left"),
        "completion_ids": padded(completions, pad_token),
        "completion_mask": padded([torch.ones_like(ids) for ids in completions], 0),
        "tool_mask": padded([row.own.long() for row in rows], 1),
        "old_per_token_logps": padded([row.logps for row in rows], 0),
    }
    ratios = [row.engine_ratio for row in rows]
    if any(ratio is not None for ratio in ratios):
        ratios = [torch.ones_like(row.logps) if row.engine_ratio is None else row.engine_ratio for row in rows]
        found["importance_sampling_ratio"] = padded(ratios, 1)
    return found


def refuse_images(method: Method, train_dataset: Any) -> None:
    """Raises `ValueError` if the dataset has images: the memory holds token ids alone."""
    columns = getattr(train_dataset, "column_names", None) or ()
    if found := [name for name in IMAGE_COLUMNS if name in columns]:
        raise ValueError(
            f"`methods` must not list {method.name!r} with images, which its memory does not hold, got the column "
            f"{found[0]!r} in `train_dataset`."
        )
