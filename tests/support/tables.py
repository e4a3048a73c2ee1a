# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of README and docs, and what `trl-entropy methods` shows of the methods.

`python -m tests.support.tables` from the root of the repository, or `make tables`.
"""

import inspect
import json
import re
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from trl_entropy.advice.cases import CASES
from trl_entropy.commands.listing import OTHERS, contents, stages, store
from trl_entropy.commands.methods import STORED
from trl_entropy.diagnosis.rules import RULES
from trl_entropy.functional import ratio_count, smallest_ratio
from trl_entropy.methods import METHODS, Method, MethodsConfig

from . import compatibility, paper_index, private_names


ROOT = Path(__file__).parents[2]
RECIPES = "https://github.com/trl-entropy/trl-entropy/blob/main/recipes"
BEGIN, END = "<!-- `make tables` writes this table -->\n", "<!-- end of the table -->\n"


def paper_link(method: type[Method]) -> str:
    return f"[{method.paper.title.split(':')[0]}]({method.paper.url})"


# By what a method `needs`: what it costs.
COSTS = {
    "rollout_entropy": "one forward without gradient per generation batch, free if TRL scores its rollouts",
    "second_moments": "a statistic of the fused head",
    "nucleus_entropy": "a statistic of the fused head",
    "second_temperature": "a statistic of the fused head",
    "top_logps": "a statistic of the fused head",
    "branched_rollouts": "a softmax per token while completions are generated; samples fewer tokens",
    "auxiliary_rollouts": "completions of its own, and one more forward per micro-batch",
    "replay": "one more forward per micro-batch while something is replayed",
}


@cache
def measured() -> dict[str, Any]:
    """The scores of all methods on one task, and their step times."""
    return json.loads((ROOT / "recipes" / "benchmarks" / "methods.json").read_text())


def costs(method: type[Method]) -> str:
    """What a method computes beyond a step of GRPO, with the settings of its recipe."""
    recipe = yaml.safe_load((ROOT / "recipes" / f"{method.name}.yaml").read_text())
    fields = {key: value for key, value in recipe.items() if key.startswith(f"{method.name}_")}
    needs = list(method(MethodsConfig(methods=[method.name], **fields)).needs)
    if method.overrides("reward") and "token_entropies" in inspect.signature(method.reward).parameters:
        needs.append("rollout_entropy")
    return "; ".join(dict.fromkeys(COSTS[need] for need in needs if need in COSTS)) or "nothing"


def only_one(method: type[Method]) -> str:
    """What at most one method of a run may do."""
    kinds = {
        "defines the group's advantages": method.replaces_advantages,
        "sets the clip bounds": method.overrides("clip_bounds"),
    }
    return "; ".join(kind for kind, holds in kinds.items() if holds)


def step_time(method: type[Method]) -> str:
    ratio = measured()["timing"].get(method.name)
    return "not measured" if ratio is None else f"{ratio:.2f}"


def compared(method: type[Method]) -> str:
    runs = {name.split("/")[0] for name in measured()["runs"]}
    return "[yes](comparison.md)" if method.name in runs else "not measured here"


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
        "`entropy_keep` drives": lambda method: "-" if method.knob is None else f"`{method.knob.field}`",
        "checked against": lambda method: method.checked_against,
    },
    "docs/which_method.md": {
        "method": lambda method: f"`{method.name}`",
        "one update per generation batch": lambda method: "does nothing" if method.acts_on_ratio else "acts",
        "only one method may": only_one,
        "computes in addition": costs,
        "step time": step_time,
        "compared on the toy task": compared,
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


def check_stored(stored: dict[str, Any]) -> list[str]:
    """The names of the methods whose descriptions `trl-entropy methods` does not store yet.

    Raises:
        `AssertionError`: what is stored of the others, or of the trainer's config, is not what they say.
    """
    expected = contents()
    own = {*own_methods(), *(other.name for other in OTHERS)}
    listed = [name for name in expected["methods"] if name in own]
    new = [name for name in listed if name not in stored["methods"]]
    wrong = [name for name in stored["methods"] if name not in own]
    wrong += [name for name in listed if name not in new and stored["methods"][name] != expected["methods"][name]]
    if not new:  # whose module changes these
        wrong += [key for key in ("known", "digest") if stored[key] != expected[key]]
    if wrong:
        raise AssertionError(f"{STORED.relative_to(ROOT)} is stale, run `make tables`: {', '.join(wrong)}")
    return new


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


SUPPORTED = ("trl", "transformers", "accelerate", "torch", "datasets", "huggingface_hub", "peft")


def supported() -> str:
    """The versions that `pyproject.toml` allows, and those with which the tests run."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["peft"]]
    allowed = dict(re.match(r"([\w-]+)(.*)", text).groups() for text in needed)
    tested = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    pythons = [text.rsplit(" ", 1)[1] for text in project["classifiers"] if re.search(r":: 3\.\d+$", text)]
    rows = [["package", "supported", "tested with"]]
    rows.append(["Python", project["requires-python"], ", ".join(pythons)])
    rows += [[name, allowed[name].replace(",", ", "), tested[name]] for name in SUPPORTED]
    return as_table([rows[0], *([row[0], f"`{row[1]}`", row[2]] for row in rows[1:])])


def private() -> str:
    """What the package uses of TRL beyond its public interface."""
    return as_table(private_names.rows())


# By page: its tables that list no methods, in their order.
OTHER_TABLES = {"docs/diagnosis.md": (doses, rules), "docs/versioning.md": (supported, private)}


CASES_BEGIN, CASES_END = "<!-- `make tables` writes these cases -->\n", "<!-- end of the cases -->\n"


def as_yaml(key: str, value: Any) -> str:
    return f"`{key}: {yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}`"


def choices() -> str:
    """Each first choice of a case, once."""
    rows = [["first choice", "if", "why", "evidence", "computes in addition"]]
    for choice in dict.fromkeys(choice.name for case in CASES.values() for choice in case.choices):
        one = next(one for case in CASES.values() for one in case.choices if one.name == choice)
        rows.append([one.name, one.when or "-", one.why, one.evidence, one.cost])
    return as_table(rows)


def cases() -> str:
    """What `trl-entropy recommend` says of each case."""
    rows = [["case", "the first that applies", "settings", "then", "note", "recipe"]]
    for name, case in CASES.items():
        settings = [as_yaml(key, value) for key, value in {**case.requires, **case.suggests}.items()]
        first = ", ".join(choice.name for choice in case.choices)
        recipe = f"[{case.recipe}.yaml](../recipes/{case.recipe}.yaml)"
        rows.append([f"{name}: {case.title}", first, ", ".join(settings) or "-", case.then, case.note or "-", recipe])
    return as_table(rows)


def with_cases(text: str) -> str:
    """The text of the page of choices with its table of cases written again."""
    before, begin, rest = text.partition(CASES_BEGIN)
    _, end, after = rest.partition(CASES_END)
    assert begin and end, f"The page must have the lines {CASES_BEGIN!r} and {CASES_END!r}."
    return before + begin + choices() + "\n" + cases() + end + after


def filled(page: str, text: str) -> str:
    """A page's text with its tables written again."""
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
    path = ROOT / "docs" / "which_method.md"
    path.write_text(with_cases(path.read_text()))
    outcomes = json.loads(compatibility.OUTCOMES.read_text())
    compatibility.TABLE.write_text(compatibility.render(outcomes, list(own_methods())))
    paper_index.PAGE.write_text(paper_index.render(own_methods()))
    store()
    return 0


if __name__ == "__main__":
    sys.exit(main())
