# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Collapse and cure on a laptop: `python -m trl_entropy.quickstart`.

Warm-starts a tiny model on Countdown, trains it twice from there with GRPO, without any method and with one, and shows
what each run does to entropy, reward and the number of right answers that the policy still finds. `--task attempts` is
a task on which the length of completions can shrink.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import fmean

from transformers import PrinterCallback
from trl import ModelConfig
from trl.scripts.grpo import GRPOScriptArguments

from ..methods import METHODS
from ..trainers.grpo import EntropyGRPOTrainer
from ..trainers.grpo_config import EntropyGRPOConfig
from .common import BadRecipe, Progress, add_options, given_changes, parse_recipe, read_recipe, run_command, write_card
from .evaluation import evaluate
from .model import WARM_STARTS, WarmStart, load_warm_start, warm_start
from .report import COLUMNS, plot
from .task import CHAIN, TASKS, Task, countdown_dataset, countdown_reward, prompts


RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
RECIPES = {"chain": RECIPE, "attempts": RECIPE.with_name("quickstart_attempts.yaml")}
KINDS = (GRPOScriptArguments, EntropyGRPOConfig, ModelConfig)
CACHES = {"chain": Path(".cache/countdown"), "attempts": Path(".cache/countdown_attempts")}


def config_for(settings: dict, methods: list[str], folder: Path) -> EntropyGRPOConfig:
    """The trainer's config for one run; fields of methods that it does not use are left out. See `parse_recipe`."""
    idle = tuple(f"{name}_" for name in METHODS if name not in methods)
    own = {key: value for key, value in settings.items() if not key.startswith(idle)}
    return parse_recipe(own | {"methods": methods}, KINDS, folder, "quickstart")


def train(
    label: str, model_path: Path, config: EntropyGRPOConfig, task: Task = CHAIN
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """One GRPO run from the warm start: its row of the table, and what it logged.

    The reward of the row is the mean over the last tenth of the logs, on prompts to train on; the rest is measured
    on the held-out prompts. The seconds are those of training alone.
    """
    model, tokenizer = load_warm_start(model_path)
    progress = Progress(label, "reward")
    trainer = EntropyGRPOTrainer(
        model=model,
        reward_funcs=countdown_reward,
        args=config,
        train_dataset=countdown_dataset(task=task),
        processing_class=tokenizer,
        callbacks=[progress],
    )
    trainer.remove_callback(PrinterCallback)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.save_state()  # which `trl-entropy report` reads
    trainer.save_model(config.output_dir)
    last = progress.history[-max(1, len(progress.history) // 10) :]
    found = evaluate(model, tokenizer, prompts(True, task), task=task)
    write_card(trainer, label, found)
    return {"reward": fmean(point["reward"] for point in last), "seconds": seconds} | found, progress.history


def run(arguments: argparse.Namespace, start: WarmStart | None = None) -> dict:
    """Warm start, stock run, run with each method. Writes `results.json` and `quickstart.png`, returns the results."""
    task, cache = TASKS[arguments.task], arguments.cache or CACHES[arguments.task]
    changes = {"model_name_or_path": str(cache / "model"), "dataset_name": str(cache / "data")}
    changes |= {"methods": arguments.method} if arguments.method else {}
    settings = read_recipe(arguments.config or RECIPES[arguments.task], changes | given_changes(arguments))
    methods = settings.get("methods")
    methods = [methods] if isinstance(methods, str) else methods
    if not (isinstance(methods, list) and methods and all(isinstance(name, str) for name in methods)):
        raise BadRecipe(f"methods={methods!r}: the quickstart compares stock GRPO with one method or more, by name")
    runs = [[method] for method in arguments.method] if arguments.method else [methods]
    chosen = {"stock": []} | {"+".join(methods): methods for methods in runs}
    # Both before anything is trained, so that a bad setting shows at once.
    configs = {label: config_for(settings, methods, arguments.output / label) for label, methods in chosen.items()}
    began = time.perf_counter()
    model_path = warm_start(cache, start or WARM_STARTS[arguments.task], arguments.rebuild)
    rows = {"before": {"seconds": time.perf_counter() - began}}
    rows["before"] |= evaluate(*load_warm_start(model_path), prompts(True, task), task=task)
    histories = {}
    for label, config in configs.items():
        rows[label], histories[label] = train(label, model_path, config, task)
    # The completions of the first log were sampled from the warm start.
    rows["before"]["reward"] = histories["stock"][0]["reward"]
    results = {"settings": settings, "rows": rows, "history": histories}
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1))
    plot(results, arguments.output / "quickstart.png")
    return results


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m trl_entropy.quickstart", description=__doc__.split("\n\n")[1])
    parser.add_argument("--task", choices=TASKS, default="chain", help="the variant of Countdown (%(default)s)")
    parser.add_argument("--method", choices=METHODS, nargs="+", help="what to compare, each in a run (the recipe's)")
    add_options(parser, "runs/quickstart", ".cache/countdown, or the task's", "recipes/quickstart.yaml, or the task's")
    return parser


def main(arguments: list[str] | None = None) -> None:
    run_command(build_parser(), run, COLUMNS, arguments)


if __name__ == "__main__":
    main()
