# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy difficulty`: labels, a probe and answers from one to the next, and its errors."""

import json
import logging
import random
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from datasets import config
from support.chat import save_chat_model

from trl_entropy import cli
from trl_entropy.commands.difficulty import build_parser
from trl_entropy.uncertainty.diffadapt import PAPER, STRATEGIES
from trl_entropy.uncertainty.difficulty_probe import DifficultyProbe


TEXTS = {"easy": "{} + 1?", "normal": "Solve the problem {}", "hard": "zz zz zz {} zz"}


def planted(count=24):
    """Four answers to each question, whose kind can be told from its text."""
    rows = []
    for n in range(count):
        for name, (right, entropy) in {"easy": (4, 0.9), "normal": (4, 0.3), "hard": (0, 0.8)}.items():
            prompt = [{"role": "user", "content": TEXTS[name].format(n)}]
            for sample in range(4):
                rows.append({
                    "prompt": prompt, "right": float(sample < right), "token_entropy_mean": entropy + 0.001 * sample,
                    "length": 10 + sample, "completion": "Answer: 18",
                })  # fmt: skip
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(*words):
    return cli.main(["difficulty", *map(str, words)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of `label` and `fit`, one after the other, and what they print."""
    path = tmp_path_factory.mktemp("difficulty")
    from trl_entropy.commands.difficulty import fit, label

    data, model = write(path / "answers.jsonl", planted()), save_chat_model(path / "model")
    words = ["label", "--data", data, "--label", "right", "--tokens", "length", "--beta", "0.5"]
    labelled = label(build_parser().parse_args([*words, "--out", str(path / "labels.jsonl")]))
    words = ["fit", "--labels", str(path / "labels.jsonl"), "--model", str(model), "--out", str(path / "probe")]
    fitted = fit(build_parser().parse_args(words))
    return SimpleNamespace(path=path, data=data, model=model, labelled=labelled, fitted=fitted)


def test_labels(folder):
    rows = lines_of(folder.path / "labels.jsonl")
    assert [row["label"] for row in rows] == ["easy", "normal", "hard"] * 24
    assert rows[0] == {
        "prompt": [{"role": "user", "content": "0 + 1?"}], "samples": 4, "accuracy": 1.0,
        "entropy": pytest.approx(0.9015), "tokens": 11.5, "label": "easy",
    }  # fmt: skip
    table, _, told = folder.labelled.partition("\n\n")
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["0.0", "to", "0.1", "24", "0.8015", "11.5"], ["0.9", "to", "1.0", "48", "0.6015", "11.5"]
    ]  # fmt: skip
    assert told == (
        "72 questions with 288 answers: 24 easy, 24 normal, 24 hard. "
        "From the easiest bin to the lowest one, entropy falls by 0.0 %."
    )
    assert (folder.path / "labels.png").read_bytes().startswith(b"\x89PNG")


def test_probe_tells_the_kinds_apart(folder):
    lines = folder.fitted.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [["easy", "24"], ["normal", "24"], ["hard", "24"]]
    assert lines[-1].startswith("Of 15 held-out questions ") and lines[-1].endswith("most common label: 0.333.")
    assert float(lines[-1].split()[4]) > 0.7
    assert DifficultyProbe.load(folder.path / "probe").labels == ("easy", "normal", "hard")
    described = json.loads((folder.path / "probe" / "probe.json").read_text())
    assert str(folder.path) not in json.dumps(described)


def count_words(completions, solution, **kwargs):
    """1 if the completion has the parity of the solution, and none for the first."""
    values = [float(len(one[0]["content"]) % 2 == wanted) for one, wanted in zip(completions, solution, strict=True)]
    return [None, *values[1:]]


def test_answers_with_a_baseline(folder, capsys):
    questions = [{"prompt": row["prompt"], "solution": n % 2} for n, row in enumerate(planted(3)[::4])]
    data, out = write(folder.path / "questions.jsonl", questions), folder.path / "given.jsonl"
    words = ["generate", "--data", data, "--probe", folder.path / "probe", "--model", folder.model]
    words += ["--max-new-tokens", 10, "--out", out, "--reward", f"{__name__}.count_words", "--baseline"]
    assert run(*words) == 0
    text = capsys.readouterr().out
    rows = lines_of(out)
    ways = [row["way"] for row in rows]
    assert ways == ["by difficulty"] * 9 + ["normal for all"] * 9
    assert (
        [row["prompt"] for row in rows[:9]] == [row["prompt"] for row in rows[9:]] == [q["prompt"] for q in questions]
    )
    adapted, normal = rows[:9], rows[9:]
    assert {row["strategy"] for row in normal} == {"normal"} and len({row["strategy"] for row in adapted}) > 1
    assert all(row["tokens"] <= STRATEGIES[row["strategy"]].tokens(10) for row in rows)
    assert all(row["truncated"] <= (row["tokens"] == STRATEGIES[row["strategy"]].tokens(10)) for row in rows)
    assert [row["reward"] for row in rows[:9]][0] is None and rows[1]["reward"] in (0.0, 1.0)
    table = {line[:14].strip(): line[14:].split("]") for line in text.splitlines()[1:4]}
    assert list(table) == ["by difficulty", "normal for all", "difference"]
    means = [sum(row["tokens"] for row in part) / 9 for part in (adapted, normal)]
    expected = [f"{value:.3f}" for value in (*means, means[0] - means[1])]
    assert [cells[0].split()[0] for cells in table.values()] == expected
    rewards = [sum(row["reward"] for row in part[1:]) / 8 for part in (adapted, normal)]
    assert [cells[1].split()[0] for cells in table.values()] == [
        f"{value:.3f}" for value in (*rewards, rewards[0] - rewards[1])
    ]
    assert "9 questions, answered " in text


def test_the_seed_repeats_answers(folder, tmp_path):
    data = write(tmp_path / "q.jsonl", [{"prompt": row["prompt"]} for row in planted(1)[::4]])
    words = ["generate", "--data", data, "--probe", folder.path / "probe", "--model", folder.model]
    for name in ("one.jsonl", "two.jsonl"):
        assert run(*words, "--max-new-tokens", 8, "--out", tmp_path / name) == 0
    assert (tmp_path / "one.jsonl").read_text() == (tmp_path / "two.jsonl").read_text()
    assert lines_of(tmp_path / "one.jsonl")[0]["reward"] is None


def test_labels_by_a_model(folder, tmp_path, capsys, caplog, monkeypatch):
    """Tables as TRL logs them in parquet, several of them; entropies by the model."""
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    draw = random.Random(0)
    for part in range(2):
        pd.DataFrame({
            "prompt": [[{"role": "user", "content": f"{n} + 1?"}] for n in range(6)],
            "completion": [[{"role": "assistant", "content": "Answer: 18 "[: draw.randint(2, 11)]}] for _ in range(6)],
            "accuracy_reward": [1.0, 0.0, None, 1.0, 1.0, 0.0],
        }).to_parquet(tmp_path / f"{part}.parquet")  # fmt: skip
    caplog.set_level(logging.WARNING)
    files = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    words = ["--label", "accuracy_reward", "--model", folder.model, "--out", tmp_path / "labels.jsonl"]
    assert run("label", "--data", *files, *words) == 0
    assert "5 questions with 10 answers: " in capsys.readouterr().out
    assert "2 answers are left out: their label or their entropy is missing." in caplog.text
    rows = lines_of(tmp_path / "labels.jsonl")
    assert all(0 < row["entropy"] < 6 and row["tokens"] > 0 and row["samples"] == 2 for row in rows)
    hot = tmp_path / "hot.jsonl"
    words[-1] = hot
    assert run("label", "--data", *files, *words, "--temperature", "2") == 0
    assert all(b["entropy"] > a["entropy"] for a, b in zip(rows, lines_of(hot), strict=True))


def test_truncated_answers_are_dropped(folder, capsys, caplog):
    caplog.set_level(logging.WARNING)
    words = ["label", "--data", folder.data, "--label", "right", "--tokens", "length", "--drop-truncated", "11"]
    assert run(*words) == 0
    assert "72 questions with 72 answers" in capsys.readouterr().out
    assert "216 answers of 11 tokens or more are left out." in caplog.text
    assert "Each question has one answer, so its accuracy is 0 or 1." in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["label", "--label", "wrong"], "`--label` must be a column of the data, got 'wrong'"),
        (
            ["label", "--label", "right", "--entropy", "h"],
            "`--entropy` must be a column of the data or give `--model`",
        ),
        (["label", "--label", "right", "--tokens", "h"], "`--tokens` must be a column of the data, got 'h'"),
        (["label", "--label", "right", "--drop-truncated", "9"], "`--drop-truncated` needs the numbers of tokens"),
        (
            ["label", "--label", "right", "--tokens", "length", "--drop-truncated", "1"],
            "answers with a label and an entropy, got none",
        ),
        (["label", "--label", "right", "--alpha", "0.1"], "got 0.3 and 0.1"),
        (["label", "--label", "right", "--alpha", "x"], "must be a number, got 'x'"),
        (["label", "--label", "right", "--temperature", "0"], "must be a number above 0, got '0'"),
        (["generate", "--reward", "accuracy_reward"], "`--reward` 'accuracy_reward' needs the column 'solution'"),
        (["generate", "--probe", "nothing"], "`probe` must be a folder with"),
    ],
)
def test_errors_are_one_line(folder, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    if words[0] == "generate":
        given = {"--probe": str(folder.path / "probe"), "--model": str(folder.model), "--max-new-tokens": "4"}
        given |= {"--out": "o.jsonl"} | dict(zip(words[1::2], words[2::2], strict=True))
        words = ["generate", *(word for pair in given.items() for word in pair)]
    with pytest.raises(SystemExit) as stopped:
        run(*words, "--data", folder.data)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1


def test_labels_without_columns(folder, tmp_path, capsys):
    data = write(tmp_path / "a.jsonl", [{"prompt": "a"}])
    with pytest.raises(SystemExit):
        run("fit", "--labels", data, "--model", folder.model, "--out", tmp_path / "probe")
    assert "`--labels` must have the columns `prompt` and `label`, got prompt" in capsys.readouterr().err
    assert not (tmp_path / "probe").exists()


def test_page_says_what_there_is():
    page = (Path(__file__).parents[2] / "docs" / "uncertainty.md").read_text()
    assert PAPER.url in page and all(
        f"`trl-entropy difficulty {kind}`" in page for kind in ("label", "fit", "generate")
    )
    for name, strategy in STRATEGIES.items():
        assert f"| `{name}` | {strategy.temperature} | {strategy.share} | {strategy.prompt} |" in page
