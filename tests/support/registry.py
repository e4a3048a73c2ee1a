# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which methods the tests run, together and alone, and with which settings: read from the registry of methods.

The test module of a method, `tests/methods/test_<module>.py`, may name what its defaults do not give:

    METHOD_SETTINGS = {"clip_cov": MethodSettings(strong=dict(clip_cov_ratio=0.2))}

Nothing here runs on import, so that such a module may import this one.
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
from support.tiny import LOSS_TYPES

from trl_entropy.methods import METHODS, MethodsConfig, build_methods


TESTS = Path(__file__).parents[1] / "methods"
IN_FORWARD = ("clip_bounds", "token_advantages", "loss")
ON_ROLLOUTS = ("reward", "group_advantages", "group_mask")


@dataclass(frozen=True)
class MethodSettings:
    """Facts about a method for the tests of all methods. Every field may be left out.

    Args:
        required: fields without which the method cannot be built.
        strong: fields with which it acts on batches of a few dozen tokens.
        steps: optimizer steps after which it has acted, in a run with two updates per generation batch or four.
        variants: other settings, for other code paths.
        state: entries of its `state_dict` as they are after a step.
        world: fields with which a run of many processes equals a run of one; `strong` if left out.
        world_loss: fields besides `world` for a single loss, without rollouts of its own.
        group_runs: settings of trainers, `methods` included, by name: each is given one group that processes share.
        ignores_rewards: whether its loss term acts even if all rewards are equal.
        batches: completions per update and per generation batch in the authors' runs, which the recipe repeats.
        refuses: settings of the trainer that the method refuses, by name.
        reaches: the tokens that it may act on. `gradient`: those with a gradient in TRL's loss. `loss`: those that no
            mask takes out of TRL's loss, also if its clip cuts their gradient. `batch`: all valid tokens, by weights
            of all advantages, or by a term that is no policy loss.
        losses: the values of `loss_type` that it accepts.
        reward: the reward function of its own runs, if the usual one does not give it anything to act on.
        not_tested: why the tests of all methods cannot run it.
    """

    required: dict[str, Any] = field(default_factory=dict)
    strong: dict[str, Any] = field(default_factory=dict)
    steps: int = 3
    variants: tuple[dict[str, Any], ...] = ()
    state: dict[str, Any] = field(default_factory=dict)
    world: dict[str, Any] | None = None
    world_loss: dict[str, Any] = field(default_factory=dict)
    group_runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    ignores_rewards: bool = False
    batches: tuple[int, int] | None = None
    refuses: tuple[str, ...] = ()
    reaches: Literal["gradient", "loss", "batch"] = "gradient"
    losses: tuple[str, ...] = LOSS_TYPES
    reward: Callable[..., list[float]] | None = None
    not_tested: str = ""


def load(path: Path) -> ModuleType:
    """A test module under the name by which pytest imports it, so that there is one of it."""
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    return importlib.import_module(path.stem)


def path_of(name: str) -> Path:
    """Where the tests of a method are."""
    return TESTS / f"test_{METHODS[name].__module__.rsplit('.', 1)[-1]}.py"


@cache
def settings_of(name: str) -> MethodSettings:
    path = path_of(name)
    named = getattr(load(path), "METHOD_SETTINGS", {}) if path.exists() else {}
    return named.get(name, MethodSettings())


def required(names: list[str]) -> dict[str, Any]:
    return {key: value for name in names for key, value in settings_of(name).required.items()}


def strong(names: list[str]) -> dict[str, Any]:
    """Settings with which each of the methods acts on a few dozen tokens."""
    return required(names) | {key: value for name in names for key, value in settings_of(name).strong.items()}


def rewarded(names: list[str]) -> dict[str, Any]:
    """The reward function of a run of one method by itself, if it names one."""
    reward = settings_of(names[0]).reward if len(names) == 1 else None
    return {} if reward is None else {"reward_funcs": reward}


def steps(names: list[str]) -> int:
    """Optimizer steps of a run of one method by itself, in which it acts."""
    return settings_of(names[0]).steps if len(names) == 1 else MethodSettings.steps


def accepted(names: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of the trainer that none of the methods refuses."""
    refused = {key for name in names for key in settings_of(name).refuses}
    return {key: value for key, value in settings.items() if key not in refused}


def world(names: list[str], single_loss: bool = False) -> dict[str, Any]:
    """Settings with which many processes equal one: in a run, or in a single loss."""
    found = required(names)
    for name in names:
        own = settings_of(name)
        found |= own.strong if own.world is None else own.world
        found |= own.world_loss if single_loss else {}
    return found


def error_of(names: list[str]) -> str:
    """Why the methods cannot be listed in this order; empty if they can."""
    try:
        build_methods(MethodsConfig(methods=names, **strong(names)))
    except ValueError as error:
        return str(error)
    return ""


@cache
def untested() -> dict[str, str]:
    """By method: why the tests of all methods leave it out."""
    reasons = {}
    for name in METHODS:
        if reason := settings_of(name).not_tested or error_of([name]):
            reasons[name] = f"{name}: not tested, because {reason} (see `METHOD_SETTINGS` in {path_of(name).name})"
    return reasons


def covered() -> list[str]:
    return [name for name in METHODS if name not in untested()]


def acts(name: str, hooks: tuple[str, ...]) -> bool:
    return any(METHODS[name].overrides(hook) for hook in hooks)


def stage(name: str) -> int:
    """The later a method acts between prompts and loss, the later it is listed."""
    if METHODS[name].replaces_advantages:
        return 2
    if acts(name, (*IN_FORWARD, "keeps")):  # what to remember is judged by the advantages of the methods before
        return 4
    hooks = ("prompts", "reward", "group_advantages")
    return next((place for place, hook in zip((0, 1, 3), hooks, strict=True) if acts(name, (hook,))), 4)


@cache
def together_sets() -> list[list[str]]:
    """Sets of methods that can be listed together, each as large as it can be, and each method in one at least."""
    left, found = covered(), []
    while left:
        chosen: list[str] = []
        for name in [*left, *(other for other in covered() if other not in left)]:
            longer = sorted([*chosen, name], key=lambda name: (stage(name), list(METHODS).index(name)))
            if not error_of(longer):
                chosen = longer
        found.append(chosen)
        left = [name for name in left if name not in chosen]
    return found


def together_params(*marks) -> list:
    """The sets of `together_sets` as parameters of a test. `marks` are for all but the first."""
    return [
        pytest.param(names, id=f"together-{number}" if number > 1 else "together", marks=marks if number > 1 else ())
        for number, names in enumerate(together_sets(), start=1)
    ]


def method_sets() -> list:
    """The sets of `together_sets`, and each method by itself, as parameters of a test: the first set by default."""
    alone = [pytest.param([name], id=name, marks=pytest.mark.slow) for name in covered()]
    return [*together_params(pytest.mark.slow), *alone]


def forward_sets() -> list[list[str]]:
    """Of the sets those that act in the forward of the loss, what changes advantages before what adds a term."""
    sets = [[name for name in names if acts(name, IN_FORWARD)] for names in together_sets()]
    return [sorted(names, key=lambda name: not acts(name, ("token_advantages",))) for names in sets if names]


def world_run() -> list[str]:
    """The methods of a training run in many processes: those that leave prompts as they are."""
    first = together_sets()[0]
    before = [name for name in first if not acts(name, IN_FORWARD) and not acts(name, ("prompts",))]
    return before + forward_sets()[0]


@cache
def group_runs() -> dict[str, dict[str, Any]]:
    """Runs on a group that processes share: those that the methods name, and one for each method that names none."""
    runs = {title: run for name in covered() for title, run in settings_of(name).group_runs.items()}
    named = {name for run in runs.values() for name in run["methods"]}
    for name in covered():
        if name not in named and acts(name, ON_ROLLOUTS):
            runs[name] = dict(methods=[name], **world([name], single_loss=True))
    return runs


def set_states(methods: list) -> None:
    """Sets states as after a step, so that methods which start at the second step act."""
    for method in methods:
        if state := settings_of(method.name).state:
            method.load_state_dict({**method.state_dict(), **state})
