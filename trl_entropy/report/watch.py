# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Renewing a report while runs train."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..runs.files import COMPLETIONS, SETTINGS_FILE
from .evaluations import RESULTS
from .runs import STATE


# The second: of checkpoints, or of the runs of a quickstart
FILES = (STATE, f"*/{STATE}", SETTINGS_FILE, f"{COMPLETIONS}/*", "tip_scatter.json")


def snapshot(folders: Sequence[Path]) -> frozenset[tuple[str, int, int]]:
    """What changes as soon as a file that a report reads does: names, times and sizes."""
    found = set()
    for folder in folders:
        inside = [path for pattern in FILES for path in folder.glob(pattern)]
        for path in (*inside, folder / RESULTS, folder.resolve().parent / RESULTS):
            try:
                status = path.stat()
            except OSError:  # not there, or replaced at this moment
                continue
            found.add((str(path), status.st_mtime_ns, status.st_size))
    return frozenset(found)


def watch(
    folders: Sequence[Path],
    renew: Callable[[], None],
    waiting: Callable[[str], None],
    seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Calls `renew` at once and after each change of the runs' files, until the user interrupts.

    Args:
        folders: of the runs.
        renew: writes the report. A `ValueError` of it is told once, and tried again after the next change.
        waiting: is told the error.
        seconds: between two looks.
        sleep: waits.
    """
    seen = None
    try:
        while True:
            now = snapshot(folders)
            if now != seen:
                seen = now
                try:
                    renew()
                except ValueError as error:
                    waiting(str(error))
            sleep(seconds)
    except KeyboardInterrupt:
        return


def replace_text(path: Path, text: str) -> None:
    """Writes a file in one step, so that no one reads a half of it."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
