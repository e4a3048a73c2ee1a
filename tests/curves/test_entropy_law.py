# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import logging
import math
import warnings

import pytest
from accelerate import PartialState
from support.tiny import count_reward
from transformers import TrainerCallback, TrainerControl, TrainerState

from trl_entropy import EntropyLawCallback
from trl_entropy.curves.law import fit_entropy_law


def test_fit_of_points_on_the_law():
    entropies = [0.1, 0.5, 0.9, 1.4]
    found = fit_entropy_law(entropies, [-0.3 * math.exp(h) + 1.2 for h in entropies])
    assert found == pytest.approx((0.3, 1.2, 1.0), abs=1e-12)


def test_fit_is_least_squares():
    """The formulas of simple regression on exp(H)."""
    entropies, rewards = [0.2, 0.4, 0.7, 1.1, 0.9], [0.8, 0.75, 0.3, 0.1, 0.45]
    x = [math.exp(h) for h in entropies]
    mean_x, mean_y = sum(x) / 5, sum(rewards) / 5
    covariance = sum((u - mean_x) * (v - mean_y) for u, v in zip(x, rewards, strict=True))
    slope = covariance / sum((u - mean_x) ** 2 for u in x)
    explained = covariance * slope / sum((v - mean_y) ** 2 for v in rewards)
    assert fit_entropy_law(entropies, rewards) == pytest.approx((-slope, mean_y - slope * mean_x, explained))


def test_fit_without_spread():
    assert all(map(math.isnan, fit_entropy_law([0.5] * 4, [0.1, 0.2, 0.3, 0.4])))
    a, b, r_squared = fit_entropy_law([0.1, 0.2, 0.3], [0.5] * 3)
    assert (a, b) == pytest.approx((0, 0.5)) and math.isnan(r_squared)


def run(callback, points, history=()):
    state, control = TrainerState(log_history=[*history]), TrainerControl()
    callback.on_train_begin(None, state, control)
    lines = []
    for entropy, reward in points:
        logs = {"entropy": entropy, "reward": reward}
        state.log_history.append(dict(logs))
        callback.on_log(None, state, control, logs=logs)
        assert state.log_history[-1] == logs
        lines.append(logs)
    return lines, control, state


def test_log_lines():
    points = [(1.0 - 0.1 * k, 0.9 - 0.2 * math.exp(1.0 - 0.1 * k)) for k in range(6)]
    lines, _, state = run(EntropyLawCallback(min_points=4), points)
    assert ["entropy_law/a" in line for line in lines] == [False] * 3 + [True] * 3
    assert lines[5]["entropy_law/ceiling"] == pytest.approx(0.7)
    assert (lines[5]["entropy_law/a"], lines[5]["entropy_law/b"]) == pytest.approx((0.2, 0.9))
    # A resumed run fits the same points.
    again, _, _ = run(EntropyLawCallback(min_points=4), points[3:], [{"loss": 1.0}, *state.log_history[:3]])
    assert again == lines[3:]


def test_lines_without_a_point_are_left_alone():
    callback, state, control = EntropyLawCallback(), TrainerState(log_history=[{}]), TrainerControl()
    for logs in (
        {"eval_entropy": 1.0, "eval_reward": 1.0},
        {"entropy": 1.0, "reward": None},
        {"entropy": math.nan, "reward": 1.0},
        None,
    ):
        copy = None if logs is None else dict(logs)
        callback.on_log(None, state, control, logs=logs)
        assert str(logs) == str(copy) and state.log_history == [{}] and callback.entropies == []


@pytest.mark.parametrize("last", [0.09, 3.1])
def test_it_leaves_alarms_to_the_diagnosis(caplog, last):
    PartialState()  # without which accelerate's loggers do not log
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, logger="trl_entropy"):
        warnings.simplefilter("error")
        lines, control, _ = run(EntropyLawCallback(), [(1.0, 0.1), (0.11, 0.1), (last, 0.1)])
    assert caplog.records == [] and not control.should_training_stop
    assert all(line.keys() == {"entropy", "reward"} for line in lines)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("name, last", [("collapsed", 0.09), ("exploded", 3.1)])
def test_deprecated_alarms(caplog, name, last, stop):
    PartialState()
    with pytest.warns(FutureWarning, match="`stop` of `EntropyLawCallback` is deprecated: the diagnosis"):
        callback = EntropyLawCallback(stop=stop)
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        lines, control, _ = run(callback, [(1.0, 0.1), (0.11, 0.1), (last, 0.1)])
    other = {"collapsed": "exploded", "exploded": "collapsed"}[name]
    assert [line[f"entropy_law/{name}"] for line in lines] == [0, 0, 1]
    assert all(line[f"entropy_law/{other}"] == 0 for line in lines)
    assert control.should_training_stop == stop
    said = [record.getMessage().removeprefix("[RANK 0] ") for record in caplog.records]
    assert said == [f"`EntropyLawCallback` stops the run at step 0: entropy has {name}."] * stop


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(min_points=2), "`min_points` must be at least 3, got 2."),
        (dict(collapse=1.0), "`collapse` must be a share in [0, 1), got 1.0."),
        (dict(explosion=1.0), "`explosion` must be a multiple above 1, got 1.0."),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError) as error:
        EntropyLawCallback(**settings)
    assert str(error.value) == message


class Reporter(TrainerCallback):
    def __init__(self):
        self.lines = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.lines.append(dict(logs))


@pytest.mark.parametrize("later", [False, True])
def test_in_a_run_it_comes_before_what_reports(make_trainer, later):
    reporter = Reporter()
    with pytest.warns(FutureWarning, match="`collapse` of `EntropyLawCallback` is deprecated"):
        law = EntropyLawCallback(min_points=3, collapse=0.999)
    trainer = make_trainer(callbacks=[reporter] if later else [reporter, law], max_steps=5, reward_funcs=count_reward)
    if later:
        trainer.add_callback(law)
    trainer.train()
    lines = [line for line in reporter.lines if "reward" in line]
    entropies = [line["entropy/mean"] for line in lines]
    below = [entropy < 0.999 * entropies[0] for entropy in entropies]
    assert any(below) and [line["entropy_law/collapsed"] for line in lines] == list(map(int, below))
    expected = fit_entropy_law(entropies, [line["reward"] for line in lines])
    found = [lines[-1][f"entropy_law/{key}"] for key in ("a", "b", "r_squared")]
    assert found == pytest.approx(expected)
    assert trainer.state.log_history[4]["entropy_law/ceiling"] == pytest.approx(expected[1] - expected[0])
