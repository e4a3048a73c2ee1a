# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The wheel: it has every module and recipe, and finds its recipes from any folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of an unpacked wheel, which was built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("trl_entropy", "recipes"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    build = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=folder / "source", check=True, capture_output=True)
    (wheel,) = folder.glob("trl_entropy-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return folder / "installed"


def names(folder, patterns=("*.py", "*.yaml", "*.md", "*.html", "py.typed")):
    return sorted(path.relative_to(folder).as_posix() for pattern in patterns for path in folder.rglob(pattern))


def test_wheel_has_every_module_and_recipe(installed):
    assert sorted(path.name for path in installed.iterdir() if path.suffix != ".dist-info") == ["trl_entropy"]
    recipes = [name for name in names(ROOT / "recipes") if not name.startswith(("benchmarks/", "real_model/"))]
    expected = [*names(ROOT / "trl_entropy"), *(f"recipes/{name}" for name in recipes)]
    assert names(installed / "trl_entropy") == sorted(expected) and "clip_cov.yaml" in recipes
    for name in recipes:
        assert (installed / "trl_entropy" / "recipes" / name).read_bytes() == (ROOT / "recipes" / name).read_bytes()


def test_installed_commands_find_their_recipes(installed, tmp_path):
    code = (
        "from trl_entropy.commands.recipes import accelerate_config_path, recipe_path; import trl_entropy.recipes\n"
        "print(recipe_path('clip_cov'), accelerate_config_path('cpu_two_processes'), sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    folder = installed / "trl_entropy" / "recipes"
    assert done.stdout.splitlines() == [
        str(folder / "clip_cov.yaml"), str(folder / "accelerate" / "cpu_two_processes.yaml")
    ]  # fmt: skip
