# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Constructors show TRL's arguments, with our config."""

import inspect

import pytest
import trl
from trl.experimental import gkd, sdft, sdpo

import trl_entropy


STOCK = {
    "EntropyGRPO": trl.GRPOTrainer,
    "EntropyDistillation": trl.DistillationTrainer,
    "EntropyGKD": gkd.GKDTrainer,
    "EntropySDFT": sdft.SDFTTrainer,
    "EntropySDPO": sdpo.SDPOTrainer,
}


@pytest.mark.parametrize("name", STOCK)
def test_signature_is_that_of_trl(name):
    ours = inspect.signature(getattr(trl_entropy, f"{name}Trainer")).parameters
    theirs = inspect.signature(STOCK[name]).parameters
    assert list(ours) == list(theirs)
    assert ours["args"].annotation == getattr(trl_entropy, f"{name}Config") | None
    assert all(ours[key] == theirs[key] for key in theirs if key != "args")


def test_a_subclass_shows_its_own_signature():
    class Mine(trl_entropy.EntropyGRPOTrainer):
        def __init__(self, dataset):
            pass

    assert list(inspect.signature(Mine).parameters) == ["dataset"]
