# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy report`: compares runs in a page and a picture."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from .parser import CommandParser, whole_number


PAGE, PICTURE = "report.html", "report.png"
SHOWN_COMPLETIONS = 3


def build_parser() -> CommandParser:
    parser = CommandParser(
        prog="trl-entropy report",
        description="Compares the logs of runs in a page and a picture. A run's folder must hold trainer_state.json, "
        "itself or in a checkpoint. The report shows pass@k if a reward function returned only 0 and 1, and tokens "
        "colored by entropy if the run had `log_token_entropies`.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder for the report (%(default)s)")
    parser.add_argument(
        "--tokens",
        type=whole_number,
        metavar="N",
        help=f"completions to show from each run's first and last log ({SHOWN_COMPLETIONS}); also prints them here",
    )
    return parser


def main(argv: list[str]) -> int:
    """Writes the report, prints the table of the runs, and returns the exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.tokens and find_spec("rich") is None:
        parser.error("--tokens needs rich: pip install 'trl-entropy[rich]'")
    with parser.reporting():
        print(write_report(arguments.runs, arguments.output, arguments.tokens))  # noqa: T201 (the result of a command)
    return 0


def write_report(folders: list[Path], output: Path, tokens: int | None) -> str:
    """Writes page and picture to `output` -> a table of the runs. Raises `ValueError` if a run cannot be read."""
    from ..report.known import Known
    from ..report.runs import read_runs

    runs = read_runs(folders, Known())  # before the slow imports, so that a wrong path is an error at once
    from ..report.diagnosis import findings_of
    from ..report.drawing import draw_png
    from ..report.heat import heat_maps, print_heat_maps
    from ..report.page import render_page
    from ..report.panels import build_panels
    from ..report.summary import summarize
    from ..tables import text_table
    from .methods import known_to_reports

    known = known_to_reports()
    runs = [replace(run, known=known) for run in runs]
    panels = build_panels(runs)
    maps = heat_maps(runs, SHOWN_COMPLETIONS if tokens is None else tokens)
    labels = [run.label for run in runs]
    findings = [(run.label, list(map(str, findings_of(run)))) for run in runs]
    if tokens and not maps:
        raise ValueError("--tokens needs a run that kept tokens: train with `log_token_entropies` above 0.")
    output.mkdir(parents=True, exist_ok=True)
    (output / PAGE).write_text(render_page(runs, panels, maps, findings), encoding="utf-8")
    draw_png(panels, labels, output / PICTURE)
    if tokens:
        print_heat_maps(maps, labels)
    lines = "".join(f"{label}: {finding}\n" for label, found in findings for finding in found)
    return f"{lines}{text_table(summarize(runs, panels))}\npage and picture: {output / PAGE}, {output / PICTURE}"
