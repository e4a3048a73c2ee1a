# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every method against stock GRPO on the quickstart's task: equal updates, three strengths each, several seeds.

    python recipes/benchmarks/methods.py                         # about 200 runs of half a minute; repeat to continue
    python recipes/benchmarks/methods.py --worker 0 --workers 2  # half of the runs; `--worker 1` makes the others
    python recipes/benchmarks/methods.py --timing 5              # step times: all methods, five rounds
    python recipes/benchmarks/methods.py --report                # tables and plot of the finished runs

`methods.yaml` lists the runs. All methods run on one seed before the next, so that an unfinished comparison is fair,
with fewer seeds. Each run is a file in `--output`. If its settings have changed, it is left out of the report and made
again. The report also writes all scores into one file. Without runs it reads the scores of docs/comparison.md,
`methods.json`.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean, median

import torch
import yaml
from methods_report import SCORES, Scores, collect, fingerprint, plot, read_scores, run_file, table, write_scores

from trl_entropy.commands import quickstart
from trl_entropy.commands.quickstart_common import read_recipe, silence_libraries
from trl_entropy.countdown.evaluation import evaluate
from trl_entropy.countdown.grpo import train
from trl_entropy.countdown.model import load_warm_start, warm_start
from trl_entropy.countdown.task import prompts


HERE = Path(__file__).parent
SCORES_FILE = HERE / "methods.json"  # of the runs in docs/comparison.md


def read_arms(path: Path, recipe: str | Path) -> dict[str, dict]:
    """The settings of each line of the comparison by its name, `method/strength`. The first is `stock`."""
    plan = yaml.safe_load(path.read_text())
    base = read_recipe(recipe, plan["base"])
    arms = {"stock": {**base, "methods": []}}
    for name, entry in plan["entries"].items():
        for strength, changes in enumerate(entry["strengths"], start=1):
            chosen = {"methods": entry.get("methods", [name]), **entry.get("settings", {}), **changes}
            arms[f"{name}/{strength}"] = {**base, **chosen}
    return arms


def train_arm(name: str, settings: dict, seed: int, model: Path, folder: Path) -> dict:
    settings = {**settings, "seed": seed, "model_name_or_path": str(model), "dataset_name": str(model.parent / "data")}
    config = quickstart.config_for(settings, settings["methods"], folder)
    scores, history, _ = train(name, model, config)
    last = history[-max(1, len(history) // 10) :]
    scores["length"] = fmean(point["completions/mean_length"] for point in last)
    return {"settings": settings, "scores": scores, "history": history}


def run_all(options, arms: dict[str, dict], model: Path) -> None:
    todo = [(name, seed) for seed in options.seeds for name in arms][options.worker :: options.workers]
    for position, (name, seed) in enumerate(todo):
        path = run_file(options.output, name, seed)
        if path.exists() and fingerprint(json.loads(path.read_text())["settings"]) == fingerprint(arms[name]):
            continue
        result = train_arm(name, arms[name], seed, model, options.output / f"worker-{options.worker}")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result))
        part.rename(path)  # so that the file is complete if it exists
        scores = " ".join(f"{key} {result['scores'][key]:.3f}" for key in SCORES[:4])
        print(f"{position + 1}/{len(todo)} {name} seed {seed}: {scores}", flush=True)


def measure(options, arms: dict[str, dict], model: Path) -> None:
    """Time of a training step at each entry's middle strength, relative to stock's in the same round."""
    chosen = {name: settings for name, settings in arms.items() if name == "stock" or name.endswith("/2")}
    ratios = {name: [] for name in chosen}
    for _ in range(options.timing):
        seconds = {}
        for name, settings in chosen.items():
            config = quickstart.config_for(
                {**settings, "max_steps": 40}, settings["methods"], options.output / "timing"
            )
            config.eval_strategy = "no"
            seconds[name] = train(name, model, config)[0]["seconds"]
        for name in chosen:
            ratios[name].append(seconds[name] / seconds["stock"])
    found = {name.partition("/")[0]: median(values) for name, values in ratios.items()}
    (options.output / "timing.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


def report(scores: Scores, arms: dict[str, dict], output: Path) -> None:
    """Prints and writes both tables, and draws the plot unless stock is the only run."""
    if scores.left_out:
        print(f"{scores.left_out} runs of other settings than those of methods.yaml today are left out.")
    if not scores.runs:
        print("There is no run to report on.")
        return
    text = table(scores, arms)
    if "stock" in scores.runs and len(scores.runs) > 1:
        text += "\n\nDifferences to stock, paired by seed; in bold where the 95 % interval excludes 0\n\n"
        text += table(scores, arms, paired=True)
    (output / "methods.md").write_text(text + "\n")
    print(text)
    if set(scores.runs) <= {"stock"}:
        print("No plot: there is no run but stock's.")
    else:
        plot(scores, output / "methods.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", help="entries of methods.yaml to run; stock always runs")
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes between which the runs are split")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch per process")
    parser.add_argument("--timing", type=int, metavar="ROUNDS", help="only measure step times")
    parser.add_argument("--report", action="store_true", help="only make tables and plot of the finished runs")
    parser.add_argument("--scores", type=Path, metavar="FILE", help="only report on a file of scores")
    parser.add_argument("--output", type=Path, default=Path("runs/methods"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/countdown"), help="folder of the warm start")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    silence_libraries()
    arms = read_arms(HERE / "methods.yaml", quickstart.RECIPE)
    if options.only:
        arms = {name: arms[name] for name in arms if name.partition("/")[0] in ("stock", *options.only)}
    options.output.mkdir(parents=True, exist_ok=True)
    if options.scores is None and options.report and not any(options.output.glob("runs/*/*.json")):
        options.scores = SCORES_FILE
    if options.scores is not None:
        print(f"From {options.scores}:")
        return report(read_scores(options.scores, arms, options.seeds), arms, options.output)
    model = warm_start(options.cache)
    if options.timing:
        return measure(options, arms, model)
    if not options.report:
        run_all(options, arms, model)
    before = evaluate(*load_warm_start(model), prompts(held_out=True))
    scores = collect(options.output, arms, options.seeds, before)
    write_scores(scores, arms, options.output / SCORES_FILE.name)
    report(scores, arms, options.output)


if __name__ == "__main__":
    main()
