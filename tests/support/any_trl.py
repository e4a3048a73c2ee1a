# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A plugin of pytest (`-p support.any_trl`): the package takes any TRL for a supported one.

For the contract tests, which say what would have to change for a TRL that is not supported. The first lines of a run
name this TRL and the names that it lacks. A class that cannot be used stands in for such a name, so that only the
tests that need it fail.
"""

import ast
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import trl


ROOT = Path(__file__).parents[2]
INSTALLED = trl.__version__
PINNED = re.search(r"^trl==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


def imported(paths: list[Path]) -> Iterator[tuple[str, str]]:
    """(module, name) of each name that the files import from TRL."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "trl":
                yield from ((node.module, alias.name) for alias in node.names)


def load(module: str) -> ModuleType | None:
    try:
        return import_module(module)
    except ImportError:
        return None


def stand_in(module: str, name: str) -> type:
    def fail(*arguments, **settings):
        raise ImportError(f"TRL {INSTALLED} has no `{module}.{name}`")

    return type(name, (), {"__init__": fail, "__module__": module})


def fill(module: str, name: str) -> bool:
    """Whether TRL lacks the name. Something stands in for it then."""
    found = load(module) or sys.modules.setdefault(module, ModuleType(module))
    if hasattr(found, name) or load(f"{module}.{name}") is not None:
        return False
    setattr(found, name, stand_in(module, name))
    return True


FILES = [*(ROOT / "trl_entropy").rglob("*.py"), ROOT / "tests" / "trainers" / "test_contracts.py"]
NEEDED = sorted({*imported(FILES)})
MISSING = [f"{module}.{name}" for module, name in NEEDED if fill(module, name)]
trl.__version__ = PINNED  # which `check_trl_version` is given


def pytest_report_header() -> list[str]:
    lacks = f"lacks {', '.join(MISSING)}" if MISSING else f"has all {len(NEEDED)} names that the package imports"
    return [f"TRL {INSTALLED} in {Path(trl.__file__).parent}, taken for {PINNED}: {lacks}"]
