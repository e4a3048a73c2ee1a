# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every message that docs/troubleshooting.md quotes is one of the package, and has a cause or a fix."""

import ast
import json
import re
from pathlib import Path

import pytest

from trl_entropy.commands.methods import STORED


ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
ENTRIES = re.findall(
    r"^```text\n(.*?)\n```\n\n(.*?)(?=\n```text|\n## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE
)


def template(node):
    """The text of a string in the source, with a NUL for each value that is filled in; `None` for other nodes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
    return None


def messages():
    """The strings of the package, without docstrings, which no user sees."""
    for path in sorted((ROOT / "trl_entropy").rglob("*.py")):
        tree = ast.parse(path.read_text())
        shown = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) not in shown and (text := template(node)):
                yield " ".join(text.split())


MESSAGES = list(messages())


def said(quote):
    """Whether a message has the parts of a quote, in their order, each whole."""
    parts = [
        re.escape(part.strip()) for part in re.split(r"`?\.\.\.`?", " ".join(quote.split())) if len(part.strip()) > 2
    ]
    pattern = re.compile(r".*".join(parts))
    return any(pattern.search(text) for text in MESSAGES)


@pytest.mark.parametrize(("quote", "text"), ENTRIES, ids=[quote[:40] for quote, _ in ENTRIES])
def test_quoted_messages_are_those_of_the_package(quote, text):
    assert said(quote), quote
    assert "Fix: " in text


def test_page_quotes_many_messages_once_each():
    quotes = [quote for quote, _ in ENTRIES]
    assert len(quotes) == PAGE.read_text().count("```text") > 40 and len({*quotes}) == len(quotes)


def test_other_messages_are_not_found():
    """A quote with one changed word, or whose parts are of two messages, is none."""
    assert said("trl-entropy needs trl>=..., but trl ... is installed.")
    assert not said("trl-entropy needs trl>=..., but trl ... is missing.")
    assert not said("Unsloth has patched the GRPO trainer (...). Do nothing with `use_cpu`")


def test_fields_that_the_page_names_exist():
    """Those with the prefix of a method or of KappaTune."""
    fields = {field for about in json.loads(STORED.read_text())["methods"].values() for field in about["fields"]}
    named = set(
        re.findall(r"`((?:siren|erc|kappa|tip)_\w+)", re.sub(r"```text.*?```", "", PAGE.read_text(), flags=re.S))
    )
    assert named and named <= fields
