# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""KappaTune as callbacks: freezing weights before the optimizer is created, and tracking condition numbers."""

import os
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import ExportableState

from .config import KNOBS, documented, kappa_cache
from .inventory import why_unreadable
from .layers import Layer
from .report import write_json
from .selection import Selection
from .sources import CheckpointSource, Source, source_of
from .spectra import condition_number, singular_values
from .targets import WRAPPERS, check_adapters, without_gradient
from .tuning import analyzed, freeze_all_but, trained_weight, why_untracked


logger = get_logger(__name__)

REPORT = "kappa.json"  # in the output folder of the run


class KappaMonitor(TrainerCallback, ExportableState):
    """Writes the selection to the run's folder, refuses to resume with a different one, and logs condition numbers.

    Takes the arguments of [`KappaTuneCallback`].

    Attributes:
        layers: all weights of the model, with condition numbers for the candidates.
        chosen: the selected weights, best in the ranking first.
        checkpoint: checkpoint to analyze instead of the model, as (folder or id on the Hub, revision, whether to trust
            its code).
    """

    adds_to_logs = True  # our trainers then call it before the callbacks that report logs

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
        self._first_update = True

    @property
    def selected(self) -> list[str]:
        """Names of the selected modules, best in the ranking first; empty before the model is analyzed."""
        return [layer.name for layer in self.chosen]

    def source(self, model: PreTrainedModel | None = None) -> Source:
        """Where the weights come from: the checkpoint if one is set, otherwise the model."""
        return CheckpointSource(*self.checkpoint) if self.checkpoint else source_of(model)

    def analyze(self, model: PreTrainedModel | None = None, progress: bool = True) -> None:
        """Sets `layers` and `chosen`."""
        self.layers, self.chosen = analyzed(self.source(model), self.selection, kappa_cache(self.cache), progress)

    def state(self) -> dict[str, Any]:
        """The state for checkpoints: the arguments and the selected weights."""
        settings = {key: value for key, value in vars(self.selection).items() if key != "prefix"}
        settings |= {"cache": self.cache, "track_steps": self.track_steps}
        return {"args": settings, "attributes": {"restored": self.restored}}

    @property
    def restored(self) -> list[dict[str, Any]]:
        """The selected weights in the form that checkpoints store."""
        return [layer.as_json() for layer in self.chosen]

    @restored.setter
    def restored(self, rows: list[dict[str, Any]]) -> None:
        self.layers = self.chosen = [Layer.from_json(row) for row in rows]

    def refuse_other_selection(self, state: dict[str, Any]) -> None:
        """Raises `ValueError` if `state`, of a checkpoint, has other selected weights than this run."""
        rows = state["attributes"]["restored"]
        saved, selected = {row["name"] for row in rows}, {*self.selected}
        if saved != selected:
            parts = (("the checkpoint", saved - selected), ("this run", selected - saved))
            only = ", ".join(f"{min(names)!r} only in {where}" for where, names in parts if names)
            raise ValueError(
                f"The checkpoint was trained on {len(saved)} selected modules, this run selects {len(selected)}: "
                f"{only}. Resume with the same model and the same KappaTune settings."
            )

    def on_init_end(self, args, state, control, model=None, **kwargs):
        if is_peft_model(model):
            check_adapters(model, self.chosen)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self._first_update:
            return
        self._first_update = False
        sharded = why_unreadable(model) or PartialState().distributed_type == DistributedType.DEEPSPEED
        if not sharded and (idle := without_gradient(model, self.chosen)):
            logger.warning(
                f"{len(idle)} of {len(self.chosen)} selected weights got no gradient in the first update: "
                f"{', '.join(idle)}. The model's code may not use them on this data."
            )

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.refuse_other_selection(state.stateful_callbacks.get(type(self).__name__, self.state()))
        if self.track_steps is not None and (reason := why_unreadable(model) or why_untracked(model, self.chosen)):
            raise ValueError(f"Condition numbers cannot be tracked: the weights of the model are {reason}.")
        if state.is_world_process_zero:
            os.makedirs(args.output_dir, exist_ok=True)
            name = getattr(model.config, "_name_or_path", "")
            write_json(os.path.join(args.output_dir, REPORT), name, self.layers, self.selected, self.selection)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.track_steps is not None and state.global_step % self.track_steps == 0:
            control.should_log = True  # on every process, so that the numbers appear in a log line of this step
            if state.is_world_process_zero:
                self._tracked = self.measure(model)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs is not None and self._tracked and "loss" in logs:
            logs.update(self._tracked)
            state.log_history[-1].update(self._tracked)
            self._tracked = {}

    @torch.no_grad()
    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        """Median and maximum of the condition numbers of the selected weights, and the median of each type."""
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
    Trains only the weights of low condition number, in any trainer of TRL or transformers. All other weights are
    frozen when the trainer is created, before the optimizer is.
    [KappaTune](https://huggingface.co/papers/2506.16289).

    The evidence that this forgets less is mixed: measure it on your own task. The selection is written to `kappa.json`
    in the output folder. Tracked condition numbers appear in the trainer's log history under `kappa/`. Trainers of
    other packages send a log line to `report_to` before this callback adds to it, so trackers do not receive them.

    For LoRA, whose targets must be known before the trainer is created, use [`kappa_peft_config`].

    Args:
        {knobs}
        seed (`int`, *optional*, defaults to `0`):
            Seed of the random order.

    Raises:
        `ValueError`: an argument is out of range, the budget selects nothing, the model has adapters, or frozen
            weights reached the optimizer.

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
                "`KappaTuneCallback` must be given to the trainer as one of its `callbacks`: `add_callback` is too "
                "late."
            )
        for group in optimizer.param_groups if optimizer is not None else []:
            if not all(parameter.requires_grad for parameter in group["params"]):
                raise ValueError(
                    "The `optimizers` given to the trainer must hold trained weights only, but KappaTune froze some."
                )
        trained = {WRAPPERS.sub("", name) for name, parameter in model.named_parameters() if parameter.requires_grad}
        if other := sorted(trained ^ {layer.parameter for layer in self.chosen}):
            raise ValueError(f"The weights to train are not the selected ones; they differ in `{other[0]}`.")
        super().on_train_begin(args, state, control, model=model, **kwargs)


documented(KappaTuneCallback, [name for name in KNOBS if name != "mode"])
