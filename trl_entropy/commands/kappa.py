# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy kappa MODEL`: ranks the weights of a model by condition number and shows which a budget selects."""

import logging
from pathlib import Path

from ..kappa.analysis import analyze
from ..kappa.config import kappa_cache, knob_help
from ..kappa.report import notes, plot, table, write_json
from ..kappa.selection import ORDERS, Selection
from ..kappa.sources import CheckpointSource
from .parser import CommandParser


logger = logging.getLogger(__name__)


def build_parser() -> CommandParser:
    parser = CommandParser(prog="trl-entropy kappa", description="Rank the weights of a model by condition number.")
    parser.add_argument("model", metavar="MODEL", help="folder or id on the Hub, with weights in safetensors")
    parser.add_argument("--revision", help="revision of the repository")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the checkpoint")
    parser.add_argument("--top-p", type=float, help=knob_help("top_p"))
    parser.add_argument("--num-modules", type=int, help=knob_help("num_modules"))
    parser.add_argument("--include", nargs="+", default=[], metavar="REGEX", help=knob_help("include"))
    parser.add_argument("--exclude", nargs="+", default=[], metavar="REGEX", help=knob_help("exclude"))
    parser.add_argument("--order", choices=ORDERS, default="ascending", help=knob_help("order"))
    parser.add_argument("--experts", choices=("median", "mean"), default="median", help=knob_help("experts"))
    parser.add_argument("--seed", type=int, default=0, help="seed of a random order (%(default)s)")
    parser.add_argument("--cache", metavar="DIR", help=knob_help("cache"))
    parser.add_argument(
        "--no-cache", action="store_true", help="neither read nor write cached results, as `--cache none`"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="writes kappa.json and kappa.png there")
    return parser


def main(argv: list[str]) -> int:
    """Prints the table, writes the files that `--output` asks for, and returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(argv)
    with parser.reporting():
        names = ("top_p", "num_modules", "include", "exclude", "order", "experts", "seed")
        selection = Selection(**{name: getattr(options, name) for name in names})
        source = CheckpointSource(options.model, options.revision, options.trust_remote_code)
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
        cache = None if options.no_cache else kappa_cache(options.cache)
        layers = analyze(source, selection.candidate, cache)
        chosen = [layer.name for layer in selection.select(layers)]
        print(table(layers, chosen, selection))  # noqa: T201 (the result of a command)
        for note in notes(layers, chosen, selection):
            logger.warning(note)
        if options.output:
            write_json(options.output / "kappa.json", options.model, layers, chosen, selection)
            plot(options.output / "kappa.png", layers, chosen, selection)
    return 0
