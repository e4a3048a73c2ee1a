# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The command: its table, its files, its errors, and that a second call loads nothing slow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny import build_model

from trl_entropy import cli
from trl_entropy.commands import kappa as command
from trl_entropy.kappa.layers import Layer
from trl_entropy.kappa.report import by_type, plot
from trl_entropy.kappa.selection import Selection
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
        **{f"self_attn.{kind}_proj": [0, 1] for kind in ("q", "k", "v", "o")},
        **{f"mlp.{kind}_proj": [0, 1] for kind in ("gate", "up", "down")},
    }


@pytest.mark.parametrize(
    "name, kind, expected",
    [
        ("transformer.h.1.attn.c_proj", "linear", "attn.c_proj"),
        ("transformer.h.1.mlp.c_proj", "linear", "mlp.c_proj"),
        ("model.layers.3.mlp.experts.17.up_proj", "linear", "mlp.experts.up_proj"),
        ("model.layers.3.mlp.shared_expert.up_proj", "linear", "mlp.shared_expert.up_proj"),
        ("model.layers.3.self_attn.1.q_b_proj", "linear", "self_attn.q_b_proj"),
        ("model.layers.3.mlp.experts.down_proj", "experts", "mlp.experts.down_proj"),
        ("model.vision_tower.layers.3.self_attn.q_proj", "tower", "model.vision_tower.layers.self_attn.q_proj"),
        ("lm_head", "head", "lm_head"),
    ],
)
def test_type_of_a_weight(name, kind, expected):
    assert Layer(name, f"{name}.weight", (2, 2), kind).type == expected


def test_no_bar_hides_another(tmp_path, monkeypatch):
    """But experts that are not fused, which share one: the median of theirs."""
    names = [f"h.{layer}.{block}.c_proj" for layer in (0, 1) for block in ("attn", "mlp")]
    names += [f"h.1.mlp.experts.{expert}.c_proj" for expert in range(3)]
    kappas = range(2, 9)
    layers = [
        Layer(name, name, (2, 2), "linear", ["full rank"], [float(kappa)])
        for name, kappa in zip(names, kappas, strict=True)
    ]
    bars = []
    monkeypatch.setattr("matplotlib.axes.Axes.bar", lambda axes, x, height, color: bars.append((x, height, color)))
    plot(tmp_path / "plot.png", layers, ["h.1.mlp.c_proj", "h.1.mlp.experts.0.c_proj"], Selection())
    assert bars == [([0, 1], [2, 4], ["0.75"] * 2), ([0, 1], [3, 5], ["0.75", "C0"]), ([1], [7], ["C0"])]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["nothing/", "--top-p", "2"], "`top_p` must be a share of the parameters in (0, 1], got 2.0."),
        (["./nothing"], "The model must be a folder or an id on the Hub, got './nothing', which is not a folder."),
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


def test_folder_for_the_output_is_made_before_the_analysis(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "analyze", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["kappa", str(folder), "--output", str(tmp_path / "file")])
    (error,) = capsys.readouterr().err.splitlines()
    assert "File exists" in error


@pytest.mark.parametrize("length", [3, 200, -100])
@pytest.mark.parametrize("options", [[], ["--no-cache"]])
def test_weights_that_are_cut_short(tmp_path, capsys, length, options):
    build_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(SystemExit, match="2"):
        cli.main(["kappa", str(tmp_path), *options])
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"trl-entropy kappa: error: {path} is ")


@pytest.mark.parametrize("failure", [ImportError("Install\n\ngptqmodel."), RuntimeError("No GPU")])
def test_quantized_weights_without_what_reads_them(tmp_path, capsys, monkeypatch, failure):
    model = build_model()
    weights = {
        key: torch.ones(2, 2, dtype=torch.int32) if "proj" in key else weight
        for key, weight in model.state_dict().items()
    }
    model.save_pretrained(tmp_path, state_dict=weights)

    def fail(*arguments, **keywords):
        raise failure

    monkeypatch.setattr(type(model), "from_pretrained", fail)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["kappa", str(tmp_path)])
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith(f"cannot be loaded: {' '.join(str(failure).split())}")


def test_more_modules_than_there_are(folder, caplog):
    assert cli.main(["kappa", str(folder), "--num-modules", "20"]) == 0
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == "`num_modules`=20 is more than there are: all 14 candidates of full rank are selected."


def test_second_call_needs_no_torch(folder, tmp_path):
    """A second call takes under a second because of this."""
    call = [sys.executable, "-X", "importtime", "-m", "trl_entropy.cli", "kappa", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert cli.main(["kappa", str(folder), "--cache", str(tmp_path)]) == 0
    done = subprocess.run([*call, "--cache", str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "of 14 modules" in done.stdout
    assert not {"torch", "transformers"} & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
