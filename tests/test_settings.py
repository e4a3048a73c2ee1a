# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Helpers that read configs and write error messages and tables."""

from dataclasses import MISSING, dataclass, field, fields

import pytest

from trl_entropy.settings import default_of, did_you_mean, fields_of, nearest_name
from trl_entropy.tables import text_table


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("clip_cof", " Did you mean 'clip_cov'?"),
        ("KL-Cov", " Did you mean 'kl_cov'?"),
        ("nothing", ""),
        (None, ""),
    ],
)
def test_did_you_mean(name, hint):
    assert did_you_mean(name, {"clip_cov": 1, "kl_cov": 2}) == hint


def test_case_of_a_name():
    assert nearest_name("KL-Cov", ["kl_cov"]) == "kl_cov" and nearest_name("KL-Cov", ["kl_cov"], False) is None
    assert did_you_mean("kl-cov", ["kl_cov"], ignore_case=False) == " Did you mean 'kl_cov'?"


@dataclass
class Config:
    required: int
    pear_mode: str = "a"
    pear_names: list = field(default_factory=lambda: ["x"])
    pearl_mode: str = "b"


def test_defaults_and_fields_by_prefix():
    assert [default_of(one) for one in fields(Config)] == [MISSING, "a", ["x"], "b"]
    assert default_of(fields(Config)[2]) is not default_of(fields(Config)[2])
    for config in (Config, Config(1)):
        assert [one.name for one in fields_of("pear", config)] == ["pear_mode", "pear_names"]
    assert fields_of("nothing", Config) == []


def test_text_table():
    rows = [
        {"": "before", "pass@1": 0.1237, "seconds": None},
        {"": "a method", "pass@1": 0.5},
        {"": "x", "n": "12345"},
    ]
    assert text_table(rows, {"pass@1": 3, "seconds": 0}, "-").splitlines() == [
        "          pass@1  seconds      n",
        "before     0.124        -      -",
        "a method   0.500        -      -",
        "x              -        -  12345",
    ]
    assert text_table([{"run": "one", "note": "a b"}, {"run": "two"}]).splitlines() == [
        "run  note",
        "one   a b",
        "two",
    ]
