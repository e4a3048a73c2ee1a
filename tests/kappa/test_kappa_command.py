# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The command: its table, what it writes, its errors, and that a second call loads nothing slow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import build_model

from trl_entropy import cli
from trl_entropy.kappa.report import by_type
from trl_entropy.kappa.sources import CheckpointSource


pytestmark = pytest.mark.usefixtures("cache_folder")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    build_model().save_pretrained(folder)
    return folder


def test_table_json_and_plot(folder, tmp_path, capsys):
    assert cli.main(["kappa", str(folder), "--num-modules", "3", "--exclude", "attn", "--output", str(tmp_path)]) == 0
    *rows, last = capsys.readouterr().out.splitlines()
    assert rows[0].split() == ["module", "shape", "kappa", "selected"] and last.startswith(
        "3 of 6 modules, 1536 of 3072 "
    )
    weights = dict(build_model().named_parameters())
    found = {row.split()[0]: float(row.split()[2]) for row in rows[1:]}
    expected = {name: np.linalg.cond(weights[f"{name}.weight"].detach().double().numpy()) for name in found}
    assert found == pytest.approx(expected, rel=1e-3) and list(found) == sorted(expected, key=expected.get)
    assert [row.split()[-1] == "yes" for row in rows[1:]] == [True] * 3 + [False] * 3
    written = json.loads((tmp_path / "kappa.json").read_text())
    assert written["selected"] == list(found)[:3] and written["model"] == str(folder)
    kappas = {row["name"]: row["kappa"] for row in written["layers"]}
    assert kappas == pytest.approx(expected, rel=1e-9)
    assert (tmp_path / "kappa.png").read_bytes().startswith(b"\x89PNG")


def test_plot_has_a_panel_for_each_type(folder):
    panels = by_type([layer for layer in CheckpointSource(str(folder)).layers() if layer.kind == "linear"])
    assert {kind: sorted(members) for kind, members in panels.items()} == {
        f"{kind}_proj": [0, 1] for kind in ("q", "k", "v", "o", "gate", "up", "down")
    }


@pytest.mark.parametrize(
    "argv, message",
    [
        (["nothing/", "--top-p", "2"], "`top_p` must be a share of the parameters in (0, 1], got 2.0."),
        (["./nothing"], "The model must be a folder or an id on the Hub, got './nothing', which is no folder."),
        (["{folder}", "--top-p", "0.01"], "`top_p`=0.01 selects nothing"),
        (["{folder}", "--order", "up"], "argument --order: invalid choice: 'up'"),
        ([], "the following arguments are required: MODEL"),
    ],
)
def test_errors_are_one_line(folder, capsys, argv, message):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["kappa", *(word.format(folder=folder) for word in argv)])
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("trl-entropy kappa: error: ") and message in error


def test_second_call_needs_no_torch(folder, tmp_path):
    """What makes it take under a second."""
    command = [sys.executable, "-X", "importtime", "-m", "trl_entropy.cli", "kappa", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert cli.main(["kappa", str(folder), "--cache", str(tmp_path)]) == 0
    done = subprocess.run([*command, "--cache", str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "of 14 modules" in done.stdout
    assert not {"torch", "transformers"} & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
