# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`recipes/real_model`: `diagnostics.py`, `calibration.py`, `difficulty.py`: a run, and answers with their scores."""

import importlib
import math
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


REAL_MODEL = Path(__file__).parents[2] / "recipes" / "real_model"
CHARACTERS = ["<pad>", "<eos>", *"0123456789 +="]


@pytest.fixture(scope="module")
def modules():
    """The scripts as modules, by name."""
    before = list(sys.path)
    sys.path.insert(0, str(REAL_MODEL))
    found = {
        name: importlib.import_module(name)
        for name in ("addition", "calibration", "diagnostics", "difficulty", "sampled_sums")
    }
    found["trajectories"] = importlib.import_module("trajectories")
    sys.path[:] = before
    return found


def characters() -> PreTrainedTokenizerFast:
    """A tokenizer of single characters."""
    words = Tokenizer(models.WordLevel({text: place for place, text in enumerate(CHARACTERS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left", model_max_length=64
    )


def tiny(sharp: float = 0.3) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(CHARACTERS), initializer_range=sharp, **sizes, **special))


def test_run_with_monitors_has_the_scores_of_one_without(modules, tmp_path):
    addition, trajectories = modules["addition"], modules["trajectories"]
    rows = addition.sums(held_out=False)[:32]
    data = {"prompt": addition.prompts(rows, characters()), "answer": [row.answer[:2] for row in rows]}
    task = trajectories.Task(
        plan=addition.ADDITION.plan,
        recipe=addition.ADDITION.recipe,
        reward=lambda completions, answer, **kwargs: [float(text[:1] == " ") for text in completions],
        load=lambda path: (tiny().eval(), characters()),
        dataset=lambda path: addition.Dataset.from_dict(data),
        evaluation=lambda path, tokenizer: addition.ExactAddition(tokenizer, addition.sums(True, 4)),
        cache=tmp_path,
        start=lambda cache: cache,
    )
    plan = trajectories.read_plan(task.plan, task.recipe)
    settings = plan.arms["stock"] | {"max_steps": 4, "evaluate_every": 2, "evaluate_at": [1.5], "learning_rate": 1e-2}
    plain = trajectories.train_arm(settings, 1, task, "tiny", tmp_path / "plain")
    found = modules["diagnostics"].train(task, settings, 1, "tiny", tmp_path, samples=24)
    assert found["points"] == plain["points"] and found["history"] == plain["history"]
    assert found["points"][0]["entropy"] != found["points"][-1]["entropy"]
    assert [point["step"] for point in found["points"]] == [0, 0, 2, 2, 4, 4]
    log = modules["diagnostics"].json.loads((tmp_path / "log.json").read_text())
    shown = modules["diagnostics"].rows_of(found["points"], log)
    assert [row["step"] for row in shown] == [0, 2, 4]
    for row in shown:
        assert row["geometry/rankme"] > 1 and row["attention/entropy_mean"] > 0 and row["step_radius/r_99"] > 0
    assert (tmp_path / "model" / "model.safetensors").exists() and (tmp_path / "runs" / "stock" / "1.json").exists()
    modules["diagnostics"].draw(shown, tmp_path / "picture.png")
    assert modules["diagnostics"].table(shown).count("\n") == 4


def test_rows_take_means_since_the_evaluation_before(modules):
    points = [{"step": step, "temperature": t, "pass@1": 0.5} for step in (0, 4) for t in (1.0, 1.5)]
    log = [
        {"step": 0, "geometry/rankme": 3.0},
        {"step": 2, "reward": 0.2, "entropy": 1.0, "step_radius/r_99": 2.0},
        {"step": 4, "reward": 0.4, "entropy": 0.5, "geometry/rankme": 2.0},
    ]
    first, last = modules["diagnostics"].rows_of(points, log)
    assert first == {"step": 0, "pass@1": 0.5, "geometry/rankme": 3.0, "step_radius/r_99": 2.0}
    assert last["reward"] == pytest.approx(0.3) and last["entropy"] == 0.75 and last["geometry/rankme"] == 2.0


def test_samples_have_the_probabilities_of_whole_forwards(modules):
    sampled_sums, model, tokenizer = modules["sampled_sums"], tiny(), characters()
    found = sampled_sums.answers_to(model, tokenizer, modules["addition"].sums(True, 3), samples=40, seed=0)
    assert len(found.rows) == 120 and len({tuple(row["completion_ids"]) for row in found.rows}) > 50
    lengths = set()
    for place, row in enumerate(found.rows):
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        with torch.no_grad():
            logps = model(ids).logits[0, len(row["prompt_ids"]) - 1 : -1].double().log_softmax(-1)
        own = found.whole[place]
        torch.testing.assert_close(own.log_probs.double(), logps.sort(-1, descending=True).values, atol=1e-5, rtol=0)
        texts = [CHARACTERS[token] for token in row["completion_ids"]]
        count = sampled_sums.digits_in(texts)
        chosen = [logps[n, token].item() for n, token in enumerate(row["completion_ids"])]
        expected = math.exp(sum(chosen[: count or len(chosen)]))
        if 0 < count < 5:
            expected *= 1 - logps[count, 2:12].exp().sum().item()
        assert found.confidence[place].item() == pytest.approx(expected, rel=1e-4)
        assert found.number[place].length == min(count + 1, len(texts))
        lengths.add(count)
    assert 0 in lengths and len(lengths) > 2


def test_numbers_at_the_beginning(modules):
    digits_in = modules["sampled_sums"].digits_in
    assert digits_in([" ", "1", "0", "9", "."]) == 4 and digits_in([" 1", "09", " ", "1"]) == 2
    assert digits_in(["1", "0"]) == 0 and digits_in([" ", "x"]) == 1 and digits_in(["x"]) == 0


def test_quality_of_both_models(modules, tmp_path):
    calibration, addition = modules["calibration"], modules["addition"]
    rows = addition.sums(True, 20)
    judged, other = (calibration.answers_to(tiny(), characters(), rows[n : n + 10], 8, n) for n in (0, 10))
    for answers in (judged, other):  # a label that entropy tells: below its median
        epr = calibration.features_of(answers, "number").epr
        for row, value in zip(answers.rows, epr.tolist(), strict=True):
            row["correct"] = value < float(epr.median())
    own = calibration.fits(other)
    found = calibration.measured(judged, own, own, draws=5)
    best, same = found["quality"]["EPR, number"], found["quality"]["EPR, number, fitted before"]
    assert best["auroc"][0] == 1.0 and best == same and 0.4 < found["right"] < 0.6
    assert found["number"]["epr_right"] < found["number"]["epr_wrong"]
    assert sum(map(sum, found["number"]["histograms"])) == found["answers"] == sum(found["bins"][0]) == 80
    text = calibration.tables({"before": found, "after": found})
    assert "| before | EPR, number | 1.000 [1.000, 1.000] |" in text
    calibration.draw({"before": found, "after": found}, tmp_path / "picture.png")


def test_difficulty_of_sampled_sums(modules, tmp_path, monkeypatch, capsys):
    difficulty, (model, tokenizer) = modules["difficulty"], (tiny(), characters())
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(difficulty, "load", lambda path: (model, tokenizer))
    answered = difficulty.answers_to

    def half_right(*arguments, **options):  # no answer of random weights is right
        found = answered(*arguments, **options)
        for place, row in enumerate(found.rows):
            row["correct"] = place // 2 % 2 == 0
        return found

    monkeypatch.setattr(difficulty, "answers_to", half_right)
    folders = ["--model", str(tmp_path / "model"), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["difficulty.py", *folders, "--prompts", "90", "--samples", "2"])
    difficulty.main()
    table, fitted = capsys.readouterr().out.split("Of 18 held-out questions")
    assert "0.0 to 0.1         45" in table and "0.9 to 1.0         45" in table and "get the right label" in fitted
    assert "90 questions with 180 answers" in table and "45 hard" in table
    assert len((tmp_path / "out" / "labels.jsonl").read_text().splitlines()) == 90
