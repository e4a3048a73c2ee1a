# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The base class of methods: a paper, a list of needs, and optional hooks that change nothing unless overridden."""

from collections.abc import Callable, Sequence
from dataclasses import make_dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..inert import ratio_rows, switched_off
from ..knob import Knob
from ..paper import Paper
from ..settings import checked
from ..signs import EntropyBand, Sign
from ..tokens import Rollouts, Stored, TokenBatch
from ..turns import BranchPlan, Turn


Logs = dict[str, Tensor]
Bounds = tuple[float | Tensor, float | Tensor]
Choice = tuple[list[int], list[float]]


class Method:
    """A published method. The hooks it overrides say where in training it acts.

    Methods run in the order of `methods`: each sees the advantages as the methods before it left them. Hooks that
    compute something return their result and `Logs`, which are logged as `<method>/<key>`. A (B, T) tensor is logged
    as its mean over the valid tokens of all processes (NaN: leave this token out), or as its extreme if the key ends
    in `_min` or `_max`, or as its sum if the key is `selected_tokens`; a (B,) tensor likewise over sequences; a scalar
    is averaged over processes.

    Class attributes:
        name: the entry in `methods`, and the prefix of the method's fields and metrics.
        summary: one line for lists of methods.
        paper: the paper to cite.
        checked_against: what the tests compare the method with, such as "the paper's formulas". A method of another
            package may leave it out.
        config: dataclass of the method's fields, a mixin of the trainer's config. Each field has a default, a help
            text as `metadata`, and a name that starts with the method's.
        needs: inputs that cost extra and are computed only on request. `rollout_entropy`: entropies of the old policy
            over the whole generation batch. They are free if TRL scores the rollouts anyway; otherwise they cost one
            forward without gradient, or are recorded during generation. `rollout_logps`: log-probabilities of the same
            forward, so recording is not possible. `second_moments`, `nucleus_entropy`, `second_temperature`,
            `top_logps`: statistics of the fused head. `rewards`: the rewards of the sequences. `auxiliary_rollouts`:
            completions of a ratio of the prompts at another temperature, with one more forward per micro-batch.
            `branched_rollouts`: rollouts that branch in TRL's tool loop, by `roots`, `branches` and `turn_entropy`.
        plan: of an instance that needs `branched_rollouts`: how its rollouts branch.
            `replay`: a memory of sequences on the CPU, with one more forward per micro-batch while some are replayed.
        adds_reward: of an instance: `False` if its settings leave `reward` without effect, so it is not called.
        max_age: of an instance with the need `replay`: the memory drops sequences that were generated more than this
            many optimizer steps before the newest one in it.
        saves_memory: of such an instance: whether checkpoints hold the memory.
        shapes_reward: `reward` replaces the output of the reward function `shaped_reward` and adds no reward.
        replaces_advantages: `group_advantages` reads only rewards, so it discards the advantages of methods before it.
        excludes: methods that cannot be listed together with this one, and why.
        acts_on_ratio: the method does nothing while the current policy equals the old policy.
        completes_policy_loss: `loss` is a difference to TRL's policy loss, so it needs the advantages that TRL gets:
            the method belongs after all methods that change them in `token_advantages`.
        assumes_unit_advantages: the method's thresholds assume advantages divided by their standard deviation.
        knob: the setting that `entropy_keep` may drive, if one moves entropy in one direction.
        no_knob: why there is none, as the end of a sentence.
        driven: of an instance: the thermostat sets the attribute that `knob` names.
        compares_completions: the method centers advantages over a micro-batch, so a single completion is left alone.
        off: fields and values; if all of one entry hold, the method does nothing. The base class warns of them.
        token_ratio: the field that takes a ratio of tokens of which the method takes at least one, if it has one.
        ratio_scope: of which completions it does, as in `trl_entropy.inert.ratio_rows`. Without it, as the field
            `<method>_scope` says, or else of a micro-batch.
        idle: what the method logs while it does nothing, and which field to change.
        strong: what it logs while it does too much, likewise.
        entropy_band: the band in which it tries to hold mean token entropy, if it has one.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[Paper]
    checked_against: ClassVar[str]
    config: ClassVar[type] = make_dataclass("NoSettings", [])
    needs: tuple[str, ...] = ()
    plan: BranchPlan = BranchPlan()
    adds_reward: bool = True
    max_age: float = float("inf")
    saves_memory: bool = True
    shapes_reward: ClassVar[bool] = False
    shaped_reward: str | None = None
    replaces_advantages: ClassVar[bool] = False
    excludes: ClassVar[dict[str, str]] = {}
    acts_on_ratio: ClassVar[bool] = False
    completes_policy_loss: ClassVar[bool] = False
    assumes_unit_advantages: ClassVar[bool] = False
    knob: ClassVar[Knob | None] = None
    no_knob: ClassVar[str] = "it declares no setting that moves entropy in one direction"
    driven: bool = False
    compares_completions: ClassVar[bool] = False
    off: ClassVar[tuple[dict[str, Any], ...]] = ()
    token_ratio: ClassVar[str | None] = None
    ratio_scope: ClassVar[str | None] = None
    idle: ClassVar[tuple[Sign, ...]] = ()
    strong: ClassVar[tuple[Sign, ...]] = ()
    entropy_band: ClassVar[EntropyBand | None] = None

    def __init__(self, config: Any):
        """Reads and checks the method's fields. Raises `ValueError` that names field, value and what is accepted."""

    def check(self, config: Any) -> list[str]:
        """Warnings about training settings under which the method does not do what its paper intends.

        Raises `ValueError` if the method cannot work at all.
        """
        warning = switched_off(self.name, self.off, config)
        return [] if warning is None else [warning]

    def require(self, config: Any, field: str, *choices: str, why: str = "") -> None:
        """Raises `ValueError` if a training setting has none of the values with which the method works.

        Args:
            config: the training settings.
            field: the setting.
            choices: its accepted values.
            why: what follows the method's name in the error.
        """
        accepted = repr(choices[0]) if len(choices) == 1 else f"one of {', '.join(map(repr, choices))}"
        checked(config, field, lambda value: value in choices, f"{accepted} with method {self.name!r}{why}")

    def ratio_rows(self, config: Any) -> int:
        """The completions of which `token_ratio` takes tokens."""
        scope = self.ratio_scope or getattr(self, "scope", "micro_batch")
        return ratio_rows(scope, config, scored=getattr(self, "renormalize", False))

    def check_rewards(self, names: list[str]) -> None:
        """Once, before training: names of the reward functions. Raises `ValueError` if a required one is missing."""

    def check_tools(self, tools: bool) -> list[str]:
        """Once, before training: warnings, given whether completions may hold the results of tools.

        Raises `ValueError` if the method cannot work at all.
        """
        return []

    def setup(self, decode: Callable[[list[int]], str]) -> None:
        """Once, before training: receives the function that turns token ids into text, special tokens included."""

    def begin_step(self, step: int) -> None:
        """Before generation and before each forward of training: the number of the optimizer step.

        What `head_settings` and `auxiliary_rollouts` read from a step before must be complete here: a later hook sees
        only the second forward of an accumulation with it.
        """

    def prompts(self, rows: list[dict[str, Any]], draw: tuple[int, int], training: bool) -> list[dict[str, Any]]:
        """Before generation: dataset rows, each repeated once per completion -> rows. Changed rows are copies.

        `draw` (seed, optimizer step) identifies the generation batch. A group may span processes, so a random choice
        for a row must depend only on these arguments.
        """
        return rows

    def turn_entropy(self, entropies: Sequence[float], vocabulary: int) -> float:
        """While rollouts branch: entropies (nats) of a turn's tokens, and number of words -> the turn's entropy."""
        raise NotImplementedError

    def roots(self, group: int, turns: Sequence[float] | None) -> int | None:
        """While rollouts branch, for each prompt -> how many of its `group` completions begin at the prompt.

        `turns` is `None`, and the answer may be so too: then the first completion is sampled to its end, and the
        method is asked again with the entropies of its turns.
        """
        raise NotImplementedError

    def branches(self, turn: Turn) -> bool:
        """While rollouts branch, for a turn that called a tool -> whether to branch after the tool result."""
        return False

    def reward(self, **columns: Any) -> tuple[list[float | None], Logs]:
        """A reward function as TRL calls it -> one reward per completion, and `Logs`.

        Like any reward function it may name `token_entropies` and `token_mask`. It may also name `old_entropy`: (B, T)
        in nats, or `None` if it would cost a forward. With `shapes_reward` it also receives `rewards` (those of the
        reward function it shapes, NaN for `None`) and `prompt_ids`.
        """
        raise NotImplementedError

    def head_settings(self) -> dict[str, Any]:
        """Fields to set on the fused head before each forward."""
        return {}

    def group_advantages(self, rollouts: Rollouts) -> tuple[Tensor, Logs]:
        """Once per generation batch -> (B, T) advantages."""
        return rollouts.advantages, {}

    def group_mask(self, rollouts: Rollouts) -> Tensor:
        """Once per generation batch -> (B, T) bool: the tokens that stay in the loss and in its denominators."""
        return rollouts.mask

    def clip_bounds(self, tokens: TokenBatch) -> tuple[Bounds, Logs]:
        """In every forward of a loss that clips -> the (low, high) ratios at which it does, and `Logs`.

        `tokens` has the configured bounds. A bound is a float, or a tensor that broadcasts with the ratio. -inf and
        inf clip nothing; NaN keeps the configured bound. At most one method in `methods` may override this.
        """
        return (tokens.clip_low, tokens.clip_high), {}

    def token_advantages(self, tokens: TokenBatch) -> tuple[Tensor, Logs]:
        """In every forward -> (B, T) advantages; the trainer detaches them."""
        return tokens.advantages, {}

    def loss(self, tokens: TokenBatch) -> tuple[Tensor | None, Logs]:
        """In every forward -> (B, T) per-token term, or a scalar if the paper's term is not a mean over tokens.

        `tokens.advantages` are those that the method's own `token_advantages` returned.
        """
        return None, {}

    def auxiliary_rollouts(self) -> tuple[float, float]:
        """Once per generation batch -> temperature relative to the sampling temperature, and ratio of the prompts."""
        return 1.0, 1.0

    def replays(self, stored: Stored) -> tuple[Choice | None, Logs]:
        """Once per generation batch of training, before anything of it is remembered -> what to replay, and `Logs`.

        The choice is the indices of sequences in `stored` and their advantages. It is the same on every process: it
        depends only on the arguments and on a state that is. It empties the memory, even if the indices are too few
        to give every process a part for each micro-batch. `None` leaves the memory as it is.
        """
        return None, {}

    def keeps(self, rollouts: Rollouts) -> tuple[Tensor, Logs]:
        """Once per generation batch of training, after `replays` -> (B,) bool: the sequences to remember."""
        return rollouts.mask.any(1), {}

    def auxiliary_loss(self, tokens: TokenBatch) -> tuple[Tensor, Logs]:
        """In every training forward -> term on the micro-batch's part of the auxiliary rollouts, or of the replay.

        A scalar, or (B, T): then it is reduced as TRL reduces its loss, with the token counts of these sequences.
        Auxiliary rollouts have old log-probabilities at the ordinary temperature. Replayed sequences have those of
        the policy that generated them, the advantages that `replays` gave, and the configured clip bounds. They make
        no such forward while nothing is replayed.
        """
        return tokens.logps.sum() * 0, {}

    def count_draw(self, *draw: int) -> tuple | None:
        """The `draw` of `ratio_count` for a ratio of tokens: `None` unless the ratio is driven."""
        return ("count", self.name, *draw) if self.driven else None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know: finite numbers, or text, in lists and mappings; the same on every process.

        A run that is resumed must find the keys that a new run has. `None` stands for a number not known yet.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""

    def prefixed(self, logs: Logs) -> Logs:
        """The logs under the keys by which they are logged: `<method>/<key>`."""
        return {f"{self.name}/{key}": value for key, value in logs.items()}

    @classmethod
    def overrides(cls, hook: str) -> bool:
        own, plain = getattr(cls, hook), getattr(Method, hook)
        return getattr(own, "__func__", own) is not getattr(plain, "__func__", plain)
