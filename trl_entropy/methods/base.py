# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a method is: a paper, what it needs, and a few optional hooks that change nothing unless overridden."""

from collections.abc import Callable
from dataclasses import make_dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..paper import Paper
from ..tokens import Rollouts, TokenBatch


Logs = dict[str, Tensor]


class Method:
    """One published method, told by the hooks that it overrides where in training it acts.

    Methods run in the order in which `methods` lists them: each sees the advantages that those before it left. Hooks
    that compute return their result together with `Logs`: what is logged as `<method>/<key>`. There a (B, T) tensor
    becomes its mean over the valid tokens of all processes (NaN: does not apply to this token), or its extreme if the
    key ends in `_min` or `_max`; a (B,) tensor likewise over sequences; a scalar is averaged over processes.

    Class attributes:
        name: the entry in `methods`, the prefix of its fields and of its metrics.
        summary: what it does, in one line, for lists of methods.
        paper: what to cite.
        config: dataclass of its settings, a mixin of the trainer's config. Each has a default, a help text as
            `metadata`, and a name that begins with that of the method.
        needs: what costs extra and is computed only when asked for. `rollout_entropy` is the entropy of the policy
            that generated, over the whole generation batch: free where TRL scores the rollouts anyway, one forward
            without gradient elsewhere, or recorded during generation. `rollout_logps`, beside it, rules the last out.
            `second_moments`, `nucleus_entropy` and `second_temperature` are statistics of the fused head, `rewards`
            the rewards of the sequences, `auxiliary_rollouts` completions of a share of the prompts at another
            temperature, with one more forward for each micro-batch.
        shapes_reward: `reward` replaces what the reward function `shaped_reward` gave, and is no reward of its own.
        replaces_advantages: `group_advantages` looks at rewards only, and so undoes what methods listed before did.
        excludes: methods that cannot be listed together with this one, and why.
        acts_on_ratio: does nothing while current and generating policy are the same.
        assumes_unit_advantages: has thresholds that presuppose advantages divided by their standard deviation.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[Paper]
    config: ClassVar[type] = make_dataclass("NoSettings", [])
    needs: tuple[str, ...] = ()
    shapes_reward: ClassVar[bool] = False
    shaped_reward: str | None = None
    replaces_advantages: ClassVar[bool] = False
    excludes: ClassVar[dict[str, str]] = {}
    acts_on_ratio: ClassVar[bool] = False
    assumes_unit_advantages: ClassVar[bool] = False

    def __init__(self, config: Any):
        """Reads and checks its fields of `config`. Raises `ValueError` that names field, value and what is accepted."""

    def check(self, config: Any) -> list[str]:
        """Warnings about settings of the training with which the method does not what its paper means.

        Raises `ValueError` where it cannot work at all.
        """
        return []

    def check_rewards(self, names: list[str]) -> None:
        """Once, before training: the names of the reward functions. Raises `ValueError` where it needs another one."""

    def setup(self, decode: Callable[[list[int]], str]) -> None:
        """Once, before training: what turns token ids into text, special tokens too."""

    def prompts(self, rows: list[dict[str, Any]], draw: tuple[int, int], training: bool) -> list[dict[str, Any]]:
        """Before generation, rows of the dataset, each as often as it is completed -> rows; changed ones are copies.

        `draw` (seed, optimizer step) identifies the generation batch. A group may span processes: what is drawn for a
        row must depend on these arguments alone.
        """
        return rows

    def reward(self, **columns: Any) -> tuple[list[float | None], Logs]:
        """A reward function as TRL calls it, with what is worth logging. It may name `token_entropies` and `token_mask`,
        as any reward function may, and `old_entropy`: (B, T) in nats, `None` if it is not known without a forward.

        If it shapes another's reward, it is also given `rewards` (that function's, NaN for `None`) and `prompt_ids`.
        """
        raise NotImplementedError

    def clip_range(self, low: float, high: float) -> tuple[float, float]:
        """The ratios at which the loss clips, for losses that clip."""
        return low, high

    def head_settings(self) -> dict[str, Any]:
        """What the statistics in `needs` depend on: fields of the fused head, read before each forward."""
        return {}

    def group_advantages(self, rollouts: Rollouts) -> tuple[Tensor, Logs]:
        """Once per generation batch -> (B, T) advantages."""
        return rollouts.advantages, {}

    def group_mask(self, rollouts: Rollouts) -> Tensor:
        """Once per generation batch -> (B, T) bool: the tokens that stay in the loss and in its denominators."""
        return rollouts.mask

    def token_advantages(self, tokens: TokenBatch) -> tuple[Tensor, Logs]:
        """In every forward -> (B, T) advantages; the trainer detaches them."""
        return tokens.advantages, {}

    def loss(self, tokens: TokenBatch) -> tuple[Tensor | None, Logs]:
        """In every forward, on the advantages that its own `token_advantages` left -> (B, T) per-token term, or a scalar
        if the paper's term is not a mean over tokens."""
        return None, {}

    def auxiliary_rollouts(self) -> tuple[float, float]:
        """Once per generation batch -> temperature, relative to that of sampling, and share of the prompts."""
        return 1.0, 1.0

    def auxiliary_loss(self, tokens: TokenBatch) -> tuple[Tensor, Logs]:
        """In every forward of training -> scalar term on the micro-batch's part of the auxiliary rollouts.

        Their old log-probabilities are those of the ordinary temperature.
        """
        return tokens.logps.sum() * 0, {}

    @classmethod
    def entropy_range(cls, settings: dict[str, Any], logged: dict[str, float]) -> tuple[float, float] | None:
        """For plots: where it means the mean token entropy to be, in nats, by its fields and the values of a log line."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know: finite numbers, or text, in lists and mappings; the same on every process.

        A run that is resumed must find the keys that a new run has. `None` stands for a number not known yet.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""

    @classmethod
    def overrides(cls, hook: str) -> bool:
        return getattr(cls, hook) is not getattr(Method, hook)
