# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the commands that do not train have in common: arguments whose errors are one line and status 2."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class CommandParser(argparse.ArgumentParser):
    """`ArgumentParser` without the usage before each error."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Turns what the user can mend into an error of one line."""
        try:
            yield
        except (ValueError, OSError) as error:
            self.error(str(error))


def whole_number(text: str) -> int:
    """A number of things from the command line."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number >= 0, got {text!r}")
    return int(text)
