# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""docs/paper_index.md is what `make tables` writes, and its snippets build the configs of the recipes."""

import json
import re
import warnings
from pathlib import Path

import pytest
import yaml
from support import paper_index, tables
from transformers import TrainingArguments

import trl_entropy
from trl_entropy.commands.listing import OTHERS
from trl_entropy.commands.methods import STORED
from trl_entropy.monitors.config import MONITORS


ROOT = Path(__file__).parents[2]
TEXT = paper_index.PAGE.read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def name_of(snippet):
    """The method or monitor that a snippet lists, `tip` or `kappa`."""
    listed = re.search(r'(?:methods|monitors)=\["(\w+)"\]', snippet)
    return listed[1] if listed else re.search(r"^    (tip|kappa)_", snippet, flags=re.MULTILINE)[1]


def test_page_is_current():
    """A new method is only a warning until `make tables` has stored its description."""
    methods, stored = tables.own_methods(), json.loads(STORED.read_text())["methods"]
    listed = {name: method for name, method in methods.items() if f'    methods=["{name}"],' in TEXT}
    for name in methods.keys() - listed.keys():
        assert name not in stored, f"docs/paper_index.md does not list {name!r}: run `make tables`."
        warnings.warn(f"docs/paper_index.md does not list {name!r} yet: run `make tables`.", stacklevel=1)
    assert TEXT == paper_index.render(listed), "docs/paper_index.md is stale: run `make tables`."


def test_each_paper_has_one_block():
    papers = [one.paper for one in (*tables.own_methods().values(), *OTHERS, *MONITORS.values())]
    links = re.findall(r"^\*\*📜 Paper\*\*: (\S+)$", TEXT, flags=re.MULTILINE)
    assert links == list(dict.fromkeys(paper.url for paper in papers if paper.url in links))
    stored = json.loads(STORED.read_text())["methods"]
    known = {one.paper.url for one in (*OTHERS, *MONITORS.values())}
    known |= {method.paper.url for name, method in tables.own_methods().items() if name in stored}
    assert known <= set(links)
    titles = re.findall(r"^### (.*)$", TEXT, flags=re.MULTILINE)
    assert len(titles) == len(set(titles)) == len(links)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=name_of)
def test_snippet_has_the_settings_of_the_recipe(snippet, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "world_size", 8)  # the recipes' number of processes
    names = {}
    exec(snippet.replace("Config(\n", "Config(use_cpu=True, bf16=False,\n"), names)
    args = names["training_args"]
    assert type(args) in (trl_entropy.EntropyGRPOConfig, trl_entropy.EntropyDistillationConfig)
    shown = re.findall(r"^    (\w+)=", snippet, flags=re.MULTILINE)
    if shown[0] == "monitors":
        return
    recipe = "kappa_grpo" if shown[0].startswith("kappa_") else name_of(snippet)
    given = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())
    for key in shown:
        assert getattr(args, key) == given[key], key
    own = {key for key in given if key.startswith(f"{name_of(snippet)}_")}
    assert own <= set(shown)


def test_settings_that_are_ours_are_left_out():
    """Except those of batches, and the method's own."""
    lines = paper_index.settings("clip_cov", "clip_cov", trl_entropy.EntropyGRPOConfig)
    assert "    clip_cov_ratio=2.0e-4,  # [paper] [code]" in lines
    assert '    scale_rewards="group",  # [code] the covariance thresholds assume it' in lines
    assert "    per_device_train_batch_size=8,  # [ours]" in lines
    keys = {line.split("=")[0].strip() for line in lines}
    assert keys.isdisjoint({"loss_type", "max_completion_length", "max_steps", "use_vllm", "save_steps"})
