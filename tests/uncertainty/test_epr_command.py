# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy epr`: from a model and from log-probabilities, its files, and its errors."""

import json
import logging
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, config
from support.chat import save_chat_model

from trl_entropy import cli
from trl_entropy.commands.epr import HEADS, build_parser
from trl_entropy.uncertainty.contributions import contributions
from trl_entropy.uncertainty.epr import PAPER, Calibration, epr_score


def answers(count=120):
    """Rows of an API, two to a prompt. Wrong answers have tokens of a higher temperature."""
    generator, rows = torch.Generator().manual_seed(0), []
    for n in range(count):
        wrong = n % 2 == 1
        logits = 6 * torch.randn(12, 30, generator=generator, dtype=torch.float64)
        noisy = (torch.rand(12, generator=generator) < 0.6) & torch.tensor(wrong)
        logits = torch.where(noisy[:, None], logits / 2.5, logits)
        top = logits.log_softmax(-1).topk(6).values.tolist()
        rows.append({"prompt": f"question {n // 2}", "logprobs": top, "correct": not wrong, "epr": float(
            epr_score(contributions(logits, 5))
        )})  # fmt: skip
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A call with `--fit` on log-probabilities."""
    folder, rows = tmp_path_factory.mktemp("fit"), answers()
    data = write(folder / "answers.jsonl", rows)
    wepr, out = folder / "w" / "wepr.json", folder / "out"
    options = build_parser().parse_args(
        ["--data", data, "--label", "correct", "--k", "5", "--fit", str(wepr), "--out", str(out)]
    )
    from trl_entropy.commands.epr import evaluate

    return SimpleNamespace(rows=rows, data=data, wepr=wepr, out=out, text=evaluate(options))


def test_table_and_files(fitted):
    lines = fitted.text.splitlines()
    assert lines[0].startswith("60 answers to 30 prompts, 30 right and 30 wrong. Mean EPR in nats: ")
    assert lines[2].split() == ["score", "AUROC", "AP", "AURC", "ECE", "Brier", "NLL"]
    table = {line[:12].strip(): line[12:].split("]") for line in lines[3:6]}
    assert list(table) == ["EPR", "WEPR", "length alone"]
    assert float(table["EPR"][0].split()[0]) > 0.8  # planted
    assert table["length alone"][0].split()[0] == "0.500" and lines[5].split()[-3:] == ["-", "-", "-"]
    scores = [json.loads(line) for line in (fitted.out / "scores.jsonl").read_text().splitlines()]
    assert [row["epr"] for row in scores] == pytest.approx([row["epr"] for row in fitted.rows], rel=1e-9)
    assert [row["wrong"] for row in scores] == [not row["correct"] for row in fitted.rows]
    judged = [row["judged"] for row in scores]
    assert judged[::2] == judged[1::2] and sum(judged) == 60  # by prompt, never by answer
    quality = json.loads((fitted.out / "quality.json").read_text())
    assert quality["k"] == 5 and set(quality["quality"]["length alone"]) == {"auroc", "average_precision", "aurc"}
    assert f"{quality['quality']['EPR']['auroc']['value']:.3f}" == table["EPR"][0].split()[0]
    for name in ("reliability.png", "risk_coverage.png"):
        assert (fitted.out / name).read_bytes().startswith(b"\x89PNG")


def test_written_weights_give_the_written_probabilities(fitted, tmp_path, capsys):
    wepr, epr = Calibration.load(fitted.wepr), Calibration.load(fitted.wepr.with_suffix(".epr.json"))
    assert wepr.k == 5 and epr.k is None and epr.as_json()["coefficients"]["mean_entropy"] > 0
    first = json.loads((fitted.out / "scores.jsonl").read_text().splitlines()[3])
    known = torch.tensor(fitted.rows[3]["logprobs"], dtype=torch.float64)[:, :5]
    ranked = torch.special.entr(known.exp())
    logit = wepr.intercept + float(ranked.mean(0) @ wepr.mean + ranked.amax(0) @ wepr.maximum)
    assert first["p_wrong_wepr"] == pytest.approx(1 / (1 + torch.tensor(-logit).exp().item()), rel=1e-5)
    out = tmp_path / "again"
    assert cli.main(["epr", "--data", fitted.data, "--weights", str(fitted.wepr), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("120 answers, mean EPR 0.")  # no label: scores only
    again = json.loads((out / "scores.jsonl").read_text().splitlines()[3])
    assert again["p_wrong_wepr"] == pytest.approx(first["p_wrong_wepr"], rel=1e-12) and again["wrong"] is None
    assert not (out / "quality.json").exists()


def test_page_shows_the_highest_and_the_lowest(fitted):
    page = (fitted.out / "tokens.html").read_text()
    rows = [json.loads(line) for line in (fitted.out / "scores.jsonl").read_text().splitlines()]
    order = sorted((row for row in rows if row["judged"]), key=lambda row: -row["p_wrong_wepr"])
    labels = [f"<p>Row {row['row']}, {'wrong' if row['wrong'] else 'right'}, " for row in order[:4] + order[-4:]]
    places = [page.index(label) for label in labels]
    assert places == sorted(places) and page.count('<div class="completion">') == 8
    assert page.count("<b style") - 5 == 8 * 12  # five are the scale


def test_answers_of_a_model(tmp_path, capsys, caplog, monkeypatch):
    """Rows as TRL logs completions, in parquet: conversations, and a reward as the label."""
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model, draw = save_chat_model(tmp_path / "model"), random.Random(0)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{n // 2} + 1?"}],
            "completion": [{"role": "assistant", "content": "<b>" + "Answer: 18 "[: draw.randint(1, 11)]}],
            "accuracy_reward": [1.0, 0.0, None][n % 3],
        }
        for n in range(12)
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "c.parquet")
    caplog.set_level(logging.WARNING)
    arguments = ["--data", str(tmp_path / "c.parquet"), "--model", str(model), "--label", "accuracy_reward"]
    assert cli.main(["epr", *arguments, "--out", str(tmp_path / "out"), "--samples", "3"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("8 answers to 6 prompts, 4 right and 4 wrong.") and "WEPR" not in text
    warnings = " ".join(record.getMessage() for record in caplog.records)
    assert (
        "4 answers have no label" in warnings and "AUROC and AP need 20 right and 20 wrong answers, got 4" in warnings
    )
    scores = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert len(scores) == 12 and all(0 < row["epr"] < row["epr_upper"] for row in scores)
    page = (tmp_path / "out" / "tokens.html").read_text()
    assert page.count('<div class="completion">') == 3 and "<b>Answer" not in page and "&lt;" in page
    assert json.loads((tmp_path / "out" / "quality.json").read_text())["quality"]["EPR"]["auroc"]["value"] is None
    assert not (tmp_path / "out" / "reliability.png").exists()


def row(**changes):
    return {"prompt": "a", "logprobs": [[-0.1, -2.5]], "correct": True, **changes}


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([], [], "`--data` must have rows, got none"),
        (
            [row()],
            ["--label", "right"],
            "`--label` must be a column of the data, got 'right': it has prompt",
        ),
        ([row(correct="yes")], ["--label", "correct"], "numbers, or of true and false, got 'yes'"),
        ([row()], ["--fit", "w.json"], "`--label` must name a column with `--fit`"),
        ([row()], ["--fit", "w.json", "--label", "correct"], "`--fit` needs at least two prompts, got 1"),
        ([row(), row(prompt="b")], ["--fit", "w.json", "--label", "correct"], "got 1 right and 0 wrong ones"),
        ([{"prompt": "a", "completion": "b"}], [], "`--model` must name a model, or all rows must have `logprobs`"),
        ([row(logprobs=[3])], [], "`logprobs` must be OpenAI's object"),
        ([row()], ["--k", "0"], "must be a whole number >= 1, got '0'"),
        ([row()], ["--split", "1"], r"must be a number in (0, 1), got '1'"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, rows, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", rows)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["epr", "--data", "a.jsonl", *arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "w.json").exists()


def test_ranks_are_those_of_the_weights(fitted, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["epr", "--data", fitted.data, "--weights", str(fitted.wepr), "--k", "4"])
    assert "`--k` must be 5, as in the weights, got 4" in capsys.readouterr().err
    (tmp_path / "bad.jsonl").write_text("{}\n{\n")
    with pytest.raises(SystemExit):
        cli.main(["epr", "--data", str(tmp_path / "bad.jsonl")])
    assert "one JSON object a line, got another line 2" in capsys.readouterr().err


def test_saturated_token_scores_give_a_map_of_entropies(fitted, tmp_path, caplog):
    huge = Calibration(50.0, torch.ones(5), torch.full((5,), -40.0))
    huge.save(tmp_path / "w.json")
    caplog.set_level(logging.WARNING)
    arguments = ["--data", fitted.data, "--weights", str(tmp_path / "w.json"), "--out", str(tmp_path / "out")]
    assert cli.main(["epr", *arguments]) == 0
    assert "WEPR's token scores are nearly equal" in caplog.text
    assert '<p class="about scale">nats:' in (tmp_path / "out" / "tokens.html").read_text()


def test_page_explains_what_is_written(fitted):
    page = (Path(__file__).parents[2] / "docs" / "uncertainty.md").read_text()
    assert PAPER.url in page and all(f"`{path.name}`" in page for path in fitted.out.iterdir())
    assert all(head in page for head in HEADS.values())
