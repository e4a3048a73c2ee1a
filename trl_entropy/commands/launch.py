# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Starts the processes of a training command with `accelerate launch`, whose options may be mixed with its own."""

import os
import shlex
import subprocess
from argparse import Namespace
from collections.abc import Container, Iterable
from typing import Any

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from ..runs.provenance import LAUNCHED
from .recipes import accelerate_config_path


RESERVED = ("help", "module", "no_python")  # options of `accelerate launch` that the command itself sets
ACCELERATE_CONFIG = "accelerate_config"  # as in TRL: the name of a config, or the path of a file


class LaunchOptions:
    """The options of `accelerate launch` and `accelerate_config`, except those that the command itself has.

    Args:
        own: flags of the command.

    Attributes:
        keys: number of values by option name, as used in a YAML file (None: one value).
    """

    def __init__(self, own: Container[str]):
        actions = [action for action in launch_command_parser()._actions if action.dest not in RESERVED]
        self._flags = {flag: action.nargs for action in actions for flag in action.option_strings if flag not in own}
        self._flags[f"--{ACCELERATE_CONFIG}"] = None
        self.keys = {flag[2:]: nargs for flag, nargs in self._flags.items() if flag.startswith("--")}

    def __contains__(self, flag: str) -> bool:
        return flag in self._flags

    def split(self, argv: Iterable[str]) -> tuple[list[str], list[str]]:
        """Splits the command line into the words for training and those for the launcher."""
        training, launcher = [], []
        tokens = iter(argv)
        for token in tokens:
            flag, equals, value = token.partition("=")
            if flag not in self._flags:
                training.append(token)
            elif equals or self._flags[flag] == 0:
                launcher += [flag, value] if equals else [flag]
            else:
                launcher.append(flag)
                launcher += [word for word in (next(tokens, None),) if word is not None]  # its parser reports a gap
        return training, launcher

    def as_flags(self, key: str, value: Any) -> list[str]:
        """The flags for a key of a YAML file. Raises `ValueError` if a switch is neither true nor false."""
        if self.keys[key] != 0:
            return [f"--{key}", str(value)]
        if not isinstance(value, bool):
            raise ValueError(f"`{key}` must be true or false, got {value!r}.")
        return [f"--{key}"] if value else []


def with_our_configs(flags: list[str]) -> list[str]:
    """The launcher's flags, with the name of one of our accelerate configs replaced by its file."""
    name = f"--{ACCELERATE_CONFIG}"
    return [
        accelerate_config_path(flag) if before == name else flag
        for before, flag in zip(["", *flags], flags, strict=False)
    ]


def launcher_arguments(parser, flags: list[str], from_config: dict[str, list[str]], words: list[str]) -> Namespace:
    """The arguments of `accelerate launch`. Exits if one is wrong.

    Args:
        parser: the command's [`StrictParser`], which reports errors.
        flags: those of the launcher on the command line.
        from_config: those of the recipe, by key. Flags on the command line win.
        words: the command that the processes run.
    """
    flags = [part for key, parts in from_config.items() if f"--{key}" not in flags for part in parts] + flags
    launcher = launch_command_parser()
    launcher.error = parser.error
    with parser.reporting():
        flags = resolve_accelerate_config_argument(with_our_configs(flags))
        return launcher.parse_args([*flags, "--module", "trl_entropy.cli", *words])


def launch(parser, command: str, argv: list[str]) -> int:
    """Runs a training command in new processes and returns the exit status.

    Args:
        parser: the command's [`StrictParser`]. It only checks names, types and our values here and builds no
            dataclass, because the values that a dataclass accepts depend on the number of processes.
        command: its name.
        argv: the words after it.
    """
    training, flags = parser.launch_options.split(argv)
    arguments = launcher_arguments(parser, flags, parser.check(training), [command, *training])
    with parser.reporting():
        os.environ[LAUNCHED] = shlex.join(["trl-entropy", command, *argv])  # for model cards
        try:
            launch_command(arguments)
        except subprocess.CalledProcessError as error:  # the process has printed the error itself
            return error.returncode
        except ChildFailedError as error:
            return error.get_first_failure()[1].exitcode
    return 0
