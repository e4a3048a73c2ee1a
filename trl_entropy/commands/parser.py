# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What all commands have in common: arguments whose errors are one line and status 2."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class OneLineErrors:
    """The part of a parser that reports errors, without the usage before each. Mixed in before `ArgumentParser`."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Turns what the user can mend (a bad value, a missing file or package) into an error of one line."""
        try:
            yield
        except (ValueError, OSError, ImportError) as error:
            self.error(str(error))


class CommandParser(OneLineErrors, argparse.ArgumentParser):
    """The parser of the commands that do not train."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)


def whole_number(text: str) -> int:
    """A number of things from the command line."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number >= 0, got {text!r}")
    return int(text)
