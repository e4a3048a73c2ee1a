# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a method is: a paper, what it needs, and a few optional hooks that change nothing unless overridden."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..tokens import Rollouts, TokenBatch


@dataclass(frozen=True)
class Paper:
    """A published method: arXiv identifier, title, BibTeX entry."""

    arxiv: str
    title: str
    bibtex: str

    @property
    def url(self) -> str:
        return f"https://huggingface.co/papers/{self.arxiv}"


class Method:
    """One published method, told by the hooks that it overrides where in training it acts.

    Methods run in the order in which `methods` lists them: each sees the advantages that those before it left.

    Class attributes:
        name: the entry in `methods`, the prefix of its fields and of its metrics.
        paper: what to cite.
        needs: what costs extra and is computed only when asked for. `rollout_entropy` is the entropy of the policy
            that generated, over the whole generation batch: free where TRL scores the rollouts anyway, one forward
            without gradient elsewhere.
        acts_on_ratio: does nothing while current and generating policy are the same.
        assumes_unit_advantages: has thresholds that presuppose advantages divided by their standard deviation.
    """

    name: ClassVar[str]
    paper: ClassVar[Paper]
    needs: tuple[str, ...] = ()
    acts_on_ratio: ClassVar[bool] = False
    assumes_unit_advantages: ClassVar[bool] = False

    def __init__(self, config: Any):
        """Reads and checks its fields of `config`. Raises `ValueError` that names field, value and what is accepted."""

    def clip_range(self, low: float, high: float) -> tuple[float, float]:
        """The ratios at which the loss clips, for losses that clip."""
        return low, high

    def group_advantages(self, rollouts: Rollouts) -> Tensor:
        """Once per generation batch -> (B, T) advantages."""
        return rollouts.advantages

    def group_mask(self, rollouts: Rollouts) -> Tensor:
        """Once per generation batch -> (B, T) bool: the tokens that stay in the loss and in its denominators."""
        return rollouts.mask

    def token_advantages(self, tokens: TokenBatch) -> Tensor:
        """In every forward -> (B, T) advantages; the trainer detaches them."""
        return tokens.advantages

    def loss(self, tokens: TokenBatch) -> Tensor | None:
        """In every forward -> (B, T) per-token term, or a scalar where the paper's term is no token mean."""
        return None

    def metrics(self, tokens: TokenBatch | Rollouts) -> dict[str, Tensor]:
        """After `group_advantages` where overridden, and after `loss` -> values logged as `<method>/<key>`.

        A (B, T) tensor is logged as its mean over the valid tokens of all processes (NaN: does not apply to this
        token), or as its extreme where the key ends in `_min` or `_max`. A scalar is averaged over processes.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know: JSON types, the same on every process."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""

    @classmethod
    def overrides(cls, hook: str) -> bool:
        return getattr(cls, hook) is not getattr(Method, hook)


def checked(config: Any, name: str, accepts: Callable[[Any], bool], accepted: str) -> Any:
    """The field `name` of `config`, or a `ValueError` that says what it was and what is accepted."""
    value = getattr(config, name)
    try:
        fits = accepts(value)
    except TypeError:  # a value of another type, such as a string where a number belongs
        fits = False
    if not fits:
        raise ValueError(f"`{name}` must be {accepted}, got {value!r}.")
    return value


def one_of(config: Any, name: str, *choices: str) -> str:
    return checked(config, name, lambda value: value in choices, "one of " + ", ".join(map(repr, choices)))


def share(config: Any, name: str) -> float:
    return checked(config, name, lambda value: 0 < value <= 1, "a share in (0, 1]")


def non_negative(config: Any, name: str) -> float:
    return checked(config, name, lambda value: 0 <= value < float("inf"), "a finite number >= 0")


def flag(config: Any, name: str) -> bool:
    return checked(config, name, lambda value: value is True or value is False, "true or false")
