# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Packages with methods, as Python sees installed ones, and the files of a run on the command line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets import Dataset
from support.tiny import VOCABULARY, build_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from trl_entropy.methods import METHODS, REGISTRY


# A method with a setting of each kind that needs care, a log, a state, and a range for plots.
MINE = """
from __future__ import annotations

from dataclasses import dataclass, field

import torch

from trl_entropy.methods import Method, Paper
from trl_entropy.settings import ratio
from trl_entropy.signs import EntropyBand


@dataclass
class MineConfig:
    mine_weight: float = field(default=0.5, metadata={"help": "Mine: weight of positive advantages, in (0, 1]."})
    mine_words: list[str] = field(default_factory=list, metadata={"help": "Mine: words that do nothing."})


class Mine(Method):
    name = "mine"
    summary = "weighs positive advantages less"
    paper = Paper("2506.01347", "Negative Reinforcement", "@article{zhu2025, note = {arXiv:2506.01347}}")
    config = MineConfig
    entropy_band = EntropyBand(0.0, "mine_weight")

    def __init__(self, config):
        self.weight = ratio(config, "mine_weight")
        self.forwards = 0

    def token_advantages(self, tokens):
        self.forwards += tokens.training
        positive = tokens.advantages > 0
        logs = {"positive_fraction": positive, "forwards": torch.tensor(float(self.forwards))}
        return torch.where(positive, self.weight * tokens.advantages, tokens.advantages), logs

    def state_dict(self):
        return {"forwards": self.forwards}

    def load_state_dict(self, state):
        self.forwards = state["forwards"]
"""


@contextmanager
def site(folder: Path) -> Iterator[None]:
    """Puts a folder first on `sys.path`. Afterwards its modules are gone, and the methods that were registered."""
    ours, modules, path = tuple(METHODS), set(sys.modules), list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = path
        for name in [name for name in METHODS if name not in ours]:
            REGISTRY.unregister(name)
        for name in set(sys.modules) - modules:
            if folder in Path(getattr(sys.modules[name], "__file__", None) or "/").parents:
                del sys.modules[name]
        assert tuple(METHODS) == ours


def write_package(folder: Path, name: str, entries: dict[str, str], **modules: str) -> None:
    """Writes modules by name, and what tells Python of a distribution with entry points of the group for methods."""
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(source)
    about = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{key} = {value}" for key, value in entries.items()]
    (about / "entry_points.txt").write_text("\n".join(["[trl_entropy.methods]", *lines, ""]))


# A reward function of the run's folder, and the settings of a run of two steps.
REWARD = "def even(completion_ids, **kwargs):\n    return [float(sum(ids) % 2) for ids in completion_ids]\n"
SETTINGS = dict(
    model_name_or_path="model",
    dataset_name="train.jsonl",
    reward_funcs=["even_rewards.even"],
    output_dir="out",
    per_device_train_batch_size=4,
    num_generations=4,
    max_completion_length=8,
    max_steps=2,
    logging_steps=1,
    report_to="none",
    use_cpu=True,
    bf16=False,
)


def write_run(folder: Path) -> None:
    """Writes the model, the prompts and the reward function of `SETTINGS`."""
    # Not the Qwen2 of other tests, for which `AutoTokenizer` takes a tokenizer of its own.
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    Dataset.from_dict({"prompt": [f"w{n} w{n + 1}" for n in range(8)]}).to_json(str(folder / "train.jsonl"))
    (folder / "even_rewards.py").write_text(REWARD)
