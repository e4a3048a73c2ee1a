# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""On-policy distillation on a laptop: `python -m trl_entropy.distillation_quickstart`.

Warm-starts a small student and a larger teacher on Countdown, distils one into the other on all tokens of the student's
completions and on shares of them that TIP keeps, and shows what each run still finds and how long it took.
"""

import argparse
import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import yaml
from transformers import PrinterCallback
from trl import ModelConfig, ScriptArguments

from .arguments import StrictParser
from .countdown import countdown_dataset, prompts
from .countdown_evaluation import evaluate
from .countdown_model import WarmStart, load_warm_start, warm_start
from .distillation import EntropyDistillationTrainer
from .distillation_config import EntropyDistillationConfig
from .distillation_quickstart_report import plot, table
from .methods.tip import NEEDS
from .quickstart import Progress, setting, silence_libraries


RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart_distillation.yaml"
# The student is stopped early; the teacher is larger and saw more batches.
WARM_STARTS = {"student": WarmStart(steps=150), "teacher": WarmStart(hidden_size=128, steps=800)}


class Selection(NamedTuple):
    """The tokens that a run trains on: a rule of TIP and the share of each completion's tokens that it keeps."""

    rule: str
    ratio: float = 1.0

    @property
    def label(self) -> str:
        return "all" if self.rule == "none" else f"{self.rule} {self.ratio:.0%}"

    @property
    def settings(self) -> dict:
        return {"tip_rule": self.rule} | ({} if self.rule == "none" else {"tip_ratio": self.ratio})


SELECTIONS = (Selection("none"), Selection("soft_or", 0.5), Selection("soft_or", 0.2))


def selection(text: str) -> Selection:
    """`rule:ratio` -> [`Selection`]."""
    rule, _, ratio = text.partition(":")
    if rule not in NEEDS or rule == "none":
        raise argparse.ArgumentTypeError(f"{text!r} is not RULE:RATIO, RULE one of {', '.join(sorted(NEEDS))}")
    try:
        return Selection(rule, float(ratio))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not RULE:RATIO, as in random:0.5") from None


class DistillationProgress(Progress):
    """One bar per run, with the student's entropy, and a list of what was logged."""

    def on_log(self, args, state, control, logs, **kwargs):
        if "entropy" in logs:
            point = {key: value for key, value in logs.items() if isinstance(value, (int, float))}
            self.history.append({"step": state.global_step, **point})
            self.bar.set_postfix(entropy=f"{logs['entropy']:.3f}", loss=f"{float(logs['loss']):.3f}", refresh=False)


def read_recipe(path: Path, changes: dict) -> dict:
    """The settings of a recipe with `changes` made. Raises `FileNotFoundError` or `ValueError` where it is none."""
    if not path.exists():
        raise FileNotFoundError(
            f"config={str(path)!r} does not exist. Give the recipe of a source checkout: "
            "--config recipes/quickstart_distillation.yaml"
        )
    settings = yaml.safe_load(path.read_text())
    if not isinstance(settings, dict):
        raise ValueError(f"config={str(path)!r} must hold a mapping of settings, got {type(settings).__name__}")
    return settings | changes


def config_for(settings: dict, chosen: Selection, folder: Path) -> EntropyDistillationConfig:
    """The trainer's config for one run, read from a recipe in `folder` that `trl-entropy distillation` can run by itself.

    Without a selection the fields of TIP are left out. Exits with one line where a setting is unknown or wrong.
    """
    idle = chosen.rule == "none"
    own = {key: value for key, value in settings.items() if not (idle and key.startswith("tip_"))}
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(own | chosen.settings | {"output_dir": str(folder)}, sort_keys=False))
    parser = StrictParser((ScriptArguments, EntropyDistillationConfig, ModelConfig), prog="distillation_quickstart")
    config = parser.parse(["--config", str(recipe)])[1]
    if config.max_steps < config.logging_steps:
        parser.error(
            f"max_steps={config.max_steps} logs nothing: give at least logging_steps={config.logging_steps:g}"
        )
    config.disable_tqdm = True  # the run has a bar of its own
    return config


def train(
    label: str, models: dict[str, Path], config: EntropyDistillationConfig
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """One run from the warm starts: its row of the table, and what it logged.

    All of the row is measured on the held-out prompts but for the seconds, which are those of training alone.
    """
    student, tokenizer = load_warm_start(models["student"])
    progress = DistillationProgress(label)
    trainer = EntropyDistillationTrainer(
        model=student,
        teacher_model=load_warm_start(models["teacher"])[0],
        args=config,
        train_dataset=countdown_dataset(),
        eval_dataset=countdown_dataset(held_out=True),
        processing_class=tokenizer,
        callbacks=[progress],
    )
    trainer.remove_callback(PrinterCallback)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.save_state()
    trainer.save_model(config.output_dir)
    # Evaluation is over all tokens, whatever the run was trained on.
    scores = {"divergence": trainer.evaluate()["eval_loss"], "seconds": seconds}
    return scores | evaluate(student, tokenizer, prompts(held_out=True)), progress.history


def run(arguments: argparse.Namespace, starts: dict[str, WarmStart] = WARM_STARTS) -> dict:
    """Warm starts and all runs. Writes `results.json`, after each run, and `quickstart.png`; returns the results."""
    folders = {name: arguments.cache / name for name in starts}
    changes = {
        "model_name_or_path": str(folders["student"] / "model"),
        "teacher_model_name_or_path": str(folders["teacher"] / "model"),
        "dataset_name": str(folders["student"] / "data"),
    }
    named = {"seed": arguments.seed, "max_steps": arguments.steps}
    changes |= {key: value for key, value in named.items() if value is not None}
    settings = read_recipe(arguments.config, changes | dict(arguments.set))
    # All before anything is trained, so that a bad setting shows at once.
    configs = {
        chosen.label: config_for(settings, chosen, arguments.output / chosen.label.replace(" ", "-").rstrip("%"))
        for chosen in (*SELECTIONS, *arguments.add)
    }
    models, rows, histories = {}, {}, {}
    for name, start in starts.items():
        began = time.perf_counter()
        models[name] = warm_start(folders[name], start, arguments.rebuild)
        seconds = time.perf_counter() - began
        rows[name] = {"seconds": seconds} | evaluate(*load_warm_start(models[name]), prompts(held_out=True))
    results = {"settings": settings, "rows": rows, "history": histories}
    for label, config in configs.items():
        rows[label], histories[label] = train(label, models, config)
        (arguments.output / "results.json").write_text(json.dumps(results, indent=1))
    plot(results, arguments.output / "quickstart.png")
    return results


def build_parser() -> argparse.ArgumentParser:
    description = __doc__.split("\n\n")[1]
    parser = argparse.ArgumentParser("python -m trl_entropy.distillation_quickstart", description=description)
    add = "one more run, as in random:0.5; may be repeated"
    parser.add_argument("--add", type=selection, action="append", default=[], metavar="RULE:RATIO", help=add)
    parser.add_argument("--steps", type=int, help="optimizer steps per run (the recipe's)")
    parser.add_argument("--seed", type=int, help="seed of the runs (the recipe's); the warm starts have their own")
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="NAME=VALUE", help="any setting")
    output, cache = Path("runs/quickstart_distillation"), Path(".cache/countdown_distillation")
    parser.add_argument("--output", type=Path, default=output, help="results (%(default)s)")
    parser.add_argument("--cache", type=Path, default=cache, help="warm starts (%(default)s)")
    parser.add_argument("--rebuild", action="store_true", help="train the warm starts again")
    parser.add_argument("--config", type=Path, default=RECIPE, help="recipe (recipes/quickstart_distillation.yaml)")
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
