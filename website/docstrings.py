# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes docstrings in TRL's style readable for the site, which reads Google's, without importing the package."""

import json
import re
from pathlib import Path
from typing import Any

from griffe import Extension


STORED = Path(__file__).parents[1] / "trl_entropy" / "commands" / "methods.json"
FIELD = re.compile(r"^(\w+) (\(`.*\)):$")  # the first line of a field in TRL's style; its text is indented
RAISED = re.compile(r"^(\s+)`(\w+)`: ")
TYPED = re.compile(r"^(\s+\w+ )\((.*)\):$")  # the first line of an argument in TRL's style


# What has `{knobs}` in its docstring, with the prefix of their names and those that it does not take
KNOBS = {
    "KappaConfig": ("kappa_", ()),
    "KappaTuneCallback": ("", ("mode",)),
    "kappa_peft_config": ("", ("mode", "track_steps")),
}


def help_of(method: dict[str, Any]) -> dict[str, str]:
    """What each field of a method means, without the name of the method with which all begin."""
    helps = {field: about["help"] for field, about in method["fields"].items()}
    starts = {text.partition(": ")[0] for text in helps.values()}
    return {field: text.partition(": ")[2] if len(starts) == 1 else text for field, text in helps.items()}


def with_knobs(text: str, thing: str) -> str:
    """A docstring whose `{knobs}` are KappaTune's fields, which the package fills in when it is imported."""
    kappa = json.loads(STORED.read_text())["methods"]["kappa"]
    prefix, left_out = KNOBS[thing]
    before, _, after = text.partition("{knobs}")
    indent = before.rpartition("\n")[2]
    entries = []
    for field, help_text in help_of(kappa).items():
        name = field.removeprefix("kappa_")
        if name not in left_out:
            kind, _, default = kappa["fields"][field]["default"].partition(" = ")
            head = f"{prefix}{name} (`{kind}`, *optional*, defaults to `{default}`):"
            entries += [head, f"    {help_text}"]
    return before + f"\n{indent}".join(entries) + after


def readable(text: str) -> str:
    """A docstring whose fields in TRL's style are a definition list, and whose types have no backticks."""
    lines: list[str] = []
    in_field = first = False
    for line in text.splitlines():
        if found := FIELD.match(line):
            lines += ["", f"`{found[1]}` {found[2]}", ""]
            in_field = first = True
        elif in_field and line.startswith("    "):
            lines.append((":   " if first else "    ") + line.strip())
            first = False
        else:
            in_field = in_field and not line.strip()
            line = TYPED.sub(lambda found: found[1] + "(" + re.sub(r"\[`~?|`\]|[`*]", "", found[2]) + "):", line)
            lines.append(RAISED.sub(r"\1\2: ", line))
    return "\n".join(lines)


class TrlDocstrings(Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        if obj.is_alias or not obj.docstring:
            return
        text = obj.docstring.value
        if "{knobs}" in text and obj.name in KNOBS:
            text = with_knobs(text, obj.name)
        obj.docstring.value = readable(text)
