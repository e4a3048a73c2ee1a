# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The knobs of KappaTune are described once, in the help of the config's fields. All other places show it."""

import argparse
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from trl_entropy import KappaTuneCallback, kappa_peft_config
from trl_entropy.commands.kappa import build_parser
from trl_entropy.kappa.config import KNOBS, KappaConfig, documented, knob_help


ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "kappa.md").read_text()


def words(text):
    return " ".join(text.split())


def test_docstrings_show_the_help_of_each_field():
    entries = {
        KappaConfig: {f"kappa_{name}" for name in KNOBS},
        KappaTuneCallback: {*KNOBS} - {"mode"},
        kappa_peft_config: {*KNOBS} - {"mode", "track_steps"},
    }
    for thing, names in entries.items():
        text = words(thing.__doc__)
        assert "{" not in text
        for name, knob in KNOBS.items():
            for shown in (name, f"kappa_{name}"):
                assert (f" {shown} (`" in text) == (shown in names)
            assert (words(knob.metadata["help"]) in text) == (not names.isdisjoint((name, f"kappa_{name}")))
    assert max(map(len, KappaTuneCallback.__doc__.splitlines())) <= 119


def test_docstring_that_is_filled():
    def call():
        """Calls.

        Args:
            {knobs}
            more: x
        """

    lines = documented(call, ["num_modules", "order"], "k_").__doc__.splitlines()
    assert lines[2:5] == [
        "        Args:",
        "            k_num_modules (`int | None`, *optional*, defaults to `None`):",
        "                Number of modules to select, instead of a share of the parameters.",
    ]
    assert lines[5] == "            k_order (`str`, *optional*, defaults to `'ascending'`):"
    assert lines[-2:] == ["            more: x", "        "]
    call.__doc__ = None  # as with `python -OO`
    assert documented(call).__doc__ is None


@pytest.mark.parametrize("name", ["top_p", "num_modules", "include", "exclude", "order", "experts", "cache"])
def test_command_shows_the_help_of_each_field(name):
    (action,) = [action for action in build_parser()._actions if action.dest == name]
    assert action.help == knob_help(name) and "%" not in action.help
    assert isinstance(action, argparse._StoreAction)


def test_page_shows_the_help_of_each_field():
    rows = dict(re.findall(r"^\| `(kappa_\w+)` \| (.*) \|$", PAGE, flags=re.MULTILINE))
    assert rows == {field.name: field.metadata["help"] for field in fields(KappaConfig)}


def test_the_help_of_the_fields_needs_no_torch():
    code = "import sys, trl_entropy.kappa.config; print(sorted({'torch', 'transformers', 'trl'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"


def test_command_without_cache(tmp_path, cache_folder, monkeypatch):
    from support.tiny import build_model

    from trl_entropy import cli

    build_model().save_pretrained(tmp_path)
    for options in (["--no-cache"], ["--cache", "none"]):
        assert cli.main(["kappa", str(tmp_path), *options]) == 0
    assert not list(cache_folder.iterdir())
    assert cli.main(["kappa", str(tmp_path)]) == 0 and len(list(cache_folder.iterdir())) == 2
