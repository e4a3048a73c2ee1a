# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The rules of the house: who imports what, and what belongs to a method."""

import ast
import inspect
import re
import subprocess
import sys
from collections import Counter
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from trl_entropy.methods import METHODS, Method, MethodsConfig
from trl_entropy.methods.tip import Tip, TipConfig


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trl_entropy"
GROUND = ("tokens", "collectives", "functional", "inert", "knob", "paper", "ratios", "settings", "signs", "estimates")
GROUND += ("turns",)
TENSOR_MODULES = [*(PACKAGE / f"{name}.py" for name in GROUND), *sorted((PACKAGE / "methods").glob("*.py"))]
# What a method may override without acting in training.
NO_HOOKS = ("check", "check_rewards", "setup", "metrics", "rollout_metrics", "state_dict", "load_state_dict")
HOSTS = {"trl", "transformers", "accelerate", "datasets", "peft"}


def imported(path):
    """Top-level packages that a module imports, anywhere in it; relative imports by their module's name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield ("." if node.level else "") + (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", TENSOR_MODULES, ids=lambda path: path.stem)
def test_methods_know_tensors_and_nothing_of_the_host(path):
    names = set(imported(path))
    assert names and not names & HOSTS
    ours = {name for name in names if name.startswith(".")}
    siblings = {f".{other.stem}" for other in (PACKAGE / "methods").glob("*.py")}
    assert ours <= {*(f".{name}" for name in GROUND), *siblings}


@pytest.mark.parametrize("path", sorted((PACKAGE / "trainers").glob("*.py")), ids=lambda path: path.stem)
def test_trainers_name_no_method(path):
    """Neither a string nor a field names a method."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    quoted = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    fields_read = {node.attr for node in nodes if isinstance(node, ast.Attribute)} | quoted
    assert not quoted & set(METHODS)
    assert not {name for name in fields_read if name.startswith(tuple(f"{method}_" for method in METHODS))}


def test_tests_mirror_the_rooms():
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and list(path.glob("*.py"))}
    assert folders - rooms == {"support", "docs", "recipes"}


def test_test_modules_have_names_of_their_own():
    """pytest and `support.registry` import them by their names."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_helpers_of_tests_are_in_support():
    for path in (ROOT / "tests").rglob("*.py"):
        assert not [name for name in imported(path) if name.startswith("test_")], path


def test_importing_the_package_loads_nothing():
    code = "import sys, trl_entropy; print(sorted({'torch', 'trl', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"


def test_public_names_exist():
    import trl_entropy

    for name in trl_entropy._PUBLIC:
        assert getattr(trl_entropy, name).__name__ if name != "METHODS" else trl_entropy.METHODS
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        trl_entropy.Nothing  # noqa: B018


@pytest.mark.parametrize("name", METHODS)
def test_each_method_has_its_parts(name):
    method = METHODS[name]
    module = sys.modules[method.__module__].__name__.rsplit(".", 1)[1]
    assert (ROOT / "tests" / "methods" / f"test_{module}.py").exists()
    assert (ROOT / "recipes" / f"{name}.yaml").exists()
    assert method.name == name and issubclass(method, Method) and method.__doc__
    assert any(field.name.startswith(f"{name}_") for field in fields(MethodsConfig))
    assert method.paper.arxiv in method.paper.bibtex and method.paper.url.endswith(method.paper.arxiv)
    hooks = [name for name, value in vars(Method).items() if inspect.isfunction(value) and name[0] != "_"]
    assert any(method.overrides(hook) for hook in hooks if hook not in NO_HOOKS)


def test_fields_have_one_owner_help_and_default():
    owners = Counter(field for base in MethodsConfig.__mro__[1:-1] for field in getattr(base, "__annotations__", {}))
    assert owners and max(owners.values()) == 1
    for field in fields(MethodsConfig):
        assert field.metadata["help"] and "%" not in field.metadata["help"]
        assert field.default is not MISSING or field.default_factory is not MISSING
        assert field.name == "methods" or field.name.startswith(tuple(f"{name}_" for name in METHODS))


def test_no_field_hides_one_of_trl():
    from trl import DistillationConfig, GRPOConfig

    for ours, theirs in ((MethodsConfig, GRPOConfig), (TipConfig, DistillationConfig)):
        assert not {field.name for field in fields(ours)} & {field.name for field in fields(theirs)}


def test_fields_of_tip_have_prefix_help_and_default():
    assert not issubclass(Tip, Method) and Tip.name not in METHODS  # its tensors are not those of GRPO methods
    for field in fields(TipConfig):
        assert field.name.startswith("tip_") and field.metadata["help"] and "%" not in field.metadata["help"]
        assert field.default is not MISSING


def test_data_files_are_packaged():
    (patterns,) = re.findall(r"^trl_entropy = (\[.*\])", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    files = [path for path in PACKAGE.rglob("*.*") if path.suffix not in (".py", ".pyc")]
    assert PACKAGE / "templates" / "model_card.md" in files
    for path in files:
        assert any(path.relative_to(PACKAGE).match(pattern) for pattern in ast.literal_eval(patterns)), path


def test_source_files_carry_the_licence():
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]
    assert len(files) > 20
    for path in files:
        assert path.read_text().startswith(
            "# Copyright 2026 The trl-entropy Authors.\n# SPDX-License-Identifier: Apache-2.0\n"
        )
