# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy quickstart`: entropy collapse on a CPU, and methods that counter it.

Warm-starts a tiny model on the toy task Countdown, then trains it with stock GRPO and with entropy methods. Compares
entropy, reward, and the number of right answers that each policy still finds. With `--task attempts`, a variant of the
task, completions can also get shorter. With `--task tools` the policy is an agent that calls a calculator.
"""

import argparse
import json
import time
from pathlib import Path

from trl import ModelConfig

from ..countdown.evaluation import evaluate
from ..countdown.grpo import POINT, train
from ..countdown.model import WARM_STARTS, WarmStart, load_warm_start, warm_start
from ..countdown.report import closing, columns_of, plot
from ..countdown.task import TASKS, prompts
from ..methods import METHODS
from ..trainers.grpo_config import EntropyGRPOConfig
from .names import method_name
from .parser import CommandParser
from .quickstart_common import BadRecipe, add_options, given_changes, parse_recipe, read_recipe, run_command
from .script_arguments import AgentScriptArguments


RECIPE = "quickstart"
RECIPES = {"chain": RECIPE, "attempts": "quickstart_attempts", "tools": "quickstart_tools"}
CACHES = {
    "chain": Path(".cache/countdown"),
    "attempts": Path(".cache/countdown_attempts"),
    "tools": Path(".cache/countdown_tools"),
}
KINDS = (AgentScriptArguments, EntropyGRPOConfig, ModelConfig)
PROG = "trl-entropy quickstart"


class Renamed(argparse.Action):
    """An option that has another name now, `const`: refused with that name."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(f"{option_string} is now {self.const}")


def config_for(settings: dict, methods: list[str], folder: Path) -> EntropyGRPOConfig:
    """The trainer's config for one run, without the fields of methods that it does not use.

    Args:
        settings: of the recipe.
        methods: of the run.
        folder: of the run.
    """
    idle = tuple(f"{name}_" for name in METHODS if name not in methods)
    own = {key: value for key, value in settings.items() if not key.startswith(idle)}
    return parse_recipe(own | {"methods": methods}, KINDS, folder, PROG)


def methods_of_runs(settings: dict, compared: list[str] | None) -> dict[str, list[str]]:
    """The methods of each run by its label: stock GRPO, then each compared method, or else those of the recipe."""
    methods = settings.get("methods")
    methods = [methods] if isinstance(methods, str) else methods
    if not (isinstance(methods, list) and methods and all(isinstance(name, str) for name in methods)):
        raise BadRecipe(f"methods={methods!r}: the quickstart compares stock GRPO with one method or more, by name")
    methods = [method_name(name) for name in methods]
    runs = [[method] for method in compared] if compared else [methods]
    return {"stock": []} | {"+".join(methods): methods for methods in runs}


def run(arguments: argparse.Namespace, start: WarmStart | None = None) -> dict:
    """Makes the warm start and all runs. Writes `results.json` and `quickstart.png`, and returns the results."""
    task, cache = TASKS[arguments.task], arguments.cache or CACHES[arguments.task]
    changes = {"model_name_or_path": str(cache / "model"), "dataset_name": str(cache / "data")}
    changes |= {"methods": arguments.compare} if arguments.compare else {}
    settings = read_recipe(arguments.config or RECIPES[arguments.task], changes | given_changes(arguments))
    # All configs are built before any training, so that a bad setting shows at once.
    configs = {
        label: config_for(settings, methods, arguments.output / label)
        for label, methods in methods_of_runs(settings, arguments.compare).items()
    }
    began = time.perf_counter()
    model_path = warm_start(cache, start or WARM_STARTS[arguments.task], arguments.rebuild)
    rows = {"before": {"seconds": time.perf_counter() - began}}
    rows["before"] |= evaluate(*load_warm_start(model_path), prompts(True, task), task=task)
    histories, trajectories = {}, {}
    for label, config in configs.items():
        rows[label], histories[label], points = train(label, model_path, config, task)
        trajectories[label] = [{"step": 0} | {key: rows["before"][key] for key in POINT}, *points]
    # The completions of the first log come from the warm start.
    rows["before"]["reward"] = histories["stock"][0]["reward"]
    results = {"settings": settings, "rows": rows, "history": histories, "trajectories": trajectories}
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1))
    plot(results, arguments.output / "quickstart.png")
    return results


def build_parser() -> CommandParser:
    """The parser of the command."""
    parser = CommandParser(prog=PROG, description=__doc__.split("\n\n")[1])
    parser.add_argument("--task", choices=TASKS, default="chain", help="variant of Countdown (%(default)s)")
    compare = "methods to compare with stock GRPO, each in its own run (from the recipe)"
    parser.add_argument("--compare", type=method_name, choices=METHODS, nargs="+", metavar="METHOD", help=compare)
    parser.add_argument("--method", nargs="*", action=Renamed, const="--compare", help=argparse.SUPPRESS)
    add_options(parser, "runs/quickstart", ".cache/countdown, or the task's", "quickstart, or the task's")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the quickstart, prints its table, and returns the exit status."""
    return run_command(build_parser(), run, columns_of, argv, closing)
