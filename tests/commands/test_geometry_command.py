# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy geometry`: from a model and texts, its files, and its errors."""

import json
import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_entropy import cli
from trl_entropy.commands.geometry_views import HEADS
from trl_entropy.monitors.diffusion import diffusion_entropy, diffusion_information
from trl_entropy.monitors.geometry import effective_rank, power_law, spectrum


WORDS = ("answer", "solve", "problem", "the", "following", "18")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Texts of three classes, each with another text of its class. One row has no class."""
    rows = []
    for n in range(48):
        kind = WORDS[n % 3]
        text = " ".join([WORDS[n % 6], str(n), kind])
        rows.append({"question": text, "kind": None if n == 5 else kind, "other": f"{n % 4} {kind}", "right": n % 2})
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, rows


def features_of(folder, texts):
    """Hidden states at the last token, by one forward for each text: those of layer 0, and the last."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        states = [model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True) for text in texts]
    return [torch.stack([state.hidden_states[layer][0, -1] for state in states]) for layer in (1, -1)]


def test_numbers_are_those_of_the_hidden_states(tiny, data, capsys):
    path, rows = data
    call = ["geometry", str(tiny), "--data", str(path), "--text", "question", "--label", "kind", "--pair", "other"]
    assert cli.main([*call, "--json", "--layers", "0", "--batch-size", "5", "--clusters", "4"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["samples"] == 48 and [*record["layers"]] == ["0", "last"]
    assert record["classes"]["dsmi"] == {"answer": 16, "solve": 16, "problem": 15}
    assert sum(record["classes"]["dsmi_pair"].values()) == 48 and len(record["classes"]["dsmi_pair"]) == 4
    labels = torch.tensor([n % 3 for n in range(48) if n != 5])
    known = [n for n in range(48) if n != 5]
    states = features_of(tiny, [row["question"] for row in rows])
    for features, found in zip(states, record["layers"].values(), strict=True):
        values = spectrum(features)
        assert found["rankme"] == pytest.approx(effective_rank(values), rel=1e-4)
        assert found["alpha"] == pytest.approx(power_law(values)[0], rel=1e-3)
        assert found["dse"] == pytest.approx(diffusion_entropy(features), rel=1e-4)
        assert found["dsmi"] == pytest.approx(diffusion_information(features[known], labels), rel=1e-3)
        # Texts end with the name of their class. Their number and first word do not tell it.
        assert found["dsmi"] > 0.1 and found["dsmi_pair"] is not None
        assert set(found) == set(HEADS)


def test_table_and_files(tiny, data, capsys, tmp_path):
    call = ["geometry", str(tiny), "--data", str(data[0]), "--text", "question", "--layers", "all", "--samples", "30"]
    assert cli.main([*call, "--label", "right", "--output", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "30 texts" and lines[2].split()[:2] == ["layer", "RankMe"]
    assert [line.split()[0] for line in lines[3:6]] == ["0", "1", "last"]
    assert lines[-1] == "Classes: 0 (15), 1 (15)"
    record = json.loads((tmp_path / "out" / "geometry.json").read_text())
    assert f"{record['layers']['last']['rankme']:.4f}" == lines[5].split()[1]
    assert (tmp_path / "out" / "geometry.png").stat().st_size > 5000


def test_what_is_not_defined_is_null(tiny, tmp_path, capsys, caplog):
    """Below 22 eigenvalues there is no power law, and classes of one text say nothing. Empty texts are left out."""
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps({"prompt": text, "kind": text}) + "\n" for text in ("a b", "c", "", "d")))
    caplog.set_level(logging.WARNING)
    assert cli.main(["geometry", str(tiny), "--data", str(path), "--label", "kind", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    last = record["layers"]["last"]
    assert last["alpha"] is None and last["dsmi"] is None and last["rankme"] > 1 and record["samples"] == 3
    assert "Rows with an empty text are left out: 1 of 4." in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text", "questions"], "`--text` must be a column of the data, got 'questions': it has question, kind"),
        (["--label", "class"], "`--label` must be a column of the data, got 'class'"),
        (["--layers", "7"], "`--layers` must be below 2, the model's number of layers, got 7."),
        (["--layers", "last"], "must be `all` or numbers of layers from 0, got 'last'"),
        (["--ranks", "9", "9"], "`--ranks` must be a rank and a larger one, got 9 and 9."),
        (["--samples", "1"], "`--data` must have at least two texts that are not empty, got 1."),
        (["--samples", "0"], "must be a whole number >= 1, got '0'"),
    ],
)
def test_errors_are_one_line(tiny, data, capsys, words, message):
    given = words if "--text" in words else ["--text", "question", *words]
    with pytest.raises(SystemExit) as status:
        cli.main(["geometry", str(tiny), "--data", str(data[0]), *given])
    error = capsys.readouterr().err.splitlines()  # before it, the bar of a model that is loaded
    assert status.value.code == 2 and message in error[-1] and "Traceback" not in "".join(error)
