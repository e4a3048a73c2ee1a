# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The parts of the documentation site that are ours, without the tools that `make docs` builds it with."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from trl_entropy import KappaTuneCallback, kappa_peft_config
from trl_entropy.kappa.config import KappaConfig


ROOT = Path(__file__).parents[2]
WEBSITE = ROOT / "website"


def loaded(name, monkeypatch):
    """A module of the site, with stand-ins for the packages that only `make docs` installs."""
    stand_ins = {
        "griffe": {"Extension": object},
        "mkdocs": {},
        "mkdocs.plugins": {"get_plugin_logger": lambda _: Log()},
        "mkdocs.structure": {},
        "mkdocs.structure.files": {"File": None, "Files": None},
    }
    for module, contents in stand_ins.items():
        made = ModuleType(module)
        vars(made).update(contents)
        monkeypatch.setitem(sys.modules, module, made)
    monkeypatch.syspath_prepend(str(WEBSITE))
    monkeypatch.delitem(sys.modules, "docstrings", raising=False)
    spec = importlib.util.spec_from_file_location(f"website_{name}", WEBSITE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Log:
    def __init__(self):
        self.warnings = []

    def warning(self, text):
        self.warnings.append(text)


@pytest.fixture
def pages(monkeypatch):
    return loaded("pages", monkeypatch)


@pytest.fixture
def docstrings(monkeypatch):
    return loaded("docstrings", monkeypatch)


@pytest.fixture
def check_links(monkeypatch):
    return loaded("check_links", monkeypatch)


GITHUB = "https://github.com/trl-entropy/trl-entropy"


@pytest.mark.parametrize(
    ("target", "source", "page", "expected"),
    [
        (f"{GITHUB}/blob/main/docs/methods.md#all-methods", "README.md", "index.md", "methods.md#all-methods"),
        (f"{GITHUB}/blob/main/CHANGELOG.md", "CONTRIBUTING.md", "contributing.md", "changelog.md"),
        ("../README.md", "docs/kappa.md", "kappa.md", "index.md"),
        ("../recipes/quickstart.png", "docs/kappa.md", "kappa.md", "recipes/quickstart.png"),
        ("../recipes/lora.yaml", "docs/which_method.md", "which_method.md", f"{GITHUB}/blob/main/recipes/lora.yaml"),
        (f"{GITHUB}/tree/main/recipes", "README.md", "index.md", f"{GITHUB}/tree/main/recipes"),
        ("methods.md", "docs/a.md", "reference/a.md", "../methods.md"),
        ("#here", "docs/runs.md", "runs.md", "#here"),
        (
            "https://huggingface.co/papers/2505.22617",
            "README.md",
            "index.md",
            "https://huggingface.co/papers/2505.22617",
        ),
    ],
)
def test_links_lead_to_pages_of_the_site_or_to_files_on_github(pages, target, source, page, expected):
    assert pages.moved(target, source, page) == expected and not pages.logger.warnings


def test_link_to_a_missing_file_is_a_warning(pages):
    pages.moved("../recipes/nothing.yaml", "docs/runs.md", "runs.md")
    assert pages.logger.warnings == [
        "docs/runs.md links to ../recipes/nothing.yaml, but the repository has no recipes/nothing.yaml."
    ]


def test_reference_describes_every_public_name(pages):
    import trl_entropy

    assert pages.public_names() == set(trl_entropy._PUBLIC)
    described = {name.rsplit(".", 1)[1] for name in pages.described()}
    assert set(trl_entropy._PUBLIC) - described == {"METHODS"}
    fields = pages.fields_of_methods()
    assert "| `clip_cov_ratio` | `float = 0.0002` | ratio of all tokens" in fields and "## `kappa`" in fields


def test_navigation_has_every_page():
    listed = set(re.findall(r"^\s+- .*: (\S+\.md)$", (WEBSITE / "mkdocs.yml").read_text(), re.MULTILINE))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= listed
    assert {"index.md", "contributing.md", "changelog.md"} <= listed


def test_fields_in_the_style_of_trl_become_a_list(docstrings):
    head, field, end = (
        "Config.\n",
        "beta (`float`, *optional*, defaults to `0.0`):",
        "\nRaises:\n    `ValueError`: no.",
    )
    expected = "Config.\n\n\n`beta` (`float`, *optional*, defaults to `0.0`)\n\n:   Weight of\n    the KL.\n"
    text = "\n".join([head, field, "    Weight of\n    the KL.", end])
    assert docstrings.readable(text) == expected + "\nRaises:\n    ValueError: no."


@pytest.mark.parametrize(
    "thing", [KappaConfig, KappaTuneCallback, kappa_peft_config], ids=lambda thing: thing.__name__
)
def test_knobs_of_kappa_are_those_of_the_docstring(docstrings, thing):
    """The site fills them in without importing the package: the same names, with the same defaults."""
    stored = docstrings.with_knobs("Args:\n    {knobs}\n", thing.__name__)
    entry = re.compile(r"^\s*(\w+) \(`.*`, \*optional\*, defaults to `(.*)`\):$", re.MULTILINE)
    at_run_time = [found for found in entry.findall(thing.__doc__) if found[0] != "seed"]
    assert len(at_run_time) > 5 and entry.findall(stored) == at_run_time


def test_broken_links_of_a_site_are_found(check_links, tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><a href="b.html#here">1</a><a href="#top">2</a><a href="https://example.org/x">3</a>'
        f'<a href="{GITHUB}/blob/main/README.md">4</a><a href="c.html">5</a><a href="b.html#gone">6</a>'
        f'<a href="{GITHUB}/blob/main/nothing.md">7</a><script src="https://example.org/y.js"></script>'
    )
    (tmp_path / "b.html").write_text('<p id="here"></p><img src="missing.png">')
    problems, count = check_links.check(tmp_path)
    assert count == 9
    assert problems == [
        "a.html: b.html#gone has no such anchor.",
        "a.html: c.html does not exist.",
        "a.html: https://example.org/y.js is loaded from elsewhere.",
        f"a.html: {GITHUB}/blob/main/nothing.md is no file of the repository.",
        "b.html: missing.png does not exist.",
    ]
