# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The probe of difficulty, and answers by strategy."""

import json

import pytest
import torch
from support.chat import save_chat_model
from support.tiny import EXACT, build_model, build_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_entropy.uncertainty.answers import prompt_ids_of
from trl_entropy.uncertainty.diffadapt import STRATEGIES, Strategy
from trl_entropy.uncertainty.difficulty_answers import answer_questions, batches_by_strategy, instructed
from trl_entropy.uncertainty.difficulty_probe import DifficultyProbe, prompt_features
from trl_entropy.uncertainty.probe_training import HeldOut, split_labels, standardization, train


def clusters(counts, spread=0.5, width=6):
    """Features around one center per label, on a large common offset, and the labels."""
    generator = torch.Generator().manual_seed(1)
    features, labels = [], []
    for place, (name, count) in enumerate(counts.items()):
        center = torch.full((width,), 30.0)
        center[place] += 3
        features.append(center + spread * torch.randn(count, width, generator=generator))
        labels += [name] * count
    return torch.cat(features), labels


@pytest.fixture(scope="module")
def fitted():
    features, labels = clusters({"easy": 60, "normal": 40, "hard": 25})
    return DifficultyProbe.fit(features, labels, epochs=30), features, labels


def test_separates_planted_clusters(fitted):
    probe, features, labels = fitted
    assert probe.labels == ("easy", "normal", "hard") and probe.held_out.count == 12 + 8 + 5
    assert probe.held_out.accuracy > 0.95 and probe.held_out.majority == 12 / 25
    assert min(probe.held_out.recall.values()) > 0.7
    right = [found == label for found, label in zip(probe.classify(features), labels, strict=True)]
    assert sum(right) / len(right) > 0.95


def test_probabilities_are_those_of_the_formula(fitted):
    probe, features, _ = fitted
    w = {name: values.double() for name, values in probe.weights.items()}
    for h, found in zip(features[:3].double(), probe.probabilities(features[:3]), strict=True):
        hidden = (w["W1"] @ h + w["b1"]).clamp(min=0)
        z = w["W2"] @ hidden + w["b2"]
        torch.testing.assert_close(found.double(), z.exp() / z.exp().sum(), rtol=1e-4, atol=1e-5)


def test_features_without_information_are_judged_at_chance():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 4, generator=generator)
    probe = DifficultyProbe.fit(features, ["easy", "normal"] * 100, epochs=5, share=0.5)
    assert probe.labels == ("easy", "normal") and 0.3 < probe.held_out.accuracy < 0.7


def test_same_seed_same_probe_and_no_random_number_is_taken(fitted):
    probe, features, labels = fitted
    state = torch.get_rng_state()
    again = DifficultyProbe.fit(features, labels, epochs=30)
    assert torch.get_rng_state().equal(state)
    for name, values in probe.weights.items():
        torch.testing.assert_close(again.weights[name], values, **EXACT)
    other = DifficultyProbe.fit(features, labels, epochs=1, seed=1)
    assert not other.weights["W1"].equal(probe.weights["W1"])


def test_round_trip(fitted, tmp_path):
    probe, features, _ = fitted
    probe.save(tmp_path / "probe")
    found = DifficultyProbe.load(tmp_path / "probe")
    assert found.labels == probe.labels and found.strategies == STRATEGIES and found.held_out is None
    torch.testing.assert_close(found.probabilities(features), probe.probabilities(features), **EXACT)
    path = tmp_path / "probe" / "probe.json"
    described = json.loads(path.read_text())
    described["strategies"]["easy"]["temperature"] = 0.9
    path.write_text(json.dumps(described))
    assert DifficultyProbe.load(tmp_path / "probe").strategies["easy"].temperature == 0.9
    described["strategies"]["easy"]["temperature"] = -1
    path.write_text(json.dumps(described))
    with pytest.raises(ValueError, match="`temperature` of 'easy'"):
        DifficultyProbe.load(tmp_path / "probe")
    path.write_text(json.dumps({"labels": ["easy", "normal"], "strategies": described["strategies"]}))
    described["strategies"]["easy"]["temperature"] = 1
    path.write_text(json.dumps({"labels": ["easy", "normal"], "strategies": described["strategies"]}))
    with pytest.raises(ValueError, match="must hold weights of 2 labels"):
        DifficultyProbe.load(tmp_path / "probe")
    with pytest.raises(ValueError, match="must be a folder with probe.safetensors and probe.json"):
        DifficultyProbe.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("counts", "arguments", "message"),
    [
        ({"easy": 30, "normal": 19, "hard": 30}, {}, "at least 20 examples of each label, got 19 of 'normal'"),
        ({"easy": 30, "normal": 30, "hard": 3}, {}, "got 3 of 'hard'"),
        ({"easy": 30, "hard": 30}, {}, "got 0 of 'normal'"),
        ({"easy": 30, "normal": 30, "odd": 1}, {}, "must be easy, normal, hard, got 'odd'"),
        ({"easy": 30, "normal": 30}, dict(width=0), "`width` must be a whole number >= 1, got 0"),
        ({"easy": 30, "normal": 30}, dict(share=1), r"`share` must be a number in \(0, 1\), got 1"),
    ],
)
def test_refused(counts, arguments, message):
    with pytest.raises(ValueError, match=message):
        DifficultyProbe.fit(*clusters(counts), **arguments)


def test_bad_features(fitted):
    features, labels = clusters({"easy": 30, "normal": 30})
    features[0, 0] = torch.nan
    with pytest.raises(ValueError, match="`features` must be finite"):
        DifficultyProbe.fit(features, labels)
    with pytest.raises(ValueError, match="must have width 6, as when the probe was fitted, got 5"):
        fitted[0].probabilities(torch.zeros(1, 5))


def test_parts_of_the_training():
    target = torch.tensor([0] * 10 + [1] * 5)
    chosen = split_labels(target, 0.2, 0)
    assert (~chosen[:10]).sum() == 2 and (~chosen[10:]).sum() == 1 and not chosen.equal(split_labels(target, 0.2, 1))
    mean, scale = standardization(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert mean.tolist() == [2, 5] and scale.tolist() == [1, torch.inf]
    # Rare labels weigh as much as common ones: without information both have the same probability.
    net = train(torch.zeros(120, 2), torch.tensor([0] * 100 + [1] * 20), 2, 4, 60, 0)
    z = net["W2"] @ net["b1"].clamp(min=0) + net["b2"]
    assert abs(float(z.softmax(0)[0]) - 0.5) < 0.1
    held = HeldOut.of(torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]), torch.tensor([0, 1, 1]), ("a", "b"))
    assert held.accuracy == pytest.approx(2 / 3) == held.majority and held.recall == {"a": 1, "b": 0.5}
    assert held.balanced == 0.75


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_features_are_the_last_hidden_states_of_prompts(batch):
    model, tokenizer = build_model().train(), build_tokenizer()
    prompts = ["w3 w4 w5 w6", "w7", "w8 w9"]
    found = prompt_features(model, tokenizer, prompts, batch)
    assert not model.training and found.shape == (3, 16) and found.dtype == torch.float32
    for prompt, h in zip(prompts, found, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            expected = model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        torch.testing.assert_close(h, expected, rtol=1e-4, atol=1e-5)


class Planted:
    """A probe that tells the label from the first feature's rank."""

    def __init__(self, labels):
        self.labels, self.strategies = labels, STRATEGIES

    def classify(self, features):
        return self.labels[: len(features)]


def test_choose_keeps_the_order():
    labels = ["hard", "easy", "normal", "easy", "hard"]
    prompts = ["w3 w4 w5", "w3", "w4 w5", "w6 w7 w8 w9", "w5"]
    found = DifficultyProbe.choose(Planted(labels), build_model(), build_tokenizer(), prompts, 2)
    assert [strategy.name for strategy in found] == labels
    assert DifficultyProbe.choose(Planted([]), None, None, []) == []


def test_batches_have_one_strategy_each_and_cover_all():
    chosen = [STRATEGIES[name] for name in ("hard", "easy", "hard", "hard", "normal", "easy")]
    found = batches_by_strategy(chosen, 2)
    assert [(strategy.name, places) for strategy, places in found] == [
        ("hard", [0, 2]), ("hard", [3]), ("easy", [1, 5]), ("normal", [4])
    ]  # fmt: skip


def test_instructions():
    assert instructed("Why?", "Be brief.") == "Be brief.\n\nWhy?" and instructed("Why?", "") == "Why?"
    talk = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "<"},
    ]
    found = instructed(talk, "Be brief.")
    assert [m["content"] for m in found] == ["s", "Why?\n\nBe brief.", "<"] and talk[1]["content"] == "Why?"
    with pytest.raises(ValueError, match="must end in a text of the user"):
        instructed([{"role": "system", "content": "s"}], "Be brief.")
    with pytest.raises(ValueError, match="must end in a text of the user"):
        instructed([{"role": "user", "content": [{"type": "image"}]}], "Be brief.")


def test_prompts_as_ids():
    tokenizer = build_tokenizer()
    assert prompt_ids_of("w3 w4", tokenizer) == [5, 6]
    for wrong in ("", 3, []):
        with pytest.raises(ValueError, match="`prompt` must"):
            prompt_ids_of(wrong, tokenizer)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = save_chat_model(tmp_path_factory.mktemp("chat") / "model")
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_answers_are_those_of_each_question_alone(chat):
    """Greedy, so that the batch cannot matter; each within its strategy's share of the limit."""
    model, tokenizer = chat
    greedy = {name: Strategy(name, 0.0, share, name) for name, share in (("easy", 0.5), ("normal", 1.0))}
    prompts = [[{"role": "user", "content": text}] for text in ("1 + 1?", "What is the answer to 2 + 7?", "3?")]
    names = ["easy", "normal", "easy"]
    found = answer_questions(model, tokenizer, prompts, [greedy[name] for name in names], 12)
    assert [one.strategy.name for one in found] == names and all(0 < one.tokens <= 12 for one in found)
    for prompt, one in zip(prompts, found, strict=True):
        limit = one.strategy.tokens(12)
        ids = torch.tensor([prompt_ids_of(instructed(prompt, one.strategy.prompt), tokenizer)])
        alone = model.generate(ids, max_new_tokens=limit, do_sample=False)[0, ids.size(1) :].tolist()
        assert one.ids == alone and one.truncated == (len(alone) == limit and alone[-1] != tokenizer.eos_token_id)
        assert one.text == tokenizer.decode(alone, skip_special_tokens=True)


def test_temperature_and_end_reach_generation(chat, monkeypatch):
    model, tokenizer = chat
    calls = []

    def generate(input_ids, **options):
        calls.append(options)
        rows = torch.tensor([[5, 2, 0], [5, 6, 7]])[: len(input_ids)]
        return torch.cat([input_ids, rows], 1)

    monkeypatch.setattr(model, "generate", generate)
    sampled = Strategy("easy", 0.6, 0.25, "")
    found = answer_questions(model, tokenizer, ["a", "b c"], [sampled] * 2, 12)
    assert [one.ids for one in found] == [[5, 2], [5, 6, 7]] and [one.truncated for one in found] == [False, True]
    assert calls[0]["temperature"] == 0.6 and calls[0]["do_sample"] and calls[0]["max_new_tokens"] == 3
    assert calls[0]["attention_mask"].tolist()[0][:2] == [0, 0]  # padded on the left
    with pytest.raises(ValueError, match="`limit` must be a whole number >= 1, got 0"):
        answer_questions(model, tokenizer, ["a"], [sampled], 0)
