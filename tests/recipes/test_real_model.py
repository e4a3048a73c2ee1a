# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`recipes/real_model`: prompts, rewards, and exact pass@k of both tasks, against all completions."""

import importlib
import itertools
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trl_entropy.gym import COLUMNS, reasoning_gym_reward


REAL_MODEL = Path(__file__).parents[2] / "recipes" / "real_model"
# Numbers can be written in several ways, and two tokens hold a digit and something else.
TEXTS = ["<end>", " ", "1", "0", "10", " 1", "0.", "x", "-", " -"]


def module(name):
    before = list(sys.path)
    sys.path.insert(0, str(REAL_MODEL))
    found = importlib.import_module(name)
    sys.path[:] = before
    return found


@pytest.fixture(scope="module")
def addition():
    return module("addition")


@pytest.fixture(scope="module")
def chain_sum():
    return module("chain_sum")


class Letters:
    """A tokenizer of `TEXTS`. Every prompt is the token `x`."""

    def __len__(self):
        return len(TEXTS)

    def __call__(self, text):
        return SimpleNamespace(input_ids=[TEXTS.index("x")])

    def decode(self, tokens):
        return "".join(TEXTS[token] for token in tokens)

    def get_vocab(self):
        return dict(zip(TEXTS, range(len(TEXTS)), strict=True))


class Bigrams(torch.nn.Module):
    """A language model whose next token depends on the last one alone."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.table = torch.randn(len(TEXTS), len(TEXTS), generator=torch.Generator().manual_seed(0))

    def forward(self, tokens):
        return SimpleNamespace(logits=self.table[tokens])


def probabilities_of_reward(addition, model, answers, temperature):
    """For each answer, the probability of the completions with reward 1, over all of up to five tokens."""
    logps, start, totals = (model.table / temperature).log_softmax(-1).tolist(), TEXTS.index("x"), [0.0] * len(answers)
    for tokens in itertools.product(range(len(TEXTS)), repeat=addition.COMPLETION_LENGTH):
        logp = sum(logps[last][token] for last, token in zip((start, *tokens), tokens, strict=False))
        # What is drawn after the end belongs to the same completion.
        text = "".join(TEXTS[token] for token in tokens).partition("<end>")[0]
        if text[:1] == " ":
            rewards = addition.number_reward([text] * len(answers), answers)
            totals = [total + math.exp(logp) * reward for total, reward in zip(totals, rewards, strict=True)]
    return totals


def test_pass_at_k_is_that_of_all_completions(addition):
    model, rows = Bigrams(), [addition.Sum(4, 6), addition.Sum(50, 50)]
    evaluation = addition.ExactAddition(Letters(), rows, batch_size=3)
    # " 10": " ",10 | " ",1,0 | " ",1,"0." | " 1",0 | " 1","0."
    assert sorted(split.tokens for split in evaluation.splits(" 10")) == [[1, 2, 3], [1, 2, 6], [1, 4], [5, 3], [5, 6]]
    found = evaluation(model, (1.0, 1.5))
    for row, temperature in zip(found, (1.0, 1.5), strict=True):
        chances = probabilities_of_reward(addition, model, [" 10", " 100"], temperature)
        assert min(chances) > 1e-4 and row["temperature"] == temperature
        for k in (1, 4, 64):
            expected = sum(1 - (1 - chance) ** k for chance in chances) / 2
            assert row[f"pass@{k}"] == pytest.approx(expected, rel=1e-4)


def test_pass_at_k_of_negative_answers(addition):
    """Signs are tokens of their own, or stand together with the space."""
    model, answers = Bigrams(), [" -1", " 0"]
    evaluation = module("exact").ExactAnswers(Letters(), ["", ""], answers, addition.COMPLETION_LENGTH)
    assert sorted(split.tokens for split in evaluation.splits(" -1")) == [[1, 8, 2], [9, 2]]
    (found,) = evaluation(model)
    chances = probabilities_of_reward(addition, model, answers, 1.0)
    assert min(chances) > 1e-4
    assert found["pass@16"] == pytest.approx(sum(1 - (1 - chance) ** 16 for chance in chances) / 2, rel=1e-4)


def test_a_tokenizer_that_cannot_write_the_answer(addition):
    with pytest.raises(ValueError, match="no 5 tokens of it write ' 12'"):
        addition.ExactAddition(Letters(), [addition.Sum(4, 6), addition.Sum(5, 7)])


def test_reward_takes_the_whole_number(addition):
    completions = [" 109", " 109\n", " 109.", " 1090", "109", "  109", " 19", ""]
    assert addition.number_reward(completions, [" 109"] * 8) == [1, 1, 1, 0, 0, 0, 0, 0]


def test_held_out_pairs_are_not_trained_on_in_either_order(addition):
    train, held_out = addition.sums(held_out=False), addition.sums(held_out=True)
    assert len(held_out) == len(set(held_out)) == 128 and len(train) + 128 < 8100
    assert not {tuple(sorted(row)) for row in train} & {tuple(sorted(row)) for row in held_out}
    assert addition.Sum(27, 82).answer == " 109" and addition.prompts(train[:1], Letters()) == ["10 + 10 ="]


def test_plan_has_valid_settings(addition, tmp_path):
    script = importlib.import_module("trajectories")
    plan = script.read_plan(addition.ADDITION.plan, addition.ADDITION.recipe)
    assert {arm.partition("/")[2] for arm in plan.arms} == {"", "1", "2", "3"}
    for settings in plan.arms.values():
        for _, own in script.phases(settings):
            config = script.quickstart.config_for(own, own["methods"], tmp_path)
            steps = 120 if "entropy_keep" in settings else 60
            assert config.max_steps + settings.get("after", 0) in (steps, 2 * settings.get("after", 0))
            assert config.generation_batch_size == 64 and config.max_completion_length == addition.COMPLETION_LENGTH


def test_problems_of_chain_sum(chain_sum):
    train, test = chain_sum.problems("train"), chain_sum.problems("test")
    assert 3500 < len(train) <= 4096 and 120 < len(test) <= 128 and not set(train) & set(test)
    assert all(eval(row.expression) == int(row.value) for row in (*train, *test))
    assert {len(row.expression.split()) for row in test} == {3, 5} and any(row.answer[1] == "-" for row in test)
    tokens = max(len(row.answer) for row in (*train, *test)) + 1  # one for each character, and one to see the end
    assert tokens == chain_sum.COMPLETION_LENGTH == 6


def test_prompts_of_chain_sum_show_solved_ones_that_are_not_evaluated(chain_sum):
    test = chain_sum.problems("test")
    lines = chain_sum.prompts(test[:1], Letters())[0].split("\n")
    assert len(lines) == chain_sum.SHOTS + 1 and lines[-1] == f"{test[0].expression} ="
    for line in lines[:-1]:
        expression, value = line.split(" = ")
        assert eval(expression) == int(value) and expression not in {row.expression for row in test}


def test_reward_of_chain_sum_agrees_with_the_task(chain_sum):
    rows = chain_sum.generate(chain_sum.TASK, chain_sum.SETTINGS, 5, 20)
    right = [chain_sum.problem(row).answer for row in rows]
    given = {name: [row[name] for row in rows] for name in COLUMNS}
    assert chain_sum.number_reward(right, right) == [1.0] * 20
    assert reasoning_gym_reward([f"Answer:{text}" for text in right], **given) == [1.0] * 20
    wrong = [f"{text}1" for text in right]
    assert chain_sum.number_reward(wrong, right) == [0.0] * 20
    # The task gives a part for an answer that contains the right one: its share of the characters.
    shares = [len(text[1:]) / len(text) for text in right]
    assert reasoning_gym_reward([f"Answer:{text}" for text in wrong], **given) == shares


def test_plan_of_chain_sum_has_valid_settings(chain_sum, tmp_path):
    script = importlib.import_module("trajectories")
    plan = script.read_plan(chain_sum.CHAIN_SUM.plan, chain_sum.CHAIN_SUM.recipe)
    assert [len(arms) for arms, _ in plan.stages] == [3, 3, 15]
    for settings in plan.arms.values():
        for _, own in script.phases(settings):
            config = script.quickstart.config_for(own, own["methods"], tmp_path)
            assert config.max_steps == 60 and config.generation_batch_size == 64
            assert config.max_completion_length == chain_sum.COMPLETION_LENGTH
