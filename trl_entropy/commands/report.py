# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy report`: compares runs in an interactive page."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from .parser import CommandParser, whole_number


PAGE = "report.html"
SHOWN_COMPLETIONS = 3
WATCH_SECONDS = 10


def build_parser() -> CommandParser:
    parser = CommandParser(
        prog="trl-entropy report",
        description="Compares the logs of runs in an interactive page that needs no network. A run's folder must hold "
        "trainer_state.json, itself or in a checkpoint; the folder of a quickstart stands for all its runs. The page "
        "shows pass@k if a reward function returned only 0 and 1, and tokens colored by entropy if the run had "
        "`log_token_entropies`. Runs that differ only by the seed are shown as their mean and a band.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run or of a quickstart")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder for the report (%(default)s)")
    parser.add_argument("--baseline", type=Path, metavar="RUN", help="run with which the others are compared")
    parser.add_argument(
        "--tokens",
        type=whole_number,
        metavar="N",
        help=f"completions to show from each run's first and last log ({SHOWN_COMPLETIONS}); also prints them here",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help=f"look every {WATCH_SECONDS} s whether the runs have logged more, and renew the page, until Ctrl+C",
    )
    return parser


def main(argv: list[str]) -> int:
    """Writes the report, prints the table of the runs, and returns the exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.tokens and find_spec("rich") is None:
        parser.error("--tokens needs rich: pip install 'trl-entropy[rich]'")
    with parser.reporting():
        if arguments.watch:
            follow(arguments)
        else:
            print(write_report(**options_of(arguments)))  # noqa: T201 (the result of a command)
    return 0


def options_of(arguments: argparse.Namespace) -> dict:
    """The arguments of `write_report`."""
    return {
        "folders": arguments.runs,
        "output": arguments.output,
        "tokens": arguments.tokens,
        "baseline": arguments.baseline,
    }


def follow(arguments: argparse.Namespace) -> None:
    """Renews the page until the user interrupts; then writes it once more as one that stays."""
    from ..report.watch import watch

    def renew() -> None:
        write_report(**options_of(arguments), watch=WATCH_SECONDS)
        print(f"page renewed: {arguments.output / PAGE}", flush=True)  # noqa: T201 (the result of a command)

    def waiting(error: str) -> None:
        print(f"waiting: {error}", flush=True)  # noqa: T201 (the result of a command)

    baseline = [arguments.baseline] if arguments.baseline else []
    watch([*arguments.runs, *baseline], renew, waiting, WATCH_SECONDS)
    if (arguments.output / PAGE).exists():
        print(write_report(**options_of(arguments)))  # noqa: T201 (the result of a command)


def write_report(
    folders: Sequence[Path],
    output: Path,
    tokens: int | None = None,
    baseline: Path | None = None,
    watch: int | None = None,
) -> str:
    """Writes the page to `output` -> what is wrong with the runs, and a table of them.

    Args:
        folders: of the runs or of quickstarts.
        output: folder of the page.
        tokens: completions to show and to print of each run's first and last log.
        baseline: folder of the run with which the others are compared.
        watch: seconds after which the page loads itself again.

    Raises:
        `ValueError`: a run cannot be read.
    """
    from ..report.evaluations import read_evaluations, run_folders
    from ..report.groups import group_runs, with_baseline
    from ..report.known import Known
    from ..report.runs import read_runs

    places, compared = with_baseline([run for folder in folders for run in run_folders(folder)], baseline)
    runs = read_runs(places, Known())  # before the slow imports, so that a wrong path is an error at once
    from ..report.diagnosis import findings_of
    from ..report.heat import heat_maps, print_heat_maps
    from ..report.page import Report, render_page
    from ..report.panels import build_panels
    from ..report.summary import summarize
    from ..report.watch import replace_text
    from ..tables import text_table
    from .methods import known_to_reports

    known = known_to_reports()
    runs = [replace(run, known=known) for run in runs]
    evaluations = read_evaluations(runs)
    panels = build_panels(runs, evaluations)
    maps = heat_maps(runs, SHOWN_COMPLETIONS if tokens is None else tokens)
    labels = [run.label for run in runs]
    findings = [(run.label, list(map(str, findings_of(run)))) for run in runs]
    if tokens and not maps:
        raise ValueError("--tokens needs a run that kept tokens: train with `log_token_entropies` above 0.")
    output.mkdir(parents=True, exist_ok=True)
    report = Report(runs, panels, group_runs(runs), maps, evaluations, findings, compared, watch)
    replace_text(output / PAGE, render_page(report))
    if tokens:
        print_heat_maps(maps, labels)
    lines = "".join(f"{label}: {finding}\n" for label, found in findings for finding in found)
    return f"{lines}{text_table(summarize(runs, panels, compared))}\npage: {output / PAGE}"
