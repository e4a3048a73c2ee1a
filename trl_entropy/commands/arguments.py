# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Arguments of the training commands: TRL's parser, but unknown keys and values of a wrong type are errors.

TRL's scripts ignore unknown keys, so a misspelt one silently trains something else, and they do not check the types of
values in a YAML file.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import Any, get_type_hints
from warnings import catch_warnings

from accelerate.logging import get_logger
from transformers import TrainingArguments
from trl import TrlParser

from .help import HelpAll, short_help
from .launch import LAUNCHED, LaunchOptions
from .names import method_name
from .other_commands import command_of
from .parser import OneLineErrors
from .problems import USER_ERRORS, Check, Problems, warnings_on_success
from .recipes import recipe_path
from .yaml_values import checked_value, load, nearest


logger = get_logger(__name__)

# The checks of transformers then pass whatever hardware this machine has.
ANY_MACHINE = ("--use_cpu", "true", "--bf16", "false", "--fp16", "false", "--tf32", "false")


def for_processes(kind: type, count: int) -> type:
    """A config class that believes in this number of processes."""
    if not issubclass(kind, TrainingArguments):
        return kind
    return type(kind.__name__, (kind,), {"world_size": property(lambda self: count)})


class StrictParser(OneLineErrors, TrlParser):
    """`TrlParser` for which an unknown key or flag, or a wrong value, is an error: all in one line, status 2.

    In the YAML file the options of `accelerate launch` are known keys. As flags, the launcher takes them.

    Args:
        dataclass_types: dataclasses that hold the arguments.
        prog: the command, for messages.
        checks: the checks of given values, which need no dataclass; of the namespace, and whether they may import code
            of the user.
    """

    dataclass_types: list[type]

    def __init__(
        self,
        dataclass_types: Iterable[type],
        prog: str,
        checks: Callable[[Namespace, bool], list[Check]] = lambda given, imports: [],
    ):
        super().__init__(dataclass_types, prog=prog, allow_abbrev=False, exit_on_error=False)
        self.hints = {name: hint for kind in self.dataclass_types for name, hint in get_type_hints(kind).items()}
        # A boolean has two actions of one name. Keep the first: the second is the switch `--no_<name>`.
        self.fields = {action.dest: action for action in reversed(self._actions) if action.dest in self.hints}
        if "methods" in self.fields:
            self.fields["methods"].type = method_name
        self.add_argument("--help-all", action=HelpAll, help="show the fields of TRL and transformers too")
        self.launch_options = LaunchOptions({flag for action in self._actions for flag in action.option_strings})
        self.epilog = (
            "--config FILE reads settings from a YAML file, or from one of our recipes by name: --config clip_cov. "
            "Flags override it. The options of `accelerate launch` and --accelerate_config, a file or the name of a "
            "config of TRL or ours, are accepted too, as flags and in the file."
        )
        self.checks, self.path = checks, ""
        self.problems = Problems()

    def format_help(self) -> str:
        return short_help(self)

    def print_help_all(self) -> None:
        """Prints every field."""
        self._print_message(super().format_help(), sys.stdout)

    def check(self, argv: list[str]) -> dict[str, list[str]]:
        """Checks names, types and our values, and returns the launcher's flags by the YAML key that sets them."""
        launcher = self.read(argv, imports=False)[1]
        self.report()
        return launcher

    def parse(self, argv: list[str]) -> tuple[Any, ...]:
        """Checks names, types and values, and returns one instance of each dataclass."""
        argv, launcher = self.read(argv)
        try:
            with warnings_on_success():
                parsed = self._built(argv)
        except USER_ERRORS as error:
            self.rehearse(argv)
            self.problems.add(str(error))
        self.report()
        if launcher and LAUNCHED not in os.environ:
            logger.warning(f"The processes run already: {self.path} sets {', '.join(launcher)} to no effect.")
        return parsed

    def rehearse(self, argv: list[str], processes: int = 1) -> None:
        """Builds the dataclasses as on a machine with an accelerator, and collects the first error.

        Args:
            argv: the words that `read` returned.
            processes: number of processes to assume.
        """
        kinds = self.dataclass_types
        with self.problems.collecting(), catch_warnings(record=True):
            self.dataclass_types = [for_processes(kind, processes) for kind in kinds]
            self._built([*argv, *ANY_MACHINE])
        self.dataclass_types = kinds

    def _built(self, argv: list[str]) -> tuple[Any, ...]:
        """The dataclasses. `read` has collected the words that are left over."""
        return self.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)[:-1]

    def report(self) -> None:
        """Exits with the errors that were found, if any."""
        if self.problems:
            self.error(str(self.problems))

    def read(self, argv: list[str], imports: bool = True) -> tuple[list[str], dict[str, list[str]]]:
        """Reads the file of `--config` as defaults and collects errors.

        Args:
            argv: the words after the command.
            imports: whether checks may import code of the user.

        Returns:
            The words without `--config`, and the launcher's flags by the key that sets them.
        """
        argv = [part for token in argv for part in (token.split("=", 1) if token.startswith("--config=") else [token])]
        launcher, self.problems = {}, Problems()
        if argv.count("--config") > 1 or argv[-1:] == ["--config"]:
            self.error("`--config` must be given once, with a YAML file or the name of a recipe.")
        if "--config" in argv:
            index = argv.index("--config")
            with self.reporting():
                self.path = str(recipe_path(argv[index + 1]))
                argv = argv[:index] + argv[index + 2 :]
                launcher = self._take_defaults(load(self.path))
        with self.problems.collecting():
            given, unknown = self.parse_known_args(argv)
            self._collect_unknown(unknown)
            self.problems.run(self.checks(given, imports))
        return argv, launcher

    def _take_defaults(self, config: dict[str, Any]) -> dict[str, list[str]]:
        known = [*self.fields, *self.launch_options.keys, "env"]
        unknown = [key for key in config if key not in known]
        if other := command_of(unknown, self.prog):
            names = ", ".join(f"`{key}`" for key in unknown)
            raise ValueError(
                f"{self.path} is a recipe for {other}, which has the fields {names}. This is {self.prog}."
            )
        for key in unknown:
            self.problems.add(f"Unknown key `{key}` in {self.path}{nearest(key, known)}")
        os.environ.update({name: str(value) for name, value in config.pop("env", {}).items()})
        training, launcher = {}, {}
        for key in config:
            with self.problems.collecting(key):
                if key in self.fields:
                    training[key] = checked_value(self.fields[key], self.hints[key], config[key], self.path)
                elif key in known:
                    launcher[key] = self.launch_options.as_flags(key, config[key])
        self.set_defaults_with_config(**training)
        return launcher

    def _collect_unknown(self, unknown: list[str]) -> None:
        flags = [token.partition("=")[0] for token in unknown if token.startswith("--")]
        known = [*self.fields, *self.launch_options.keys, "config"]
        for flag in flags:
            if flag in self.launch_options:
                hint = "is for the launcher: give it to `accelerate launch`, or use `trl-entropy`."
                self.problems.add(f"`{flag}` {hint}")
            else:
                self.problems.add(f"Unknown flag `{flag}`" + nearest(flag[2:], known, prefix="--"))
        if unknown and not flags:
            self.problems.add(f"Unexpected argument {unknown[0]!r}.")
