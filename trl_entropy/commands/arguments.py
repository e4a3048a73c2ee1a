# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Arguments of the training commands: TRL's parser, but unknown keys and values of a wrong type are errors.

TRL's scripts ignore unknown keys, so a misspelt one silently trains something else, and they do not check the types of
values in a YAML file.
"""

import dataclasses
import os
from argparse import Action, ArgumentTypeError
from collections.abc import Iterable
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from accelerate.logging import get_logger
from trl import TrlParser

from ..settings import UNQUOTED, nearest_name
from .launch import LAUNCHED, LaunchOptions
from .parser import OneLineErrors
from .recipes import recipe_path


logger = get_logger(__name__)

ACCEPTED = {"int": "an integer", "float": "a number", "string_to_bool": "true or false", "str": "text"}


def nearest(name: Any, known: Iterable[str], prefix: str = "") -> str:
    near = nearest_name(name, known, ignore_case=False)
    return "." if near is None else f": did you mean `{prefix}{near}`?"


def kinds_of(hint: Any) -> set[Any]:
    """The members of a type hint's union (or the hint itself), without type parameters."""
    members = [hint] if get_origin(hint) in (list, dict) or not get_args(hint) else get_args(hint)
    return {get_origin(member) or member for member in members}


class StrictParser(OneLineErrors, TrlParser):
    """`TrlParser` for which an unknown key or flag, or a value of a wrong type, is an error (one line, status 2).

    In the YAML file the options of `accelerate launch` are known keys. As flags, the launcher takes them.

    Args:
        dataclass_types: dataclasses that hold the arguments.
        prog: the command, for messages.
    """

    def __init__(self, dataclass_types: Iterable[type], prog: str):
        super().__init__(dataclass_types, prog=prog, allow_abbrev=False)
        self.hints = {name: hint for kind in self.dataclass_types for name, hint in get_type_hints(kind).items()}
        # A boolean has two actions of one name. Keep the first: the second is the switch `--no_<name>`.
        self.fields = {action.dest: action for action in reversed(self._actions) if action.dest in self.hints}
        self.launch_options = LaunchOptions({flag for action in self._actions for flag in action.option_strings})
        self.epilog = (
            "--config FILE reads settings from a YAML file, or from one of our recipes by name: --config clip_cov. "
            "Flags override it. The options of `accelerate launch` and --accelerate_config, a file or the name of a "
            "config of TRL or ours, are accepted too, as flags and in the file."
        )
        self.path = None

    def check(self, argv: list[str]) -> dict[str, list[str]]:
        """Checks names and types, and returns the launcher's flags by the YAML key that sets them."""
        return self._read(argv)[1]

    def parse(self, argv: list[str]) -> tuple[Any, ...]:
        """Checks names and types, and returns one instance of each dataclass."""
        argv, launcher = self._read(argv)
        with self.reporting():
            parsed = self.parse_args_into_dataclasses(argv, look_for_args_file=False)
        if launcher and LAUNCHED not in os.environ:
            logger.warning(f"The processes run already: {self.path} sets {', '.join(launcher)} to no effect.")
        return parsed

    def _read(self, argv: list[str]) -> tuple[list[str], dict[str, list[str]]]:
        """Reads the file of `--config` as defaults, and returns the rest of `argv` and the launcher's flags by key."""
        argv = [part for token in argv for part in (token.split("=", 1) if token.startswith("--config=") else [token])]
        launcher = {}
        if argv.count("--config") > 1 or argv[-1:] == ["--config"]:
            self.error("`--config` must be given once, with a YAML file or the name of a recipe.")
        if "--config" in argv:
            index = argv.index("--config")
            with self.reporting():
                self.path = str(recipe_path(argv[index + 1]))
                argv = argv[:index] + argv[index + 2 :]
                launcher = self._take_defaults(self._load(self.path))
        self._refuse_unknown(self.parse_known_args(argv)[1])
        return argv, launcher

    def _load(self, path: str) -> dict[str, Any]:
        with open(path, encoding="utf-8") as file:
            try:
                config = yaml.safe_load(file)
            except yaml.YAMLError as error:
                raise ValueError(f"{path} is not valid YAML: {error}") from None
        if not isinstance(config, dict):
            raise ValueError(f"{path} must hold a mapping of keys to values, got {config!r}.")
        if not isinstance(config.get("env", {}), dict):
            raise ValueError(f"`env` in {path} must map names of variables to values, got {config['env']!r}.")
        return config

    def _take_defaults(self, config: dict[str, Any]) -> dict[str, list[str]]:
        known = [*self.fields, *self.launch_options.keys, "env"]
        unknown = [f"Unknown key `{key}` in {self.path}{nearest(key, known)}" for key in config if key not in known]
        if unknown:
            raise ValueError(" ".join(unknown))
        os.environ.update({name: str(value) for name, value in config.pop("env", {}).items()})
        training = {key: self._checked(self.fields[key], config[key]) for key in config if key in self.fields}
        self.set_defaults_with_config(**training)
        return {key: self.launch_options.as_flags(key, config[key]) for key in config if key not in training}

    def _checked(self, action: Action, value: Any) -> Any:
        """A value of the YAML file, checked as on the command line. Text is converted to the type of the field."""
        kinds = kinds_of(self.hints[action.dest])
        if action.nargs == "+" and not isinstance(value, list | NoneType) and type(value) not in kinds:
            value = [value]
        if type(value) in (NoneType, dict, list) and type(value) not in kinds:
            raise self._wrong(action, value)
        if isinstance(value, list):
            return [self._checked_item(action, item) for item in value]
        return value if isinstance(value, dict | NoneType) else self._checked_item(action, value)

    def _checked_item(self, action: Action, value: Any) -> Any:
        if isinstance(value, dict | list) and not dataclasses.is_dataclass(action.type):
            raise self._wrong(action, value)
        if isinstance(value, dict):  # an entry of `datasets`
            known = [field.name for field in dataclasses.fields(action.type)]
            for key in value:
                if key not in known:
                    where = f"of `{action.dest}` in {self.path}"
                    raise ValueError(f"Unknown key `{key}` {where}{nearest(key, known)}")
            return value
        try:
            converted = action.type(str(value))
        except (ValueError, TypeError, ArgumentTypeError):
            raise self._wrong(action, value) from None
        if action.choices is not None and converted not in action.choices:
            raise self._wrong(action, value)
        return converted if isinstance(value, str) else value

    def _wrong(self, action: Action, value: Any) -> ValueError:
        name = getattr(action.type, "__name__", str(action.type))
        accepted = ACCEPTED.get(name, f"a value of type {name}")
        if action.choices is not None:
            accepted = "one of " + ", ".join(repr(str(choice)) for choice in action.choices)
        accepted = f"a list, each entry {accepted}" if action.nargs == "+" else accepted
        hint = UNQUOTED if isinstance(value, bool) else ""
        return ValueError(f"`{action.dest}` in {self.path} must be {accepted}, got {value!r}.{hint}")

    def _refuse_unknown(self, unknown: list[str]) -> None:
        flags = [token.partition("=")[0] for token in unknown if token.startswith("--")]
        if flags and flags[0] in self.launch_options:
            self.error(f"`{flags[0]}` is for the launcher: give it to `accelerate launch`, or use `trl-entropy`.")
        if flags:
            known = [*self.fields, *self.launch_options.keys, "config"]
            self.error(f"Unknown flag `{flags[0]}`" + nearest(flags[0][2:], known, prefix="--"))
        if unknown:
            self.error(f"Unexpected argument {unknown[0]!r}.")
