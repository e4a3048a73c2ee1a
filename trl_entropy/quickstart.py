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
import warnings
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

import datasets
import yaml
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging
from trl import ModelConfig
from trl.scripts.grpo import GRPOScriptArguments

from .arguments import StrictParser
from .config import EntropyGRPOConfig
from .countdown import CHAIN, TASKS, Task, countdown_dataset, countdown_reward, prompts
from .countdown_evaluation import evaluate
from .countdown_model import WARM_STARTS, WarmStart, load_warm_start, progress_bar, warm_start
from .grpo import EntropyGRPOTrainer
from .methods import METHODS
from .provenance import public_value
from .quickstart_report import plot, table


RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"
RECIPES = {"chain": RECIPE, "attempts": RECIPE.with_name("quickstart_attempts.yaml")}
CACHES = {"chain": Path(".cache/countdown"), "attempts": Path(".cache/countdown_attempts")}


class Progress(TrainerCallback):
    """One bar per run, with entropy and reward, and a list of what was logged."""

    def __init__(self, label: str):
        self.label = label
        self.history: list[dict[str, float]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = progress_bar(self.label, state.max_steps)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_log(self, args, state, control, logs, **kwargs):
        if "reward" in logs:
            point = {key: value for key, value in logs.items() if isinstance(value, (int, float))}
            self.history.append({"step": state.global_step, **point})
            self.bar.set_postfix(entropy=f"{logs['entropy']:.3f}", reward=f"{logs['reward']:.3f}", refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def read_recipe(path: Path, changes: dict) -> dict:
    """The settings of a recipe with `changes` made. Raises `FileNotFoundError` or `ValueError` where it is none."""
    if not path.exists():
        raise FileNotFoundError(
            f"config={str(path)!r} does not exist. Give the recipe of a source checkout: --config recipes/quickstart.yaml"
        )
    settings = yaml.safe_load(path.read_text())
    if not isinstance(settings, dict):
        raise ValueError(f"config={str(path)!r} must hold a mapping of settings, got {type(settings).__name__}")
    settings |= changes
    if not settings.get("methods"):
        raise ValueError(
            f"methods={settings.get('methods')!r}: the quickstart compares stock GRPO with one method or more"
        )
    return settings


def config_for(settings: dict, methods: list[str], folder: Path) -> EntropyGRPOConfig:
    """The trainer's config for one run, read from a recipe in `folder` that `trl-entropy grpo` can run by itself.

    Fields of methods that the run does not use are left out. Exits with one line where a setting is unknown or wrong.
    """
    idle = tuple(f"{name}_" for name in METHODS if name not in methods)
    own = {key: value for key, value in settings.items() if not key.startswith(idle)}
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(own | {"methods": methods, "output_dir": str(folder)}, sort_keys=False))
    parser = StrictParser((GRPOScriptArguments, EntropyGRPOConfig, ModelConfig), prog="quickstart")
    config = parser.parse(["--config", str(recipe)])[1]
    if config.max_steps < config.logging_steps:
        parser.error(
            f"max_steps={config.max_steps} logs nothing: give at least logging_steps={config.logging_steps:g}"
        )
    config.disable_tqdm = True  # the run has a bar of its own
    return config


def train(
    label: str, model_path: Path, config: EntropyGRPOConfig, task: Task = CHAIN
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """One GRPO run from the warm start: its row of the table, and what it logged.

    The reward of the row is the mean over the last tenth of the logs, on prompts to train on; the rest is measured
    on the held-out prompts. The seconds are those of training alone.
    """
    model, tokenizer = load_warm_start(model_path)
    progress = Progress(label)
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
    recipe = yaml.safe_load(Path(config.output_dir, "recipe.yaml").read_text())
    apart = {key: value for key, value in recipe.items() if not hasattr(config, key)}  # model, data and reward
    trainer.card_facts = {"recipe": public_value(apart)}
    trainer.create_model_card(model_name=f"countdown-{label}", license="apache-2.0", results=found)
    return {"reward": fmean(point["reward"] for point in last), "seconds": seconds} | found, progress.history


def run(arguments: argparse.Namespace, start: WarmStart | None = None) -> dict:
    """Warm start, stock run, run with each method. Writes `results.json` and `quickstart.png`, returns the results."""
    task, cache = TASKS[arguments.task], arguments.cache or CACHES[arguments.task]
    changes = {"model_name_or_path": str(cache / "model"), "dataset_name": str(cache / "data")}
    named = {"seed": arguments.seed, "max_steps": arguments.steps, "methods": arguments.method}
    changes |= {key: value for key, value in named.items() if value is not None}
    settings = read_recipe(arguments.config or RECIPES[arguments.task], changes | dict(arguments.set))
    runs = [[method] for method in arguments.method] if arguments.method else [settings["methods"]]
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


def setting(text: str) -> tuple[str, object]:
    """`name=value` -> (name, value), the value read as YAML."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value, as in learning_rate=1e-4")
    return name, yaml.safe_load(value)


def silence_libraries() -> None:
    """Leaves the terminal to the bars of this run."""
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    # transformers renames this field and warns whoever uses the name that all supported versions know, TRL included.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m trl_entropy.quickstart", description=__doc__.split("\n\n")[1])
    parser.add_argument("--task", choices=TASKS, default="chain", help="the variant of Countdown (%(default)s)")
    parser.add_argument("--method", choices=METHODS, nargs="+", help="what to compare, each in a run (the recipe's)")
    parser.add_argument("--steps", type=int, help="optimizer steps per run (the recipe's)")
    parser.add_argument("--seed", type=int, help="seed of the runs (the recipe's); the warm start has its own")
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="NAME=VALUE", help="any setting")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="results (%(default)s)")
    parser.add_argument("--cache", type=Path, help="warm start (.cache/countdown, or the task's)")
    parser.add_argument("--rebuild", action="store_true", help="train the warm start again")
    parser.add_argument("--config", type=Path, help="recipe (recipes/quickstart.yaml, or the task's)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    if find_spec("matplotlib") is None:
        parser.error("the plot needs matplotlib: pip install 'trl-entropy[plots]'")
    silence_libraries()
    results = run(parsed)
    print(table(results["rows"]))  # noqa: T201 (the result of a command)
    print(f"plot and results: {parsed.output}")  # noqa: T201


if __name__ == "__main__":
    main()
