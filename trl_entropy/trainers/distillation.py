# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`EntropyDistillationTrainer`: trains on the tokens that TIP keeps, around TRL's own loss.

TRL's `_compute_loss` passes the hidden states of both models to a function of its module, which calls a kernel and
takes the mean. While TRL computes the loss, our function replaces that one, with a kernel that leaves tokens out. The
number that TRL divides by is set right after generation: how many tokens are kept depends only on how many there are.
"""

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl import DistillationTrainer
from trl.trainer import distillation_trainer

from ..collectives import Collectives, collectives_of
from ..diagnosis.callback import add_diagnosis
from ..head import check_head
from ..head.agreement import is_sharded
from ..head.divergence import Divergences, Head, divergences, entropy_first_is_cheaper, student_entropy
from ..head.function import DYNAMIC_DEVICES
from ..head.rebinding import rebound, swapped
from ..head.zero3 import forget_order
from ..kappa.wiring import with_kappa
from ..methods.tip import Tip, TipTokens
from ..monitors.callback import add_monitors
from ..runs.mixin import RunMixin
from ..runs.token_log import SettingsCallback
from .checks import check_built, check_given
from .data_checks import PROMPT
from .distillation_config import EntropyDistillationConfig
from .metrics import reduce_metrics
from .quadrants import selection_metrics, write_scatter
from .refined_schedule import RefinesSchedule
from .signature import args_of, like
from .window import join_metrics


# Names in TRL's module that are ours while a loss is computed
LOSS, KERNEL = "_chunked_divergence_loss", "ChunkedDivergenceFunction"


class WholeKernel:
    """TRL's kernel for evaluation. The same, except that it takes a vocabulary that a bias masks."""

    @staticmethod
    def apply(*arguments: Any) -> tuple[Tensor, Tensor]:
        """The arguments of TRL's kernel -> (N,) divergence and (N,) entropy in nats."""
        found: Divergences = divergences(Head(*arguments), live_rows=False)
        return found.loss, found.entropy


class SelectingKernel:
    """Replaces TRL's kernel for the loss of one micro-batch. The same, except that tokens are left out.

    Args:
        tip: selects the tokens.
        mask: (B, T) the tokens that the loss counts.
        draw, world: as in [`TipTokens`].
        everywhere: whether to compute the divergence of all tokens, even if a rule needs fewer.

    Attributes:
        tokens: the statistics that the selection used, once `apply` has run.
        keep: (B, T) bool, the selected tokens, once `apply` has run.
    """

    def __init__(self, tip: Tip, mask: Tensor, draw: tuple[int, int, int], world: Collectives, everywhere: bool):
        self.tip, self.mask, self.draw, self.world, self.everywhere = tip, mask.bool(), draw, world, everywhere
        self.tokens: TipTokens | None = None
        self.keep: Tensor | None = None

    @torch.compiler.disable
    def apply(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        """The arguments of TRL's kernel -> (N,) divergence, 0 for dropped tokens, and (N,) entropy of all; nats.

        The N rows are the valid tokens or all tokens, depending on what TRL passes on the device.
        """
        head = Head(*arguments)
        valid = torch.ones_like(self.mask) if len(head.student_hidden) == self.mask.numel() else self.mask
        on_device = head.student_hidden.device.type in DYNAMIC_DEVICES
        if on_device and not (self.everywhere or self.tip.needs) and self.tip.selects:
            if entropy_first_is_cheaper(head, self.tip.ratio):
                return self._entropy_first(head, valid)
        found = divergences(head, live_rows=self.tip.selects)
        entropy, reverse, forward = (
            torch.zeros(self.mask.shape, dtype=x.dtype, device=x.device).masked_scatter(valid, x.detach())
            for x in (found.entropy, found.reverse, found.forward)
        )
        self._choose(entropy, reverse, forward)
        if not self.tip.selects:
            return found.loss, found.entropy
        return found.loss.masked_fill(~self.keep[valid], 0), found.entropy

    def _entropy_first(self, head: Head, valid: Tensor) -> tuple[Tensor, Tensor]:
        """One sweep of the student's head for the entropies, then both heads on the kept rows only.

        A kept token whose divergence is not finite is dropped without replacement.
        """
        counted = self.mask[valid]
        entropy = student_entropy(head, counted.nonzero().squeeze(1))
        entropies = torch.zeros(self.mask.shape, dtype=entropy.dtype, device=entropy.device)
        self._choose(entropies.masked_scatter(self.mask, entropy))
        rows = self.keep[valid].nonzero().squeeze(1)
        found = divergences(head.at(rows), live_rows=True)
        finite = torch.stack([x.detach() for x in found]).isfinite().all(0)
        broken = self.keep.masked_scatter(self.keep, ~finite)
        self.keep = self.keep & ~broken
        self.tokens = replace(self.tokens, entropy=self.tokens.entropy.masked_fill(broken, torch.nan))
        kept = found.loss.masked_fill(~finite, 0)
        loss = torch.zeros(len(counted), dtype=kept.dtype, device=kept.device).index_copy(0, rows, kept)
        return loss, loss.detach().masked_fill(counted, 0).masked_scatter(counted, entropy)

    def _choose(self, entropy: Tensor, reverse: Tensor | None = None, forward: Tensor | None = None) -> None:
        self.tokens = TipTokens(entropy, self.mask, reverse, forward, self.draw, self.world)
        self.keep = self.tip.keep(self.tokens)


class EntropyDistillationTrainer(RunMixin, RefinesSchedule, DistillationTrainer):
    """
    [`~trl.DistillationTrainer`] that trains on the tokens that TIP keeps. Same arguments; `args` is an
    [`EntropyDistillationConfig`]. With `tip_rule="none"` or `tip_ratio=1`, losses and gradients are those of
    `DistillationTrainer` to the bit. Evaluation always covers all tokens.

    The backward of both heads runs on the kept tokens only. If a rule needs only entropies and keeps few enough
    tokens, the teacher's head also runs its forward on the kept tokens only.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Student to train, or its name on the Hub or folder.
        teacher_model (`str` or [`~transformers.PreTrainedModel`], *optional*):
            Teacher, or its name or folder.
        args ([`EntropyDistillationConfig`], *optional*):
            Settings. Defaults to an `EntropyDistillationConfig` in a folder named after the model.
        kwargs:
            All other arguments of [`~trl.DistillationTrainer`], by position or name.

    Raises:
        `TypeError`: `args` is not an `EntropyDistillationConfig`.
        `ValueError`: a model, a dataset or the tokenizer is not what the trainer can use, or TRL's loss would not
            compute with a model's own logits. If a model is sharded, the last is found before the first loss.
        `RuntimeError`: in training, if another package has replaced TRL's loss.

    Example:

    ```python
    from trl_entropy import EntropyDistillationConfig, EntropyDistillationTrainer

    trainer = EntropyDistillationTrainer(
        model="Qwen/Qwen3-0.6B",
        teacher_model="Qwen/Qwen3-4B",
        args=EntropyDistillationConfig("out", tip_ratio=0.5),
        train_dataset=dataset,
    )
    trainer.train()
    ```
    """

    _tag_names = ["trl", "distillation", "trl-entropy"]
    card_metrics = ("loss", "entropy", "completions/mean_length")

    @like(DistillationTrainer, EntropyDistillationConfig)
    def __init__(
        self,
        model: "str | PreTrainedModel",
        teacher_model: "str | PreTrainedModel | None" = None,
        args: EntropyDistillationConfig | None = None,
        *positional,
        **keywords,
    ):
        given = (
            inspect.signature(DistillationTrainer).bind(model, teacher_model, args, *positional, **keywords).arguments
        )
        check_given(given, PROMPT, ("model", "teacher_model"))
        args = given["args"] = args_of(given, EntropyDistillationConfig, "Distillation")
        self._tip = Tip(args)
        self._kernel: SelectingKernel | None = None  # of the last loss, until it is logged
        super().__init__(**with_kappa(DistillationTrainer, **given))
        check_built(self)
        self._tag_names = [*self._tag_names, *([Tip.name] if self._tip.selects else [])]
        self.model.add_model_tags(self._tag_names)
        self.methods = [self._tip] if self._tip.selects else []
        self.card_facts = {}
        self.add_callback(SettingsCallback)
        add_diagnosis(self)
        add_monitors(self)
        self._world = collectives_of(self.accelerator)
        self._checks_heads = is_sharded(self.accelerator, self.model, self.teacher_model)  # before the first loss
        if not self._checks_heads:
            self._check_heads(self.model)

    def _check_heads(self, model: Any) -> None:
        for field, checked in (("model", model), ("teacher_model", self.teacher_model)):
            if checked is not None:
                unwrapped = self.accelerator.unwrap_model(checked)
                check_head(checked, self.temperature, unwrapped, self.accelerator.autocast(), field)

    def _generate_single_turn(self, *args, **kwargs):
        output = super()._generate_single_turn(*args, **kwargs)
        if not self.args.ds3_gather_for_generation:
            forget_order(self.model_wrapped)
        return output

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.model.training and self._tip.selects:
            mask = output["completion_mask"] * output.get("tool_mask", 1)
            output["num_items_in_batch"] = self.accelerator.gather(self._tip.counts(mask.bool()).sum()).sum()
        return output

    def compute_loss(self, model, inputs, *args, **kwargs):
        if self._checks_heads:
            self._checks_heads = False
            self._check_heads(model)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        # As in TRL, the collectives of metrics stay out of the wrapped forward
        kernel, self._kernel = self._kernel, None
        if kernel is not None:
            self._log_selection(kernel)
        return loss

    def _compute_loss(self, unwrapped_student, inputs, num_items_in_batch):
        if not self.model.training:
            with swapped(distillation_trainer, KERNEL, WholeKernel):
                return super()._compute_loss(unwrapped_student, inputs, num_items_in_batch)
        stock_loss = getattr(distillation_trainer, LOSS)

        def loss_on_kept_tokens(student_hidden, teacher_hidden, student_head, teacher_head, mask, *args, **kwargs):
            self._kernel = SelectingKernel(self._tip, mask, self._draw, self._world, self._scatter_is_due)
            selecting_loss = rebound(stock_loss, {KERNEL: self._kernel})
            return selecting_loss(student_hidden, teacher_hidden, student_head, teacher_head, mask, *args, **kwargs)

        self._kernel = None
        with swapped(distillation_trainer, LOSS, loss_on_kept_tokens):
            found = super()._compute_loss(unwrapped_student, inputs, num_items_in_batch)
        if self._kernel is None or self._kernel.keep is None:
            raise RuntimeError(
                f"The loss was computed without `{distillation_trainer.__name__}.{LOSS}`, so no token could be "
                "selected: another package has replaced parts of TRL's trainer."
            )
        return found

    # Metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        join_metrics(self._metrics["train" if self.model.training else "eval"])
        super().log(logs, start_time)

    @property
    def _draw(self) -> tuple[int, int, int]:
        return self.args.seed, self.state.global_step, self._step % self.args.gradient_accumulation_steps

    @property
    def _scatter_is_due(self) -> bool:
        """Whether to write this micro-batch to the scatter file: the first of every `tip_scatter_steps`-th step."""
        _, step, micro_batch = self._draw
        every = self.args.tip_scatter_steps
        return every is not None and micro_batch == 0 and (step + 1) % every == 0

    def _log_selection(self, kernel: SelectingKernel) -> None:
        values = selection_metrics(kernel.tokens, kernel.keep)
        for key, value in reduce_metrics(values, kernel.mask, self._world).items():
            self._metrics["train"][f"{Tip.name}/{key}"].append(value)
        if kernel.everywhere and self.accelerator.is_main_process:
            write_scatter(self.args.output_dir, kernel.tokens, kernel.keep, self.state.global_step + 1)

    # Checkpoints

    @property
    def _stateful(self) -> dict[str, Any]:
        return {Tip.name: self._tip} if self._tip.scope == "ema" else {}
