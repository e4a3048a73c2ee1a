# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Base of all commands' parsers: an error is one line, and the exit status 2."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn


Parser: Any = argparse.ArgumentParser if TYPE_CHECKING else object


class OneLineErrors(Parser):
    """Mixin for a parser that reports errors without the usage text. List it before `ArgumentParser`."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")
        raise AssertionError("`exit` returns to nobody")

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Reports errors that the user can fix (bad value, missing file or package) in one line."""
        try:
            yield
        except (ValueError, OSError, ImportError) as error:
            self.error(str(error))


class CommandParser(OneLineErrors, argparse.ArgumentParser):
    """Parser of the commands that do not train."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)


def whole_number(text: str) -> int:
    """Type of an argument that is a whole number >= 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number >= 0, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """Type of an argument that is a whole number >= 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)
