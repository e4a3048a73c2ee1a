# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A real vLLM engine, for the tests that ask for one."""

from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def vllm(tmp_path_factory):
    """The shared engine, and the folder with the model from which it was built. Needs vLLM."""
    from support.vllm_engine import SharedEngine, save_model, sharing
    from trl import GRPOConfig, GRPOTrainer

    folder, shared = save_model(tmp_path_factory.mktemp("vllm")), SharedEngine()
    with sharing(shared):  # built here, as building one seeds torch
        from support.vllm_engine import build_vllm_trainer

        build_vllm_trainer(GRPOTrainer, GRPOConfig, tmp_path_factory.mktemp("first"), folder)
    yield SimpleNamespace(folder=folder, shared=shared)
    shared.close()


@pytest.fixture
def make_vllm_trainer(vllm, tmp_path):
    """`make_vllm_trainer(**settings)`: as `make_trainer`, with the engine."""
    from support.vllm_engine import build_vllm_trainer, sharing
    from trl import GRPOConfig, GRPOTrainer

    from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer

    def make(stock: bool = False, **settings):
        classes = (GRPOTrainer, GRPOConfig) if stock else (EntropyGRPOTrainer, EntropyGRPOConfig)
        return build_vllm_trainer(*classes, settings.pop("output_dir", tmp_path), vllm.folder, **settings)

    with sharing(vllm.shared):
        yield make
