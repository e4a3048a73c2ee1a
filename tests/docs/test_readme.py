# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What README and docs say of the methods is what the registry says."""

import ast
import re
import sys
from pathlib import Path

import pytest

from trl_entropy.commands.listing import listed
from trl_entropy.methods import METHODS


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "recipes").glob("*.yaml"))]
COLUMNS = ["method", "paper", "what it does", "recipe", "status"]
LINK = re.compile(r"\[([^]]+)\]\((.+)\)")


def cells(line):
    return [cell.strip() for cell in line.strip("|\n").split("|")]


def table():
    """The rows of the README's table of methods, by column."""
    lines = README.splitlines()
    start = lines.index("| " + " | ".join(COLUMNS) + " |")
    stop = next(index for index, line in enumerate(lines) if index > start and not line.startswith("|"))
    return [dict(zip(COLUMNS, cells(line), strict=True)) for line in lines[start + 2 : stop]]


def test_table_of_methods_is_that_of_the_registry():
    rows = table()
    assert [row["method"] for row in rows] == [f"`{name}`" for name in METHODS]
    for row, (name, method) in zip(rows, METHODS.items(), strict=True):
        assert row["what it does"] == method.summary
        title, url = LINK.fullmatch(row["paper"]).groups()
        assert url == method.paper.url and title
        title, path = LINK.fullmatch(row["recipe"]).groups()
        assert title == f"{name}.yaml" and path.endswith(f"recipes/{title}") and (ROOT / "recipes" / title).exists()
        assert row["status"].startswith("tested")


def test_summaries_are_one_short_line():
    for method in listed().values():
        assert 20 < len(method.summary) <= 75 and method.summary[0].islower() and method.summary[-1] != "."
        assert "|" not in method.summary and "\n" not in method.summary


@pytest.mark.parametrize("page", ["README.md", "docs/comparison.md", "docs/compatibility.md"])
def test_every_method_is_on_the_pages_that_list_them(page):
    assert set(METHODS) <= set(re.findall(r"`(\w+)`", (ROOT / page).read_text()))


def keys_of(name):
    """The texts in the module of a method, among them the keys that it logs; `{}` stands for what is filled in."""
    found = set()
    for node in ast.walk(ast.parse(Path(sys.modules[METHODS[name].__module__].__file__).read_text())):
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
