# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Generation batches that a reward function with entropies scores, and their entropies from the model's logits."""

import torch
from support.reference import dense_logps_and_entropy


seen = []  # arguments of `entropy_reward`: ids, entropies, masks


def entropy_reward(completions, completion_ids, token_entropies, token_mask, **kwargs):
    seen.append((completion_ids, token_entropies, token_mask))
    return [sum(values) for values in token_entropies]


def scored(make_trainer, rewards, **settings):
    """One generation batch of two groups -> trainer, its output, and the forwards that it took beside generation."""
    seen.clear()
    trainer = make_trainer(
        reward_funcs=rewards, **{"gradient_accumulation_steps": 2, "steps_per_generation": 2, **settings}
    )
    forwards = []
    forward = trainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (forwards.append(k), forward(*a, **k))[1]
    rows = [{"prompt": row["prompt"]} for row in trainer.train_dataset.select([0] * 4 + [1] * 4)]
    output = trainer._generate_and_score_completions(rows)
    assert all(set(row) == {"prompt"} for row in rows)  # copies were changed, never the dataset's own rows
    return trainer, output, len(forwards)


def dense_entropies(trainer, output, completion_ids):
    """The entropy of every generated token, from the model's own logits."""
    length = output["completion_ids"].size(1)
    lengths = torch.tensor([len(ids) for ids in completion_ids])
    whole = {**output, "completion_mask": (torch.arange(length) < lengths[:, None]).long()}
    with torch.no_grad():
        return dense_logps_and_entropy(trainer.model, whole, trainer.temperature)[1]
