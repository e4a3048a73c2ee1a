# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Parts of both quickstarts: the progress bar of a run, its training, and its model card."""

import time
from pathlib import Path

import yaml
from transformers import PrinterCallback, Trainer, TrainerCallback

from ..curves.logged import entropy_of
from ..runs.card_hooks import CardHooks
from ..runs.provenance import public_value
from .evaluation import SAMPLES
from .model import progress_bar


class Progress(TrainerCallback):
    """Shows one bar per run, with the entropy and one more value, and keeps the logs.

    Args:
        label: name of the run.
        shown: key of the other value in the logs.
    """

    def __init__(self, label: str, shown: str):
        self.label, self.shown = label, shown
        self.history: list[dict[str, float]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = progress_bar(self.label, state.max_steps)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_log(self, args, state, control, logs, **kwargs):
        # A value is `None` once the run has diverged.
        entropy, shown = entropy_of(logs), logs.get(self.shown)
        if entropy is not None and isinstance(shown, (int, float)):
            point = {key: value for key, value in logs.items() if isinstance(value, (int, float))}
            self.history.append({"step": state.global_step, **point})
            values = {"entropy": f"{entropy:.3f}", self.shown: f"{float(shown):.3f}"}
            self.bar.set_postfix(values, refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def train_and_save(trainer: Trainer) -> float:
    """Trains without a line for each log, and saves the model and what `trl-entropy report` reads.

    Returns:
        The seconds of training alone.
    """
    trainer.remove_callback(PrinterCallback)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.save_state()
    trainer.save_model(trainer.args.output_dir)
    return seconds


MEANINGS = {
    "distinct": "number of different right answers among the samples of a prompt",
    "coverage": "that number divided by the number of all right answers of the prompt",
    "divergence": "reverse KL from the teacher in nats, over all tokens",
    "length": "tokens of a completion, with its end",
}
LIMITATIONS = (
    "The model is tiny and solves only Countdown as the quickstart writes it: 42 words, short chains. Nothing follows "
    "for language models in use."
)


def write_card(trainer: CardHooks, name: str, scores: dict[str, float], rows: int) -> None:
    """Writes the model card of a run whose folder holds its `recipe.yaml`.

    Args:
        trainer: the trainer after the run.
        name: of the run.
        scores: the row of the table. All but the seconds become results in the card.
        rows: held-out prompts that it was evaluated on.
    """
    recipe = yaml.safe_load(Path(trainer.args.output_dir, "recipe.yaml").read_text())
    apart = {key: value for key, value in recipe.items() if not hasattr(trainer.args, key)}  # models, data, reward
    trainer.card_facts = {
        "recipe": public_value(apart),
        "evaluation": f"Results are means over {rows} held-out prompts with {SAMPLES} samples each at temperature 1.",
        "meanings": MEANINGS,
        "limitations": LIMITATIONS,
    }
    results = {key: value for key, value in scores.items() if key != "seconds"}
    trainer.create_model_card(model_name=f"countdown-{name}", license="apache-2.0", results=results)
