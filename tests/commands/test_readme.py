# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The README: its first example runs, and its links work on the page of a package index too."""

import re
from pathlib import Path

import pytest
from datasets import Dataset, config

from trl_entropy import cli


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
REPOSITORY = "https://github.com/trl-entropy/trl-entropy"
PAGES, IMAGES = f"{REPOSITORY}/blob/main/", "https://raw.githubusercontent.com/trl-entropy/trl-entropy/main/"
LINKS = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", README)


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("image", "target"), sorted(set(LINKS)))
def test_links_are_absolute_and_point_to_files(image, target):
    assert target.startswith("https://")
    prefix = IMAGES if image else PAGES
    if image or "trl-entropy/trl-entropy" in target:
        assert target.startswith(prefix)
        path, _, anchor = target.removeprefix(prefix).partition("#")
        assert (ROOT / path).is_file()
        assert not anchor or anchor in anchors((ROOT / path).read_text())


def test_links_are_found():
    assert len([target for image, target in LINKS if image]) >= 2
    assert len([target for _, target in LINKS if target.startswith(PAGES)]) > 20


def test_first_example_runs(tiny, tmp_path, monkeypatch):
    """As it stands, but with a tiny model and dataset, and fewer and shorter steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [[{"role": "user", "content": f"{number} + {number}?"}] for number in range(8)]
    Dataset.from_dict({"prompt": rows, "solution": ["2"] * 8}).to_json("train.jsonl")
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    cpu = re.search(r"# on a CPU, add (.+)", code)[1]
    changes = {
        '"trl-lib/DeepMath-103K"': '"json", data_files="train.jsonl"',
        '"Qwen/Qwen3-0.6B"': repr(str(tiny)),
        '"out", ': f'"out", {cpu}, max_steps=2, max_completion_length=8, logging_steps=1, report_to="none", ',
    }
    for old, new in changes.items():
        assert code.count(old) == 1
        code = code.replace(old, new)
    names = {}
    exec(code, names)
    first, second = (entry for entry in names["trainer"].state.log_history if "loss" in entry)
    assert first["clip_cov/kept_fraction"] <= 1 and second["step"] == 2


def test_commands_of_the_readme_exist():
    commands = re.findall(r"trl-entropy ([a-z]+(?:-[a-z]+)?)(?= |`|$)", README, re.MULTILINE)
    assert set(commands) == set(cli.COMMANDS)
