# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The rules, as data, and the findings that they give."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from . import evidence
from .history import History


LAW = "2505.22617"


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        name: its name in findings.
        looks: what it looks for, with the names of thresholds in braces.
        meaning, turn: what it means, and which field to change: sentences. Without `turn` the evidence says it.
        thresholds: the numbers that `find` reads.
        find: a history and the thresholds -> evidence.
        papers: numbers of the papers that describe it.
        severe: whether `diagnosis: stop` ends the run.
    """

    name: str
    looks: str
    meaning: str
    turn: str
    thresholds: evidence.Thresholds
    find: Callable[[History, evidence.Thresholds], Iterator[evidence.Evidence]]
    papers: tuple[str, ...] = ()
    severe: bool = False


@dataclass(frozen=True)
class Finding:
    """A rule that holds.

    Attributes:
        rule: its name.
        step: the optimizer step.
        numbers: the numbers that it rests on.
        evidence, meaning, turn: what was seen, what it means, and which field to change, in sentences.
        severe: whether `diagnosis: stop` ends the run.
    """

    rule: str
    step: int
    numbers: dict[str, float]
    evidence: str
    meaning: str
    turn: str
    severe: bool

    def __str__(self) -> str:
        return f"{self.rule}, step {self.step}: {self.evidence} {self.meaning} {self.turn}"


RULES = (
    Rule(
        "collapse",
        "Mean entropy of the last {lines} log lines is below {share:.0%} of that of the first {lines}.",
        "The policy hardly explores any more, so that the reward can hardly rise.",
        "Start again from an earlier checkpoint with a method that holds entropy, a higher `epsilon_high` or a lower "
        "`learning_rate`.",
        dict(lines=3, share=0.1),
        evidence.collapse,
        (LAW,),
        severe=True,
    ),
    Rule(
        "fast fall",
        "Mean entropy of {lines} log lines falls below {share:.0%} of its value within {steps} optimizer steps.",
        "At this speed entropy is used up long before the reward is learned.",
        "Lower `learning_rate`, raise `epsilon_high`, or add a method that holds entropy.",
        dict(lines=3, share=0.5, steps=20),
        evidence.fast_fall,
        (LAW,),
    ),
    Rule(
        "explosion",
        "Mean entropy of the last {lines} log lines is above {multiple} times that of the first {lines}, and above "
        "{least} nats.",
        "The policy turns to noise, and rewards fall with it.",
        "Lower the coefficient of the entropy bonus or method, lower `learning_rate`, or set `beta` above 0.",
        dict(lines=3, multiple=3.0, least=1.0),
        evidence.explosion,
        severe=True,
    ),
    Rule(
        "divergence",
        "`loss` or `grad_norm` is not finite in {lines} log lines in a row; or, in the last {lines}, is above "
        "{multiple} times the median of at least {before} earlier lines, and above {least}.",
        "The optimizer has left the region in which it can learn.",
        "Lower `learning_rate` or `max_grad_norm`, and train in bfloat16 or float32.",
        dict(lines=2, before=10, multiple=100, least=10),
        evidence.divergence,
        severe=True,
    ),
    Rule(
        "method inert",
        "A method's own values say in every log line so far, at least {lines}, and after {batches} generation "
        "batches, that it does nothing. With `entropy_keep`, only lines count in which it is saturated.",
        "The run is what it would be without the method.",
        "",
        dict(lines=5, batches=3),
        evidence.inert,
    ),
    Rule(
        "method too strong",
        "A method's own values, as means over the last {lines} log lines, say that it acts on most tokens or is at "
        "its bound.",
        "Most of the gradient is no longer that of the reward.",
        "",
        dict(lines=10),
        evidence.too_strong,
    ),
    Rule(
        "groups without signal",
        "`frac_reward_zero_std` is above {share:.0%}, on average over the last {lines} log lines.",
        "Such a group has advantages of 0, so most of the rollouts teach nothing.",
        "Use prompts of another difficulty, raise `num_generations` or `temperature`, or add 'rl_zvp' to `methods`.",
        dict(lines=10, share=0.8),
        evidence.no_signal,
        ("2509.21880",),
    ),
    Rule(
        "truncation",
        "`completions/clipped_ratio` is above {share:.0%}, on average over the last {lines} log lines.",
        "Completions without an end are mostly judged wrong for their length.",
        "Raise `max_completion_length`, or set `mask_truncated_completions`.",
        dict(lines=10, share=0.5),
        evidence.truncation,
    ),
    Rule(
        "drift off policy",
        "`clip_ratio/region_mean` is above {clipped:.0%}, or `sampling/sampling_logp_difference/mean` above {nats} "
        "nats, on average over the last {lines} log lines.",
        "Updates learn from rollouts of a policy that is far from the current one.",
        "Lower `num_iterations`, `steps_per_generation` or `learning_rate`.",
        dict(lines=10, clipped=0.2, nats=0.2),
        evidence.drift,
        ("2510.01161",),
    ),
    Rule(
        "length creep",
        "`completions/mean_length` of the last {lines} log lines is above {multiple} times that of the first "
        "{lines}, and the reward has not risen.",
        "The policy writes more and gets nothing for it.",
        "Set `loss_type` to 'dapo' or 'dr_grpo', check `reward_funcs` for rewards of length, or lower "
        "`max_completion_length`.",
        dict(lines=10, multiple=1.5),
        evidence.length_creep,
    ),
    Rule(
        "little left to gain",
        "The law R = -a exp(H) + b, fitted to at least {lines} log lines with R² of at least {r_squared}, predicts at "
        "entropy 0 less than {share:.0%} more than the run has gained (means over {ends} lines at each end).",
        "Entropy is nearly used up: longer training gains little.",
        "Stop here, or raise entropy with one of `methods` to reach a higher ceiling.",
        dict(lines=20, r_squared=0.7, share=0.1, ends=5),
        evidence.little_left,
        (LAW,),
    ),
)


def diagnose(history: History) -> list[Finding]:
    """What is wrong with a run. The severe findings come first."""
    found = [
        Finding(
            rule=rule.name,
            step=one.step,
            numbers=one.numbers,
            evidence=one.text,
            meaning=rule.meaning,
            turn=one.turn or rule.turn,
            severe=rule.severe,
        )
        for rule in RULES
        for one in rule.find(history, rule.thresholds)
    ]
    return sorted(found, key=lambda finding: not finding.severe)


def as_record(finding: Finding) -> dict[str, Any]:
    """A finding as plain data for JSON."""
    return dict(vars(finding))
