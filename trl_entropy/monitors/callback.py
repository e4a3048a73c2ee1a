# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A callback that runs monitors in any trainer of transformers or TRL."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import gather
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback

from ..settings import default_of, did_you_mean
from .base import Monitor, ProbeMonitor, Run, StepMonitor
from .config import MonitorFields, build_monitors
from .looking import look, on_all_processes
from .probe import FILE, Probe


logger = get_logger(__name__)

RATIO = "geometry/rankme"  # also logged relative to its first value


class MonitorCallback(TrainerCallback):
    r"""
    Looks at the model before the first step and every few steps, on a fixed set of sequences, or at the gradients and
    updates of steps. Changes nothing: losses are those of a run without it, to the bit. Exceptions are
    `step_radius_control` and `weight_norms_project`, which are off by default.

    The numbers are added to the next log line as `<monitor>/<key>`; those before the first step are a line of their
    own in `state.log_history`. The sequences are kept in `output_dir/monitors`, so that a resumed run compares like
    with like. If a monitor fails in the middle of a run, it is left out from then on, with a warning.

    Args:
        monitors (`list[str]`):
            Names of the monitors.
        every (`int`, *optional*, defaults to `50`):
            Optimizer steps between two measurements.
        max_length (`int`, *optional*, defaults to `512`):
            Tokens of a sequence; of a longer one, the last are kept.
        dataset (`Dataset`, *optional*):
            Whose first rows are the probe. Defaults to the training dataset.
        fields:
            Fields of the monitors, such as `geometry_samples=512`.

    Raises:
        `ValueError`: a monitor or a field is unknown or out of range, or, when training begins, the model or the
            dataset does not fit.

    Example:

    ```python
    trainer = SFTTrainer(..., callbacks=[MonitorCallback(["geometry", "attention"])])
    ```
    """

    adds_to_logs = True  # our trainers then call it before the callbacks that report logs

    def __init__(
        self,
        monitors: list[str],
        every: int = 50,
        max_length: int = 512,
        dataset: Iterable[dict[str, Any]] | None = None,
        **fields: Any,
    ):
        known = {name: default_of(field) for name, field in MonitorFields.__dataclass_fields__.items()}
        for name in fields:
            if name not in known:
                raise ValueError(f"`{name}` is no field of a monitor.{did_you_mean(name, known)}")
        given = {"monitors": monitors, "monitor_steps": every, "monitor_max_length": max_length}
        settings = SimpleNamespace(**known | fields | given)
        self.monitors: list[Monitor] = build_monitors(settings)
        if not self.monitors:
            raise ValueError("`monitors` must name at least one monitor, got [].")
        self.every, self.max_length, self.dataset = every, max_length, dataset
        self.probe: Probe
        self._pending: dict[str, float] = {}
        self._first: float | None = None

    # Events

    def on_train_begin(self, args, state, control, model=None, processing_class=None, **kwargs):
        for monitor in self.monitors:
            monitor.check_model(model)
        self.folder, self._pending = Path(args.output_dir), {}
        probe = None
        if any(monitor.samples for monitor in self.monitors):
            probe = self.probe = self._make_probe(state, processing_class, kwargs)
        run = Run(self.folder, state.global_step, state.is_world_process_zero, probe)
        for monitor in self._stepwise:
            monitor.begin(model, run)
        if self._probing and state.global_step == 0:
            numbers = self._look(model, 0, state.is_world_process_zero, careful=False)
            state.log_history.append({"step": 0, "epoch": 0.0, **numbers})

    def on_step_begin(self, args, state, control, **kwargs):
        self._each_step(state, lambda monitor: monitor.before_gradients())

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self._each_step(state, lambda monitor: monitor.before_step(model, state.global_step + 1))

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self._each_step(state, lambda monitor: monitor.after_step(model, state.global_step + 1))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self._probing and state.global_step % self.every == 0:
            self._pending = self._look(model, state.global_step, state.is_world_process_zero)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or any(key.startswith("eval_") for key in logs):
            return
        self._each_step(state, lambda monitor: monitor.save())
        if "loss" in logs:
            self._each_step(state, lambda monitor: self._keep(monitor.name, monitor.numbers()))
        if self._pending:
            logs.update(self._pending)
            state.log_history[-1].update(self._pending)
            self._pending = {}

    def on_save(self, args, state, control, **kwargs):
        self._each_step(state, lambda monitor: monitor.save())

    def on_train_end(self, args, state, control, **kwargs):
        self._each_step(state, lambda monitor: monitor.save())
        self._each_step(state, lambda monitor: monitor.end())

    # What belongs to which kind of monitor

    @property
    def _probing(self) -> list[ProbeMonitor]:
        return [monitor for monitor in self.monitors if isinstance(monitor, ProbeMonitor)]

    @property
    def _stepwise(self) -> list[StepMonitor]:
        return [monitor for monitor in self.monitors if isinstance(monitor, StepMonitor)]

    def _each_step(self, state: Any, hook: Callable[[StepMonitor], None]) -> None:
        """Calls a hook of each monitor of steps. One that fails is left out from then on."""
        for monitor in self._stepwise:
            try:
                hook(monitor)
            except Exception as error:
                monitor.end()
                self._leave_out(monitor, state.global_step, error)

    def _keep(self, name: str, numbers: dict[str, float]) -> None:
        self._pending |= {f"{name}/{key}": value for key, value in numbers.items()}

    def _make_probe(self, state: Any, processing_class: Any, given: dict[str, Any]) -> Probe:
        """The probe of this run, or the one that a resumed run goes on with."""
        self._first = next((line[RATIO] for line in state.log_history if RATIO in line), None)
        path = self.folder / FILE
        if state.global_step > 0 and path.exists():
            return Probe.load(path)
        samples = max(monitor.samples for monitor in self.monitors)
        probe = Probe.of(self._dataset(given), processing_class, samples, self.max_length)
        if state.is_world_process_zero:
            probe.save(path)
        return probe

    def _dataset(self, given: dict[str, Any]) -> Iterable[dict[str, Any]]:
        if self.dataset is not None:
            return self.dataset
        return given["train_dataloader"].dataset

    @classmethod
    def of(cls, config: Any, dataset: Iterable[dict[str, Any]]) -> "MonitorCallback":
        """The callback as a trainer's config says."""
        fields = {name: getattr(config, name) for name in MonitorFields.__dataclass_fields__}
        return cls(config.monitors, config.monitor_steps, config.monitor_max_length, dataset, **fields)

    # Measurement

    def _look(self, model: nn.Module, step: int, writes: bool, careful: bool = True) -> dict[str, float]:
        """What all monitors of the probe measure. With `careful`, one that fails is left out from then on."""
        world, found = PartialState(), dict[str, float]()
        for monitor in self._probing:
            try:
                own = on_all_processes(
                    partial(look, model, monitor, self.probe, world.process_index, world.num_processes)
                )
            except Exception as error:
                if not careful:
                    raise
                self._leave_out(monitor, step, error)
                continue
            rows = {
                key: self.probe.in_order(gather(values.contiguous()), monitor.samples, world.num_processes)
                for key, values in own.items()
            }
            found |= {f"{monitor.name}/{key}": value for key, value in monitor.measure(rows).items()}
            if writes:
                self._write(monitor, step)
        if RATIO in found:
            self._first = found[RATIO] if self._first is None else self._first
            found[f"{RATIO}_ratio"] = found[RATIO] / self._first
        return found

    def _leave_out(self, monitor: Monitor, step: int, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        logger.warning(f"Monitor {monitor.name!r} is off from step {step} on. {reason}")
        self.monitors.remove(monitor)

    def _write(self, monitor: ProbeMonitor, step: int) -> None:
        """Keeps what the monitor leaves for a picture."""
        if arrays := {key: values.contiguous().cpu() for key, values in monitor.arrays().items()}:
            save_file(arrays, self.folder / "monitors" / f"{monitor.name}-{step}.safetensors")


def add_monitors(trainer: Any) -> None:
    """Adds the callback to one of our trainers, as its `args.monitors` says.

    The probe is of its evaluation dataset, or else of its training dataset.
    """
    if trainer.args.monitors:
        dataset = trainer.eval_dataset if trainer.eval_dataset is not None else trainer.train_dataset
        first = next(iter(dataset.values())) if isinstance(dataset, dict) else dataset
        trainer.add_callback(MonitorCallback.of(trainer.args, first))
