# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""On-policy distillation on a laptop: `python -m trl_entropy.distillation_quickstart`.

Warm-starts a small student and a larger teacher on Countdown, distils one into the other on all tokens of the student's
completions and on shares of them that TIP keeps, and shows what each run still finds and how long it took.
"""

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

from transformers import PrinterCallback
from trl import ModelConfig, ScriptArguments

from ..methods.tip import NEEDS
from ..trainers.distillation import EntropyDistillationTrainer
from ..trainers.distillation_config import EntropyDistillationConfig
from .common import Progress, add_options, given_changes, parse_recipe, read_recipe, run_command, write_card
from .distillation_report import COLUMNS, plot
from .evaluation import evaluate
from .model import WarmStart, load_warm_start, warm_start
from .task import countdown_dataset, prompts


RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart_distillation.yaml"
CACHE = Path(".cache/countdown_distillation")
KINDS = (ScriptArguments, EntropyDistillationConfig, ModelConfig)
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


def folder_name(label: str) -> str:
    return label.replace(" ", "-").rstrip("%")


def selection(text: str) -> Selection:
    """`rule:ratio` -> [`Selection`]."""
    rule, _, ratio = text.partition(":")
    if rule not in NEEDS or rule == "none":
        raise argparse.ArgumentTypeError(f"{text!r} is not RULE:RATIO, RULE one of {', '.join(sorted(NEEDS))}")
    try:
        return Selection(rule, float(ratio))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not RULE:RATIO, as in random:0.5") from None


def config_for(settings: dict, chosen: Selection, folder: Path) -> EntropyDistillationConfig:
    """The trainer's config for one run; without a selection the fields of TIP are left out. See `parse_recipe`."""
    idle = chosen.rule == "none"
    own = {key: value for key, value in settings.items() if not (idle and key.startswith("tip_"))}
    return parse_recipe(own | chosen.settings, KINDS, folder, "distillation_quickstart")


def train(
    label: str, models: dict[str, Path], config: EntropyDistillationConfig
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """One run from the warm starts: its row of the table, and what it logged.

    All of the row is measured on the held-out prompts but for the seconds, which are those of training alone.
    """
    student, tokenizer = load_warm_start(models["student"])
    progress = Progress(label, "loss")
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
    scores |= evaluate(student, tokenizer, prompts(held_out=True))
    write_card(trainer, folder_name(label), scores)
    return scores, progress.history


def run(arguments: argparse.Namespace, starts: dict[str, WarmStart] = WARM_STARTS) -> dict:
    """Warm starts and all runs. Writes `results.json`, after each run, and `quickstart.png`; returns the results."""
    folders = {name: (arguments.cache or CACHE) / name for name in starts}
    changes = {
        "model_name_or_path": str(folders["student"] / "model"),
        "teacher_model_name_or_path": str(folders["teacher"] / "model"),
        "dataset_name": str(folders["student"] / "data"),
    }
    settings = read_recipe(arguments.config or RECIPE, changes | given_changes(arguments))
    # All before anything is trained, so that a bad setting shows at once.
    configs = {
        chosen.label: config_for(settings, chosen, arguments.output / folder_name(chosen.label))
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
    add_options(parser, "runs/quickstart_distillation", str(CACHE), "recipes/quickstart_distillation.yaml")
    return parser


def main(arguments: list[str] | None = None) -> None:
    run_command(build_parser(), run, COLUMNS, arguments)


if __name__ == "__main__":
    main()
