# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""One real vLLM engine on the CPU, which all trainers of a session share, and tiny trainers that generate with it.

The engine computes in bfloat16 and the trainers in float32, as usual on GPUs too. Every trainer loads its own weights
into the engine before it generates.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from unittest.mock import patch

import pytest
import torch
from datasets import Dataset
from support.agents import TOKENIZER
from support.tiny import TRAINING, build_model, build_trainer
from transformers import Qwen2ForCausalLM


NEEDS_VLLM = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM, which `make test-vllm` installs"),
]
# 1 GB for keys and values instead of most of the memory, and no threads bound to cores.
ENVIRONMENT = dict(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_CI_ENV="1", VLLM_LOGGING_LEVEL="ERROR")
# Heads of 32, the smallest that vLLM's attention takes on a CPU.
SIZES = dict(vocab_size=len(TOKENIZER), hidden_size=64, intermediate_size=64, max_position_embeddings=256)
MOST_ROWS = 32  # TRL asks for as many as a generation batch has
SETTINGS = dict(use_vllm=True, vllm_mode="colocate", vllm_max_model_length=128)


class SharedEngine:
    """Takes the place of `vllm.LLM`: the first call builds the engine, and later calls get it again."""

    def __init__(self):
        self.engine, self.settings = None, {}

    def __call__(self, *, max_num_seqs, **settings):
        assert max_num_seqs <= MOST_ROWS
        if self.engine is None:
            self.engine, self.settings = build_engine(**settings, max_num_seqs=MOST_ROWS), settings
        assert settings == self.settings, "an engine that is shared cannot have other settings"
        return self.engine

    def close(self) -> None:
        if self.engine is not None:
            self.engine.llm_engine.engine_core.shutdown()


@contextmanager
def sharing(engine: SharedEngine) -> Iterator[None]:
    """Within the context, trainers of TRL get the shared engine. Nothing is compiled, which takes half a minute."""
    with pytest.MonkeyPatch.context() as change, torch.compiler.set_stance("force_eager"):
        change.setattr("trl.generation.vllm_generation.LLM", engine)
        for name, value in ENVIRONMENT.items():
            change.setenv(name, value)
        yield


def build_engine(**settings):
    """`vllm.LLM` on a CPU, in `ENVIRONMENT`."""
    import vllm._custom_ops
    from vllm import LLM

    # For oneDNN, vLLM packs the weights of linear layers and drops them. Then TRL cannot load others.
    vllm._custom_ops._supports_onednn = False
    return LLM(**settings, enforce_eager=True)  # compiling takes a minute


def save_model(folder) -> str:
    """Writes the model from which the engine is built. Trainers start from its weights."""
    build_model(**SIZES).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


def load_model(folder) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM.from_pretrained(folder, dtype="float32")


def dataset(rows: int = 16) -> Dataset:
    texts = [f"n {index % 7} {index % 5 + 7} t {index % 3 + 12} :" for index in range(rows)]
    return Dataset.from_dict({"prompt": texts})


def build_vllm_trainer(trainer_class, config_class, output_dir, folder, **settings):
    """A trainer of the model in `folder`, which generates with the shared engine."""
    defaults = dict(train_dataset=dataset(), processing_class=TOKENIZER, learning_rate=0.01, **SETTINGS)
    settings = {**defaults, **settings}
    if "model" not in settings:  # its name, by which TRL builds the engine, is the folder
        settings["model"] = load_model(folder)
    with patch.dict(os.environ):  # TRL writes a rank into it, for which the next trainer would take DDP
        return build_trainer(trainer_class, config_class, output_dir, **settings)


def build_vllm_distiller(trainer_class, config_class, output_dir, folder, **settings):
    """A distillation of another tiny model into the one in `folder`, on what the shared engine generates."""
    defaults = dict(per_device_train_batch_size=4, max_completion_length=8, learning_rate=0.01, max_steps=3, seed=7)
    with patch.dict(os.environ):
        return trainer_class(
            model=load_model(folder),
            teacher_model=build_model(seed=5, **SIZES),
            args=config_class(str(output_dir), **{**TRAINING, **defaults, **SETTINGS, **settings}),
            train_dataset=dataset(),
            processing_class=TOKENIZER,
        )
