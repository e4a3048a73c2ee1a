# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of README and docs, and what `trl-entropy methods` shows of the methods.

`python -m tests.support.tables` from the root of the repository, or `make tables`.
"""

import json
import re
import sys
from pathlib import Path

from trl_entropy.commands.listing import stages, store
from trl_entropy.diagnosis.rules import RULES
from trl_entropy.functional import ratio_count, smallest_ratio
from trl_entropy.methods import METHODS, Method

from . import compatibility


ROOT = Path(__file__).parents[2]
RECIPES = "https://github.com/trl-entropy/trl-entropy/blob/main/recipes"
BEGIN, END = "<!-- `make tables` writes this table -->\n", "<!-- end of the table -->\n"


def paper_link(method: type[Method]) -> str:
    return f"[{method.paper.title.split(':')[0]}]({method.paper.url})"


# By page: the columns of its table, each with what it says of a method.
TABLES = {
    "README.md": {
        "method": lambda method: f"`{method.name}`",
        "paper": paper_link,
        "what it does": lambda method: method.summary,
        "recipe": lambda method: f"[{method.name}.yaml]({RECIPES}/{method.name}.yaml)",
    },
    "docs/methods.md": {
        "method": lambda method: f"`{method.name}`",
        "acts on": lambda method: "; ".join(stages(method)),
        "checked against": lambda method: method.checked_against,
    },
}


def own_methods() -> dict[str, type[Method]]:
    """The methods of this package, without those of other packages that are installed."""
    return {name: method for name, method in METHODS.items() if method.__module__.startswith("trl_entropy.")}


def render(page: str, methods: list[type[Method]]) -> str:
    """The table of a page, with a row for each method."""
    columns = TABLES[page]
    rows = [list(columns), ["---"] * len(columns)]
    rows += [[cell(method) for cell in columns.values()] for method in methods]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def split(text: str) -> tuple[str, str, str]:
    """A page's text: up to its table, the table, and the rest."""
    before, begin, rest = text.partition(BEGIN)
    table, end, after = rest.partition(END)
    assert begin and end, f"The page must have the lines {BEGIN!r} and {END!r} around its table."
    return before + begin, table, end + after


def check(page: str, text: str, methods: dict[str, type[Method]]) -> list[str]:
    """The names of the methods that the table of a page does not list yet.

    Raises:
        `AssertionError`: the table lists a method that does not exist, or differs in a row, a column or the order.
    """
    table = split(text)[1]
    listed = re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)
    if unknown := [name for name in listed if name not in methods]:
        raise AssertionError(f"{page} lists {', '.join(unknown)}, which does not exist: run `make tables`.")
    expected = render(page, [method for name, method in methods.items() if name in listed])
    pairs = zip(table.splitlines(), expected.splitlines(), strict=False)
    if table != expected:
        stale = next((line for line, other in pairs if line != other), "its last lines")
        raise AssertionError(f"{page} is stale, run `make tables`: {stale}")
    return [name for name in methods if name not in listed]


def as_table(rows: list[list[str]]) -> str:
    """Rows, the first of them the header, as a table of Markdown."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def doses() -> str:
    """Tokens that a ratio takes of a micro-batch, as the methods count them. In italics: the ratio is below one."""
    counts = [2**power * 1024 for power in range(1, 8)]
    rows = [["ratio", *(f"{count // 1024} k" for count in counts)]]
    for ratio in (1e-5, 1e-4, 2e-4, 1e-3, 2e-3, 1e-2):
        taken = [(ratio_count(ratio, count), ratio * count) for count in counts]
        rows.append(
            [f"{ratio:g}", *(f"*{number}* ({exact:.2g})" if exact < 1 else str(number) for number, exact in taken)]
        )
    return as_table([*rows, ["smallest that acts", *(f"{smallest_ratio(count):g}" for count in counts)]])


def rules() -> str:
    """The rules of the diagnosis."""
    rows = [["rule", "evidence", "what it means", "what to turn"]]
    for rule in RULES:
        papers = ", ".join(f"[{paper}](https://huggingface.co/papers/{paper})" for paper in rule.papers)
        name = f"**{rule.name}**" if rule.severe else rule.name
        looks = rule.looks.format(**rule.thresholds) + (f" {papers}" if papers else "")
        turn = rule.turn or "The finding names the field: each method declares it."
        rows.append([name, looks, rule.meaning, turn])
    return as_table(rows)


# By page: its tables that list no methods, in their order.
OTHER_TABLES = {"docs/diagnosis.md": (doses, rules)}


def filled(page: str, text: str) -> str:
    """A page's text with its tables written anew."""
    parts = text.split(BEGIN)
    assert len(parts) == 1 + len(OTHER_TABLES[page]), f"{page} must have {len(OTHER_TABLES[page])} tables."
    written = [
        BEGIN + make() + END + part.partition(END)[2] for make, part in zip(OTHER_TABLES[page], parts[1:], strict=True)
    ]
    return "".join([parts[0], *written])


def main() -> int:
    for page in OTHER_TABLES:
        path = ROOT / page
        path.write_text(filled(page, path.read_text()))
    for page in TABLES:
        path = ROOT / page
        before, _, after = split(path.read_text())
        path.write_text(before + render(page, list(own_methods().values())) + after)
    outcomes = json.loads(compatibility.OUTCOMES.read_text())
    compatibility.TABLE.write_text(compatibility.render(outcomes, list(own_methods())))
    store()
    return 0


if __name__ == "__main__":
    sys.exit(main())
