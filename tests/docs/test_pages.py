# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What README and docs say of the methods is what the registry says."""

import ast
import json
import re
import sys
import warnings
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from support import tables
from trl import ModelConfig

from trl_entropy import EntropyDistillationConfig, EntropyGRPOConfig
from trl_entropy.advice.cases import CASES
from trl_entropy.commands.listing import listed
from trl_entropy.commands.methods import STORED
from trl_entropy.commands.rewards import REWARDS
from trl_entropy.methods import METHODS
from trl_entropy.trainers import branches, places


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "recipes").glob("*.yaml"))]


def edited(page, old, new):
    text = (ROOT / page).read_text()
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize("page", tables.TABLES)
def test_table_of_methods_is_that_of_the_registry(page):
    """A new method is only a warning, since it takes four files: one of which nothing is stored yet.

    Once `make tables` has stored its description, a page without it has lost its row.
    """
    stored = json.loads(STORED.read_text())["methods"]
    for name in tables.check(page, (ROOT / page).read_text(), tables.own_methods()):
        assert name not in stored, f"{page} does not list {name!r}: run `make tables`."
        warnings.warn(f"{page} does not list {name!r} yet: run `make tables`.", stacklevel=1)


CHOICES = ROOT / "docs" / "which_method.md"
KINDS = (ModelConfig, EntropyDistillationConfig, EntropyGRPOConfig)  # the last has its say on shared fields


def test_each_method_is_a_choice():
    """Each method is named in a row or sentence beside the table of all, or a warning says that it is not."""
    before, _, after = tables.split(CHOICES.read_text())
    for name in tables.own_methods():
        if f"`{name}`" not in before + after:
            warnings.warn(f"docs/which_method.md does not say when to choose {name!r}.", stacklevel=1)


def test_choices_exist():
    """What the rows name by `code` is a method or a setting, with a value that the config takes."""
    settings = {field.name: kind for kind in KINDS for field in fields(kind)}
    before, _, after = tables.split(re.sub("```.*?```", "", CHOICES.read_text(), flags=re.DOTALL))
    before = before.removesuffix(tables.BEGIN).replace(tables.CASES_BEGIN, "")
    named = re.findall(r"`([^`]+)`", before + after)
    assert len(named) > 60
    logged = {"entropy", "frac_reward_zero_std", "pass@1", "pass@k", "pass@2", "erc/dropped_fraction"}
    for text in named:
        if text in logged or text in REWARDS or text.startswith(("methods: [", "trl-entropy ", "</think>")):
            continue
        name, _, value = text.partition(": ")
        assert name in METHODS or name in settings, text
        if value:
            given = dict(use_adaptive_entropy=True) if name == "entropy_controller" else {}
            given |= {} if settings[name] is ModelConfig else dict(output_dir="out", use_cpu=True, bf16=False)
            settings[name](**given | {name: yaml.safe_load(value)})


def test_cases_are_those_of_the_command():
    text = CHOICES.read_text()
    assert text == tables.with_cases(text), "docs/which_method.md is stale: run `make tables`."


def grades(text):
    """The grade of each method or setting in a cell of evidence. `a` and `b` may share one: "`a`, `b` A+"."""
    found = {}
    for names, grade in re.findall(r"((?:`[^`]+`(?: \([^)]*\))?(?:, | and )?)+) (A\+ and C|A\+|A|B)(?![\w+])", text):
        found |= dict.fromkeys(re.findall(r"`([^`]+)`", names), grade)
    return found


def test_grades_of_cases_are_those_of_the_symptoms():
    """What the command says of a first choice, the rows by symptom say too."""
    rows = re.search(r"## By symptom\n(.*?)\n## ", CHOICES.read_text(), flags=re.DOTALL)[1]
    cells = [row.strip("|").split("|")[-1] for row in rows.strip().splitlines()]
    found = {}
    for cell in cells:
        for name, grade in grades(cell.replace("clip-higher", "`epsilon_high: 0.28`")).items():
            assert found.setdefault(name, grade) == grade, f"{name}: {found[name]} in one row, {grade} in another"
    assert len(found) > 15
    for case in CASES.values():
        for choice in case.choices:
            name, grade = choice.name.strip("`"), choice.evidence.split(".")[0]
            assert name.startswith("tip_") or found[name] == grade, name


def test_costs_of_first_choices_are_those_of_their_methods():
    for case in CASES.values():
        for choice in case.choices:
            for name in choice.methods:
                assert choice.cost == tables.costs(METHODS[name]), name


def test_choices_of_two_can_be_listed_together():
    """Pairs that the page recommends are accepted, in the order that it gives."""
    pairs = re.findall(r"`methods: \[(.*?)\]`", CHOICES.read_text())
    assert len(pairs) >= 3
    for pair in pairs:
        EntropyGRPOConfig("out", methods=pair.split(", "), use_cpu=True, bf16=False)


def test_tables_list_what_a_method_says_of_itself():
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"^\| `(\w+)` \| \[", text, flags=re.MULTILINE):
        method = METHODS[name]
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` | ["))
        assert f"]({method.paper.url}) | {method.summary} | [{name}.yaml](" in row
        assert (ROOT / "recipes" / f"{name}.yaml").exists()
        assert f"| {method.checked_against} |" in (ROOT / "docs" / "methods.md").read_text()


@pytest.mark.parametrize("page", tables.OTHER_TABLES)
def test_other_tables_are_those_of_the_code(page):
    text = (ROOT / page).read_text()
    assert text == tables.filled(page, text), f"{page} is stale: run `make tables`."


def test_numbers_of_the_table_of_doses():
    """By hand: 2e-4 of 2048 tokens is 0.41, of 131072 tokens 26.2."""
    rows = [[cell.strip() for cell in row.strip("|\n").split("|")] for row in tables.doses().splitlines()]
    assert rows[0] == ["ratio", "2 k", "4 k", "8 k", "16 k", "32 k", "64 k", "128 k"]
    by_ratio = {row[0]: row[1:] for row in rows}
    assert by_ratio["0.0002"] == ["*1* (0.41)", "*1* (0.82)", "1", "3", "6", "13", "26"]
    assert by_ratio["0.01"] == ["20", "40", "81", "163", "327", "655", "1310"]
    assert by_ratio["smallest that acts"][:2] == ["0.000489", "0.000245"]


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("drops the gradient", "keeps the gradient", "README.md is stale, run `make tables`: | `clip_cov` |"),
        ("| `clip_cov` | [", "| `clip_cow` | [", "README.md lists clip_cow, which does not exist: run `make tables`."),
        ("| method | paper |", "| paper | method |", "README.md is stale, run `make tables`: | paper | method |"),
        (tables.END, "| more |\n" + tables.END, "README.md is stale, run `make tables`: its last lines"),
    ],
)
def test_stale_table_is_one_clear_line(old, new, error):
    with pytest.raises(AssertionError, match=re.escape(error)) as found:
        tables.check("README.md", edited("README.md", old, new), tables.own_methods())
    assert "\n" not in str(found.value)


def test_methods_in_another_order_are_stale():
    methods = dict(reversed(tables.own_methods().items()))
    with pytest.raises(AssertionError, match="README.md is stale"):
        tables.check("README.md", (ROOT / "README.md").read_text(), methods)


@pytest.mark.parametrize("page", tables.TABLES)
def test_method_without_a_row_is_not_listed_yet(page):
    row = next(line for line in tables.split((ROOT / page).read_text())[1].splitlines() if "`kl_cov`" in line)
    assert "kl_cov" in tables.check(page, edited(page, f"{row}\n", ""), tables.own_methods())


def test_summaries_are_one_short_line():
    for method in listed().values():
        assert 20 < len(method.summary) <= 75 and method.summary[0].islower() and method.summary[-1] != "."
        assert "|" not in method.summary and "\n" not in method.summary


def test_each_method_says_what_it_was_checked_against():
    for method in tables.own_methods().values():
        assert 10 < len(method.checked_against) <= 75 and not set("|\n") & set(method.checked_against)


def keys_of(name):
    """The texts in the module of a method, among them the keys that it logs; `{}` stands for what is filled in.

    What rollouts that branch log, the trainer counts.
    """
    found = set()
    modules = [sys.modules[METHODS[name].__module__]]
    modules += [branches, places] if METHODS[name].overrides("branches") else []
    for node in (node for module in modules for node in ast.walk(ast.parse(Path(module.__file__).read_text()))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        if isinstance(node, ast.JoinedStr):
            found.add("".join(part.value if isinstance(part, ast.Constant) else "*" for part in node.values))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_metrics_that_pages_name_are_logged(page):
    for group, key in re.findall(r"`(\w+|<method>)/([\w*]+)`", page.read_text()):
        names = METHODS if group == "<method>" else [group] if group in METHODS else []
        assert not names or any(key in keys_of(name) for name in names), f"{group}/{key}"
