# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests, built from `support`. No test needs the network.

Loads nothing slow: with several workers, pytest's own process loads this module too, and runs no test.
"""

import gc
import sys

import pytest
import support.environment  # noqa: F401 (before the libraries that read it)


@pytest.fixture
def make_trainer(tmp_path):
    """`make_trainer(**settings)` gives an `EntropyGRPOTrainer`, `make_trainer(stock=True, ...)` a `GRPOTrainer`."""

    def make(stock: bool = False, **settings):
        from support.tiny import build_trainer
        from trl import GRPOConfig, GRPOTrainer

        from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer

        classes = (GRPOTrainer, GRPOConfig) if stock else (EntropyGRPOTrainer, EntropyGRPOConfig)
        return build_trainer(*classes, settings.pop("output_dir", tmp_path), **settings)

    return make


@pytest.fixture
def make_distiller(tmp_path):
    """`make_distiller(**settings)` gives an `EntropyDistillationTrainer`, `make_distiller(stock=True)` TRL's."""

    def make(stock: bool = False, **settings):
        from support.distilling import build_distiller
        from trl import DistillationConfig, DistillationTrainer

        from trl_entropy import EntropyDistillationConfig, EntropyDistillationTrainer

        classes = (DistillationTrainer, DistillationConfig)
        classes = classes if stock else (EntropyDistillationTrainer, EntropyDistillationConfig)
        return build_distiller(*classes, settings.pop("output_dir", tmp_path), **settings)

    return make


@pytest.fixture
def cache_folder(tmp_path_factory, monkeypatch):
    """The cache of condition numbers: the test's own folder, not the machine's."""
    from trl_entropy.kappa import cache

    folder = tmp_path_factory.mktemp("kappa")
    monkeypatch.setattr(cache, "default_folder", lambda: folder)
    return folder


def pytest_collection_finish():
    """Takes what is loaded out of garbage collection: Trainer collects when training starts, 0.2 s each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()


def pytest_terminal_summary(terminalreporter):
    """Says which methods the tests of all methods left out, and why."""
    registry = sys.modules.get("support.registry")  # not loaded if no test of all methods was collected
    for reason in registry.untested().values() if registry else ():
        terminalreporter.write_line(reason)
