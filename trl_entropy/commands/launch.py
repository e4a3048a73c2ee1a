# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Starting the processes of a training command with `accelerate launch`, whose options may stand among its own."""

import os
import shlex
import subprocess
from collections.abc import Container, Iterable
from typing import Any

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from ..runs.provenance import LAUNCHED


RESERVED = ("help", "module", "no_python")  # options of `accelerate launch` that the command itself sets
ACCELERATE_CONFIG = "accelerate_config"  # TRL's: the name of one of its configurations, or the path of a file


class LaunchOptions:
    """The options of `accelerate launch`, and `accelerate_config`, but for those that the command has as its own.

    Attributes:
        keys: their names as keys of a YAML file, and the number of values that they take (None: one).
    """

    def __init__(self, own: Container[str]):
        actions = [action for action in launch_command_parser()._actions if action.dest not in RESERVED]
        self._flags = {flag: action.nargs for action in actions for flag in action.option_strings if flag not in own}
        self._flags[f"--{ACCELERATE_CONFIG}"] = None
        self.keys = {flag[2:]: nargs for flag, nargs in self._flags.items() if flag.startswith("--")}

    def __contains__(self, flag: str) -> bool:
        return flag in self._flags

    def split(self, argv: Iterable[str]) -> tuple[list[str], list[str]]:
        """The command line -> what is for training, and what is for the launcher."""
        training, launcher = [], []
        tokens = iter(argv)
        for token in tokens:
            flag, equals, value = token.partition("=")
            if flag not in self._flags:
                training.append(token)
            elif equals or self._flags[flag] == 0:
                launcher += [flag, value] if equals else [flag]
            else:
                value = next(tokens, None)  # none at the end of the line: the launcher's own parser complains
                launcher += [flag] if value is None else [flag, value]
        return training, launcher

    def as_flags(self, key: str, value: Any) -> list[str]:
        """A key of a YAML file -> flags. Raises `ValueError` where a switch is neither true nor false."""
        if self.keys[key] != 0:
            return [f"--{key}", str(value)]
        if not isinstance(value, bool):
            raise ValueError(f"`{key}` must be true or false, got {value!r}.")
        return [f"--{key}"] if value else []


def launch(parser, command: str, argv: list[str]) -> int:
    """Runs a training command in processes of its own -> exit status.

    `parser` is the command's [`StrictParser`]. The dataclasses are not built here: what they accept depends on the
    number of processes.
    """
    training, flags = parser.launch_options.split(argv)
    from_config = parser.check(training)
    flags = [part for key, parts in from_config.items() if f"--{key}" not in flags for part in parts] + flags
    launcher = launch_command_parser()
    launcher.error = parser.error
    with parser.reporting():
        flags = resolve_accelerate_config_argument(flags)
        arguments = launcher.parse_args([*flags, "--module", "trl_entropy.cli", command, *training])
        os.environ[LAUNCHED] = shlex.join(["trl-entropy", command, *argv])  # for model cards
        try:
            launch_command(arguments)
        except subprocess.CalledProcessError as error:  # the process itself has said what is wrong
            return error.returncode
        except ChildFailedError as error:
            return error.get_first_failure()[1].exitcode
    return 0
