# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""TIP for TRL's experimental trainers that distil over full logits: GKD, SDFT and SDPO.

Tokens that TIP drops leave before the softmax, so that what the loss keeps for its backward falls with `tip_ratio`. The
logits of both models themselves are computed for every token, as in TRL. The loss is TRL's own on the rows that are left.
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
from ..functional import row_top_mask
from ..methods.tip import Tip, TipTokens
from ..runs.resuming import ResumesWhole
from ..runs.states import SavesStates
from .experimental_config import EntropyGKDConfig, EntropySDFTConfig, EntropySDPOConfig
from .logits_selection import compact, rows_at, token_statistics
from .metrics import reduce_metrics
from .quadrants import selection_metrics
from .signature import like
from .window import join_metrics


IGNORED = -100  # label of a token that the loss does not count


class ChoosesTokens(ResumesWhole, SavesStates):
    """The part of a trainer over full logits that chooses tokens. Mixed in before TRL's trainer.

    Attributes:
        config_cls: the config that it takes.
    """

    config_cls: type

    def __init__(self, *positional, **keywords):
        args = inspect.signature(super().__init__).bind_partial(*positional, **keywords).arguments.get("args")
        if not isinstance(args, self.config_cls):
            raise TypeError(f"`args` must be an `{self.config_cls.__name__}`, got `{type(args).__name__}`.")
        self._tip = Tip(args)
        super().__init__(*positional, **keywords)
        self._world = collectives_of(self.accelerator)
        self._place = (-1, 0)  # optimizer step, and number in it, of the last forward in training
        if self._tip.selects:
            self._tag_names = [*self._tag_names, Tip.name]
            self.model.add_model_tags(self._tag_names)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        join_metrics(self._metrics["train" if self.model.training else "eval"])
        super().log(logs, start_time)

    @property
    def _choosing(self) -> bool:
        return self._tip.selects and self.model.training

    def _choose(self, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """(B, T, V), (B, T, V), (B, T) -> (B, T) bool, the tokens to keep. Logs the choice. Every process must call it."""
        step = self.state.global_step
        self._place = (step, self._place[1] + 1 if self._place[0] == step else 0)
        needs = {"divergence", *self._tip.needs}  # the former for the metrics: the teacher's logits are there anyway
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
    [`EntropyGKDConfig`]. With `tip_rule="none"` or `tip_ratio=1` it is `GKDTrainer` to the bit. Evaluation is over all
    tokens in any case.

    TRL divides the loss by the tokens of the dataset's batch, also where it then trains on completions of a model. Here
    it divides by those that TIP would keep of them.

    Args:
        args ([`EntropyGKDConfig`]):
            Settings, required.
        kwargs:
            All other arguments of `GKDTrainer`, by position or name.

    Raises:
        `TypeError`: `args` is not an `EntropyGKDConfig`.
    """

    _tag_names = ["trl", "gkd", "trl-entropy"]
    config_cls = EntropyGKDConfig

    @like(GKDTrainer, EntropyGKDConfig)
    def __init__(self, *positional, **keywords):
        super().__init__(*positional, **keywords)

    def generalized_jsd_loss(self, student_logits, teacher_logits, labels=None, *, temperature=1.0, **keywords):
        """TRL's on the rows of the kept tokens."""
        if self._choosing and labels is not None:
            keep = self._choose(student_logits, teacher_logits, labels != IGNORED, temperature)
            student_logits, teacher_logits, labels = student_logits[keep], teacher_logits[keep], labels[keep]
        return super().generalized_jsd_loss(
            student_logits, teacher_logits, labels=labels, temperature=temperature, **keywords
        )

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Only training calls it, and before it sets the mode of the model."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._tip.selects:
            kept = [{**batch, "labels": self._as_many_as_kept(batch["labels"])} for batch in batches]
            count = self._get_num_items_in_batch(kept, device)
            count = count if count is None else count.clamp(min=1)  # nothing kept is a loss of zero
        return batches, count

    def _as_many_as_kept(self, labels: Tensor) -> Tensor:
        """(B, T) labels with as many of them left in each row as TIP keeps: how many follows from their number alone."""
        mask = labels != IGNORED
        mask[:, 0] = False  # never predicted
        return labels.masked_fill(
            ~row_top_mask(torch.zeros_like(mask, dtype=torch.float), mask, self._tip.counts(mask)), IGNORED
        )


class ChoosesTokensOfItself(ChoosesTokens):
    """The same for self-distillation, whose loss is a mean over each sequence."""

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
        # Where nothing is kept, the loss is of rows of zeros: with an empty mask TRL leaves before a collective
        return loss if positions.size(1) else loss * 0


class EntropySDFTTrainer(ChoosesTokensOfItself, SDFTTrainer):
    """
    [`~trl.experimental.sdft.SDFTTrainer`] that trains on the tokens that TIP keeps. Same arguments; `args` is an
    [`EntropySDFTConfig`]. With `tip_rule="none"` or `tip_ratio=1` it is `SDFTTrainer` to the bit. Evaluation is over all
    tokens in any case.

    Departs from the paper: the teacher sees more than the student does. Scores are of the full vocabulary, also where
    `distillation_mode` compares a part of it.

    Args:
        args ([`EntropySDFTConfig`]):
            Settings, required.
        kwargs:
            All other arguments of `SDFTTrainer`, by position or name.

    Raises:
        `TypeError`: `args` is not an `EntropySDFTConfig`.
    """

    _tag_names = ["trl", "sdft", "trl-entropy"]
    config_cls = EntropySDFTConfig

    @like(SDFTTrainer, EntropySDFTConfig)
    def __init__(self, *positional, **keywords):
        super().__init__(*positional, **keywords)


class EntropySDPOTrainer(ChoosesTokensOfItself, SDPOTrainer):
    """
    [`~trl.experimental.sdpo.SDPOTrainer`] that distils on the tokens that TIP keeps; its policy loss is over all. Same
    arguments; `args` is an [`EntropySDPOConfig`]. With `tip_rule="none"` or `tip_ratio=1` it is `SDPOTrainer` to the bit.
    Evaluation is over all tokens in any case.

    Departs from the paper as [`EntropySDFTTrainer`] does.

    Args:
        args ([`EntropySDPOConfig`]):
            Settings, required.
        kwargs:
            All other arguments of `SDPOTrainer`, by position or name.

    Raises:
        `TypeError`: `args` is not an `EntropySDPOConfig`.
    """

    _tag_names = ["trl", "sdpo", "trl-entropy"]
    config_cls = EntropySDPOConfig

    @like(SDPOTrainer, EntropySDPOConfig)
    def __init__(self, *positional, **keywords):
        super().__init__(*positional, **keywords)
