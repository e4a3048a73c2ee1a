# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Applies methods to a generation batch: prompts, advantages, masks, and extra rollouts."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from ..methods import Method
from ..tokens import Rollouts
from .branches import BranchedRollouts
from .generation import Generation


# Inputs of a forward that TRL stores with the rollouts, in addition to token ids and masks.
FORWARD_KEYS = (
    *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
    *("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
)
# Statistics of the old policy for the loss: key in TRL's batch -> key in `Generation.scores`.
OLD_STATISTICS = {"old_entropies": "entropy", "old_second_logps": "second_log_probs"}


def loss_mask(batch: dict[str, Any]) -> Tensor:
    """(B, T) 0 or 1: the tokens that the loss counts."""
    return batch["completion_mask"] * batch["tool_mask"] if "tool_mask" in batch else batch["completion_mask"]


def forward_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `_get_per_token_logps_and_entropies` for stored rollouts."""
    return {
        "input_ids": torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        "attention_mask": torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        "logits_to_keep": batch["completion_ids"].size(1),
        **{key: batch[key] for key in FORWARD_KEYS if key in batch},
    }


def whole_groups(rows: int, share: float, group: int, steps: int) -> int:
    """Number of sequences: about `share` of `rows`, in whole groups and divisible into `steps` equal parts."""
    unit = math.lcm(group, steps)
    return min(rows, math.ceil(share * rows / unit) * unit)


def make_rollouts(trainer: Any, stock: Callable, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """TRL's `_generate_and_score_completions` with the prompts, rewards and advantages of the methods."""
    begin_step(trainer)
    for method in trainer.methods:
        rows = method.prompts(rows, (trainer.args.seed, trainer.state.global_step), trainer.model.training)
    generation = Generation(trainer)
    if trainer._branching is not None and trainer.model.training:
        draw = (trainer.args.seed, batches_made(trainer))
        generation.branched = BranchedRollouts(trainer, trainer._branching, draw)
    output = generation.roll_out(stock, rows)
    if "old_per_token_logps" in output:  # otherwise the forward of the loss is the old policy's pass
        output |= {key: generation.scores[name] for key, name in OLD_STATISTICS.items() if name in generation.scores}
    training = trainer.model.training
    if training and trainer._thermostat is not None:
        counted = loss_mask(output).bool()
        trainer._thermostat.after_rollouts(generation.scores.get("entropy"), counted, batches_made(trainer))
    group = trainer.num_generations if training else trainer.num_generations_eval
    for key, value in trainer._pass_rates.update(generation.given_rewards, group).items():
        trainer._metrics["train" if training else "eval"][key].append(value)
    if "rewards" in trainer._needs:
        count = len(output["advantages"])
        output["rewards"] = generation.own_rewards(count).nan_to_num()
        # In each row, so that it goes where the row goes when TRL splits the batch.
        output["all_rewards"] = generation.all_rewards().nan_to_num().expand(count, -1)
    if training:
        for name, memory in trainer._replays.items():
            trainer._auxiliary[name] = memory.recall(loss_mask(output).bool())
    if generation.logs or trainer._replays or any(method.overrides("group_advantages") for method in trainer.methods):
        apply_group_hooks(trainer, generation, output)
    for method in trainer.methods:
        if training and "auxiliary_rollouts" in method.needs:
            trainer._auxiliary[method.name] = auxiliary_rollouts(trainer, stock, rows, method)
    return output


def read_rollouts(trainer: Any, generation: Generation, output: dict[str, Any]) -> Rollouts:
    """A generation batch for the methods."""
    mask, scores, training = loss_mask(output).bool(), generation.scores, trainer.model.training
    given = generation.own_rows(generation.given_rewards, len(mask)).T
    return Rollouts(
        advantages=output["advantages"].unsqueeze(1).expand(mask.shape),
        mask=mask,
        generated=generation.generated_mask(mask.size(1), mask.device, tools=False),
        completion_ids=output["completion_ids"],
        rewards=generation.own_rewards(len(mask)),
        reward_columns=dict(zip(trainer.reward_func_names, given, strict=True)),
        tool_calls=generation.tool_calls(mask.size(1), mask.device),
        num_generations=trainer.num_generations if training else trainer.num_generations_eval,
        scale_rewards=trainer.scale_rewards,
        logps=scores.get("logps"),
        entropy=scores.get("entropy"),
        sum_sq_probs=scores.get("sum_sq_probs"),
        sum_sq_probs_log_probs=scores.get("sum_sq_probs_log_probs"),
        on_policy="old_per_token_logps" not in output,
        training=training,
        batch=batches_made(trainer),
        progress=trainer.state.global_step / max(trainer.state.max_steps, 1),
        world=trainer._world,
    )


def apply_group_hooks(trainer: Any, generation: Generation, output: dict[str, Any]) -> None:
    """Lets each method change advantages and mask of a generation batch, and choose what to remember of it.

    Writes both to `output`.
    """
    first = rollouts = read_rollouts(trainer, generation, output)
    trainer._log_values(generation.logs, first.mask)
    for method in trainer.methods:
        if method.overrides("group_advantages"):
            advantages, logs = method.group_advantages(rollouts)
            kept = method.group_mask(rollouts)
            trainer._log_values(method.prefixed(logs), rollouts.mask)
            rollouts = replace(rollouts, advantages=advantages, mask=kept)
        if rollouts.training and method.name in trainer._replays:
            trainer._replays[method.name].mark(rollouts, output)
    if rollouts is not first:
        output["advantages"] = rollouts.advantages.contiguous()
        log_advantages(trainer, rollouts)
    if rollouts.mask is not first.mask:
        # The tool mask removes tokens from the loss and its denominators without changing attention.
        output["tool_mask"] = rollouts.mask.to(output["completion_mask"].dtype)
        output["num_items_in_batch"] = trainer._world.sum(loss_mask(output).sum())


def begin_step(trainer: Any) -> None:
    """Completes what was measured before this step and generation batch: some settings are read before a forward."""
    if not trainer.model.training:
        return
    if trainer._thermostat is not None:
        trainer._thermostat.begin_batch(batches_made(trainer))
    for method in trainer.methods:
        method.begin_step(trainer.state.global_step)


def batches_made(trainer: Any) -> int:
    """Number of generation batches before the current one, including those before the run was resumed."""
    steps = trainer.args.gradient_accumulation_steps
    forwards = trainer.state.global_step * steps + trainer._step % steps
    return forwards // (trainer.args.steps_per_generation * trainer.num_iterations)


def log_advantages(trainer: Any, rollouts: Rollouts) -> None:
    """Replaces the advantages in TRL's completions table with the mean advantage of each completion's tokens."""
    total = rollouts.advantages.double().masked_fill(~rollouts.generated, 0).sum(1)
    used = rollouts.world.gather((total / rollouts.generated.sum(1).clamp(min=1)).float()).tolist()
    logged = trainer._logs["advantages"]
    for _ in range(min(len(used), len(logged))):
        logged.pop()
    logged.extend(used)


def auxiliary_rollouts(trainer: Any, stock: Callable, rows: list, method: Method) -> list[dict[str, Any]]:
    """The extra rollouts that `method` needs, with rewards, in as many parts as TRL splits the batch into."""
    steps = trainer.args.steps_per_generation
    temperature, share = method.auxiliary_rollouts()
    count = whole_groups(len(rows), share, trainer.num_generations, steps)
    generation = Generation(trainer)
    with generating_at(trainer, temperature):
        output = generation.roll_out(stock, rows[:count])
    output["rewards"] = generation.own_rewards(count).nan_to_num()
    parts = split_tensor_dict(split_pixel_values_by_grid(output), steps)
    return [unsplit_pixel_values_by_grid(part) for part in parts]


@contextmanager
def generating_at(trainer: Any, temperature: float) -> Iterator[None]:
    """Samples at `temperature` times the trainer's, without adding to its logs and metrics."""
    engine = trainer.vllm_generation if trainer.use_vllm else trainer.generation_config
    ordinary, engine.temperature = engine.temperature, engine.temperature * temperature
    logged = deepcopy((trainer._metrics, trainer._logs))
    try:
        yield
    finally:
        engine.temperature = ordinary
        trainer._metrics, trainer._logs = logged
