# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The annealing law and the refined schedule on runs of ours: Countdown's warm start under four schedules.

    python recipes/benchmarks/schedules.py          # three seeds; repeat to continue
    python recipes/benchmarks/schedules.py --report # tables and picture of the finished runs, or of schedules.json

For each seed, the same model sees the same batches under warmup-stable-decay (`wsd`), cosine and linear decay, each
with 5 % of warm-up, and under the schedule that the linear run's gradient norms give (`refined`). All have the same
peak. The model is that of `trl_entropy/countdown/model.py`, with a smaller batch.

1. The law is fitted to the held-out losses of one schedule, and predicts the end of another that was also run. The
   baseline says that the other one ends like the first.
2. The refined run is compared with the linear one.

Each run is a folder in `--output`, which `trl-entropy curves` reads too.
"""

import argparse
import json
import random
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments


HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from schedules_report import DECAYING, REFINED, Runs, report  # noqa: E402

from trl_entropy import MonitorCallback  # noqa: E402
from trl_entropy.commands.quickstart_common import silence_libraries  # noqa: E402
from trl_entropy.countdown.model import (  # noqa: E402
    WarmStart,
    build_model,
    build_tokenizer,
    supervised_batch,
    targets_of,
)
from trl_entropy.countdown.task import prompts  # noqa: E402
from trl_entropy.curves.refinement import NORMS_FILE, RefinedSchedule, read_norms  # noqa: E402
from trl_entropy.curves.schedules import scheduled_rates  # noqa: E402


SCORES = HERE / "schedules.json"
WARMUP = 0.05


@dataclass(frozen=True)
class Setting:
    """Settings of all runs.

    Attributes:
        start: model, steps, batch size and peak of the learning rate.
        held_out: prompts whose loss is evaluated.
        every: steps between evaluations.
    """

    start: WarmStart = WarmStart(batch_size=32)
    held_out: int = 256
    every: int = 10


known_prompts = cache(prompts)  # which takes a second


class Answers(Dataset):
    """Right answers to prompts: `count` drawn ones of training, or of the first held-out prompts."""

    def __init__(self, held_out: bool, count: int, seed: int):
        tokenizer, draw = build_tokenizer(), random.Random(seed)
        rows = known_prompts(held_out)
        chosen = rows[:count] if held_out else draw.choices(rows, k=count)
        self.tokens = supervised_batch(chosen, tokenizer, draw)
        targets = targets_of(self.tokens, tokenizer, len(rows[0].text.split()))
        self.labels = targets.masked_fill(targets == tokenizer.pad_token_id, -100)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


def factors(schedule: str, steps: int, folder: Path) -> list[float]:
    """Learning rates relative to the peak. A refined schedule is made from the linear run beside `folder`."""
    if schedule == REFINED:
        refined = RefinedSchedule.of(read_norms(folder.parent / "linear" / NORMS_FILE, "l1"), "l1")
        folder.mkdir(parents=True, exist_ok=True)
        refined.save(folder / "schedule.json")
        return [refined.over(steps)(step) for step in range(steps)]
    return scheduled_rates(schedule, steps, 1.0, round(WARMUP * steps)).tolist()


def train(schedule: str, seed: int, setting: Setting, folder: Path) -> None:
    """One run, whose `trainer_state.json` is written last."""
    start = setting.start
    model = build_model(WarmStart(start.hidden_size, start.layers, start.heads, seed=seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=start.learning_rate, betas=(0.85, 0.98))
    rates = [*factors(schedule, start.steps, folder), 0.0]
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=start.batch_size,
        per_device_eval_batch_size=setting.held_out,
        max_steps=start.steps,
        logging_steps=setting.every,
        eval_strategy="steps",
        eval_steps=setting.every,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=seed,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Answers(False, start.steps * start.batch_size, seed),
        eval_dataset=Answers(True, setting.held_out, 0),
        optimizers=(optimizer, LambdaLR(optimizer, lambda step: rates[min(step, start.steps)])),
        callbacks=[MonitorCallback(["gradient_norms"])],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_state()


def collect(output: Path) -> Runs:
    """The log lines of the finished runs: step, learning rate, loss or loss on held-out prompts."""
    found: Runs = {}
    for path in sorted(output.glob("*/*/trainer_state.json"), key=lambda path: (int(path.parts[-3]), path.parts[-2])):
        lines = [
            {key: float(f"{line[key]:.6g}") for key in ("step", "learning_rate", "loss", "eval_loss") if key in line}
            for line in json.loads(path.read_text())["log_history"]
        ]
        found.setdefault(int(path.parts[-3]), {})[path.parts[-2]] = [line for line in lines if len(line) > 1]
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=WarmStart.steps)
    parser.add_argument("--output", type=Path, default=Path("runs/schedules"), help="folder (%(default)s)")
    parser.add_argument("--report", action="store_true", help="only make tables and picture")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    silence_libraries()
    for seed in () if options.report else options.seeds:
        for schedule in (*DECAYING, REFINED):
            folder = options.output / str(seed) / schedule
            if not (folder / "trainer_state.json").exists():
                train(schedule, seed, Setting(WarmStart(batch_size=32, steps=options.steps)), folder)
                print(f"seed {seed} {schedule}: done", flush=True)
    runs = collect(options.output)
    if runs:
        (options.output / SCORES.name).write_text(json.dumps(runs, separators=(",", ":")) + "\n")
    else:
        print(f"From {SCORES}:")
        runs = {int(seed): logs for seed, logs in json.loads(SCORES.read_text()).items()}
    report(runs, options.output)


if __name__ == "__main__":
    main()
