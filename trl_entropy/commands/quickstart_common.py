# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Parts of both quickstart commands: reading a recipe, options, running."""

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import yaml
from transformers.utils import logging

from ..countdown.report import table
from .arguments import StrictParser
from .parser import CommandParser
from .recipes import recipe_path


class BadRecipe(ValueError):
    """Settings with which no run can start. `run_command` reports it in one line."""


def one_line(error: Exception) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split())


def read_recipe(given: str | Path, changes: dict[str, Any]) -> dict[str, Any]:
    """The settings of a recipe, with changes applied.

    Args:
        given: path of the recipe, or its name.
        changes: settings that replace those of the recipe.

    Raises:
        [`BadRecipe`]: the file does not exist or is not a mapping in YAML.
    """
    try:
        path = recipe_path(given)
        settings = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise BadRecipe(str(error)) from None
    except yaml.YAMLError as error:
        raise BadRecipe(f"config={str(path)!r} is not valid YAML: {one_line(error)}") from None
    if not isinstance(settings, dict):
        raise BadRecipe(f"config={str(path)!r} must hold a mapping of settings, got {type(settings).__name__}")
    return settings | changes


def parse_recipe(settings: dict[str, Any], kinds: tuple[type, ...], folder: Path, prog: str) -> Any:
    """Writes settings as a recipe that a training command can run, and reads the trainer's config from it.

    If a setting is unknown or wrong, it prints one line and exits.

    Args:
        settings: of the run.
        kinds: dataclasses that hold them. The second is the trainer's config.
        folder: of the run; the recipe is written there.
        prog: the command, for messages.
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
    config.disable_tqdm = True  # the run has its own bar
    return config


def setting(text: str) -> tuple[str, object]:
    """Type of an argument `name=value`, whose value is read as YAML."""
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
    """The settings that the options change."""
    named = {"seed": arguments.seed, "max_steps": arguments.steps}
    return {key: value for key, value in named.items() if value is not None} | dict(arguments.set)


def add_options(parser: argparse.ArgumentParser, output: str, cache: str, config: str) -> None:
    """Adds the options of both quickstarts.

    Args:
        parser: of the command.
        output: default folder of the results.
        cache: default folder of the warm starts, in words.
        config: default recipe, in words.
    """
    parser.add_argument("--steps", type=int, help="optimizer steps per run (from the recipe)")
    parser.add_argument("--seed", type=int, help="seed of the runs (from the recipe); warm starts have their own")
    parser.add_argument(
        "--set", type=setting, action="append", default=[], metavar="NAME=VALUE", help="change any setting"
    )
    parser.add_argument("--output", type=Path, default=Path(output), help="folder for the results (%(default)s)")
    parser.add_argument("--cache", type=Path, help=f"folder for the warm starts ({cache})")
    parser.add_argument("--rebuild", action="store_true", help="train the warm starts again")
    parser.add_argument("--config", help=f"recipe: a file, or the name of one of ours ({config})")


def silence_libraries() -> None:
    """Turns off the libraries' own progress bars, and one warning that no user can act on."""
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    # transformers is renaming this field. TRL uses the old name, which all supported versions know.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)


def run_command(
    parser: CommandParser,
    run: Callable[[argparse.Namespace], dict],
    columns: Callable[[dict[str, dict[str, float]]], dict[str, int]],
    argv: list[str] | None,
    closing: Callable[[dict], str] = lambda results: "",
) -> int:
    """Parses, runs, prints the table, and returns the exit status.

    Args:
        parser: of the command.
        run: makes all runs and returns the results.
        columns: takes the rows of the table, returns digits by the name of the column.
        argv: the words after the command; those of this process by default.
        closing: says what the results mean.
    """
    arguments = parser.parse_args(argv)
    silence_libraries()
    try:
        results = run(arguments)
    except BadRecipe as error:
        parser.error(str(error))
    print(table(results["rows"], columns(results["rows"])))  # noqa: T201 (the result of a command)
    print(closing(results), end="")  # noqa: T201
    print(f"Plot and results are in {arguments.output}. Next: trl-entropy report {arguments.output}")  # noqa: T201
    return 0
