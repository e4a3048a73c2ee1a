# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The command and the settings of a run in publishable form: without secrets and absolute paths."""

import dataclasses
import os
import re
import shlex
import sys
from enum import Enum
from typing import Any

from ..settings import default_of


LAUNCHED = "TRL_ENTROPY_LAUNCHED"  # environment variable that passes the command to processes that were launched
REMOVED = "<removed>"
SECRET_NAME = re.compile(r"(token|api_?key|password|secret)$", re.IGNORECASE)
TEXT_TOKENS = ("eos_token", "pad_token", "bos_token")  # named like secrets, but harmless
PARSED = ((None, ""), (False, "no"))  # (parsed value, default): argparse turns these defaults into other values
SECRET_VALUE = re.compile(r"\b(hf_|sk-|wandb_v\d_)[\w-]{12,}|(?<=://)[^\s/@]+(?=@)")


def is_secret(name: str) -> bool:
    """Whether a setting or a flag holds a secret, judging by its name."""
    name = name.lstrip("-").replace("-", "_")
    return bool(SECRET_NAME.search(name)) and name not in TEXT_TOKENS


def public_text(text: str) -> str:
    """A setting or a word of a command, without credentials; an absolute path becomes relative or is shortened.

    >>> public_text("https://me:word@host/x"), public_text("/home/me/models/base")
    ('https://<removed>@host/x', '/path/to/base')
    """
    text = SECRET_VALUE.sub(REMOVED, text)
    # A single name after the slash may not be a path, such as the switch `/no_think` of a system prompt.
    if not os.path.isabs(text) or not (text.rstrip("/").count(os.sep) > 1 or os.path.exists(text)):
        return text
    inside = os.path.relpath(text)
    return inside if not inside.startswith("..") else f"/path/to/{os.path.basename(text.rstrip('/'))}"


def public_value(value: Any) -> Any:
    """The value of a setting in YAML types, without secrets and absolute paths."""
    if isinstance(value, Enum):
        value = value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = given_settings(value)
    if isinstance(value, dict):
        return {str(key): public_value(item) for key, item in value.items() if not is_secret(str(key))}
    if isinstance(value, (list, tuple, set)):
        return [public_value(item) for item in value]
    return value if isinstance(value, (bool, int, float, type(None))) else public_text(str(value))


def given_settings(config: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults. Call it before `__post_init__` changes values."""
    given = {}
    for item in dataclasses.fields(config):
        default, value = default_of(item), getattr(config, item.name)
        same = value == default or (value, default) in PARSED
        if item.init and not same and not is_secret(item.name):
            given[item.name] = public_value(value)
    return given


def public_words(words: list[str]) -> list[str]:
    """The words of a command, without secrets and absolute paths."""
    shown = []
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if index and words[index - 1].startswith("-") and is_secret(words[index - 1]) and not word.startswith("--"):
            shown.append(REMOVED)
        elif equals and is_secret(flag):
            shown.append(f"{flag}={REMOVED}")
        else:
            shown.append(f"{flag}={public_text(value)}" if equals and flag.startswith("-") else public_text(word))
    return shown


def command_line() -> str | None:
    """The command that started this run; `None` if no command did, as in a notebook."""
    if LAUNCHED in os.environ:
        return shlex.join(public_words(shlex.split(os.environ[LAUNCHED])))
    main = sys.modules["__main__"]
    if getattr(main, "__file__", None) is None:
        return None
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        module = spec.name.removesuffix(".__main__")
        words = ["trl-entropy"] if module == "trl_entropy.cli" else ["python", "-m", module]
    elif sys.argv[0].endswith(".py"):
        words = ["python", sys.argv[0]]
    else:
        words = [os.path.basename(sys.argv[0])]  # an installed command
    return shlex.join(public_words(words + sys.argv[1:]))
