# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""How much a model forgets when it learns a second task: all weights, LoRA, KappaTune, or random weights.

    python recipes/benchmarks/forgetting.py

The model is the quickstart's warm start, which knows Countdown with four numbers up to 9. TRL's `SFTTrainer` trains it
on a second task in the same words: add and subtract four numbers up to 12, one of them above 9. Each arm tries several
learning rates on the first seed; the other seeds use the one that is best on the new task. An interrupted run
continues from its results, `forgetting.json`. KappaTune and the random selection, which differs between seeds, train
exactly the same number of parameters; LoRA has the largest rank with no more. Accuracy is pass@1 on held-out prompts
at temperature 1.
"""

import argparse
import itertools
import json
import random
import tempfile
from pathlib import Path
from statistics import fmean

import datasets
from peft import LoraConfig
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from trl_entropy import KappaTuneCallback
from trl_entropy.countdown.evaluation import evaluate
from trl_entropy.countdown.model import load_warm_start, warm_start
from trl_entropy.countdown.task import NUMBERS_PER_PROMPT, TOTALS, Prompt, chain, prompts, solutions
from trl_entropy.kappa.analysis import analyze
from trl_entropy.kappa.selection import Selection
from trl_entropy.kappa.sources import LiveSource


LARGE, NUMBERS = 9, range(1, 13)  # the first task has numbers up to 9
ARMS = ("all", "lora", "kappa", "random")


def second_task() -> dict[Prompt, list[str]]:
    """Every prompt of the second task with its right answers."""
    found = {}
    for numbers in itertools.combinations(NUMBERS, NUMBERS_PER_PROMPT):
        for target in TOTALS:
            answers = [answer for answer in solutions(numbers, target) if "*" not in answer]
            if answers and max(numbers) > LARGE:
                found[Prompt(numbers, target)] = answers
    return found


def training_data(task: dict[Prompt, list[str]], rows: int, seed: int) -> datasets.Dataset:
    """Training prompts, each with one of its right answers. `seed` draws both."""
    draw, known = random.Random(seed), [prompt for prompt in task if not prompt.held_out]
    drawn = draw.choices(known, k=rows)
    completions = [f" {chain(draw.choice(task[prompt]))}" for prompt in drawn]
    return datasets.Dataset.from_dict({"prompt": [prompt.text for prompt in drawn], "completion": completions})


def random_names(layers, budget: int, seed: int) -> list[str]:
    """Names of random weights with exactly `budget` parameters in total. A draw that exceeds it is repeated."""
    draw, layers = random.Random(seed), sorted(layers, key=lambda layer: layer.name)
    while True:
        rest, names = budget, []
        for layer in draw.sample(layers, len(layers)):
            if layer.size <= rest:
                rest -= layer.size
                names.append(layer.name)
        if rest == 0:
            return names


def lora_rank(layers, budget: int) -> int:
    return budget // sum(sum(layer.shape) for layer in layers)


def train(arm: str, path: Path, data: datasets.Dataset, rate: float, seed: int, options) -> dict[str, float]:
    """Makes one run. Returns accuracy on both tasks, entropy on the old one, and the number of trained parameters."""
    model, tokenizer = load_warm_start(path)
    selection = Selection(top_p=options.top_p)
    layers = analyze(LiveSource(model), selection.candidate, progress=False)
    candidates, chosen = [layer for layer in layers if selection.candidate(layer)], selection.select(layers)
    budget = sum(layer.size for layer in chosen)
    callbacks, peft_config = [], None
    if arm == "kappa":
        callbacks = [KappaTuneCallback(top_p=options.top_p, cache="none")]
    elif arm == "random":
        names = random_names(candidates, budget, seed)
        patterns = [f"^{name}$" for name in names]
        callbacks = [KappaTuneCallback(num_modules=len(names), include=patterns, cache="none")]
    elif arm == "lora":
        rank = lora_rank(candidates, budget)
        names = [layer.name for layer in candidates]
        peft_config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            folder,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=options.steps // 20,
            seed=seed,
            max_length=None,
            save_strategy="no",
            logging_steps=options.steps,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to=[],
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model,
            args=config,
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=callbacks,
            peft_config=peft_config,
        )
        trainer.train()
    trained = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    return {"arm": arm, "rate": rate, "seed": seed, "trained": trained, **scores(trainer.model, tokenizer, options)}


def scores(model, tokenizer, options) -> dict[str, float]:
    new = [prompt for prompt in second_task() if prompt.held_out][: options.prompts]
    old = prompts(held_out=True)
    found = {"new": evaluate(model, tokenizer, new, samples=options.samples)["pass@1"]}
    return found | {"old": evaluate(model, tokenizer, old, samples=options.samples)["pass@1"]}


def best_rate(runs: list[dict], arm: str, seed: int) -> float:
    return max((run for run in runs if (run["arm"], run["seed"]) == (arm, seed)), key=lambda run: run["new"])["rate"]


def table(start: dict[str, float], runs: list[dict], first_seed: int) -> str:
    """One line per arm: mean over seeds, lowest and highest in brackets."""
    lines = [f"{'':10}{'rate':>8}{'trained':>10}{'new task':>24}{'old task':>24}"]
    lines.append(f"{'before':10}{'':>8}{'':>10}{start['new']:>24.3f}{start['old']:>24.3f}")
    for arm in dict.fromkeys(run["arm"] for run in runs):
        rate = best_rate(runs, arm, first_seed)
        best = [run for run in runs if (run["arm"], run["rate"]) == (arm, rate)]
        cells = []
        for key in ("new", "old"):
            values = [run[key] for run in best]
            cells.append(f"{fmean(values):.3f} ({min(values):.3f}-{max(values):.3f})")
        lines.append(f"{arm:10}{rate:>8.0e}{best[0]['trained']:>10}{cells[0]:>24}{cells[1]:>24}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2, 3e-2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    for name, default in dict(steps=120, batch=64, samples=4, prompts=300).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--top-p", type=float, default=0.3, help="ratio of the linear layers' parameters (%(default)s)"
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache/countdown"), help="warm start (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/forgetting.json"))
    options = parser.parse_args()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    path, task, runs = warm_start(options.cache), second_task(), []
    start = scores(*load_warm_start(path), options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.output.exists():
        runs = json.loads(options.output.read_text())["runs"]
    for seed in options.seeds:
        data = training_data(task, options.steps * options.batch, seed)
        first = seed == options.seeds[0]
        for arm in options.arms:
            for rate in options.rates if first else [best_rate(runs, arm, options.seeds[0])]:
                if any((run["arm"], run["rate"], run["seed"]) == (arm, rate, seed) for run in runs):
                    continue
                runs.append(train(arm, path, data, rate, seed, options))
                print(runs[-1], flush=True)
                options.output.write_text(json.dumps({"before": start, "runs": runs}, indent=1))
    print(table(start, runs, options.seeds[0]))


if __name__ == "__main__":
    main()
