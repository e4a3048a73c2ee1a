# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Countdown: verifier, enumeration, hold-out, estimator, tokenizer, and the cached warm start."""

import json
import math
import random
import re
from dataclasses import replace
from itertools import combinations, permutations, product
from types import SimpleNamespace

import pytest
import torch
from datasets import load_dataset

from trl_entropy.countdown.common import Progress
from trl_entropy.countdown.evaluation import evaluate, sample
from trl_entropy.countdown.model import (
    END,
    WARM_STARTS,
    WORDS,
    WarmStart,
    build_model,
    build_tokenizer,
    load_warm_start,
    supervised_batch,
    train_warm_start,
    warm_start,
)
from trl_entropy.countdown.report import entropies
from trl_entropy.countdown.task import (
    CHAIN,
    TASKS,
    Prompt,
    chain,
    countdown_dataset,
    countdown_reward,
    misses,
    prompts,
    read_answer,
    solutions,
    verify,
)
from trl_entropy.estimates import pass_at_k


PROMPT = Prompt((2, 4, 6, 9), 17)
THOUGHT = "<think> 4 * 6 = 24 - 9 = 15 + 2 = 17 </think>"
TINY = WarmStart(hidden_size=16, layers=1, heads=2, steps=2, batch_size=4)
ATTEMPTS = TASKS["attempts"]


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        (f"{THOUGHT} 4 * 6 - 9 + 2", True),
        (f"{THOUGHT}  6 * 4   - 9 + 2 ", True),
        ("</think> 4 * 6 - 9 + 2", True),  # thoughts are not verified
        ("<think> no idea </think> 2 + 4 * 6 - 9", False),  # (2 + 4) * 6 is 36, beyond the totals
        (f"{THOUGHT} 9 + 2 + 6 - 4", False),  # 13
        (f"{THOUGHT} 9 + 2 + 6", False),  # 17 without the 4
        (f"{THOUGHT} 9 + 4 + 2 + 2", False),  # 17 with the 2 twice and without the 6
        (f"{THOUGHT} 4 * 6 - 9 + 2 + 2 - 2", False),
        (f"{THOUGHT} 04 * 6 - 9 + 2", False),
        (f"{THOUGHT} 4 / 6 - 9 + 2", False),
        (f"{THOUGHT} 4 * 6 - 9 + 2 </think>", False),
        (f"{THOUGHT} 4 6 9 2", False),
        (f"{THOUGHT} * 4 6 - 9 + 2", False),
        (THOUGHT, False),
        ("4 * 6 - 9 + 2", False),
        ("", False),
    ],
)
def test_verifier(completion, right):
    assert verify(completion, *PROMPT) is right
    assert read_answer(completion, *PROMPT) in (
        [" ".join(completion.split("</think>")[1].split())] if right else [None]
    )
    assert countdown_reward([completion], numbers=[list(PROMPT.numbers)], target=[17], prompts=["?"]) == [float(right)]


def brute_force(numbers, target):
    """Every nested expression that Python evaluates to the target, written as an answer."""
    found = set()
    for (a, b, c, d), (p, q, r) in product(permutations(numbers), product("+-*", repeat=3)):
        inner, middle, outer = f"({a}{p}{b})", f"(({a}{p}{b}){q}{c})", f"((({a}{p}{b}){q}{c}){r}{d})"
        if eval(outer) == target and all(0 <= eval(total) <= 30 for total in (inner, middle, outer)):
            found.add(f"{a} {p} {b} {q} {c} {r} {d}")
    return found


@pytest.mark.parametrize(
    "prompt", [PROMPT, Prompt((1, 2, 3, 4), 24), Prompt((1, 3, 4, 9), 0), Prompt((2, 2, 3, 5), 9)]
)
def test_enumeration_agrees_with_brute_force(prompt):
    found = solutions(*prompt)
    assert len(found) == len(set(found)) > 0
    assert set(found) == brute_force(*prompt)
    assert solutions(prompt.numbers[::-1], prompt.target) == found


def test_every_enumerated_answer_verifies_and_no_other_target_takes_it():
    for numbers in list(combinations(range(1, 10), 4))[::9]:
        for target in range(31):
            for answer in solutions(numbers, target):
                assert verify(chain(answer), numbers, target)
                assert not verify(chain(answer), numbers, target + 1)


def test_chain_writes_the_running_totals():
    assert chain("4 * 6 - 9 + 2") == f"{THOUGHT} 4 * 6 - 9 + 2"
    with pytest.raises(ValueError, match="answer='9 \\* 6 - 4 \\+ 2' leaves the totals 0 to 30"):
        chain("9 * 6 - 4 + 2")


def test_attempts_come_before_the_chain_and_are_not_verified():
    failed = ("4 + 2 * 3", "3 - 2 + 4")
    text = chain("2 * 3 + 4", failed)
    assert text == "<think> try 4 + 2 = 6 * 3 = 18 no try 3 - 2 = 1 + 4 = 5 no 2 * 3 = 6 + 4 = 10 </think> 2 * 3 + 4"
    assert verify(text, (2, 3, 4), 10) and not verify(text, (2, 3, 4), 18)
    assert len(text.split()) + 1 == ATTEMPTS.completion_length == 39 and CHAIN.completion_length == 23


def test_misses_are_the_answers_to_other_targets():
    for target in (10, 24, 30):
        every = {answer for other in range(31) for answer in solutions((2, 3, 4), other)}
        assert set(misses((2, 3, 4), target)) == every - set(solutions((2, 3, 4), target))
        assert len(misses((2, 3, 4), target)) == len(set(misses((2, 3, 4), target))) > 20


def test_the_tasks_differ_in_prompts_words_and_settings():
    held_out, rest = prompts(True, ATTEMPTS), prompts(False, ATTEMPTS)
    assert (len(held_out), len(rest)) == (105, 713) and not set(held_out) & set(rest)
    assert all(len(prompt.numbers) == 3 and solutions(*prompt) for prompt in held_out + rest)
    assert countdown_dataset(True, ATTEMPTS)[0]["prompt"] == "n 1 2 3 t 6 :"
    tokenizer = build_tokenizer(ATTEMPTS)
    assert len(tokenizer) == len(WORDS) + 2 and len(build_tokenizer()) == len(WORDS) == 42
    assert tokenizer.decode(tokenizer("try 2 no").input_ids) == "try 2 no"
    assert set(WARM_STARTS) == set(TASKS) and all(WARM_STARTS[name].task == task for name, task in TASKS.items())
    assert WARM_STARTS["chain"] == WarmStart()


def test_hold_out_is_disjoint_complete_and_stable():
    held_out, rest = prompts(held_out=True), prompts(held_out=False)
    assert not set(held_out) & set(rest)
    assert (len(held_out), len(rest)) == (296, 2096)
    assert held_out[:2] == [Prompt((1, 2, 3, 4), 3), Prompt((1, 2, 3, 4), 10)]
    assert all(len(solutions(*prompt)) >= 4 for prompt in held_out + rest)


def test_dataset_has_what_the_reward_takes():
    rows = countdown_dataset(held_out=True)
    assert rows.column_names == ["prompt", "numbers", "target"] and len(rows) == 296
    assert rows[0]["prompt"] == "n 1 2 3 4 t 3 :"
    answers = [chain(solutions(row["numbers"], row["target"])[0]) for row in rows]
    assert countdown_reward(answers, numbers=rows["numbers"], target=rows["target"]) == [1.0] * 296


@pytest.mark.parametrize(("samples", "right", "k"), [(6, 0, 3), (6, 1, 1), (6, 2, 3), (6, 4, 3), (6, 6, 2), (5, 2, 5)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(samples, right, k):
    subsets = list(combinations([1] * right + [0] * (samples - right), k))
    assert math.isclose(pass_at_k(samples, right, k), sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("samples", "right", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_impossible_counts(samples, right, k):
    with pytest.raises(ValueError, match=f"{k=}, {samples=}, {right=}"):
        pass_at_k(samples, right, k)


def test_tokenizer_round_trip():
    tokenizer = build_tokenizer()
    text = f"{PROMPT.text} {chain('4 * 6 - 9 + 2')}"
    tokens = tokenizer(f"{text} {END}").input_ids
    assert len(tokens) == 8 + CHAIN.completion_length and tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text


def test_supervised_rows_are_right_answers():
    rows, tokenizer = prompts(held_out=False)[:40], build_tokenizer()
    for row, tokens in zip(rows, supervised_batch(rows, tokenizer, random.Random(0)), strict=True):
        assert verify(tokenizer.decode(tokens[8:], skip_special_tokens=True), *row)


def test_supervised_rows_hold_up_to_two_failed_attempts():
    rows, tokenizer = prompts(False, ATTEMPTS)[::9], build_tokenizer(ATTEMPTS)
    tokens = supervised_batch(rows, tokenizer, random.Random(0), ATTEMPTS)
    assert tokens.shape == (80, 7 + 39) and (tokens[:, 0] == WORDS.index("n")).all()  # padding is on the right
    attempts = (tokens == len(WORDS)).sum(1)
    assert torch.equal(attempts, (tokens == len(WORDS) + 1).sum(1))
    assert attempts.bincount().tolist() == pytest.approx([80 / 3] * 3, abs=12)
    assert torch.equal((tokens != 0).sum(1), 7 + 17 + 11 * attempts)
    for row, ids in zip(rows, tokens, strict=True):
        words = tokenizer.decode(ids[7:], skip_special_tokens=True)
        assert verify(words, *row)
        totals = re.findall(r"= (\d+) no", words)
        assert len(totals) == words.count("try") and str(row.target) not in totals


def test_warm_start_does_not_learn_the_padding():
    """The loss of the first step is the mean over words, without padding."""
    settings = replace(TINY, steps=1, batch_size=5, task=ATTEMPTS)
    tokenizer, losses = build_tokenizer(ATTEMPTS), []
    original = torch.Tensor.backward
    torch.Tensor.backward = lambda loss: (losses.append(loss.item()), original(loss))[1]
    try:
        train_warm_start(settings, tokenizer)
    finally:
        torch.Tensor.backward = original
    draw = random.Random(settings.seed)
    rows = draw.choices(prompts(False, ATTEMPTS), k=5)
    tokens = supervised_batch(rows, tokenizer, draw, ATTEMPTS)
    logps = build_model(settings)(tokens).logits.log_softmax(-1)
    words = [
        -logps[row, at - 1, tokens[row, at]]
        for row in range(5)
        for at in range(7, tokens.size(1))
        if tokens[row, at] != 0
    ]
    assert len(words) < tokens[:, 7:].numel() and losses == [pytest.approx(torch.stack(words).mean().item(), rel=1e-5)]


@pytest.mark.parametrize("task", TASKS)
def test_warm_start_learns_and_repeats(task):
    settings = WarmStart(hidden_size=16, layers=1, heads=2, steps=40, batch_size=16, task=TASKS[task])
    tokenizer = build_tokenizer(settings.task)
    first, second = train_warm_start(settings, tokenizer), train_warm_start(settings, tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    rows = prompts(True, settings.task)[:4]
    before = evaluate(build_model(settings), tokenizer, rows, samples=2, task=settings.task)["entropy"]
    assert evaluate(first, tokenizer, rows, samples=2, task=settings.task)["entropy"] < before - 0.3


def test_warm_start_is_cached_keyed_and_rebuilt(tmp_path):
    def stamp():
        return (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns

    assert warm_start(tmp_path, TINY) == tmp_path / "model"
    first = stamp()
    warm_start(tmp_path, TINY)
    assert stamp() == first
    warm_start(tmp_path, TINY, rebuild=True)
    second = stamp()
    assert second > first
    warm_start(tmp_path, replace(TINY, seed=1))
    third = stamp()
    assert json.loads((tmp_path / "warm_start.json").read_text())["task"]["numbers"] == 4
    assert third > second and json.loads((tmp_path / "warm_start.json").read_text())["seed"] == 1
    (tmp_path / "warm_start.json").unlink()  # as an interrupted build leaves it
    warm_start(tmp_path, TINY)
    assert stamp() > third
    model, tokenizer = load_warm_start(tmp_path / "model")
    assert model.config.hidden_size == 16 and tokenizer.padding_side == "left"


def test_warm_start_asked_for_twice_at_once_is_that_of_the_first(tmp_path, monkeypatch):
    train, written = train_warm_start, []

    def overtaken(settings, tokenizer):
        if not written:
            written.append(None)
            warm_start(tmp_path, TINY)
            written.append((tmp_path / "model" / "model.safetensors").stat())
        return train(settings, tokenizer)

    monkeypatch.setattr("trl_entropy.countdown.model.train_warm_start", overtaken)
    warm_start(tmp_path, TINY)
    now = (tmp_path / "model" / "model.safetensors").stat()
    assert (now.st_ino, now.st_mtime_ns) == (written[1].st_ino, written[1].st_mtime_ns)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "model", "warm_start.json"]

    def interrupted(settings, tokenizer):
        raise KeyboardInterrupt

    monkeypatch.setattr("trl_entropy.countdown.model.train_warm_start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        warm_start(tmp_path, TINY, rebuild=True)
    assert warm_start(tmp_path, TINY) == tmp_path / "model"  # which is still whole


def test_cached_data_is_a_folder_that_datasets_loads(tmp_path):
    warm_start(tmp_path / "cache", TINY)
    loaded = load_dataset(str(tmp_path / "cache" / "data"), cache_dir=str(tmp_path / "datasets"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 2096, "test": 296}
    assert loaded["test"][0] == countdown_dataset(held_out=True)[0]


def test_evaluation_counts(monkeypatch):
    other = Prompt((1, 2, 3, 4), 6)
    answers, fewer = solutions(*PROMPT), solutions(*other)
    scripted = [chain(answers[0]), chain(answers[0]), chain(answers[1]), "?", chain(fewer[0]), "?", "?", "?"]
    monkeypatch.setattr(
        "trl_entropy.countdown.evaluation.sample",
        lambda model, tokenizer, texts, temperature, length: (scripted, torch.tensor([0.1, 0.3] * 10)),
    )
    model = build_model(TINY).train()
    scores = evaluate(model, None, [PROMPT, other], samples=4)
    expected = {
        "entropy": 0.2,
        "pass@1": (3 / 4 + 1 / 4) / 2,
        "distinct": 1.5,
        "coverage": (2 / len(answers) + 1 / len(fewer)) / 2,
        "length": 20 / 8,
    }
    assert scores == pytest.approx(expected) and model.training


def test_samples_stop_at_the_end_and_their_entropy_is_of_what_was_sampled():
    model, tokenizer = build_model(TINY).eval(), build_tokenizer()
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()  # tied with the head: every word is equally likely
    torch.manual_seed(0)
    completions, entropy = sample(model, tokenizer, [PROMPT.text] * 64, temperature=1.0)
    torch.testing.assert_close(entropy, torch.full_like(entropy, math.log(len(tokenizer))))
    assert len(completions) == 64 and 64 < entropy.numel() < 64 * CHAIN.completion_length


def test_evaluation_repeats_and_leaves_the_random_state():
    model, tokenizer, rows = build_model(TINY), build_tokenizer(), prompts(held_out=True)[:3]
    state = torch.get_rng_state()
    scores = evaluate(model, tokenizer, rows, samples=8)
    assert list(scores) == ["entropy", "pass@1", "pass@8", "distinct", "coverage", "length"]
    assert scores == evaluate(model, tokenizer, rows, samples=8)
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_shows_the_entropy_that_is_a_mean_over_tokens():
    shown, bar = [], SimpleNamespace(set_postfix=lambda values, refresh: shown.append(values))
    progress, state = Progress("stock", "reward"), SimpleNamespace(global_step=4, max_steps=8)
    progress.bar = bar
    lines = [
        {"entropy": 1.5, "entropy/mean": 1.25, "reward": 0.5},
        {"entropy": 1.0, "reward": 0.25},  # of a distillation
        {"entropy": 0.0, "entropy/mean": None, "reward": 0.5},  # no token was counted
        {"eval_reward": 0.5},
    ]
    for line in lines:
        progress.on_log(None, state, None, line)
    assert shown == [{"entropy": "1.250", "reward": "0.500"}, {"entropy": "1.000", "reward": "0.250"}]
    assert entropies(progress.history) == [1.25, 1.0]
