# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes docs/paper_index.md: a block for each paper, in the form of TRL's page of that name.

Text comes from the docstring of the paper's module, settings and their sources from its recipe.
"""

import inspect
import re
import sys
from dataclasses import fields
from pathlib import Path
from textwrap import fill
from typing import Any

import yaml

from trl_entropy import EntropyDistillationConfig, EntropyGRPOConfig
from trl_entropy.kappa.config import KappaTune
from trl_entropy.methods.tip import Tip
from trl_entropy.monitors.config import MONITORS


ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "paper_index.md"
HEAD = """# Paper index

Each paper with the settings of its recipe, in the form of
[TRL's paper index](https://huggingface.co/docs/trl/paper_index). Comments say where a value comes from: `[paper]` the
paper, `[code]` its released code, `[ours]` our choice. Settings of the trainer that are neither the paper's nor the
code's are left out, except those of batches, which are for 8 GPUs. Models, data and rewards are in the recipes. No
result of a paper is reproduced here. `make tables` writes this page.
"""
BATCHES = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation")
# Of the machine and the run, not of the paper
LEFT_OUT = {"use_vllm", "vllm_mode", "vllm_gpu_memory_utilization", "vllm_max_model_length"}
LEFT_OUT |= {"output_dir", "logging_steps", "save_steps", "seed"}


def text_of(module: str) -> str:
    """The title and the numbered steps of a module's docstring, in Markdown."""
    document = inspect.cleandoc(sys.modules[module].__doc__)
    title, _, rest = document.partition("\n\n")
    steps = rest.partition("\n\n")[0].replace(":\n1.", ":\n\n1.")
    return f"{title}\n\n{steps}"


def settings(recipe: str, prefix: str, config: type) -> list[str]:
    """The lines of a recipe that a snippet shows, as arguments of the config."""
    known, shown = {field.name for field in fields(config)}, []
    for line in (ROOT / "recipes" / f"{recipe}.yaml").read_text().splitlines():
        match = re.match(r"(\w+): (.*?)(?:  (# .*))?$", line)
        if not match or match[1] not in known - LEFT_OUT:
            continue
        key, value, comment = match.group(1, 2, 3)
        tags = re.findall(r"\[(paper|code|ours)\]", comment or "")
        own = key == "methods" or key.startswith(f"{prefix}_")
        if own or key in BATCHES or (tags and tags[0] != "ours"):
            shown.append(f"    {key}={literal(value)},{f'  {comment}' if comment else ''}")
    return shown


def literal(value: str) -> str:
    """A value of YAML in Python. Numbers stay as they are written."""
    found = yaml.safe_load(value)
    if isinstance(found, int | float) and not isinstance(found, bool):
        return value
    return repr(found).replace("'", '"')


def snippet(config: type, arguments: list[str]) -> str:
    lines = [f"from trl_entropy import {config.__name__}", "", f"training_args = {config.__name__}("]
    return "\n".join(["```python", *lines, *arguments, ")", "```"])


def block(paper: Any, texts: list[str], used_in: str, snippets: list[str]) -> str:
    link = f"**📜 Paper**: {paper.url}"
    return "\n\n".join([f"### {paper.title}", link, *dict.fromkeys(texts), used_in, *snippets]) + "\n"


def of_recipes(names: list[str]) -> str:
    links = " and ".join(f"[{name}.yaml](../recipes/{name}.yaml)" for name in names)
    return f"{'Recipe' if len(names) == 1 else 'Recipes'}: {links}."


def of_methods(methods: dict[str, Any]) -> list[str]:
    """One block for each paper, in the order of the methods."""
    papers: dict[str, list[Any]] = {}
    for method in methods.values():
        papers.setdefault(method.paper.arxiv, []).append(method)
    blocks = []
    for group in papers.values():
        snippets = [snippet(EntropyGRPOConfig, settings(one.name, one.name, EntropyGRPOConfig)) for one in group]
        texts = [text_of(one.__module__) for one in group]
        blocks.append(block(group[0].paper, texts, of_recipes([one.name for one in group]), snippets))
    return blocks


# Settings without which a monitor cannot be listed
NEEDED = {
    "effective_features": [
        '    effective_features_encoder="torch.relu",  # in its place, your autoencoder\'s, by dotted path',
        "    effective_features_layer=12,",
    ]
}


def of_monitors() -> list[str]:
    blocks = []
    for name, monitor in MONITORS.items():
        text = f"`{name}`: {monitor.summary}. It changes nothing in the training."
        listed = snippet(EntropyGRPOConfig, [f'    monitors=["{name}"],', *NEEDED.get(name, ())])
        blocks.append(block(monitor.paper, [fill(text, 119)], "See [monitors](monitors.md).", [listed]))
    return blocks


def render(methods: dict[str, Any]) -> str:
    """The page with these methods."""
    of_tip = snippet(EntropyDistillationConfig, settings(Tip.name, Tip.name, EntropyDistillationConfig))
    tip = block(Tip.paper, [text_of(Tip.__module__)], of_recipes(["tip"]), [of_tip])
    kappa_text = (
        "KappaTune trains only the weight matrices of lowest condition number, by freezing the others or by LoRA on "
        "the selected ones. PEFT's documentation calls a ratio of 0.2 the paper's default."
    )
    lines = settings("kappa_grpo", KappaTune.name, EntropyGRPOConfig)
    of_kappa = snippet(EntropyGRPOConfig, [line for line in lines if line.startswith(f"    {KappaTune.name}_")])
    kappa = block(KappaTune.paper, [fill(kappa_text, 119)], of_recipes(["kappa_grpo", "kappa_sft"]), [of_kappa])
    parts = [
        HEAD,
        "## Group Relative Policy Optimization\n\nPapers relating to `EntropyGRPOTrainer`.\n",
        *of_methods(methods),
        "## Distillation\n\nPapers relating to `EntropyDistillationTrainer`.\n",
        tip,
        "## Selection of weights\n\nPapers relating to `kappa_mode` and `KappaTuneCallback`.\n",
        kappa,
        "## Monitors\n\nPapers relating to `monitors` and `MonitorCallback`.\n",
        *of_monitors(),
    ]
    return "\n".join(parts)
