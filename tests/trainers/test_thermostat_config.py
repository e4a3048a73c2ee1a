# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The fields of `entropy_keep`: what they accept, what they drive, and what is refused or warned of."""

import logging
import re

import pytest
from accelerate import PartialState

from trl_entropy import EntropyGRPOConfig
from trl_entropy.knob import Knob
from trl_entropy.methods import METHODS
from trl_entropy.trainers.thermostat_config import BONUS, driven_by, for_methods, knob_range, start_of


def config(tmp_path, **settings):
    settings = dict(max_steps=400, steps_per_generation=2, use_cpu=True, bf16=False, report_to=[]) | settings
    return EntropyGRPOConfig(str(tmp_path), **settings)


KEEP = dict(entropy_keep=0.9)
REFUSED = {
    "keep_0": (dict(entropy_keep=0), "`entropy_keep` must be none, or a share in (0, 2], got 0."),
    "keep_3": (dict(entropy_keep=3), "`entropy_keep` must be none, or a share in (0, 2], got 3."),
    "keep_text": (dict(entropy_keep="x"), "`entropy_keep` must be none, or a share in (0, 2], got 'x'."),
    "keep_true": (dict(entropy_keep=True), "`entropy_keep` must be none, or a share in (0, 2], got True."),
    "end": (KEEP | dict(entropy_keep_end=-1), "`entropy_keep_end` must be none, or a share in (0, 2], got -1."),
    "batches": (KEEP | dict(entropy_keep_batches=0), "`entropy_keep_batches` must be an integer >= 1, got 0."),
    "batches_float": (
        KEEP | dict(entropy_keep_batches=2.0),
        "`entropy_keep_batches` must be an integer >= 1, got 2.0.",
    ),
    "reference": (
        KEEP | dict(entropy_keep_reference=0.0),
        "`entropy_keep_reference` must be none, or an entropy in nats > 0, got 0.0.",
    ),
    "response": (
        KEEP | dict(entropy_keep_response=0.5),
        "`entropy_keep_response` must be a finite number >= 1, got 0.5.",
    ),
    "range_order": (
        KEEP | dict(entropy_keep_range=[0.1, 0.01]),
        "`entropy_keep_range` must be none, or two finite numbers, the smaller one first, got [0.1, 0.01].",
    ),
    "range_one": (
        KEEP | dict(entropy_keep_range=[0.1]),
        "`entropy_keep_range` must be none, or two finite numbers, the smaller one first, got [0.1].",
    ),
    "range_zero": (
        KEEP | dict(entropy_keep_range=[0.0, 1.0]),
        "`entropy_keep_range` must hold values > 0 for `entropy_coef`, got [0.0, 1.0].",
    ),
    "range_of_the_field": (
        KEEP | dict(methods=["clip_cov"], entropy_keep_range=[0.1, 5.0]),
        "`entropy_keep_range` must hold values that `clip_cov_ratio` accepts, got [0.1, 5.0]: `clip_cov_ratio` must "
        "be a ratio in (0, 1], got 5.0.",
    ),
    "start": (
        KEEP | dict(methods=["kl_cov"], kl_cov_ratio=0.5),
        "`kl_cov_ratio`, where `entropy_keep` starts, must be in [0.0001, 0.1], the range that it may use "
        "(`entropy_keep_range`), got 0.5.",
    ),
    "start_negative": (
        KEEP | dict(entropy_coef=-0.1),
        "`entropy_coef`, where `entropy_keep` starts, must be in [1e-06, 10.0], the range that it may use "
        "(`entropy_keep_range`), got -0.1.",
    ),
    "method_without_knob": (
        KEEP | dict(methods=["steer"]),
        "`entropy_keep` must be none with `methods` ['steer'], got 0.9: 'steer' cannot be driven, because its "
        "strength moves entropy by less than the seed does. `entropy_keep_knob: entropy_coef` drives TRL's entropy "
        "bonus instead.",
    ),
    "method_that_says_nothing": (
        KEEP | dict(methods=["qae"]),
        "'qae' cannot be driven, because it declares no setting that moves entropy in one direction.",
    ),
    "two_knobs": (
        KEEP | dict(methods=["clip_cov", "epo"]),
        "`entropy_keep_knob` must be one of 'clip_cov_ratio', 'epo_coef', 'entropy_coef' with `methods` ['clip_cov', "
        "'epo'], got None.",
    ),
    "knob_of_a_method_that_is_off": (
        KEEP | dict(methods=["clip_cov"], entropy_keep_knob="epo_coef"),
        "`entropy_keep_knob` must be one of 'clip_cov_ratio', 'entropy_coef' with `methods` ['clip_cov'], got "
        "'epo_coef'.",
    ),
    "adaptive": (
        KEEP | dict(use_adaptive_entropy=True, methods=["clip_cov"]),
        "`use_adaptive_entropy` must be false with `entropy_keep`, which holds entropy, got True.",
    ),
    "schedule": (
        KEEP | dict(entropy_coef_schedule="linear"),
        "`entropy_coef_schedule` must be 'constant' with `entropy_keep`, which drives `entropy_coef`, got 'linear'.",
    ),
    "above_the_start": (
        dict(entropy_keep=1.2, methods=["siren"]),
        "`entropy_keep` must be in (0, 1] with `siren_coef`, which cannot raise entropy above its starting value, got "
        "1.2.",
    ),
    "end_above_the_start": (
        KEEP | dict(entropy_keep_end=1.1, methods=["kl_cov"]),
        "`entropy_keep_end` must be in (0, 1] with `kl_cov_ratio`, which cannot raise entropy above its starting "
        "value, got 1.1.",
    ),
    "target_twice": (
        KEEP | dict(methods=["aepo"], aepo_target_entropy=0.3),
        "`aepo_target_entropy` must be None, its default, with `entropy_keep`, which sets it, got 0.3.",
    ),
    "range_of_a_target": (
        KEEP | dict(methods=["entropic"], entropy_keep_range=[0.1, 0.2]),
        "`entropy_keep_range` must be none with `entropic_target`, which is a target, got [0.1, 0.2].",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
    settings, message = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        config(tmp_path, **settings)


@pytest.mark.parametrize(
    "settings, field, start",
    [
        ({}, "entropy_coef", 0.03),
        (dict(entropy_coef=0.4), "entropy_coef", 0.4),
        (dict(entropy_keep_range=[0.1, 0.2]), "entropy_coef", 0.1),
        (dict(methods=["clip_cov"]), "clip_cov_ratio", 0.05),
        (dict(methods=["steer", "clip_cov"], clip_cov_ratio=0.3), "clip_cov_ratio", 0.3),
        (dict(methods=["clip_cov", "epo"], entropy_keep_knob="epo_coef"), "epo_coef", 0.03),
        (dict(methods=["clip_cov"], entropy_keep_knob="entropy_coef"), "entropy_coef", 0.03),
        (dict(methods=["clip_b"]), "clip_b_mu", 2.5),
        (dict(methods=["clip_v"], clip_v_max_ratio=0.3), "clip_v_max_ratio", 0.3),
    ],
)
def test_driven_field_and_its_start(tmp_path, settings, field, start):
    args = config(tmp_path, **KEEP, **settings)
    driven = driven_by(args)
    assert (driven.knob.field, start_of(args, driven)) == (field, start)
    assert args.entropy_coef == (start if field == "entropy_coef" else 0.0)


def test_without_keep_nothing_is_driven(tmp_path):
    args = config(tmp_path)
    assert driven_by(args) is None and for_methods(args) is args and args.entropy_coef == 0


def test_target_need_not_be_set(tmp_path):
    args = config(tmp_path, methods=["aepo"], **KEEP)
    assert args.aepo_target_entropy is None
    assert for_methods(args).aepo_target_entropy == 1.0
    with pytest.raises(ValueError, match="`aepo_target_entropy` must be an entropy in nats > 0, and set, got None."):
        config(tmp_path, methods=["aepo"])


@pytest.mark.parametrize(
    "settings, warning",
    [
        (dict(entropy_keep_end=0.5), "`entropy_keep_end` is set to 0.5, but `entropy_keep` is none: it does nothing."),
        (dict(entropy_keep_batches=8), "`entropy_keep_batches` is set to 8, but `entropy_keep` is none"),
        (KEEP | dict(max_steps=60), "in a run of 30 generation batches: give it at least 40"),
        (KEEP | dict(methods=["clip_v"]), "`clip_v_mu` is at its default 8.5, which may leave `entropy_keep` too few"),
        (KEEP | dict(methods=["kl_cov"]), "`kl_cov_ratio` slows the fall of entropy, but cannot raise it"),
        (KEEP, None),
        (KEEP | dict(methods=["clip_v"], clip_v_mu=0.5), None),
    ],
)
def test_warnings(tmp_path, caplog, settings, warning):
    PartialState()  # without which accelerate does not log
    caplog.set_level(logging.WARNING)
    config(tmp_path, **settings)
    about = [record.getMessage() for record in caplog.records if "entropy_keep" in record.getMessage()]
    assert len(about) == (warning is not None)
    assert warning is None or warning in about[0]


def test_knobs_of_the_methods():
    """Field, attribute, range and start of each: the numbers of the documentation."""
    found = {
        name: (knob.field, knob.low, knob.high, knob.start, knob.scale)
        for name, method in METHODS.items()
        if (knob := method.knob) and method.__module__.startswith("trl_entropy.")
    }
    assert found == {
        "clip_cov": ("clip_cov_ratio", 1e-4, 1.0, 0.05, "log"),
        "kl_cov": ("kl_cov_ratio", 1e-4, 0.1, 0.02, "log"),
        "clip_b": ("clip_b_mu", 0.0, 8.0, 2.5, "linear"),
        "clip_v": ("clip_v_max_ratio", 1e-4, 0.5, 0.02, "log"),
        "siren": ("siren_coef", 1e-5, 100.0, 1.0, "log"),
        "epo": ("epo_coef", 1e-6, 10.0, 0.03, "log"),
        "aepo": ("aepo_target_entropy", 1e-4, 100.0, 1.0, "target"),
        "entropic": ("entropic_target", 1e-4, 100.0, 0.1, "target"),
    }
    assert (BONUS.low, BONUS.high, BONUS.start) == (1e-6, 10.0, 0.03)


def test_log_strength_of_a_linear_knob_that_falls():
    """ln u = -2 μ: from -16 at 8 to 0 at 0."""
    knob = METHODS["clip_b"].knob
    assert [knob.log_strength(mu) for mu in (8.0, 2.5, 0.0)] == [-16.0, -5.0, 0.0]
    assert [knob.value(log) for log in (-16.0, -5.0, 0.0)] == [8.0, 2.5, 0.0]


def test_range_of_the_user(tmp_path):
    args = config(tmp_path, methods=["clip_b"], entropy_keep_range=[1, 3], **KEEP)
    assert knob_range(args, driven_by(args)) == (1.0, 3.0)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(low=0.0, high=1.0, start=0.5), "`low` and `high` of the knob `mine_ratio` must be finite numbers in"),
        (dict(low=1.0, high=0.5, start=0.7), "above 0 on the log scale, got 1.0 and 0.5."),
        (dict(low=0.1, high=0.5, start=0.7), "`start` of the knob `mine_ratio` must be in [0.1, 0.5], got 0.7."),
    ],
)
def test_knob_that_is_none(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Knob("mine_ratio", "ratio", **settings)
