# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of finished completions, by a model or from an API, and the rows they are read from."""

import math

import pytest
import torch
from support.tiny import FLOAT32, build_model, build_tokenizer

from trl_entropy.uncertainty.answers import Answer, answer_of
from trl_entropy.uncertainty.completions import score_answers, scored_api
from trl_entropy.uncertainty.epr import epr_score


ANSWERS = [
    Answer([3, 4, 5], [6, 7, 8, 9], [True, True, False, True]),
    Answer([3], [10], [True]),
    Answer([4, 5, 6, 7, 8], [], []),
    Answer([], [6, 7, 8], [True] * 3),
    Answer([9, 9], list(range(2, 12)), [True] * 10),
]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_scores_are_those_of_each_answer_alone(batch):
    model, tokenizer = build_model().train(), build_tokenizer()
    found = list(score_answers(model, tokenizer, ANSWERS, k=3, batch=batch))
    assert not model.training and [len(scored.tokens) for scored in found] == [4, 1, 0, 3, 10]
    for answer, scored in zip(ANSWERS, found, strict=True):
        ids = answer.prompt_ids + answer.completion_ids
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        start, skipped = len(answer.prompt_ids), 0 if answer.prompt_ids else 1
        for place in range(skipped, len(answer.completion_ids)):
            expected = log_probs[start + place - 1].sort(descending=True).values[:3]
            torch.testing.assert_close(scored.log_probs[place], expected, **FLOAT32)
        assert scored.mask.tolist() == [*[False] * skipped, *answer.mask[skipped:]]
    first = found[0]
    assert first.tokens == ["w4", "w5", "w6", "w7"] and first.length == 3 and first.vocabulary == 24
    sums = torch.special.entr(first.log_probs.exp()).sum(-1)
    assert float(epr_score(first.ranked(3), first.mask)) == pytest.approx(float(sums[[0, 1, 3]].mean()))
    assert found[2].missing(3) == 0 and found[2].features(3).eq(0).all()  # an empty completion
    assert found[3].log_probs[0].eq(-math.inf).all()  # nothing comes before its first token


def test_epr_and_its_bound_enclose_the_entropy():
    answer = Answer([3, 4], list(range(2, 12)), [True] * 10)
    (few,) = score_answers(build_model(), build_tokenizer(), [answer], k=4)
    (all_ranks,) = score_answers(build_model(), build_tokenizer(), [answer], k=99)
    low, exact = float(epr_score(few.ranked(4))), float(epr_score(all_ranks.ranked(99)))
    assert low < exact <= low + few.missing(4) and all_ranks.missing(99) == 0
    assert all_ranks.log_probs.shape == (10, 24) and all_ranks.features(99).shape == (198,)


def test_rows_become_ids():
    tokenizer = build_tokenizer()
    found = answer_of({"prompt": "w3 w4", "completion": "w5", "prompt_ids": None}, tokenizer)
    assert (found.prompt_ids, found.completion_ids, found.mask) == ([5, 6], [7], [True])
    ids = {"prompt_ids": [1], "completion_ids": [2, 3], "completion_mask": [1, 0], "prompt": "w9"}
    assert answer_of(ids, tokenizer) == Answer([1], [2, 3], [True, False])
    with pytest.raises(ValueError, match="must have the columns `prompt` and `completion`.*got question"):
        answer_of({"question": "w3"}, tokenizer)
    with pytest.raises(ValueError, match="`completion_mask` must have one entry a token, got 1 for 2 tokens"):
        answer_of(ids | {"completion_mask": [1]}, tokenizer)


def test_conversations_count_what_the_assistant_wrote():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}w9 {{ m.content }} w10 {% endfor %}{% if add_generation_prompt %}w9 {% endif %}"
    )
    user, tool = {"role": "user", "content": "w3"}, {"role": "tool", "content": "w5 w6"}
    assistant = [{"role": "assistant", "content": "w4"}, {"role": "assistant", "content": "w7 w8"}]
    found = answer_of({"prompt": [user], "completion": [assistant[0], tool, assistant[1]]}, tokenizer)

    def words(ids):
        return " ".join(f"w{n - 2}" for n in ids)

    assert words(found.prompt_ids) == "w9 w3 w10 w9"
    assert words(found.completion_ids) == "w4 w10 w9 w5 w6 w10 w9 w7 w8"  # without the end of the last turn
    counted = [n for n, there in zip(found.completion_ids, found.mask, strict=True) if there]
    assert words(counted) == "w4 w7 w8"
    assert answer_of({"prompt": "w3", "completion": "w4"} | {"prompt": [user]}, tokenizer).completion_ids == [6]
    tokenizer.chat_template = "{% for m in messages[-1:] %}{{ m.role }} {{ m.content }} {% endfor %}"
    with pytest.raises(ValueError, match="chat template that leaves earlier turns as they are"):
        answer_of({"prompt": [user], "completion": assistant[:1]}, tokenizer)


P = [[0.5, 0.25, 0.125], [0.9, 0.05]]
LOGS = [[math.log(p) for p in row] for row in P]


@pytest.mark.parametrize(
    "logprobs",
    [
        LOGS,
        [[{"logprob": x} for x in row] for row in LOGS],
        [{f"t{n}": x for n, x in enumerate(row)} for row in LOGS],
        [{str(n): {"logprob": x, "rank": n} for n, x in enumerate(row)} for row in LOGS],
        {"content": [{"token": "a", "logprob": -1, "top_logprobs": [{"logprob": x} for x in row]} for row in LOGS]},
    ],
)
def test_log_probs_of_an_api(logprobs):
    scored = scored_api(logprobs)
    entropy = [-sum(p * math.log(p) for p in row) for row in P]
    assert scored.ranked(3).sum(-1).tolist() == pytest.approx(entropy, abs=1e-12)
    assert scored.length == 2 and scored.vocabulary is None and scored.missing(3) is None
    assert scored.tokens == (["a", "a"] if isinstance(logprobs, dict) else ["", ""])


def test_log_probs_of_other_forms_are_refused():
    for wrong in (3, [1.5], {"tokens": []}, ["abc"]):
        with pytest.raises(ValueError, match="`logprobs` must be OpenAI's object with `content`"):
            scored_api(wrong)
    assert scored_api([]).features(2).eq(0).all()
