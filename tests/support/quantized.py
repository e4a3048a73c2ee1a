# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A tiny model whose linear layers are quantized to 4 bits by bitsandbytes (nf4, twice), on the CPU."""

from importlib.util import find_spec

import pytest
import torch
from peft import LoraConfig
from support.tiny import build_model, build_tokenizer
from transformers import BitsAndBytesConfig, Qwen2ForCausalLM


NEEDS_BITSANDBYTES = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes: `make test-qlora`"),
]
# A row of a weight has at least the 64 numbers that share a scale.
SIZES = dict(hidden_size=64, intermediate_size=128)


def nf4(**settings) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        **{"llm_int8_skip_modules": ["lm_head"], **settings},
    )


def save_model(folder) -> str:
    build_model(**SIZES).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def load_quantized(folder, **settings) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM.from_pretrained(
        folder, quantization_config=nf4(**settings), dtype=torch.float32, device_map="cpu"
    )


def adapter(**settings) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": "all-linear", **settings})
