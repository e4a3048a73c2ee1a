# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the quickstarts share: reading a recipe, a bar per run, the command."""

import argparse
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import yaml
from transformers import TrainerCallback
from transformers.utils import logging

from ..commands.arguments import StrictParser
from ..runs.card_hooks import CardHooks
from ..runs.provenance import public_value
from .model import progress_bar
from .report import table


class Progress(TrainerCallback):
    """One bar per run, with the entropy and what else is `shown`, and a list of what was logged."""

    def __init__(self, label: str, shown: str):
        self.label, self.shown = label, shown
        self.history: list[dict[str, float]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = progress_bar(self.label, state.max_steps)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_log(self, args, state, control, logs, **kwargs):
        if all(isinstance(logs.get(key), (int, float)) for key in ("entropy", self.shown)):  # `None` once it diverges
            point = {key: value for key, value in logs.items() if isinstance(value, (int, float))}
            self.history.append({"step": state.global_step, **point})
            values = {key: f"{float(logs[key]):.3f}" for key in ("entropy", self.shown)}
            self.bar.set_postfix(values, refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


class BadRecipe(ValueError):
    """Settings with which no run can be started: what `run_command` reports in one line."""


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def read_recipe(path: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """The settings of a recipe with `changes` made. Raises `BadRecipe` where it is none."""
    if not path.exists():
        raise BadRecipe(
            f"config={str(path)!r} does not exist. Give a recipe from `recipes` of a source checkout with --config."
        )
    try:
        settings = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise BadRecipe(f"config={str(path)!r} is not valid YAML: {one_line(error)}") from None
    if not isinstance(settings, dict):
        raise BadRecipe(f"config={str(path)!r} must hold a mapping of settings, got {type(settings).__name__}")
    return settings | changes


def parse_recipe(settings: dict[str, Any], kinds: tuple[type, ...], folder: Path, prog: str) -> Any:
    """The trainer's config, the second of `kinds`, read from a recipe in `folder` that the command can run by itself.

    Exits with one line where a setting is unknown or wrong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings | {"output_dir": str(folder)}, sort_keys=False))
    parser = StrictParser(kinds, prog=prog)
    config = parser.parse(["--config", str(recipe)])[1]
    if config.max_steps < config.logging_steps:
        parser.error(
            f"max_steps={config.max_steps} logs nothing: give at least logging_steps={config.logging_steps:g}"
        )
    config.disable_tqdm = True  # the run has a bar of its own
    return config


def write_card(trainer: CardHooks, name: str, scores: dict[str, float]) -> None:
    """The card of a run that was read by `parse_recipe`; `scores` but for the seconds stand in it as results."""
    recipe = yaml.safe_load(Path(trainer.args.output_dir, "recipe.yaml").read_text())
    apart = {key: value for key, value in recipe.items() if not hasattr(trainer.args, key)}  # models, data, reward
    trainer.card_facts = {"recipe": public_value(apart)}
    results = {key: value for key, value in scores.items() if key != "seconds"}
    trainer.create_model_card(model_name=f"countdown-{name}", license="apache-2.0", results=results)


def setting(text: str) -> tuple[str, object]:
    """`name=value` -> (name, value), the value read as YAML."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value, as in learning_rate=1e-4")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not name=value with a value in YAML: {one_line(error)}"
        ) from None


def given_changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that `add_options` lets a user change by name."""
    named = {"seed": arguments.seed, "max_steps": arguments.steps}
    return {key: value for key, value in named.items() if value is not None} | dict(arguments.set)


def add_options(parser: argparse.ArgumentParser, output: str, cache: str, config: str) -> None:
    """Options of both quickstarts; the last two in words."""
    parser.add_argument("--steps", type=int, help="optimizer steps per run (the recipe's)")
    parser.add_argument("--seed", type=int, help="seed of the runs (the recipe's); a warm start has its own")
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="NAME=VALUE", help="any setting")
    parser.add_argument("--output", type=Path, default=Path(output), help="results (%(default)s)")
    parser.add_argument("--cache", type=Path, help=f"warm starts ({cache})")
    parser.add_argument("--rebuild", action="store_true", help="train the warm starts again")
    parser.add_argument("--config", type=Path, help=f"recipe ({config})")


def silence_libraries() -> None:
    """Leaves the terminal to the bars of this run."""
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    # transformers renames this field and warns whoever uses the name that all supported versions know, TRL included.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)


def run_command(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], dict],
    columns: dict[str, int],
    arguments: list[str] | None,
) -> None:
    """The command: parses, runs, prints the table."""
    parsed = parser.parse_args(arguments)
    if find_spec("matplotlib") is None:
        parser.error("the plot needs matplotlib: pip install 'trl-entropy[plots]'")
    silence_libraries()
    try:
        results = run(parsed)
    except BadRecipe as error:
        parser.error(str(error))
    print(table(results["rows"], columns))  # noqa: T201 (the result of a command)
    print(f"plot and results: {parsed.output}")  # noqa: T201
