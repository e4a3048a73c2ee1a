# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""KappaTune as callbacks: freezing before the optimizer is made, and watching condition numbers while training."""

import os
import re
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import ExportableState

from .config import kappa_cache
from .inventory import why_unreadable
from .layers import Layer
from .report import write_json
from .selection import Selection
from .sources import CheckpointSource, source_of
from .spectra import condition_number, singular_values
from .tuning import analyzed, freeze_all_but, trained_weight, why_untracked


REPORT = "kappa.json"  # in the folder of the run
WRAPPERS = re.compile(
    r"_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_orig_mod\.|^module\."
)  # parts of names that training adds


class KappaMonitor(TrainerCallback, ExportableState):
    """Knows what was selected: writes it to the run's folder, refuses to resume with another, logs condition numbers.

    Arguments as of [`KappaTuneCallback`].

    Attributes:
        layers: all weights of the model, with condition numbers for the candidates.
        chosen: those selected, first the one that comes first in the ranking.
        checkpoint: folder or id on the Hub, revision, and whether to trust its code, to compute from; if unset, the model.
    """

    adds_to_logs = True  # so that the trainer puts it before the callbacks that report

    def __init__(
        self,
        top_p: float | None = None,
        num_modules: int | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        order: str = "ascending",
        experts: str = "median",
        seed: int = 0,
        cache: str | None = None,
        track_steps: int | None = None,
    ):
        if track_steps is not None and (type(track_steps) is not int or track_steps < 1):
            raise ValueError(f"`track_steps` must be an integer above 0 or unset, got {track_steps!r}.")
        self.selection = Selection(top_p, num_modules, include, exclude, order, experts, seed)
        self.cache, self.track_steps = cache, track_steps
        self.checkpoint: tuple[str, str | None, bool] | None = None
        self.layers: list[Layer] = []
        self.chosen: list[Layer] = []
        self._tracked: dict[str, float] = {}

    @property
    def selected(self) -> list[str]:
        """Names of the selected modules, lowest condition number first; empty before the model was analysed."""
        return [layer.name for layer in self.chosen]

    def analyze(self, model: PreTrainedModel | None = None, progress: bool = True) -> None:
        """Fills `layers` and `chosen`."""
        source = CheckpointSource(*self.checkpoint) if self.checkpoint else source_of(model)
        self.layers, self.chosen = analyzed(source, self.selection, kappa_cache(self.cache), progress)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the arguments, and the rows of the weights that were selected."""
        settings = {key: value for key, value in vars(self.selection).items() if key != "prefix"}
        settings |= {"cache": self.cache, "track_steps": self.track_steps}
        return {"args": settings, "attributes": {"restored": self.restored}}

    @property
    def restored(self) -> list[dict[str, Any]]:
        """The selected weights as a checkpoint keeps them."""
        return [layer.as_json() for layer in self.chosen]

    @restored.setter
    def restored(self, rows: list[dict[str, Any]]) -> None:
        self.layers = self.chosen = [Layer.from_json(row) for row in rows]

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        rows = state.stateful_callbacks.get(type(self).__name__, self.state())["attributes"]["restored"]
        saved, selected = {row["name"] for row in rows}, {*self.selected}
        if saved != selected:
            parts = (("the checkpoint", saved - selected), ("this run", selected - saved))
            only = ", ".join(f"{min(names)!r} only in {where}" for where, names in parts if names)
            raise ValueError(
                f"The checkpoint was trained on {len(saved)} selected modules, this run selects {len(selected)}: {only}. "
                "Resume with the same model and the same fields of KappaTune."
            )
        if self.track_steps is not None and (reason := why_unreadable(model) or why_untracked(model, self.chosen)):
            raise ValueError(f"Condition numbers cannot be tracked: the weights of the model are {reason}.")
        if state.is_world_process_zero:
            os.makedirs(args.output_dir, exist_ok=True)
            name = getattr(model.config, "_name_or_path", "")
            write_json(os.path.join(args.output_dir, REPORT), name, self.layers, self.selected, self.selection)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.track_steps is not None and state.global_step % self.track_steps == 0:
            control.should_log = True  # on every process: they stand at their own step, and so do the run's last ones
            if state.is_world_process_zero:
                self._tracked = self.measure(model)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs is not None and self._tracked and "loss" in logs:
            logs.update(self._tracked)
            state.log_history[-1].update(self._tracked)
            self._tracked = {}

    @torch.no_grad()
    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        """The median and the largest condition number of the selected weights, and the median of each type."""
        found: dict[str, list[float]] = {}
        for layer in self.chosen:
            weight = trained_weight(model, layer)
            matrices = weight if weight.dim() == 3 else [weight]
            kappas = [condition_number(singular_values(matrix)[0], layer.shape[-2:])[0] for matrix in matrices]
            found.setdefault(layer.type, []).append(median(kappas))
        every = [kappa for kappas in found.values() for kappa in kappas]
        types = {f"kappa/{kind}": median(kappas) for kind, kappas in found.items()}
        return types | {"kappa/median": median(every), "kappa/max": max(every)}


class KappaTuneCallback(KappaMonitor):
    r"""
    Trains only the weights of low condition number, in any trainer of TRL or transformers: at construction of the trainer,
    before the optimizer is made, all others are frozen. From [KappaTune](https://huggingface.co/papers/2506.16289).

    The evidence that this forgets less is mixed: measure it on your own task. What was selected is written to `kappa.json`
    in the folder of the run. Condition numbers that are tracked stand in the trainer's log history under `kappa/`; a
    trainer that is not of this package hands its log lines to `report_to` first, which then does not see them.

    For LoRA, whose targets must be known before the trainer is made, use [`kappa_peft_config`].

    Args:
        top_p (`float`, *optional*):
            Share of the candidates' parameters to select, as many modules from the top of the ranking as fit. 0.2 where
            `num_modules` is not given either.
        num_modules (`int`, *optional*):
            Number of modules to select, in place of a share.
        include (`list[str]`, *optional*, defaults to `[]`):
            Regular expressions: candidates are the modules in whose names one of them is found. Without any, all linear
            layers and fused experts, but for the output head, routers, and towers for other modalities.
        exclude (`list[str]`, *optional*, defaults to `[]`):
            Regular expressions: modules in whose names one of them is found are no candidates.
        order (`str`, *optional*, defaults to `"ascending"`):
            `"ascending"` by condition number as in the paper, or, for ablations, `"descending"` or `"random"`.
        experts (`str`, *optional*, defaults to `"median"`):
            What stands for a stack of fused experts: the `"median"` or the `"mean"` of their condition numbers.
        seed (`int`, *optional*, defaults to `0`):
            Of the random order.
        cache (`str`, *optional*):
            Folder of cached results, by default below the cache of Hugging Face; `"none"`: no cache.
        track_steps (`int`, *optional*):
            Log the condition numbers of the trained weights every so many optimizer steps, whatever `logging_steps` is.

    Raises:
        `ValueError`: an argument is out of range, the budget selects nothing, or the model has adapters or frozen weights
            reached the optimizer.

    Example:

    ```python
    trainer = SFTTrainer("Qwen/Qwen3-0.6B", train_dataset=dataset, callbacks=[KappaTuneCallback(top_p=0.2)])
    ```
    """

    def on_init_end(self, args, state, control, model=None, **kwargs):
        self.analyze(model, not args.disable_tqdm)
        freeze_all_but(model, self.chosen)

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        if not self.chosen:
            raise ValueError(
                "`KappaTuneCallback` must be given to the trainer as one of its `callbacks`: `add_callback` comes too late."
            )
        for group in optimizer.param_groups if optimizer is not None else []:
            if not all(parameter.requires_grad for parameter in group["params"]):
                raise ValueError(
                    "The `optimizers` given to the trainer must hold trained weights only: KappaTune froze some."
                )
        trained = {WRAPPERS.sub("", name) for name, parameter in model.named_parameters() if parameter.requires_grad}
        if other := sorted(trained ^ {layer.parameter for layer in self.chosen}):
            raise ValueError(f"The weights to train are not those that were selected; they differ in `{other[0]}`.")
        super().on_train_begin(args, state, control, model=model, **kwargs)
