# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs, read from their folders: logs and settings.

This module must not import torch or TRL at the top: the command checks its paths with it before it loads them.
"""

import json
import logging
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..curves.logged import MICRO_BATCH_MEAN, TOKEN_MEAN, entropy_of
from ..diagnosis.history import training_lines
from ..runs.files import SETTINGS_FILE
from .known import Known, known_from


logger = logging.getLogger(__name__)

STATE = "trainer_state.json"
RECIPE = "recipe.yaml"  # written by the quickstart


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        label: its name in the report.
        folder: its folder.
        lines: its log lines, each with a `step`, reduced to finite numbers.
        settings: settings that are known to differ from their defaults.
        known: all methods, and the defaults of settings.
        history: its log lines of training, with numbers that are not finite.
    """

    label: str
    folder: Path
    lines: list[dict[str, float]]
    settings: dict[str, Any] = field(default_factory=dict)
    known: Known = Known()
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """The last logged step."""
        return int(self.lines[-1]["step"])

    @property
    def keys(self) -> set[str]:
        """All keys in its log lines."""
        return set().union(*self.lines)

    @property
    def methods(self) -> list[str]:
        """The names of its methods, except those that this version does not know."""
        names = self.settings.get("methods") or []
        return [name for name in ([names] if isinstance(names, str) else names) if name in self.known.methods]

    def series(self, *keys: str) -> list[list[float]]:
        """The values of each of `keys`, from the lines that have all of them."""
        lines = [line for line in self.lines if all(key in line for key in keys)]
        return [[line[key] for line in lines] for key in keys]

    def entropies(self, *keys: str, split: str = "") -> list[list[float]]:
        """The values of each of `keys`, and [`entropy_of`] the line, from the lines that have all of them."""
        lines = [line for line in self.lines if all(key in line for key in keys)]
        found = [(line, entropy) for line in lines if (entropy := entropy_of(line, split)) is not None]
        return [*([line[key] for line, _ in found] for key in keys), [entropy for _, entropy in found]]

    def with_defaults(self) -> dict[str, Any]:
        """The changed settings, and the defaults of all others but those of methods that it does not use."""
        idle = tuple(f"{name}_" for name in self.known.methods if name not in self.methods)
        active = tuple(f"{name}_" for name in self.methods)
        kept = {
            key: value
            for key, value in self.known.defaults.items()
            if key.startswith(active) or not key.startswith(idle)
        }
        return {"methods": [], **kept, **self.settings}

    def target(self) -> tuple[list[float], list[float], list[float]] | None:
        """Steps, and the lower and upper end of the entropy target in nats; `None` without a target."""
        settings = self.with_defaults()
        adaptive = settings.get("use_adaptive_entropy")  # TRL's own controller
        aiming = [self.known.bands[name] for name in self.methods if name in self.known.bands]
        kept = settings.get("entropy_keep") is not None
        if not (aiming or adaptive or kept):
            return None
        steps, lows, highs = [], [], []
        for line in self.lines:
            ranges = [band.ends(settings, line) for band in aiming]
            if adaptive and entropy_of(line) is not None:
                ranges.append((settings["entropy_target"],) * 2)
            if kept:
                ranges = [(line["entropy_keep/target"],) * 2 if "entropy_keep/target" in line else None]
            known = [ends for ends in ranges if ends is not None]
            if known:
                steps.append(line["step"])
                lows.append(known[0][0])
                highs.append(known[0][1])
        return (steps, lows, highs) if steps else None


def read_runs(folders: list[Path], known: Known | None = None) -> list[Run]:
    """The runs in these folders.

    Args:
        folders: of the runs.
        known: what is known of methods and settings. Default: asks the methods and TRL's config, which takes seconds.

    Raises:
        `ValueError`: a folder has no readable run.
    """
    histories, settings = [read_history(folder) for folder in folders], [read_settings(folder) for folder in folders]
    lines = [[finite_values(line) for line in history] for history in histories]
    trained = [training_lines(history) for history in histories]
    if known is None:
        from trl import GRPOConfig

        from ..methods import MethodsConfig

        known = known_from(GRPOConfig, MethodsConfig)
    return [
        Run(*parts, known, history)
        for history, parts in zip(trained, zip(labels_of(folders), folders, lines, settings, strict=True), strict=True)
    ]


def labels_of(folders: list[Path]) -> list[str]:
    """The names of the folders, with as many parent folders as it takes to tell them apart."""
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise ValueError(f"RUN must be given once each, got {Counter(paths).most_common(1)[0][0].name!r} twice.")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises `ValueError` if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be JSON, but cannot be read: {error}.") from None


def find_states(folder: Path) -> list[tuple[float, Path]]:
    """(highest possible step, file) of a run's trainer states: its own, then its checkpoints', newest first."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"RUN must be the folder of a run, got {str(folder)!r}, which {what}.")
    checkpoints = {path: path.parent.name[11:] for path in folder.glob(f"checkpoint-*/{STATE}")}
    found = [(float(name), path) for path, name in checkpoints.items() if name.isdecimal()]
    found = [(math.inf, path) for path in (folder / STATE,) if path.exists()] + sorted(found, reverse=True)
    if found:
        return found
    below = sorted(str(path.parent) for path in folder.glob(f"*/{STATE}"))
    hint = f" There are runs in {', '.join(below)}." if below else " `trainer.save_state()` writes one."
    raise ValueError(f"{folder} must hold {STATE}, itself or in a checkpoint, and does not.{hint}")


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The log lines of a run as they are, from its newest readable state.

    If the run was resumed, that may be the state of a checkpoint.
    """
    last: int = -1
    lines: list[dict[str, Any]] = []
    source: Path | None = None
    errors: list[ValueError] = []
    for bound, path in find_states(folder):
        if bound <= last:
            break
        try:
            step, found = read_state(path)
        except ValueError as error:
            errors.append(error)
            continue
        if step > last:
            last, lines, source = step, found, path
    if source is None:
        raise errors[0]
    for unreadable in errors:
        logger.warning(f"{unreadable} Showing the run from {source} instead.")
    return lines


def read_state(path: Path) -> tuple[int, list[dict[str, Any]]]:
    """The step of a trainer state, and the log lines up to it. Raises `ValueError` if the file is incomplete."""
    state = read_json(path)
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list) or not all(isinstance(line, dict) for line in history):
        raise ValueError(f"{path} must have a list of log lines as `log_history`, got {type(history).__name__}.")
    pairs = [(line, numbers) for line in history if "step" in (numbers := finite_values(line))]
    lines = [line for line, _ in pairs]
    if not any(numbers.keys() & {"entropy", "loss", "eval_loss"} for _, numbers in pairs):
        raise ValueError(f"{path} must have logged something, but has no line with `entropy` or `loss`.")
    step = state.get("global_step")
    return step if isinstance(step, int) else int(lines[-1]["step"]), lines


def finite_values(line: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a log line. TRL's entropy is left out if ours says that no token was counted."""
    found = {key: value for key, value in line.items() if type(value) in (int, float) and math.isfinite(value)}
    for split in ("", "eval_"):
        if split + TOKEN_MEAN in line.keys() - found.keys():
            found.pop(split + MICRO_BATCH_MEAN, None)
    return found


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in a run's folder; empty without a file of settings."""
    path = next((folder / name for name in (SETTINGS_FILE, RECIPE) if (folder / name).exists()), None)
    if path is None:
        return {}
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is valid YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be JSON or YAML, but cannot be read: {error}.") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a mapping of settings, got {type(settings).__name__}.")
    return settings
