# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Report of `gpu_check.py`: parts with time boxes, written as JSON and Markdown after each row.

This module imports the standard library only, so that it can also report what is not installed.
"""

import json
import signal
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


NOT_RUN, RUNNING, DONE, STOPPED, FAILED, CUT = "not run", "running", "done", "out of time", "failed", "cut"
GRACE = 15.0  # seconds after which a part that does not stop at the end of its box is killed


class OutOfTime(Exception):
    """The time box of a part has ended."""


@dataclass
class Part:
    """What is known of one part. The functions of parts fill it.

    Attributes:
        name, title: for the command line, and for the report.
        status: one of the constants of this module.
        box: seconds that it may take.
        deadline: end of its box, as `time.time()`.
        seconds: that it took.
        planned: names of the rows that it is to have.
        rows: measured numbers by column. `row` is a row's name; `ok` says whether a checked number is right.
        notes: sentences for the report.
        error: traceback.
    """

    name: str
    title: str
    status: str = NOT_RUN
    box: float = 0.0
    deadline: float = 0.0
    seconds: float = 0.0
    planned: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str = ""

    def __post_init__(self):
        self.write: Callable[[], None] = lambda: None

    def plan(self, names: Any) -> None:
        """Names the rows that will come, so that a part that stops early can say which are missing."""
        self.planned += list(names)

    def row(self, name: str, **cells: Any) -> None:
        """Adds a row and writes the report. Cells that are `None` were not measured."""
        self.rows.append({"row": name, **cells})
        shown = ", ".join(f"{key} {text_of(value)}" for key, value in cells.items() if value is not None)
        print(f"{self.name}: {name}: {shown}", flush=True)
        self.write()

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.write()

    def left(self) -> float:
        """Seconds until the box ends."""
        return self.deadline - time.time()

    @property
    def missing(self) -> list[str]:
        found = {row["row"] for row in self.rows}
        return [name for name in self.planned if name not in found]

    @property
    def wrong(self) -> list[str]:
        return [row["row"] for row in self.rows if row.get("ok") is False]


class Report:
    """The parts of a run and the facts about its machine, in `gpu_check.json` and `gpu_check.md` of a folder."""

    def __init__(self, folder: Path, facts: dict[str, str], parts: list[Part]):
        self.folder, self.facts = folder, facts
        self.parts = {part.name: part for part in parts}
        for part in parts:
            part.write = self.write

    @classmethod
    def read(cls, folder: Path) -> "Report":
        content = json.loads((folder / "gpu_check.json").read_text())
        parts = [Part(**{"name": name, **values}) for name, values in content["parts"].items()]
        return cls(folder, content["facts"], parts)

    def write(self) -> None:
        """Each file is complete at any time, so that also a killed run can be read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        parts = {part.name: {k: v for k, v in asdict(part).items() if k != "name"} for part in self.parts.values()}
        content = json.dumps({"facts": self.facts, "parts": parts}, indent=1)
        for name, text in (("gpu_check.json", content), ("gpu_check.md", self.markdown())):
            unfinished = self.folder / f"{name}.part"
            unfinished.write_text(text + "\n")
            unfinished.replace(self.folder / name)

    def markdown(self) -> str:
        lines = ["# GPU check", "", *(f"- {name}: {value}" for name, value in self.facts.items()), ""]
        lines += ["| part | status | seconds | box | rows | wrong |", "|---|---|---:|---:|---:|---|"]
        for part in self.parts.values():
            cells = [part.name, part.status, f"{part.seconds:.0f}", f"{part.box:.0f}", str(len(part.rows))]
            lines.append(table_row([*cells, ", ".join(part.wrong)]))
        lines += ["", f"If the run has ended, a part that is {RUNNING!r} is where it was cut."]
        for part in self.parts.values():
            if part.status != NOT_RUN:
                lines += section(part)
        return "\n".join(lines)


def section(part: Part) -> list[str]:
    """The lines of one part: notes, table, and what is missing."""
    lines = ["", f"## {part.title}", "", f"{part.status}, {part.seconds:.0f} s of {part.box:.0f} s."]
    for note in part.notes:
        lines += ["", note]
    columns = list(dict.fromkeys(key for row in part.rows for key in row))
    columns = [column for column in columns if any(row.get(column) is not None for row in part.rows)]
    if columns:
        lines += ["", table_row(["" if column == "row" else column for column in columns])]
        lines.append("|---|" + "---:|" * (len(columns) - 1))
        lines += [table_row([text_of(row.get(column)) for column in columns]) for row in part.rows]
    if part.missing and part.status != RUNNING:
        lines += ["", "Not measured: " + ", ".join(part.missing) + "."]
    if part.error:
        lines += ["", "```", part.error.strip(), "```"]
    return lines


def table_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def text_of(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# Running the parts


def run_parts(
    report: Report,
    functions: dict[str, Callable[..., None]],
    weights: dict[str, float],
    end: float,
    *args: Any,
    usable: Callable[[], bool] = lambda: True,
) -> bool:
    """Runs the parts of a report that have not run, each as `function(part, *args)` within its box.

    Args:
        weights: each part's share of the time. What a part leaves goes to those after it.
        end: when the time is over, as `time.time()`.
        usable: called after a part that failed; whether this process can run the next.

    Returns:
        Whether this process could run them all.
    """
    names = [name for name, part in report.parts.items() if part.status == NOT_RUN]
    for index, name in enumerate(names):
        part, remaining = report.parts[name], end - time.time()
        if remaining < 1:
            break
        part.box = remaining * weights[name] / sum(weights[other] for other in names[index:])
        run_part(part, functions[name], *args)
        if part.status == FAILED and not usable():
            return False
    return True


def run_part(part: Part, function: Callable[..., None], *args: Any) -> None:
    """Runs one part to its end or the end of its box. What it raises is written in the report."""
    started = time.time()
    part.status, part.deadline = RUNNING, started + part.box
    part.write()
    try:
        with alarm(part.box):
            function(part, *args)
        part.status = DONE
    except OutOfTime:
        part.status = STOPPED
    except Exception:
        part.status, part.error = FAILED, traceback.format_exc()
    part.seconds = time.time() - started
    print(f"{part.name}: {part.status} after {part.seconds:.0f} s", part.error, flush=True)
    part.write()


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` in the main thread when the time is over, and again, as a destructor may swallow it."""

    def ring(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01), 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def supervise(
    command: list[str], folder: Path, end: float, grace: float = GRACE, environment: dict[str, str] | None = None
) -> None:
    """Runs a worker until all parts of the report in `folder` have run, or the time is over.

    A worker that crashes, or that hangs after the end of a part's box, loses only that part: a new one goes on with
    the next.
    """
    waiting = -1
    while time.time() < end:
        process = subprocess.Popen(command, env=environment)
        while process.poll() is None:
            time.sleep(0.1)
            running = [part for part in Report.read(folder).parts.values() if part.status == RUNNING]
            if time.time() > min([part.deadline for part in running], default=end) + grace:
                process.kill()
        report, before = Report.read(folder), waiting
        for part in report.parts.values():
            if part.status == RUNNING:
                part.status, part.error = CUT, f"The process ended with exit status {process.returncode}."
                part.seconds = part.box + time.time() - part.deadline
        if process.returncode:
            report.facts["worker"] = f"ended with exit status {process.returncode}"
        report.write()
        waiting = sum(part.status == NOT_RUN for part in report.parts.values())
        if process.returncode == 0 or waiting in (0, before, len(report.parts)):
            return


# Times


def alternate(
    runs: dict[str, Callable[[], tuple[float, ...]]], rounds: int, part: Part, warm_up: int = 1
) -> dict[str, list[tuple[float, ...]]]:
    """The seconds that each run returns, in every round. The order is reversed in every second round.

    Makes fewer rounds if the time of the part ends.

    Raises:
        `OutOfTime`: not even one round fits after the warm-up.
    """
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in runs}
    for index in range(warm_up + rounds):
        started = time.time()
        for name in list(runs)[:: 1 if index % 2 == 0 else -1]:
            seconds = runs[name]()
            if index >= warm_up:
                times[name].append(seconds)
        if part.left() < time.time() - started and index + 1 < warm_up + rounds:
            break
    if not all(times.values()):
        raise OutOfTime
    return times


def median_and_ratio(
    times: dict[str, list[tuple[float, ...]]], name: str, base: str, index: int = 0
) -> tuple[float, float | None]:
    """Median milliseconds, and the median over the rounds of the ratio to `base`."""
    own, others = ([seconds[index] for seconds in times[key]] for key in (name, base))
    ratios = [a / b for a, b in zip(own, others, strict=True) if b > 0]
    return 1e3 * statistics.median(own), statistics.median(ratios) if ratios else None
