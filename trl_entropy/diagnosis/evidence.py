# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What each rule looks for: functions of a history and thresholds, each giving evidence or nothing."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean, median

from ..curves.law import fit_entropy_law
from ..signs import Sign
from .history import History, ends, last


Thresholds = Mapping[str, float]


@dataclass(frozen=True)
class Evidence:
    """Where a rule holds.

    Attributes:
        step: the optimizer step.
        numbers: the numbers that it rests on.
        text: the same as a sentence.
        turn: which field to change, if the rule does not say it for all runs: a sentence.
    """

    step: int
    numbers: dict[str, float]
    text: str
    turn: str = ""


def reached(steps: list[float], values: list[float], low: float, high: float) -> int:
    """The first step from which on all values are in [low, high]; the last step if the last value is not."""
    at = int(steps[-1])
    for step, value in zip(reversed(steps), reversed(values), strict=True):
        if not low <= value <= high:
            break
        at = int(step)
    return at


def collapse(history: History, at: Thresholds) -> Iterator[Evidence]:
    steps, values = history.series(history.entropy)
    if (found := ends(values, int(at["lines"]))) and found[1] < at["share"] * found[0]:
        first, now = found
        step = reached(steps, values, -math.inf, at["share"] * first)
        numbers = {"first": first, "last": now, "share": now / first}
        yield Evidence(step, numbers, f"Mean token entropy has fallen from {first:.3g} to {now:.3g} nats.")


def fast_fall(history: History, at: Thresholds) -> Iterator[Evidence]:
    steps, values = history.series(history.entropy)
    lines = int(at["lines"])
    means = [(steps[i], fmean(values[i + 1 - lines : i + 1])) for i in range(lines - 1, len(values))]
    for now in range(lines, len(means)):
        step, mean = means[now]
        for past in range(now - lines, -1, -1):
            start, before = means[past]
            if step - start > at["steps"]:
                break
            if mean < at["share"] * before:
                numbers = {"from_step": start, "before": before, "after": mean, "share": mean / before}
                fall = f"from {before:.3g} to {mean:.3g} nats in {step - start:.0f} optimizer steps"
                text = f"Mean token entropy fell {fall}."
                yield Evidence(int(step), numbers, text)
                return


def explosion(history: History, at: Thresholds) -> Iterator[Evidence]:
    steps, values = history.series(history.entropy)
    found = ends(values, int(at["lines"]))
    if found and found[1] > max(at["multiple"] * found[0], at["least"]):
        first, now = found
        step = reached(steps, values, at["multiple"] * first, math.inf)
        numbers = {"first": first, "last": now, "multiple": now / first if first else math.inf}
        yield Evidence(step, numbers, f"Mean token entropy has risen from {first:.3g} to {now:.3g} nats.")


def divergence(history: History, at: Thresholds) -> Iterator[Evidence]:
    lines = int(at["lines"])
    for key in ("loss", "grad_norm"):
        logged = [line for line in history.lines if key in line]
        broken = [not math.isfinite(line[key]) for line in logged]
        for end in range(lines, len(logged) + 1):
            if all(broken[end - lines : end]):
                step = int(logged[end - 1]["step"])
                text = f"`{key}` is not a finite number in {lines} log lines in a row."
                yield Evidence(step, {"lines": float(sum(broken))}, text)
                return
    for key in ("loss", "grad_norm"):
        steps, values = history.series(key)
        size = [abs(value) for value in values]
        if len(size) < at["before"] + lines:
            continue
        usual, now = median(size[:-lines]), min(size[-lines:])
        if now > at["multiple"] * usual and now > at["least"]:
            text = f"`{key}` is above {now:.3g} in the last {lines} log lines, after a median of {usual:.3g}."
            yield Evidence(int(steps[-lines]), {"median_before": usual, "last": now}, text)
            return


def shown(name: str, sign: Sign, lines: list[dict[str, float]]) -> dict[str, float]:
    """The means of a sign's keys over lines, by their full keys."""
    keys = [f"{name}/{key}" for key in sign.ranges]
    found = {key: [line[key] for line in lines if math.isfinite(line.get(key, math.nan))] for key in keys}
    return {key: fmean(values) for key, values in found.items() if values}


def as_text(numbers: Mapping[str, float]) -> str:
    return " and ".join(f"`{key}` is {value:.4g}" for key, value in numbers.items())


def as_sentence(turn: str) -> str:
    return f"{turn[0].upper()}{turn[1:]}."


def is_kept_weak(line: Mapping[str, float]) -> bool:
    """Whether the thermostat may keep its method weak on purpose: it is there, and not at its strongest."""
    return "entropy_keep/strength" in line and line.get("entropy_keep/saturated") != 1


def inert(history: History, at: Thresholds) -> Iterator[Evidence]:
    if history.generation_batches() < at["batches"]:
        return
    for name, signs in history.signs.items():
        known, sign = [], None
        for line in history.lines:
            held = [(one, one.holds(name, line)) for one in signs.idle]
            if all(holds is None for _, holds in held) or is_kept_weak(line):
                continue
            known.append(line)
            sign = next((one for one, holds in held if holds), None)
            if sign is None:
                break  # it did something here
        if sign is not None and len(known) >= at["lines"]:
            numbers = shown(name, sign, known[-1:])
            text = f"Method {name!r} has done nothing in {len(known)} log lines: {as_text(numbers)}."
            yield Evidence(int(known[-1]["step"]), numbers, text, as_sentence(sign.turn))


def too_strong(history: History, at: Thresholds) -> Iterator[Evidence]:
    lines = int(at["lines"])
    for name, signs in history.signs.items():
        for sign in signs.strong:
            known = [line for line in history.lines if sign.holds(name, line) is not None][-lines:]
            numbers = shown(name, sign, known)
            if len(known) == lines and sign.holds(name, numbers):
                text = f"Method {name!r} does much: {as_text(numbers)}, over the last {lines} log lines."
                yield Evidence(int(known[-1]["step"]), numbers, text, as_sentence(sign.turn))
                break


def no_signal(history: History, at: Thresholds) -> Iterator[Evidence]:
    key, lines = "frac_reward_zero_std", int(at["lines"])
    steps, values = history.series(key)
    if (share := last(values, lines)) is not None and share > at["share"]:
        numbers = {key: share}
        text = f"In {share:.0%} of the groups all rewards are equal, over the last {lines} log lines"
        if (reward := last(history.series("reward")[1], lines)) is not None:
            numbers["reward"] = reward
            text += f", with a mean reward of {reward:.3g}"
        yield Evidence(int(steps[-1]), numbers, f"{text}.")


def truncation(history: History, at: Thresholds) -> Iterator[Evidence]:
    key, lines = "completions/clipped_ratio", int(at["lines"])
    steps, values = history.series(key)
    if (share := last(values, lines)) is not None and share > at["share"]:
        text = f"{share:.0%} of the completions are cut at the longest length, over the last {lines} log lines."
        yield Evidence(int(steps[-1]), {key: share}, text)


def drift(history: History, at: Thresholds) -> Iterator[Evidence]:
    lines = int(at["lines"])
    for key, name, what in (
        ("clip_ratio/region_mean", "clipped", "The loss clips {:.0%} of the tokens"),
        (
            "sampling/sampling_logp_difference/mean",
            "nats",
            "Log-probabilities differ from the engine's by {:.2g} nats",
        ),
    ):
        steps, values = history.series(key)
        if (mean := last(values, lines)) is not None and mean > at[name]:
            text = f"{what.format(mean)} on average, over the last {lines} log lines."
            yield Evidence(int(steps[-1]), {key: mean}, text)
            return


def length_creep(history: History, at: Thresholds) -> Iterator[Evidence]:
    steps, lengths, rewards = history.series("completions/mean_length", "reward")
    length, reward = ends(lengths, int(at["lines"])), ends(rewards, int(at["lines"]))
    if length and reward and length[1] > at["multiple"] * length[0] and reward[1] <= reward[0]:
        numbers = dict(first_length=length[0], last_length=length[1], first_reward=reward[0], last_reward=reward[1])
        text = (
            f"Completions have grown from {length[0]:.0f} to {length[1]:.0f} tokens, while the reward went from "
            f"{reward[0]:.3g} to {reward[1]:.3g}."
        )
        yield Evidence(int(steps[-1]), numbers, text)


def little_left(history: History, at: Thresholds) -> Iterator[Evidence]:
    steps, entropies, rewards = history.series(history.entropy, "reward")
    if len(steps) < at["lines"]:
        return
    a, b, r_squared = fit_entropy_law(entropies, rewards)
    found = ends(rewards, int(at["ends"]))
    if found is None or not (a > 0 and r_squared >= at["r_squared"]):  # False for NaN
        return
    gained, left = found[1] - found[0], b - a - found[1]
    if gained > 0 and left < at["share"] * gained:
        numbers = dict(a=a, b=b, r_squared=r_squared, ceiling=b - a, reward=found[1], gained=gained)
        text = (
            f"The reward is {found[1]:.3g}, and R = {b:.3g} - {a:.3g} exp(H) predicts {b - a:.3g} at entropy 0 "
            f"(R² {r_squared:.2f})."
        )
        yield Evidence(int(steps[-1]), numbers, text)
