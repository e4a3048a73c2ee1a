# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy quickstart-distillation`: on-policy distillation on a CPU.

Warm-starts a small student and a larger teacher on the toy task Countdown, then distills on all tokens of the
student's completions and on the part of them that TIP selects. Compares the right answers that each student finds, and
the time.
"""

import argparse
import json
import time
from pathlib import Path

from trl import ModelConfig, ScriptArguments

from ..countdown.distillation import Selection, folder_name, train
from ..countdown.evaluation import evaluate
from ..countdown.model import WarmStart, load_warm_start, warm_start
from ..countdown.report import DISTILLATION_COLUMNS, plot_distillation
from ..countdown.task import prompts
from ..methods.tip import NEEDS
from ..trainers.distillation_config import EntropyDistillationConfig
from .parser import CommandParser
from .quickstart_common import add_options, given_changes, parse_recipe, read_recipe, run_command


RECIPE = "quickstart_distillation"
CACHE = Path(".cache/countdown_distillation")
KINDS = (ScriptArguments, EntropyDistillationConfig, ModelConfig)
# The student stops early. The teacher is larger and trains longer.
WARM_STARTS = {"student": WarmStart(steps=150), "teacher": WarmStart(hidden_size=128, steps=800)}
SELECTIONS = (Selection("none"), Selection("soft_or", 0.5), Selection("soft_or", 0.2))
PROG = "trl-entropy quickstart-distillation"


def selection(text: str) -> Selection:
    """Type of an argument `RULE:RATIO`."""
    rule, _, ratio = text.partition(":")
    if rule not in NEEDS or rule == "none":
        raise argparse.ArgumentTypeError(f"{text!r} is not RULE:RATIO, RULE one of {', '.join(sorted(NEEDS))}")
    try:
        return Selection(rule, float(ratio))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not RULE:RATIO, as in random:0.5") from None


def config_for(settings: dict, chosen: Selection, folder: Path) -> EntropyDistillationConfig:
    """The trainer's config for one run. A run on all tokens leaves out TIP's fields.

    Args:
        settings: of the recipe.
        chosen: the tokens to train on.
        folder: of the run.
    """
    idle = chosen.rule == "none"
    own = {key: value for key, value in settings.items() if not (idle and key.startswith("tip_"))}
    return parse_recipe(own | chosen.settings, KINDS, folder, PROG)


def run(arguments: argparse.Namespace, starts: dict[str, WarmStart] = WARM_STARTS) -> dict:
    """Makes the warm starts and all runs, and returns the results.

    Writes `results.json` after each run, and `quickstart.png`.
    """
    folders = {name: (arguments.cache or CACHE) / name for name in starts}
    changes = {
        "model_name_or_path": str(folders["student"] / "model"),
        "teacher_model_name_or_path": str(folders["teacher"] / "model"),
        "dataset_name": str(folders["student"] / "data"),
    }
    settings = read_recipe(arguments.config or RECIPE, changes | given_changes(arguments))
    # All configs are built before any training, so that a bad setting shows at once.
    configs = {
        chosen.label: config_for(settings, chosen, arguments.output / folder_name(chosen.label))
        for chosen in (*SELECTIONS, *arguments.add)
    }
    models, rows = {}, {}
    histories: dict[str, list[dict[str, float]]] = {}
    for name, start in starts.items():
        began = time.perf_counter()
        models[name] = warm_start(folders[name], start, arguments.rebuild)
        seconds = time.perf_counter() - began
        rows[name] = {"seconds": seconds} | evaluate(*load_warm_start(models[name]), prompts(held_out=True))
    results = {"settings": settings, "rows": rows, "history": histories}
    for label, config in configs.items():
        rows[label], histories[label] = train(label, models, config)
        (arguments.output / "results.json").write_text(json.dumps(results, indent=1))
    plot_distillation(results, arguments.output / "quickstart.png")
    return results


def build_parser() -> CommandParser:
    """The parser of the command."""
    parser = CommandParser(prog=PROG, description=__doc__.split("\n\n")[1])
    add = "one more run on the tokens that RULE selects, as in random:0.5; may be repeated"
    parser.add_argument("--add", type=selection, action="append", default=[], metavar="RULE:RATIO", help=add)
    add_options(parser, "runs/quickstart_distillation", str(CACHE), RECIPE)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the quickstart, prints its table, and returns the exit status."""
    return run_command(build_parser(), run, lambda rows: DISTILLATION_COLUMNS, argv)
