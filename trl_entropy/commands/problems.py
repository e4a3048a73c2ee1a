# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Collects the errors of a command, so that the user sees all of them at once."""

import argparse
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


USER_ERRORS = (ValueError, OSError, ImportError, argparse.ArgumentError)  # those that the user can fix


class Check(NamedTuple):
    """A check of given values.

    Attributes:
        fields: the fields that it reads. It is left out if one of them is wrong already.
        run: raises one of `USER_ERRORS`.
    """

    fields: tuple[str, ...]
    run: Callable[[], Any]


class Problems:
    """Error messages in the order in which they were found, each once, and the fields that are wrong."""

    def __init__(self):
        self.messages: list[str] = []
        self.wrong: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self.messages)

    def __str__(self) -> str:
        return " ".join(self.messages)

    def add(self, message: str, field: str | None = None) -> None:
        message = " ".join(message.split())
        if message not in self.messages:
            self.messages.append(message)
        if field is not None:
            self.wrong.add(field)

    @contextmanager
    def collecting(self, field: str | None = None) -> Iterator[None]:
        """Adds an error of the body instead of raising it."""
        try:
            yield
        except USER_ERRORS as error:
            self.add(str(error), field)

    def run(self, checks: Iterable[Check]) -> None:
        """Runs the checks of fields that are not known to be wrong."""
        for check in checks:
            if not self.wrong & {*check.fields}:
                with self.collecting():
                    check.run()


@contextmanager
def warnings_on_success() -> Iterator[None]:
    """Shows warnings of the body after it, and none if it fails: then only the error counts."""
    with warnings.catch_warnings(record=True) as caught:
        yield
    for found in caught:
        warnings.warn_explicit(found.message, found.category, found.filename, found.lineno)
