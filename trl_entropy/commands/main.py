# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The command `trl-entropy`: finds the module of a command and runs it.

Nothing slow is imported here, so that `--help` and `--version` answer at once.
"""

import os
import sys
from importlib import import_module
from typing import NamedTuple

from .._version import __version__
from .parser import CommandParser


class Command(NamedTuple):
    """A command, whose function `main` is in the module of its name.

    Attributes:
        help: what `trl-entropy --help` says about it.
        trains: whether it trains. Then `main` also takes `launch`.
    """

    help: str
    trains: bool = False


COMMANDS = {
    "grpo": Command("Train with GRPO and entropy methods.", trains=True),
    "distillation": Command("Distill a teacher on the tokens that TIP selects.", trains=True),
    "kappa": Command("Rank the weights of a model by condition number."),
    "report": Command("Compare runs in a page and a picture."),
    "curves": Command("What a loss curve tells: bits learned, other schedules of the learning rate."),
    "recommend": Command("Say which method to try first, with settings for a batch."),
    "diagnose": Command("Say what is wrong with a run, and which field to change."),
    "methods": Command("List the methods with their papers and fields."),
    "monitors": Command("List the monitors with their papers and fields."),
    "geometry": Command("Measure how many directions a model's representations of texts use."),
    "epr": Command("Score answers by the entropies of their tokens, and say how well that finds wrong ones."),
    "difficulty": Command("Label questions by difficulty, and answer each with a budget of its own."),
    "env": Command("Print versions and hardware, for bug reports."),
    "quickstart": Command("Compare stock GRPO with entropy methods on a toy task, on a CPU."),
    "quickstart-distillation": Command("Compare distillation on all and on selected tokens on a toy task, on a CPU."),
}


def main(argv: list[str] | None = None, launch: bool = True) -> int:
    """Runs a command and returns its exit status.

    Args:
        argv: the words after `trl-entropy`; those of this process by default.
        launch: whether a training command starts its own processes. If not, it trains in this process.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = CommandParser(prog="trl-entropy", description="Entropy control for TRL.")
    parser.add_argument("--version", action="version", version=f"trl-entropy {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help, add_help=False)
    name = parser.parse_args(argv[:1]).command  # the command parses the other words
    if name is None:
        parser.error(f"a command is missing: one of {', '.join(COMMANDS)}. `trl-entropy --help` describes them.")
    module = import_module(f".{name.replace('-', '_')}", __package__)
    if COMMANDS[name].trains:
        return module.main(argv[1:], launch)
    try:
        status = module.main(argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status
