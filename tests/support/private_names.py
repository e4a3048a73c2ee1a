# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the package uses of TRL that is not TRL's public interface, and which contract tests name it.

Read from the sources, without importing anything: TRL's, the package's and those of `test_contracts.py`.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path


ROOT = Path(__file__).parents[2]
CONTRACTS = ROOT / "tests" / "trainers" / "test_contracts.py"
# Files that define what the package uses, in the order in which a name is looked up
DEFINED = {
    "trl": [
        *(f"trainer/{name}.py" for name in ("grpo_trainer", "distillation_trainer", "base_trainer", "utils")),
        *(f"experimental/{name}/{name}_trainer.py" for name in ("gkd", "sdft", "sdpo")),
        *("kernels/chunked_divergence.py", "kernels/chunked_logprob.py"),
    ],
    "transformers": ["trainer.py"],
}
PUBLIC = ("trl.rewards", "trl.experimental.")
# Rooms that handle a trainer of TRL; elsewhere an underscore is our own
ROOMS = ("trainers", "head", "runs", "monitors", "countdown", "commands", "diagnosis")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and len(name) > 1


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def targets(node: ast.AST) -> Iterator[ast.expr]:
    """What an assignment assigns to."""
    found = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    for target in found:
        yield from target.elts if isinstance(target, ast.Tuple) else [target]


def defined_in(path: Path, module: str) -> Iterator[tuple[str, str]]:
    """(private name, what defines it): functions and variables of a module, methods and attributes of its classes."""
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef) and is_private(node.name):
            yield node.name, module
        if isinstance(node, ast.ClassDef):
            for part in ast.walk(node):
                if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)) and is_private(part.name):
                    yield part.name, node.name
                for target in targets(part):
                    on_self = isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self"
                    name = target.attr if on_self else target.id if isinstance(target, ast.Name) else ""
                    if is_private(name) and (on_self or part in node.body):
                        yield name, node.name


@cache
def defined() -> dict[str, str]:
    """Each private name of the trainers and of what they call, with the first class or module that defines it."""
    found: dict[str, str] = {}
    for package, files in DEFINED.items():
        root = Path(find_spec(package).origin).parent
        for file in files:
            module = f"{package}.{file.removesuffix('.py').replace('/', '.')}"
            for name, owner in defined_in(root / file, module):
                found.setdefault(name, f"transformers.{owner}" if package == "transformers" else owner)
    return found


@cache
def inner_imports() -> dict[str, str]:
    """Names that the package imports from inside TRL and that `trl` itself does not offer, with their modules."""
    public = Path(find_spec("trl").origin).read_text(encoding="utf-8")
    found = {}
    paths = sorted((ROOT / "trl_entropy").rglob("*.py"))
    for path in (path for path in paths if "from trl." in path.read_text(encoding="utf-8")):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trl."):
                for alias in node.names if not node.module.startswith(PUBLIC) else ():
                    if f'"{alias.name}"' not in public:
                        found[alias.name] = node.module
    return found


def names_in(node: ast.AST) -> set[str]:
    """Names, attributes, definitions and texts of a piece of source."""
    found: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(part.name)
        elif isinstance(part, ast.Attribute):
            found.add(part.attr)
        elif isinstance(part, ast.Name):
            found.add(part.id)
        elif isinstance(part, ast.alias):
            found.add(part.name)
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            found |= set(re.findall(r"\w+", part.value)) if len(part.value) < 100 else set()
    return found


@cache
def used() -> dict[str, list[str]]:
    """Each name that is not TRL's public interface, with the modules of this package that use it."""
    known = defined().keys() | inner_imports().keys()
    found: dict[str, list[str]] = {}
    for path in sorted(path for room in ROOMS for path in (ROOT / "trl_entropy" / room).glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if not any(name in text for name in known):  # spares most files the parser
            continue
        for name in names_in(tree(path)) & known:
            found.setdefault(name, []).append(f"{path.parent.name}/{path.name}")
    return found


@cache
def contracts() -> dict[str, list[str]]:
    """By name: the contract tests that name it. What a module-level name of the tests stands for counts too."""
    found: dict[str, list[str]] = {}
    for node in tree(CONTRACTS).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            for name in names_in(node):
                found.setdefault(name, []).append(node.name)
    return found


def rows() -> list[list[str]]:
    """The table: each name with its place in TRL, its users here, and what is assumed of it."""
    places = {**inner_imports(), **defined()}
    found = []
    for name in sorted(used(), key=lambda name: (places[name].startswith("trl."), places[name], name)):
        assumed = [test.removeprefix("test_").replace("_", " ") for test in contracts().get(name, [])]
        modules = ", ".join(f"`{module}`" for module in used()[name])
        found.append([f"`{name}`", f"`{places[name]}`", modules, "; ".join(assumed) or "-"])
    return [["name", "defined in", "used by", "what the contract tests assume"], *found]
