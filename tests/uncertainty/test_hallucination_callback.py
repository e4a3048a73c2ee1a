# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The callback in training: its numbers are those of the completions, and it changes nothing."""

import pytest
import torch
from support.tiny import EXACT, build_dataset, build_trainer, count_reward
from trl import GRPOConfig, GRPOTrainer

from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer, HallucinationCallback


SETTINGS = dict(
    max_steps=2, eval_strategy="steps", eval_steps=1, eval_dataset=build_dataset(24), per_device_eval_batch_size=8,
    temperature=0.7, methods=["clip_cov"],
)  # fmt: skip
SEEN = []


def even_reward(completion_ids, prompts, **kwargs):
    """1 for a completion with more even tokens than odd ones. Keeps the completions."""
    rewards = [float(value >= 0.5) for value in count_reward(completion_ids)]
    SEEN.append([*zip(prompts, completion_ids, rewards, strict=True)])
    return rewards


def evaluations(trainer):
    return [line for line in trainer.state.log_history if "eval_loss" in line]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run without the callback and one with it, and what the reward function of the latter has seen."""
    folder, trained = tmp_path_factory.mktemp("epr"), []
    for callbacks in (None, [HallucinationCallback("even_reward", k=4)]):
        SEEN.clear()
        trainer = build_trainer(
            EntropyGRPOTrainer,
            EntropyGRPOConfig,
            folder / str(callbacks is None),
            callbacks=callbacks,
            reward_funcs=[count_reward, even_reward],
            **SETTINGS,
        )
        trainer.train()
        trained.append(trainer)
    return *trained, [*SEEN]


def test_it_changes_nothing(runs):
    plain, watched, _ = runs
    for name, weight in plain.model.state_dict().items():
        torch.testing.assert_close(watched.model.state_dict()[name], weight, **EXACT)
    keys = {"eval_epr/mean_right", "eval_epr/mean_wrong", "eval_epr/auroc"}
    for ours, stock in zip(evaluations(watched), evaluations(plain), strict=True):
        assert set(ours) == set(stock) | keys and ours["eval_loss"] == stock["eval_loss"]
    assert not any(keys & set(line) for line in watched.state.log_history if "eval_loss" not in line)


def test_numbers_are_those_of_the_completions(runs):
    """Of the last evaluation, whose weights are the run's last: entropies of the four likeliest, at temperature 1."""
    _, trainer, seen = runs
    line = evaluations(trainer)[-1]
    rows = [row for batch in seen[-12:] for row in batch]
    assert len(rows) == 96 and all(len(batch) == 8 for batch in seen[-12:])
    scores, wrong = [], []
    trainer.model.eval()
    for prompt, ids, reward in rows:
        start = trainer.processing_class(prompt)["input_ids"]
        with torch.no_grad():
            logits = trainer.model(torch.tensor([start + ids])).logits[0, len(start) - 1 : -1]
        entropy = torch.special.entr(logits.double().softmax(-1).topk(4).values).sum(-1)
        scores.append(float(entropy.mean()))
        wrong.append(reward < 0.5)
    right_scores = [score for score, bad in zip(scores, wrong, strict=True) if not bad]
    wrong_scores = [score for score, bad in zip(scores, wrong, strict=True) if bad]
    assert line["eval_epr/mean_right"] == pytest.approx(sum(right_scores) / len(right_scores), rel=1e-5)
    assert line["eval_epr/mean_wrong"] == pytest.approx(sum(wrong_scores) / len(wrong_scores), rel=1e-5)
    if min(len(right_scores), len(wrong_scores)) >= 20:
        pairs = [(a > b) + 0.5 * (a == b) for a in wrong_scores for b in right_scores]
        assert line["eval_epr/auroc"] == pytest.approx(sum(pairs) / len(pairs), abs=2e-3)
    else:
        assert line["eval_epr/auroc"] is None


def test_every_second_evaluation_in_a_trainer_of_trl(tmp_path):
    callback = HallucinationCallback(every=2)
    settings = {name: value for name, value in SETTINGS.items() if name != "methods"}
    trainer = build_trainer(GRPOTrainer, GRPOConfig, tmp_path, callbacks=[callback], **settings)
    with pytest.raises(ValueError, match="must know its trainer: call `callback.attach"):
        trainer.train()
    callback.attach(trainer)
    callback.attach(trainer)  # once is enough
    trainer.train()
    first, second = evaluations(trainer)
    assert first["eval_epr/mean_right"] > 0 and "eval_epr/mean_right" not in second


def test_bad_arguments(make_trainer):
    with pytest.raises(ValueError, match="`every` must be a whole number >= 1, got 0"):
        HallucinationCallback(every=0)
    with pytest.raises(ValueError, match="`k` must be a whole number >= 1, got True"):
        HallucinationCallback(k=True)
    with pytest.raises(ValueError, match="`reward` must be one of the reward functions 'count_reward', got 'accuracy"):
        make_trainer(callbacks=[HallucinationCallback("accuracy")])
    with pytest.raises(ValueError, match="needs a GRPO trainer, got object"):
        HallucinationCallback().attach(object())
