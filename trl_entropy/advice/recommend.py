# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The first choice for a recipe, and the recipe with it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ..ratios import ratio_count, smallest_ratio
from .cases import CASES, Case, Choice
from .problems import Facts, dose, idle_keys, problems, problems_of_selection, reasons_of_nothing
from .setup import listed, read_setup


THERMOSTAT = "entropy_keep"


@dataclass(frozen=True)
class Recommendation:
    """What to try first.

    Attributes:
        task: the case.
        choice: the first choice.
        in_place: whether the recipe has it already.
        problems: what in the recipe does nothing.
        batch: what the numbers are for, and what a ratio of tokens takes, as sentences.
        watch: what the methods log while they do nothing, and what to change then, as sentences.
        changed: fields to set.
        removed: keys to remove.
        recipe: the whole recipe after the change.
    """

    task: str
    choice: Choice
    in_place: bool
    problems: list[str]
    batch: list[str]
    watch: list[str]
    changed: dict[str, Any]
    removed: list[str]
    recipe: dict[str, Any]

    @property
    def case(self) -> Case:
        return CASES[self.task]


def two_digits_up(value: float) -> float:
    """The smallest number of two significant digits that is not below `value` > 0.

    >>> two_digits_up(0.000489)
    0.00049
    """
    scale = 10.0 ** (1 - math.floor(math.log10(value)))
    return float(f"{math.ceil(value * scale * (1 - 1e-12)) / scale:.2g}")


def recommend(
    task: str, recipe: Mapping[str, Any], methods: Facts, defaults: Mapping[str, Mapping[str, Any]]
) -> Recommendation:
    """The first choice in a case for a recipe.

    Args:
        task: the case.
        recipe: the mapping in its file.
        methods: facts of the methods by name.
        defaults: defaults of the config by command.

    Raises:
        `ValueError`: the recipe is for another command, or has a field that the case cannot have.
    """
    case = CASES[task]
    check_case(task, recipe)
    known = defaults[case.command]
    setup = read_setup(recipe, known, methods)
    choice = next(choice for choice in case.choices if choice.applies(setup))
    missing = not has(setup, choice)
    found = problems_of_selection(setup) if case.command == "distillation" else problems(recipe, setup, methods, known)
    changed, removed = lines(case, choice, missing, recipe, setup, methods)
    whole = {key: value for key, value in recipe.items() if key not in removed} | changed
    after = read_setup(whole, known, methods)
    if case.command == "grpo":
        doses = doses_of(after, methods)
        changed, whole = changed | doses, whole | doses
        after = read_setup(whole, known, methods)
    changed = {key: value for key, value in changed.items() if key not in recipe or recipe[key] != value}
    batch, watch = batch_of(case, after, methods), watch_of(choice.methods, methods)
    return Recommendation(task, choice, not missing, [*found], batch, watch, changed, removed, whole)


def check_case(task: str, recipe: Mapping[str, Any]) -> None:
    """Raises `ValueError` if a recipe cannot be of this case."""
    teacher = "teacher_model_name_or_path"
    if CASES[task].command == "distillation" and teacher not in recipe:
        raise ValueError(f"`{teacher}` must be set with task {task!r}, which distills, and is not.")
    if CASES[task].command != "distillation" and teacher in recipe:
        raise ValueError(f"The task must be 'distillation' for a recipe with `{teacher}`, got {task!r}.")
    if CASES[task].requires.get("use_peft") and recipe.get("kappa_mode") == "freeze":
        raise ValueError(f"`kappa_mode` must be 'none' or 'lora' with task {task!r}, got 'freeze'.")


def has(setup: SimpleNamespace, choice: Choice) -> bool:
    """Whether a recipe has a choice already: its methods, or a selection of tokens of its own."""
    if choice.settings.get("tip_rule"):
        return setup.tip_rule != "none" and setup.tip_ratio < 1
    return bool(choice.methods) and set(choice.methods) <= set(setup.methods)


def lines(
    case: Case, choice: Choice, missing: bool, recipe: Mapping[str, Any], setup: SimpleNamespace, methods: Facts
) -> tuple[dict[str, Any], list[str]]:
    """The fields to set and the keys to remove, but for ratios of tokens."""
    changed: dict[str, Any] = dict(choice.settings) if missing else {}
    kept = SimpleNamespace(**vars(setup))
    removed = []
    if case.command == "grpo":
        if missing and choice.methods:
            kept.methods = changed["methods"] = [*choice.methods]
            changed |= own_settings(choice.methods, recipe, setup)
            removed += thermostat_keys(choice.methods, recipe, methods)
        elif missing:  # a setting: methods that do nothing go
            kept.methods = [
                name
                for place, name in enumerate(setup.methods)
                if not any(reasons_of_nothing(place, name, setup, methods))
            ]
            changed |= {"methods": kept.methods} if kept.methods != setup.methods else {}
        removed += idle_keys(recipe, kept, methods)
    elif setup.tip_rule == "soft_or" and setup.tip_ratio < 0.5 and setup.tip_divergence_clip_quantile is None:
        changed["tip_divergence_clip_quantile"] = 0.98
    changed |= {key: value for key, value in case.requires.items() if getattr(setup, key, None) != value}
    if case.requires.get("use_vllm") is False:
        removed += [key for key in recipe if key.startswith("vllm_")]
    changed |= suggested(case, recipe)
    return changed, removed


def suggested(case: Case, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the case that a recipe does not set. With KappaTune, which selects weights by itself, none of LoRA."""
    found = {key: value for key, value in case.suggests.items() if key not in recipe}
    if recipe.get("use_peft") is False or recipe.get("kappa_mode", "none") != "none":
        found = {key: value for key, value in found.items() if not key.startswith(("lora_", "use_peft"))}
    return found


def own_settings(names: Iterable[str], recipe: Mapping[str, Any], setup: SimpleNamespace) -> dict[str, Any]:
    """Fields that a new method needs in a particular recipe."""
    found: dict[str, Any] = {}
    rewards = [name.rpartition(".")[2] for name in listed(recipe.get("reward_funcs"))]
    if "pear" in names and len(rewards) > 1 and "pear_reward" not in recipe:
        found["pear_reward"] = next((name for name in rewards if "accuracy" in name), rewards[0])
    if "agentic_aepo" in names and setup.importance_sampling_level != "token":
        found["agentic_aepo_keep_gradient"] = False
    if "clip_cov" in names and setup.per_device_train_batch_size == 1:
        found["clip_cov_scope"] = "world"
    return found


def thermostat_keys(names: Iterable[str], recipe: Mapping[str, Any], methods: Facts) -> list[str]:
    """Keys of the thermostat that do not fit new methods: all, or those that name a field or its range."""
    keys = [key for key in recipe if key == THERMOSTAT or key.startswith(f"{THERMOSTAT}_")]
    if any(methods[name]["has_knob"] for name in names):
        keys = [key for key in keys if key in ("entropy_keep_knob", "entropy_keep_range")]
    return keys


def doses_of(setup: SimpleNamespace, methods: Facts) -> dict[str, float]:
    """Ratios of tokens that say something for the batch of a recipe: its own, or the smallest that takes a token."""
    found = {}
    for name in setup.methods:
        if (own := dose(name, setup, methods)) is not None and setup.max_completion_length is not None:
            field, ratio, rows = own
            found[field] = max(ratio, two_digits_up(smallest_ratio(rows * setup.max_completion_length)))
    return found


def watch_of(names: Iterable[str], methods: Facts) -> list[str]:
    """What methods log while they do nothing, and which field to change then."""
    found = []
    for name in names:
        for sign in methods[name]["idle"]:
            values = [
                f"`{name}/{key}` stays {f'at {low:g}' if low == high else f'between {low:g} and {high:g}'}"
                for key, (low, high) in sign["ranges"].items()
            ]
            found.append(f"If {' and '.join(values)}, {sign['turn']}.")
    return found


def batch_of(case: Case, setup: SimpleNamespace, methods: Facts) -> list[str]:
    """What the numbers are for, and what ratios take of it."""
    rows, longest = setup.per_device_train_batch_size, setup.max_completion_length
    if longest is None:
        return ["`max_completion_length` is not set, so the tokens of a micro-batch are not known."]
    found = [f"A micro-batch has at most {rows * longest} tokens, in {counted(rows, 'completion')} of {longest}."]
    if case.command == "distillation":
        kept = max(setup.tip_min_tokens, int(setup.tip_ratio * longest))
        return [*found, f"`tip_ratio` {setup.tip_ratio:g} keeps at most {kept} tokens of each rollout."]
    for name in setup.methods:
        if (own := dose(name, setup, methods)) is not None:
            field, ratio, of = own
            taken = ratio_count(ratio, of * longest)
            found.append(f"`{field}` {ratio:g} takes {taken} of {of * longest} tokens.")
    updates = setup.steps_per_generation * setup.num_iterations / setup.gradient_accumulation_steps
    return [*found, f"A generation batch serves {counted(updates, 'optimizer step')}."]


def counted(number: float, noun: str) -> str:
    """A number with its noun in the right form.

    >>> counted(1, "step"), counted(2.5, "step")
    ('1 step', '2.5 steps')
    """
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
