# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""TIP for TRL's experimental trainers that distill over full logits: GKD, SDFT and SDPO.

Tokens that TIP drops are removed before the softmax, so the memory that the loss keeps for its backward falls with
`tip_ratio`. As in TRL, both models compute logits for every token. The loss is TRL's own on the rows of kept tokens.
"""

import inspect
import math
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from trl.experimental.gkd import GKDTrainer
from trl.experimental.sdft import SDFTTrainer
from trl.experimental.sdpo import SDPOTrainer

from ..collectives import collectives_of
from ..diagnosis.callback import add_diagnosis
from ..functional import row_top_mask
from ..head.masked import finite, is_masked
from ..methods.tip import Tip, TipTokens
from ..monitors.callback import add_monitors
from ..runs.resuming import ResumesWhole
from ..runs.states import SavesStates
from .checks import check_built, check_given, check_rewards
from .data_checks import CONVERSATION, PROMPT, PROMPT_AND_CONTEXT
from .experimental_config import EntropyGKDConfig, EntropySDFTConfig, EntropySDPOConfig
from .logits_selection import compact, rows_at, token_statistics
from .metrics import reduce_metrics
from .quadrants import selection_metrics
from .refined_schedule import RefinesSchedule
from .rewards import checking_rewards
from .signature import like
from .window import join_metrics


IGNORED = -100  # label of a token that the loss does not count


class ChoosesTokens(ResumesWhole, SavesStates, RefinesSchedule):
    """Mixin that selects tokens in a trainer over full logits. List it before TRL's trainer.

    Attributes:
        config_cls: the config that it takes.
        ends: whether completions end at the tokenizer's EOS token.
    """

    config_cls: type
    ends = True

    def __init__(self, *positional, **keywords):
        given = inspect.signature(super().__init__).bind_partial(*positional, **keywords).arguments
        args = given.get("args")
        if not isinstance(args, self.config_cls):
            raise TypeError(f"`args` must be an `{self.config_cls.__name__}`, got `{type(args).__name__}`.")
        self._check(given)
        self._tip = Tip(args)
        super().__init__(*positional, **keywords)
        check_built(self, fused=False, ends=self.ends)
        add_diagnosis(self, [self._tip])
        add_monitors(self)
        self._world = collectives_of(self.accelerator)
        self._place = (-1, 0)  # optimizer step, and number in it, of the last forward in training
        self._masked: dict[str, bool] = {}  # by model, once it has given logits
        if self._tip.selects:
            self._tag_names = [*self._tag_names, Tip.name]
            self.model.add_model_tags(self._tag_names)

    def _check(self, given: dict[str, Any]) -> None:
        """Checks the arguments of TRL's trainer."""
        check_given(given, PROMPT, fused=False)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        join_metrics(self._metrics["train" if self.model.training else "eval"])
        super().log(logs, start_time)

    @property
    def _choosing(self) -> bool:
        return self._tip.selects and self.model.training

    def _finite(self, model: str, logits: Tensor) -> Tensor:
        """(..., V) logits, finite if the first ones of `model` show that it masks its vocabulary.

        TRL's losses are NaN on other logits of tokens of probability 0. A copy is made only if there are some.
        """
        if model not in self._masked and logits.numel():
            self._masked[model] = is_masked(logits)
        return finite(logits) if self._masked.get(model) else logits

    def _choose(self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """(B, T, V), (B, T, V), (B, T) -> (B, T) bool, the tokens to keep. Logs the selection.

        Every process must call it, because it gathers.
        """
        step = self.state.global_step
        self._place = (step, self._place[1] + 1 if self._place[0] == step else 0)
        needs = {"divergence", *self._tip.needs}  # for the metrics; the teacher's logits exist anyway
        found = token_statistics(student_logits, teacher_logits, mask, needs, temperature)
        tokens = TipTokens(**found, mask=mask, draw=(self.args.seed, *self._place), world=self._world)
        keep = self._tip.keep(tokens)
        for key, value in reduce_metrics(selection_metrics(tokens, keep), mask, self._world).items():
            if not math.isnan(value):
                self._metrics["train"][f"{Tip.name}/{key}"].append(value)
        return keep

    @property
    def _stateful(self) -> dict[str, Any]:
        return {Tip.name: self._tip} if self._tip.scope == "ema" else {}


class EntropyGKDTrainer(ChoosesTokens, GKDTrainer):
    """
    [`~trl.experimental.gkd.GKDTrainer`] that trains on the tokens that TIP keeps. Same arguments; `args` is an
    [`EntropyGKDConfig`]. With `tip_rule="none"` or `tip_ratio=1` it is `GKDTrainer` to the bit. Evaluation always
    covers all tokens.

    TRL divides the loss by the number of tokens in the dataset's batch, even if it then trains on completions of a
    model. Here it divides by the number that TIP would keep of them.

    Args:
        args ([`EntropyGKDConfig`]):
            Settings, required.
        kwargs:
            All other arguments of `GKDTrainer`, by position or name.

    Raises:
        `ValueError`: a model, a dataset or the tokenizer is not what the trainer can use.
        `TypeError`: `args` is not an `EntropyGKDConfig`.
    """

    _tag_names = ["trl", "gkd", "trl-entropy"]
    config_cls = EntropyGKDConfig
    ends = False  # generation takes the model's

    @like(GKDTrainer, EntropyGKDConfig)
    def __init__(self, *positional, **keywords):
        super().__init__(*positional, **keywords)

    def _check(self, given):
        stock_collator = given.get("data_collator") is None
        check_given(given, CONVERSATION if stock_collator else (), ("model", "teacher_model"), fused=False, ends=False)
        if stock_collator and given.get("processing_class") is None:
            raise ValueError("`processing_class` must be a tokenizer, got None.")

    def generalized_jsd_loss(self, student_logits, teacher_logits, labels=None, *, temperature=1.0, **keywords):
        """TRL's loss on the rows of the kept tokens."""
        if self._choosing and labels is not None:
            keep = self._choose(student_logits, teacher_logits, labels != IGNORED, temperature)
            student_logits, teacher_logits, labels = student_logits[keep], teacher_logits[keep], labels[keep]
        return super().generalized_jsd_loss(
            self._finite("student", student_logits),
            self._finite("teacher", teacher_logits),
            labels=labels,
            temperature=temperature,
            **keywords,
        )

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """TRL's batches, with the count of kept tokens. Only training calls this, before it sets the model's mode."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._tip.selects:
            kept = [{**batch, "labels": self._as_many_as_kept(batch["labels"])} for batch in batches]
            count = self._get_num_items_in_batch(kept, device)
            count = count if count is None else count.clamp(min=1)  # if nothing is kept, the loss is 0
        return batches, count

    def _as_many_as_kept(self, labels: Tensor) -> Tensor:
        """(B, T) labels, of which each row keeps as many as TIP keeps. Only the number of tokens decides how many."""
        mask = labels != IGNORED
        mask[:, 0] = False  # never predicted
        return labels.masked_fill(
            ~row_top_mask(torch.zeros_like(mask, dtype=torch.float), mask, self._tip.counts(mask)), IGNORED
        )


class ChoosesTokensOfItself(ChoosesTokens):
    """Mixin for self-distillation, whose loss is a mean over each sequence."""

    def _compute_teacher_student_logits(self, *args, **kwargs):
        found = super()._compute_teacher_student_logits(*args, **kwargs)
        logits = {key: self._finite(key, getattr(found, key)) for key in ("student_logits", "teacher_logits")}
        return replace(found, **logits)

    def _compute_self_distillation_loss(self, model, inputs, distillation_logits):
        if not self._choosing:
            return super()._compute_self_distillation_loss(model, inputs, distillation_logits)
        found = distillation_logits
        # The logits are at the sampling temperature already.
        keep = self._choose(found.student_logits, found.teacher_logits, found.loss_mask.bool(), 1.0)
        positions, real = compact(keep)
        kept = {item.name: rows_at(getattr(found, item.name), positions) for item in fields(found)}
        if inputs.get("old_per_token_logps") is not None:
            inputs = {**inputs, "old_per_token_logps": rows_at(inputs["old_per_token_logps"], positions)}
        real = real if positions.size(1) else torch.ones_like(keep[:, :1])
        loss = super()._compute_self_distillation_loss(
            model, inputs, replace(found, **{**kept, "loss_mask": real.to(found.loss_mask.dtype)})
        )
        # If nothing is kept, the loss is that of rows of zeros: with an empty mask TRL would skip a collective
        return loss if positions.size(1) else loss * 0


class EntropySDFTTrainer(ChoosesTokensOfItself, SDFTTrainer):
    """
    [`~trl.experimental.sdft.SDFTTrainer`] that trains on the tokens that TIP keeps. Same arguments; `args` is an
    [`EntropySDFTConfig`]. With `tip_rule="none"` or `tip_ratio=1` it is `SDFTTrainer` to the bit. Evaluation always
    covers all tokens.

    Departs from the paper: the teacher sees more context than the student. Scores use the full vocabulary, even if
    `distillation_mode` compares only a part of it.

    Args:
        args ([`EntropySDFTConfig`]):
            Settings, required.
        kwargs:
            All other arguments of `SDFTTrainer`, by position or name.

    Raises:
        `ValueError`: a model, a dataset or the tokenizer is not what the trainer can use.
        `TypeError`: `args` is not an `EntropySDFTConfig`.
    """

    _tag_names = ["trl", "sdft", "trl-entropy"]
    config_cls = EntropySDFTConfig

    @like(SDFTTrainer, EntropySDFTConfig)
    def __init__(self, *positional, **keywords):
        super().__init__(*positional, **keywords)

    def _check(self, given):
        check_given(given, PROMPT_AND_CONTEXT, fused=False)


class EntropySDPOTrainer(ChoosesTokensOfItself, SDPOTrainer):
    """
    [`~trl.experimental.sdpo.SDPOTrainer`] that distills on the tokens that TIP keeps. Its policy loss covers all
    tokens. Same arguments; `args` is an [`EntropySDPOConfig`]. With `tip_rule="none"` or `tip_ratio=1` it is
    `SDPOTrainer` to the bit. Evaluation always covers all tokens.

    Departs from the paper as [`EntropySDFTTrainer`] does.

    Args:
        args ([`EntropySDPOConfig`]):
            Settings, required.
        kwargs:
            All other arguments of `SDPOTrainer`, by position or name.

    Raises:
        `ValueError`: a model, a dataset or the tokenizer is not what the trainer can use.
        `TypeError`: `args` is not an `EntropySDPOConfig`.
    """

    _tag_names = ["trl", "sdpo", "trl-entropy"]
    config_cls = EntropySDPOConfig

    @like(SDPOTrainer, EntropySDPOConfig)
    def __init__(self, *positional, **keywords):
        super().__init__(*positional, **keywords)

    def _check(self, given):
        super()._check(given)
        check_rewards(given.get("reward_funcs"))

    def _calculate_rewards(self, *args, **keywords):
        with checking_rewards(self):
            return super()._calculate_rewards(*args, **keywords)
