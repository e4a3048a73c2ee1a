# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""pass@k of the completions of each generation batch, from rewards that TRL has gathered already."""

from statistics import fmean

from torch import Tensor

from ..estimates import accuracy_first, pass_at_k


def sizes(group: int) -> list[int]:
    """The k of which a group tells pass@k: powers of two up to its size, and its size."""
    return [*(2**power for power in range(group.bit_length()) if 2**power < group), group]


def pass_keys(*groups: int) -> tuple[str, ...]:
    """The keys of the log for groups of these sizes."""
    return tuple(f"pass@{k}" for k in sorted({k for group in groups for k in sizes(group)}))


def pass_rates(rewards: Tensor, group: int) -> dict[str, float]:
    """Unbiased estimates of pass@k, as means over prompts with at least k rewards.

    Args:
        rewards: (N,) 1 if right, 0 if wrong, NaN if missing, prompt by prompt.
        group: completions per prompt.
    """
    found = {}
    counts = [
        (len(given), int(sum(given)))
        for row in rewards.view(-1, group).tolist()
        if (given := [reward for reward in row if reward == reward])
    ]
    for k in sizes(group):
        if rates := [pass_at_k(samples, right, k) for samples, right in counts if samples >= k]:
            found[f"pass@{k}"] = fmean(rates)
    return found


class PassRates:
    """Logs pass@k if a reward function tells right completions from wrong ones.

    This is the first function that has given only 0 and 1 so far in this process' life; those with "accuracy" in their
    names come first. A function that once gave anything else is left out from then on.

    Args:
        names: the reward functions, in order.
    """

    def __init__(self, names: list[str]):
        self.order = [names.index(name) for name in accuracy_first(names)]

    def update(self, rewards: Tensor, group: int) -> dict[str, float]:
        """The values to log for a generation batch.

        Args:
            rewards: (completions of all processes, reward functions), NaN if missing.
            group: completions per prompt.
        """
        zero_or_one = ((rewards == 0) | (rewards == 1) | rewards.isnan()).all(0).tolist()
        given = (~rewards.isnan()).any(0).tolist()
        self.order = [index for index in self.order if zero_or_one[index]]
        chosen = next((index for index in self.order if given[index]), None)
        return {} if chosen is None else pass_rates(rewards[:, chosen], group)
