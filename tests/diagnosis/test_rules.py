# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Each rule finds what deserves it, and nothing in the histories of healthy runs."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from trl_entropy.commands.methods import known_to_reports
from trl_entropy.diagnosis.history import History, training_lines
from trl_entropy.diagnosis.rules import RULES, diagnose
from trl_entropy.signs import Sign, Signs, as_plain, from_plain


HEALTHY = sorted((Path(__file__).parents[1] / "data" / "healthy").glob("*.json"))
KNOWN = known_to_reports()


def lines_of(**columns):
    """Synthetic log lines, one per optimizer step. A column is a list, or a number for thirty lines."""
    count = max([len(column) for column in columns.values() if isinstance(column, list)], default=30)
    columns = {key: column if isinstance(column, list) else [column] * count for key, column in columns.items()}
    names = [key.replace("__", "/") for key in columns]
    rows = zip(*columns.values(), strict=True)
    return [{"step": step, **dict(zip(names, row, strict=True))} for step, row in enumerate(rows, start=1)]


def found_in(lines, settings=None):
    return diagnose(History(training_lines(lines), settings or {}, KNOWN.signs))


@pytest.mark.parametrize("path", HEALTHY, ids=lambda path: path.stem)
def test_nothing_is_found_in_healthy_runs(path):
    content = json.loads(path.read_text())
    lines = content["log_history"]
    assert len(training_lines(lines)) == 24
    assert [str(finding) for finding in found_in(lines, content["settings"])] == []
    methods = content["settings"].get("methods", [])
    assert all(any(key.startswith(f"{name}/") for line in lines for key in line) for name in methods)


def test_there_are_enough_healthy_runs():
    assert len(HEALTHY) >= 10


RISING = [0.1 + 0.01 * step for step in range(30)]
FALLING = [1 - 0.01 * step for step in range(30)]
STRONG = {f"clip_cov__{key}": value for key, value in {"kept_fraction": 0.25, "eligible_fraction": 0.8}.items()}

# By rule: a synthetic history that deserves it, settings, the step, and the evidence.
DESERVED = {
    "collapse": (
        lines_of(entropy=[2.0 * 0.97**step for step in range(100)]),
        {},
        78,
        "Mean token entropy has fallen from 1.94 to 0.101 nats.",
    ),
    "fast fall": (
        lines_of(entropy=[1.0] * 20 + [0.4] * 20),
        {},
        23,
        "Mean token entropy fell from 1 to 0.4 nats in 3 optimizer steps.",
    ),
    "explosion": (
        lines_of(entropy=[0.5 + 0.0501 * step for step in range(40)]),
        {},
        24,
        "Mean token entropy has risen from 0.55 to 2.4 nats.",
    ),
    "divergence": (
        lines_of(loss=[0.1] * 5 + [0.1] * 2, grad_norm=[1.0] * 4 + [math.nan, None, 1.0]),
        {},
        6,
        "`grad_norm` is not a finite number in 2 log lines in a row.",
    ),
    "method inert": (
        lines_of(loss=0.0, clip_cov__kept_fraction=1.0, clip_cov__eligible_fraction=0.0),
        {"methods": ["clip_cov"]},
        30,
        "Method 'clip_cov' has done nothing in 30 log lines: `clip_cov/kept_fraction` is 1.",
    ),
    "method too strong": (
        lines_of(loss=0.0, **STRONG),
        {},
        30,
        "Method 'clip_cov' does much: `clip_cov/kept_fraction` is 0.25, over the last 10 log lines.",
    ),
    "groups without signal": (
        lines_of(reward=0.02, frac_reward_zero_std=[0.5] * 20 + [0.9] * 10),
        {},
        30,
        "In 90% of the groups all rewards are equal, over the last 10 log lines, with a mean reward of 0.02.",
    ),
    "truncation": (
        lines_of(loss=0.0, completions__clipped_ratio=[0.1] * 20 + [0.6] * 10),
        {},
        30,
        "60% of the completions are cut at the longest length, over the last 10 log lines.",
    ),
    "drift off policy": (
        lines_of(loss=0.0, clip_ratio__region_mean=0.25),
        {},
        30,
        "The loss clips 25% of the tokens on average, over the last 10 log lines.",
    ),
    "length creep": (
        lines_of(reward=FALLING, completions__mean_length=[100.0 + 10 * step for step in range(30)]),
        {},
        30,
        "Completions have grown from 145 to 345 tokens, while the reward went from 0.955 to 0.755.",
    ),
    "little left to gain": (
        lines_of(
            entropy=[2 / (1 + step) for step in range(60)],
            reward=[0.9 - 0.1 * math.exp(2 / (1 + step)) for step in range(60)],
        ),
        {},
        60,
        "The reward is 0.796, and R = 0.9 - 0.1 exp(H) predicts 0.8 at entropy 0 (R² 1.00).",
    ),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_each_rule_finds_what_deserves_it(rule):
    lines, settings, step, evidence = DESERVED[rule.name]
    (finding,) = [finding for finding in found_in(lines, settings) if finding.rule == rule.name]
    assert (finding.step, finding.evidence) == (step, evidence)
    assert finding.meaning == rule.meaning and finding.turn and finding.severe == rule.severe
    assert str(finding) == f"{rule.name}, step {step}: {evidence} {finding.meaning} {finding.turn}"
    assert all(math.isfinite(value) for value in finding.numbers.values())


def test_a_method_that_the_thermostat_keeps_weak_is_not_inert():
    """At the weak end of its range a driven method does nothing. At the strong end that is a finding."""
    idle = dict(loss=0.0, clip_cov__kept_fraction=1.0, entropy_keep__strength=1e-4)
    assert found_in(lines_of(**idle, entropy_keep__saturated=0.0)) == []
    (finding,) = found_in(lines_of(**idle, entropy_keep__saturated=[0.0] * 20 + [1.0] * 10))
    assert finding.evidence.startswith("Method 'clip_cov' has done nothing in 10 log lines")


def test_severe_findings_come_first():
    lines = lines_of(entropy=[1.0] * 20 + [0.01] * 20, frac_reward_zero_std=1.0)
    assert [finding.rule for finding in found_in(lines)] == ["collapse", "fast fall", "groups without signal"]


@pytest.mark.parametrize("name", [name for name, signs in KNOWN.signs.items() if signs.idle])
def test_each_method_says_when_it_has_done_nothing(name):
    """From the values that the method itself declares; one line in which it acts is enough to be quiet."""
    for sign in KNOWN.signs[name].idle:
        logged = {f"{name}__{key}": low for key, (low, _) in sign.ranges.items()}
        lines = lines_of(loss=0.0, **logged)
        (finding,) = [finding for finding in found_in(lines) if finding.rule == "method inert"]
        assert f"Method {name!r}" in finding.evidence and finding.turn == sign.turn[0].upper() + sign.turn[1:] + "."
        acts = {key.replace("__", "/"): value + 0.25 - 0.5 * (value == 1) for key, value in logged.items()}
        lines[12] |= acts
        assert "method inert" not in [finding.rule for finding in found_in(lines)]


@pytest.mark.parametrize("name", [name for name, signs in KNOWN.signs.items() if signs.strong])
def test_each_method_says_when_it_does_too_much(name):
    for sign in KNOWN.signs[name].strong:
        lines = lines_of(loss=0.0, **{f"{name}__{key}": max(low, -1.0) for key, (low, _) in sign.ranges.items()})
        turn = sign.turn[0].upper() + sign.turn[1:] + "."
        assert ("method too strong", turn) in [(finding.rule, finding.turn) for finding in found_in(lines)]


@pytest.mark.parametrize(
    "settings, rules",
    [({}, 1), (dict(steps_per_generation=8), 1), (dict(steps_per_generation=8, num_iterations=2), 0)],
    ids=str,
)
def test_a_method_is_given_three_generation_batches(settings, rules):
    """Thirty steps are thirty generation batches, 3.75, and 1.9."""
    lines = lines_of(loss=0.0, kl_cov__penalty_mean=0.0, kl_cov__selected_fraction=0.01)
    assert len(found_in(lines, settings)) == rules
    assert found_in(lines[:4]) == []


@pytest.mark.parametrize(
    "lines",
    [
        [],
        lines_of(entropy=[math.nan] * 30, reward=[None] * 30),
        lines_of(entropy=[0.0] * 30, reward=0.5),
        lines_of(entropy=[0.2] * 20 + [0.7] * 20),  # above three times the first, but still low
        lines_of(entropy=[0.2], reward=[1.0], loss=[0.1]),
        [{"step": 3, "eval_loss": math.nan}, {"step": 3, "train_loss": math.nan}],
        lines_of(loss=[0.1, math.nan] * 10, grad_norm=[math.inf, 0.1] * 10),  # a step that a scaler skipped
        lines_of(reward=RISING, completions__mean_length=[100.0 + 10 * step for step in range(30)]),
    ],
    ids=range(8),
)
def test_nothing_is_found_without_a_reason(lines):
    assert found_in(lines) == []


def test_numbers_that_are_not_finite_stay_in_a_history():
    (line,) = training_lines([{"step": 1, "loss": None, "note": "x", "flag": True}])
    assert line["step"] == 1 and math.isnan(line["loss"]) and line.keys() == {"step", "loss"}


def test_texts_of_rules():
    assert len({rule.name for rule in RULES}) == len(RULES) == len(DESERVED)
    for rule in RULES:
        text = rule.looks.format(**rule.thresholds)
        assert "{" not in text and all(part.endswith(".") for part in (text, rule.meaning, rule.turn or "."))
    for signs in KNOWN.signs.values():
        assert all(sign.turn[0].islower() and not sign.turn.endswith(".") for sign in (*signs.idle, *signs.strong))


def test_signs_survive_json():
    signs = Signs((Sign({"kept_fraction": (1, 1)}, "lower it"),), ())
    assert from_plain(json.loads(json.dumps(as_plain(signs)))) == signs


def test_rules_import_nothing_slow():
    code = "import sys, trl_entropy.diagnosis.rules; print({'torch', 'transformers', 'trl'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
