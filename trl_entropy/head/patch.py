# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adds the head to a model, around TRL's own fused forward.

TRL's forward runs the backbone, gathers a sharded head, and selects and scatters the scored positions. We keep all of
that. Our copy of the function has two global names replaced: the kernel, and the test for devices on which only
labeled positions are scored.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import is_peft_available
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

from .forwards import KERNEL, bind_cast_head, set_forward
from .function import DYNAMIC_DEVICES, TokenStatistics, token_statistics
from .rebinding import rebound
from .spec import HeadSpec


# Read once at import: Dynamo warns when it traces a call to the cached `is_peft_available`
_ADAPTER_LAYERS = (import_module("peft.tuners.tuners_utils").BaseTunerLayer,) if is_peft_available() else ()
HEAD_STATISTICS = ("second_moments", "nucleus_entropy", "second_temperature", "top_logps")
NUCLEUS_RULES = ("exclude", "include")
# Fields of the outputs that TRL's outputs lack.
EXTRA_OUTPUTS = ("sum_sq_probs", "sum_sq_probs_log_probs", "nucleus_entropy", "second_log_probs", "top_log_probs")
# Global name that TRL's fused forward looks up, which we replace
SCORES_LABELLED_ONLY = "_use_triton"


@dataclass
class EntropyCausalLMOutput(FusedCausalLMOutput):
    """TRL's outputs and the requested statistics; statistics that were not requested are `None`.

    All but one have the shape of `log_probs`, (batch, seq_len - 1). They are in nats, and 0 where the label is `-100`.

    Args:
        sum_sq_probs (`torch.Tensor`, *optional*):
            Σp² of the next-token distribution, without gradient.
        sum_sq_probs_log_probs (`torch.Tensor`, *optional*):
            Σp² log p of the next-token distribution, without gradient.
        nucleus_entropy (`torch.Tensor`, *optional*):
            Entropy of the next-token distribution renormalized on its nucleus, with gradient.
        second_log_probs (`torch.Tensor`, *optional*):
            Log-probability of each next-token label at the second temperature, without gradient.
        top_log_probs (`torch.Tensor`, *optional*):
            Log-probabilities of the `top_k` likeliest next tokens in descending order, with gradient: (batch,
            seq_len - 1, `top_k`).
    """

    sum_sq_probs: Tensor | None = None
    sum_sq_probs_log_probs: Tensor | None = None
    nucleus_entropy: Tensor | None = None
    second_log_probs: Tensor | None = None
    top_log_probs: Tensor | None = None


@dataclass
class Recorded:
    """The outputs of the forwards made while a head recorded."""

    outputs: list[EntropyCausalLMOutput] = field(default_factory=list)

    def statistics(self, length: int) -> dict[str, Tensor]:
        """(B, length, ...) statistics of the last tokens of each row, with forwards over parts concatenated."""
        names = [name for name in EXTRA_OUTPUTS if self.outputs and getattr(self.outputs[0], name) is not None]
        return {name: torch.cat([getattr(output, name)[:, -length:] for output in self.outputs]) for name in names}


@dataclass
class EntropyHead:
    """The settings of a model's head. They may change between forwards; each forward checks and reads them.

    Attributes:
        statistics: what the forward computes in addition to log-probabilities and entropy: any of `second_moments`,
            `nucleus_entropy`, `second_temperature` and `top_logps`.
        live_rows: whether the backward leaves out tokens that no gradient reaches.
        top_p: mass of the nucleus, in (0, 1).
        nucleus_rule: `include` if the token that crosses `top_p` is in the nucleus, `exclude` if it is not.
        second_temperature: the second temperature. It applies to the logits before the first temperature.
        top_k: how many of the likeliest tokens `top_logps` covers.

    Raises:
        `ValueError`: a setting is out of range.
    """

    statistics: tuple[str, ...] = ()
    live_rows: bool = True
    top_p: float = 0.8
    nucleus_rule: str = "exclude"
    second_temperature: float | None = None
    top_k: int = 1

    def __post_init__(self):
        self._computed: dict[int, TokenStatistics] = {}  # by thread: replicas of one model run side by side
        self._recorded: Recorded | None = None
        self.check()

    @contextmanager
    def recording(self, *statistics: str, **settings: Any) -> Iterator["Recorded"]:
        """Within the context, computes `statistics` with `settings` and keeps the outputs of each forward.

        TRL's trainer passes on only some outputs of a forward. This returns the others.
        """
        changed = {"statistics": statistics, **settings}
        before = {name: getattr(self, name) for name in changed}
        try:
            self._recorded = Recorded()
            for name, value in changed.items():
                setattr(self, name, value)
            yield self._recorded
        finally:
            self._recorded = None
            for name, value in before.items():
                setattr(self, name, value)

    def check(self) -> None:
        """Raises `ValueError`, naming the field, its value and what is accepted."""
        unknown = [name for name in self.statistics if name not in HEAD_STATISTICS]
        if isinstance(self.statistics, str) or unknown:
            raise ValueError(
                f"`statistics` must be a tuple of names among {HEAD_STATISTICS}, got {self.statistics!r}."
            )
        if not 0 < self.top_p < 1:
            raise ValueError(f"`top_p` must be in (0, 1), got {self.top_p!r}.")
        if self.nucleus_rule not in NUCLEUS_RULES:
            raise ValueError(f"`nucleus_rule` must be one of {NUCLEUS_RULES}, got {self.nucleus_rule!r}.")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 1:
            raise ValueError(f"`top_k` must be an integer >= 1, got {self.top_k!r}.")
        if "second_temperature" in self.statistics or self.second_temperature is not None:
            if self.second_temperature is None or not 0 < self.second_temperature < math.inf:
                raise ValueError(
                    f"`second_temperature` must be a finite number above 0, got {self.second_temperature!r}."
                )

    @torch.compiler.disable
    def apply(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = (),
    ) -> tuple[Tensor, Tensor, None, None, None]:
        """Called by TRL's forward instead of its kernel's `apply`."""
        spec = HeadSpec(
            logit_scale=logit_scale,
            softcap=final_logit_softcapping,
            temperature=temperature,
            second_moments="second_moments" in self.statistics,
            second_temperature=self.second_temperature if "second_temperature" in self.statistics else None,
            top_p=self.top_p if "nucleus_entropy" in self.statistics else None,
            include_crossing=self.nucleus_rule == "include",
            top_k=self.top_k if "top_logps" in self.statistics else None,
            live_rows=self.live_rows,
            vocab_tile=chunk_size,
        )
        computed = self._computed[threading.get_ident()] = token_statistics(hidden, weight, bias, targets, spec)
        return computed.log_probs, computed.entropy, None, None, None

    @torch.compiler.disable
    def _take(self) -> TokenStatistics:
        return self._computed.pop(threading.get_ident())

    def extend(self, outputs: FusedCausalLMOutput) -> EntropyCausalLMOutput:
        """TRL's outputs with the statistics of the same forward at their tokens' positions."""
        computed = self._take()
        mask = outputs.label_mask
        compact = len(computed.log_probs) != mask.numel()
        extra = {}
        for name in EXTRA_OUTPUTS:
            values = getattr(computed, name)
            if values is None:
                continue
            shape = mask.shape + values.shape[1:]
            at = mask.view(mask.shape + (1,) * (values.dim() - 1))
            if compact:
                extra[name] = values.new_zeros(shape).masked_scatter(at, values)
            else:
                extra[name] = values.view(shape).masked_fill(~at, 0)
        extended = EntropyCausalLMOutput(**outputs, **extra)
        if self._recorded is not None:
            self._recorded.outputs.append(extended)
        return extended


def add_entropy_head(
    model: PreTrainedModel,
    temperature: float = 1.0,
    cast_lm_head_to_fp32: bool = False,
    statistics: tuple[str, ...] = (),
    live_rows: bool = True,
    top_p: float = 0.8,
    nucleus_rule: str = "exclude",
    second_temperature: float | None = None,
    top_k: int = 1,
) -> EntropyHead:
    """Makes `model(..., labels=labels, fused_lm_head=True)` return [`EntropyCausalLMOutput`].

    Call and outputs are those of TRL's `add_fused_lm_head` with log-probabilities and entropy. Differences: entropy is
    accumulated relative to the largest logit, so small entropies are exact; the backward leaves out tokens whose
    incoming gradients are all 0; only labeled positions are projected, on a CPU too.

    Args:
        model: the model, inside PEFT or not. It may have TRL's fused head already.
        temperature: of the logits.
        cast_lm_head_to_fp32: as in TRL.
        statistics, live_rows, top_p, nucleus_rule, second_temperature, top_k: as in [`EntropyHead`].

    Returns:
        The head's settings, which may change between forwards. Copies of the model share them, and compute with their
        own weights.

    Raises:
        `ValueError`: a setting is out of range, or a PEFT adapter is on the LM head. The adapter would be ignored and
            never trained.
    """
    head = EntropyHead(statistics, live_rows, top_p, nucleus_rule, second_temperature, top_k)
    model = model.get_base_model() if is_peft_model(model) else model
    _refuse_adapter(model)
    add_fused_lm_head(model, temperature, cast_lm_head_to_fp32, outputs=("log_probs", "entropy"))
    trl_forward = rebound(
        model.forward.__func__,
        {KERNEL: head, SCORES_LABELLED_ONLY: lambda device: device.type in DYNAMIC_DEVICES},
    )

    def fused(self, *args, **kwargs):
        head.check()
        _refuse_adapter(self)
        return head.extend(trl_forward(self, *args, **kwargs))

    set_forward(model, fused)
    bind_cast_head(model)
    return head


def _refuse_adapter(model: PreTrainedModel) -> None:
    if isinstance(model.get_output_embeddings(), _ADAPTER_LAYERS):
        raise ValueError(
            "`target_modules` of the PEFT adapter must leave out `lm_head`, got an adapter on it: the fused head "
            "multiplies by the base weight directly, so the adapter would be ignored and never trained."
        )
