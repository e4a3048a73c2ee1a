# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings under which a method does nothing, or not what its ratio says: one rule and one text each.

The trainers' configs and `trl-entropy recommend` share them, so this module imports nothing slow. `config` is a config
or any other object with the fields of one.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from .ratios import smallest_ratio


def single_update(config: Any) -> bool:
    """Whether each generation batch serves one optimizer step, so that the current policy is the old one."""
    return config.gradient_accumulation_steps % (config.steps_per_generation * config.num_iterations) == 0


def without_ratio(name: str, config: Any) -> str:
    """The warning about a method that acts on the ratio between the current and the old policy, if it is 1."""
    effect = "amplifies numerical noise" if config.use_vllm else "does nothing"
    return (
        f"Method {name!r} acts on the ratio between the current and the old policy, which is 1 if each generation "
        f"batch serves one optimizer step, so it {effect}. Set `num_iterations` (now {config.num_iterations}) above 1 "
        f"or `steps_per_generation` (now {config.steps_per_generation}) above `gradient_accumulation_steps` (now "
        f"{config.gradient_accumulation_steps})."
    )


def ratio_rows(scope: str, config: Any, scored: bool = False) -> int:
    """The completions of which a method takes a ratio of tokens.

    Args:
        scope: `micro_batch`: those of one process. `world`: of all processes. `generation`: of all processes, or their
            whole generation batch if it is scored before training, which several updates and vLLM need.
        config: has the batch sizes.
        scored: whether the method itself needs the generation batch scored.
    """
    rows = config.per_device_train_batch_size * (1 if scope == "micro_batch" else config.world_size)
    if scope == "generation" and (scored or config.use_vllm or not single_update(config)):
        return rows * config.steps_per_generation
    return rows


def below_one_token(name: str, field: str, ratio: float, rows: int, length: int) -> str | None:
    """The warning about a ratio that is less than one token, however long completions are.

    Args:
        name: the method.
        field: the field that holds the ratio.
        ratio: its value.
        rows: completions of which it is taken.
        length: the longest completion.
    """
    most = rows * length
    if ratio * most >= 1:
        return None
    return (
        f"`{field}` {ratio:g} of at most {most} tokens ({rows} completions of `max_completion_length` {length}) is "
        f"{ratio * most:.3g}, less than one token. Method {name!r} takes one token all the same, whatever the ratio "
        f"is. The smallest ratio that acts is {smallest_ratio(most):g}."
    )


def one_completion(name: str) -> str:
    """The warning about a method that centers advantages over a single completion, all of whose tokens share one."""
    return (
        f"Method {name!r} centers advantages over the completions of a micro-batch. There is one "
        "(`per_device_train_batch_size` 1), whose tokens share one advantage, so it does nothing. Raise "
        f"`per_device_train_batch_size`, or set `{name}_scope` to 'world' with several processes."
    )


def not_listed(field: str, value: Any, methods: Iterable[str]) -> str:
    """The warning about a field whose method is not in `methods`."""
    return f"`{field}` is set to {value!r}, but its method is not in `methods` ({[*methods]}): it does nothing."


def switched_off(name: str, off: Iterable[Mapping[str, Any]], config: Any) -> str | None:
    """The warning about a method that its own fields switch off.

    Args:
        name: the method.
        off: fields and values; if all of one entry hold, the method does nothing.
        config: has the fields.
    """
    for values in off:
        if all(getattr(config, field) == value for field, value in values.items()):
            reason = " and ".join(  # a text only says in which mode
                f"`{field}` is {value!r}" for field, value in values.items() if not isinstance(value, str)
            )
            return f"Method {name!r} does nothing, since {reason}."
    return None


def unscaled(name: str) -> str:
    """The warning about thresholds that assume scaled advantages, with `scale_rewards: none`."""
    return (
        f"The thresholds of method {name!r} assume advantages divided by their standard deviation, but "
        "`scale_rewards` is 'none': scale the thresholds with the rewards, or set `scale_rewards` to 'group' or "
        "'batch'."
    )


def without_clip(config: Any) -> str:
    """The warning about clip-higher, if no ratio differs from 1."""
    return (
        f"`epsilon_high` {config.epsilon_high:g} does nothing: each generation batch serves one optimizer step, so "
        "the ratio is 1 and nothing is clipped."
    )


def idle_selection(rule: str, ratio: float, min_tokens: int, longest: int | None) -> str | None:
    """The warning about a selection of TIP that keeps all tokens.

    Args:
        rule, ratio, min_tokens: fields of TIP.
        longest: most tokens of a rollout, if known.
    """
    if ratio >= 1:
        return f"`tip_rule` {rule!r} does nothing, since `tip_ratio` {ratio!r} keeps all tokens."
    if longest is not None and min_tokens >= longest:
        return (
            f"`tip_rule` {rule!r} does nothing, since `tip_min_tokens` ({min_tokens}) is not below "
            f"`max_completion_length` ({longest}): all tokens are kept."
        )
    return None
