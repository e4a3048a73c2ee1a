# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy diagnose`: says what is wrong with a run."""

import json
from dataclasses import replace
from pathlib import Path

from .parser import CommandParser


def build_parser() -> CommandParser:
    parser = CommandParser(
        prog="trl-entropy diagnose",
        description="Says what is wrong with a run, from its log: the evidence, what it means, and which field to "
        "change. docs/diagnosis.md lists the rules.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or its trainer_state.json")
    parser.add_argument("--json", action="store_true", help="print the findings as a JSON list")
    return parser


def main(argv: list[str]) -> int:
    """Prints the findings, and returns the exit status: 0, also if something is wrong with the run."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    with parser.reporting():
        print(describe(arguments.run, arguments.json))  # noqa: T201 (the result of a command)
    return 0


def describe(path: Path, as_json: bool) -> str:
    """The findings on a run, as lines or as JSON. Raises `ValueError` if it cannot be read."""
    from ..diagnosis.rules import as_record
    from ..report.diagnosis import findings_of, read_run
    from .methods import known_to_reports

    run = read_run(path)  # before what is known of methods, so that a wrong path is an error at once
    found = findings_of(replace(run, known=known_to_reports()))
    if as_json:
        return json.dumps([as_record(finding) for finding in found], indent=1)
    return "\n".join(map(str, found)) or f"Nothing wrong found in {len(run.history)} log lines."
