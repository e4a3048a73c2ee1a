# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Labels of difficulty, the U-curve, entropies of answers, and comparisons, against literals."""

import math

import pytest
import torch
from support.tiny import FLOAT32, build_model

from trl_entropy.uncertainty.answers import Answer
from trl_entropy.uncertainty.compared import mean_with_interval
from trl_entropy.uncertainty.diffadapt import STRATEGIES, Strategy, difficulty_labels
from trl_entropy.uncertainty.entropies import answer_entropies, token_entropies
from trl_entropy.uncertainty.u_curve import Question, overthinking, questions_of, u_curve


ACCURACY, ENTROPY = [0.9, 0.9, 0.5, 0.1, 0.3, 0.7], [0.4, 0.8, 0.4, 0.4, 0.9, 0.5]


def test_worked_example():
    expected = ["normal", "easy", "easy", "hard", "easy", "normal"]
    assert difficulty_labels(ACCURACY, ENTROPY, alpha=0.7, beta=0.5, gamma=0.3) == expected
    assert difficulty_labels(ACCURACY, ENTROPY) == [*expected[:5], "easy"]  # the median is 0.45
    assert difficulty_labels(ACCURACY, ENTROPY, beta=0.45) == [*expected[:5], "easy"]


def test_weak_and_strict_inequalities():
    assert difficulty_labels([0.7, 0.3, math.nextafter(0.3, 0)], [0.5, 0.5, 0.5], beta=0.5) == [
        "normal",
        "easy",
        "hard",
    ]
    assert difficulty_labels([0.7, 0.7], [0.5, math.nextafter(0.5, 1)], beta=0.5) == ["normal", "easy"]
    assert difficulty_labels([], []) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(alpha=0.2), "0 <= gamma <= alpha <= 1, got 0.3 and 0.2"),
        (dict(alpha=1.2), "got 0.3 and 1.2"),
        (dict(gamma=-0.1), "got -0.1 and 0.7"),
        (dict(beta=math.nan), "`beta` must be a finite number, got nan"),
        (dict(accuracy=[math.nan] * 6), "must be finite, and as many"),
        (dict(entropy=[0.1]), "must be finite, and as many"),
    ],
)
def test_bad_thresholds_and_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        difficulty_labels(**{"accuracy": ACCURACY, "entropy": ENTROPY, **arguments})


def test_strategies():
    assert {name: (s.temperature, s.share) for name, s in STRATEGIES.items()} == {
        "easy": (0.5, 0.4), "normal": (0.8, 1.0), "hard": (0.4, 0.5)
    }  # fmt: skip
    assert [STRATEGIES[name].tokens(1001) for name in ("easy", "normal", "hard")] == [400, 1001, 500]
    assert STRATEGIES["easy"].tokens(1) == 1
    with pytest.raises(ValueError, match="`temperature` of 'easy' must be a finite number >= 0, got -1"):
        Strategy("easy", -1, 0.4, "")
    with pytest.raises(ValueError, match=r"`share` of 'easy' must be a ratio in \(0, 1\], got 0"):
        Strategy("easy", 0.5, 0, "")


def test_questions_are_groups_of_answers():
    found = questions_of(["a", "b", "a", "c"], [1, 0, 0, 1], [0.2, 0.5, 0.4, 0.1], [3, 5, 7, None])
    assert [(one.place, one.samples, one.accuracy) for one in found] == [(0, 2, 0.5), (1, 1, 0.0), (3, 1, 1.0)]
    assert [one.entropy for one in found] == pytest.approx([0.3, 0.5, 0.1])
    assert [one.tokens for one in found] == [5.0, 5.0, None]
    assert questions_of(["a"], [1], [0.5])[0].tokens is None


@pytest.mark.parametrize("bins", [1, 3, 10, 100])
def test_each_question_is_in_one_bin(bins):
    questions = [Question(n, 100, n / 100, 0.01 * n, float(n)) for n in range(101)]
    curve = u_curve(questions, bins)
    assert sum(part.count for part in curve) == 101
    for part in curve:
        last = part.high == 1
        inside = [n for n in range(101) if part.low <= n / 100 and (n / 100 < part.high or last)]
        assert part.count == len(inside)
        assert part.accuracy == pytest.approx(sum(inside) / len(inside) / 100)
        assert part.entropy == pytest.approx(part.accuracy) and part.tokens == pytest.approx(100 * part.accuracy)


def test_fall_of_entropy():
    def curve(*entropies):
        return u_curve([Question(n, 4, n / 4, h, None) for n, h in enumerate(entropies)])

    assert overthinking(curve(0.9, 0.6, 0.3, 0.3, 0.4)) == pytest.approx(0.25)
    assert overthinking(curve(0.9, 0.6, 0.5, 0.4, 0.3)) == 0
    assert overthinking(curve(0.9)) is None and overthinking([]) is None and overthinking(curve(0, 0, 0)) is None
    assert curve(0.9)[0].tokens is None


def test_entropies_of_logits():
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125], [1.0, 0, 0, 0], [0.25] * 4], dtype=torch.float64).log()
    expected = torch.tensor([1.75 * math.log(2), 0, math.log(4)], dtype=torch.float64)
    torch.testing.assert_close(token_entropies(logits), expected, rtol=1e-9, atol=1e-9)
    assert token_entropies(logits, chunk=1).equal(token_entropies(logits))
    squared = torch.tensor([4, 1, 0.25, 0.25], dtype=torch.float64)
    squared /= squared.sum()  # at temperature 0.5 probabilities are squared
    literal = -float((squared * squared.log()).sum())
    assert float(token_entropies(logits, 0.5)[0]) == pytest.approx(literal, abs=1e-9)
    assert token_entropies(logits[:0]).shape == (0,) and token_entropies(logits * math.nan).isnan().all()


@pytest.mark.parametrize("batch", [1, 3])
def test_entropies_of_answers_are_those_of_each_alone(batch):
    answers = [
        Answer([3, 4, 5], [6, 7, 8, 9], [True, True, False, True]),
        Answer([4, 5], [], []),
        Answer([], [6, 7, 8], [True] * 3),
    ]
    model = build_model().train()
    means, counts = answer_entropies(model, answers, 0.7, batch)
    assert counts == [3, 0, 3] and math.isnan(means[1]) and not model.training
    for answer, mean in ((answers[0], means[0]), (answers[2], means[2])):
        ids = answer.prompt_ids + answer.completion_ids
        with torch.no_grad():
            logps = (model(torch.tensor([ids])).logits[0] / 0.7).log_softmax(-1)
        places = [len(answer.prompt_ids) + n for n, written in enumerate(answer.mask) if written]
        entropy = [-(logps[at - 1].exp() * logps[at - 1]).sum() for at in places if at > 0]
        torch.testing.assert_close(torch.tensor(mean), torch.stack(entropy).mean(), **FLOAT32)


def test_interval_of_a_mean():
    found = mean_with_interval([0.0, 1.0, math.nan] * 50)
    assert found.value == 0.5 and 0.38 < found.low < 0.42 and 0.58 < found.high < 0.62  # 1.96 * 0.05 from the mean
    assert mean_with_interval([3.0] * 4) == mean_with_interval([3.0] * 4) and str(mean_with_interval([])) == "-"
    alone = mean_with_interval([3.0])
    assert (alone.value, alone.low, alone.high) == (3, 3, 3)
