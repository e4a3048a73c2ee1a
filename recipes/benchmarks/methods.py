# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every method against stock GRPO on the quickstart's task: equal updates, three strengths each, several seeds.

    python recipes/benchmarks/methods.py                     # about 200 runs of half a minute; go on by the same command
    python recipes/benchmarks/methods.py --worker 0 --workers 2 & python recipes/benchmarks/methods.py --worker 1 --workers 2
    python recipes/benchmarks/methods.py --timing 5          # step times: all methods in turn, five rounds
    python recipes/benchmarks/methods.py --report            # table and plot of what is there

What is compared stands in `methods.yaml`. Seeds come first, so that an unfinished comparison is a fair one with fewer
seeds. Each run is a file below `--output`; a run whose settings have changed since is made again.
"""

import argparse
import json
import math
from pathlib import Path
from statistics import fmean, median, stdev

import torch
import yaml

from trl_entropy import quickstart
from trl_entropy.countdown import prompts
from trl_entropy.countdown_evaluation import evaluate
from trl_entropy.countdown_model import load_warm_start, warm_start
from trl_entropy.quickstart_parts import read_recipe, silence_libraries


HERE = Path(__file__).parent
# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
SCORES = ("entropy", "pass@1", "pass@8", "pass@16", "distinct", "coverage", "length")
SPREAD = ("entropy", "pass@1", "pass@16", "coverage")  # those with their interval in the table
DIGITS = {"distinct": 2, "length": 1}  # 3 for the others


def read_arms(path: Path, recipe: Path) -> dict[str, dict]:
    """Settings of each line of the comparison by its name, `method/strength`; `stock` is the first."""
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
    scores, history = quickstart.train(name, model, config)
    last = history[-max(1, len(history) // 10) :]
    scores["length"] = fmean(point["completions/mean_length"] for point in last)
    return {"settings": settings, "scores": scores, "history": history}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval over seeds."""
    if len(values) < 2:
        return fmean(values), math.nan
    return fmean(values), STUDENT[len(values) - 2] * stdev(values) / math.sqrt(len(values))


def run_all(options, arms: dict[str, dict], model: Path) -> None:
    todo = [(name, seed) for seed in options.seeds for name in arms][options.worker :: options.workers]
    for position, (name, seed) in enumerate(todo):
        path = options.output / "runs" / name.replace("/", "-") / f"{seed}.json"
        if path.exists():
            done = json.loads(path.read_text())["settings"]
            if all(done.get(key) == value for key, value in arms[name].items() if key != "seed"):
                continue
        result = train_arm(name, arms[name], seed, model, options.output / f"worker-{options.worker}")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result))
        part.rename(path)  # whole or not at all
        scores = " ".join(f"{key} {result['scores'][key]:.3f}" for key in SCORES[:4])
        print(f"{position + 1}/{len(todo)} {name} seed {seed}: {scores}", flush=True)


def measure(options, arms: dict[str, dict], model: Path) -> None:
    """Seconds of a training step at each entry's middle strength over stock's in the same round."""
    chosen = {name: settings for name, settings in arms.items() if name == "stock" or name.endswith("/2")}
    ratios = {name: [] for name in chosen}
    for _ in range(options.timing):
        seconds = {}
        for name, settings in chosen.items():
            config = quickstart.config_for(
                {**settings, "max_steps": 40}, settings["methods"], options.output / "timing"
            )
            config.eval_strategy = "no"
            seconds[name] = quickstart.train(name, model, config)[0]["seconds"]
        for name in chosen:
            ratios[name].append(seconds[name] / seconds["stock"])
    found = {name.partition("/")[0]: median(values) for name, values in ratios.items()}
    (options.output / "timing.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


def collect(options, arms: dict[str, dict]) -> dict[str, list[dict]]:
    """Scores of the finished runs of each arm."""
    found = {}
    for name in arms:
        paths = [options.output / "runs" / name.replace("/", "-") / f"{seed}.json" for seed in options.seeds]
        rows = [json.loads(path.read_text())["scores"] for path in paths if path.exists()]
        if rows:
            found[name] = rows
    return found


def table(found: dict[str, list[dict]], before: dict, arms: dict[str, dict], timing: dict[str, float]) -> str:
    """Markdown: a line per arm, means over seeds, ± the half-width of the 95 % interval."""
    head = ["", "setting", *SCORES, "step time", "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    start = [f"{before[key]:.{DIGITS.get(key, 3)}f}" for key in SCORES]
    lines.append("| " + " | ".join(["before", "", *start, "", ""]) + " |")
    for name, rows in found.items():
        entry, _, strength = name.partition("/")
        cells = []
        for key in SCORES:
            mean, half = interval([row[key] for row in rows])
            digits = DIGITS.get(key, 3)
            cells.append(f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if key in SPREAD else ""))
        ratio = f"{timing[entry]:.2f}" if strength in ("", "2") and entry in timing else ""
        line = [f"`{entry}`", varied(name, arms), *cells, ratio, str(len(rows))]
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def varied(name: str, arms: dict[str, dict]) -> str:
    """What tells a strength from the others of its entry."""
    entry, _, strength = name.partition("/")
    siblings = [settings for other, settings in arms.items() if other.startswith(f"{entry}/")]
    changed = [key for key, value in arms[name].items() if any(other.get(key) != value for other in siblings)]
    values = [arms[name][key] for key in changed]
    return ", ".join(f"{len(value)} templates" if isinstance(value, dict) else f"{value:g}" for value in values)


def plot(found: dict[str, list[dict]], before: dict, path: Path) -> None:
    """The front of each entry: pass@1 against pass@16, a line through its strengths, with 95 % intervals."""
    from matplotlib.figure import Figure

    entries = list(dict.fromkeys(name.partition("/")[0] for name in found if name != "stock"))
    columns = 5
    figure = Figure(figsize=(13, 2.5 * math.ceil(len(entries) / columns)), layout="constrained")
    panels = list(figure.subplots(math.ceil(len(entries) / columns), columns, sharex=True, sharey=True).flat)
    everything = [[fmean(row[key] for row in rows) for rows in found.values()] for key in ("pass@1", "pass@16")]
    for panel, entry in zip(panels, entries, strict=False):
        panel.scatter(*everything, s=6, color="0.8")
        panel.plot(before["pass@1"], before["pass@16"], "x", color="0.4")
        for name, color in (("stock", "k"), (entry, "C3")):
            arms = [rows for arm, rows in found.items() if arm == name or arm.startswith(f"{name}/")]
            x, y = ([interval([row[key] for row in rows]) for rows in arms] for key in ("pass@1", "pass@16"))
            panel.errorbar(
                [mean for mean, _ in x], [mean for mean, _ in y],
                [half for _, half in y], [half for _, half in x],
                fmt="o-", markersize=4, linewidth=1, elinewidth=0.6, color=color,
            )  # fmt: skip
        panel.set_title(entry, fontsize="medium")
        panel.grid(alpha=0.3)
    for panel in panels[len(entries) :]:
        panel.remove()
    figure.supxlabel("pass@1")
    figure.supylabel("pass@16")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", help="entries to run, of those in methods.yaml; stock is always one")
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="split the runs between so many processes")
    parser.add_argument("--threads", type=int, default=1, help="of torch, per process")
    parser.add_argument("--timing", type=int, metavar="ROUNDS", help="measure step times and do nothing else")
    parser.add_argument("--report", action="store_true", help="table and plot of the finished runs, and nothing else")
    parser.add_argument("--output", type=Path, default=Path("runs/methods"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/countdown"), help="warm start")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    silence_libraries()
    arms = read_arms(HERE / "methods.yaml", quickstart.RECIPE)
    if options.only:
        arms = {name: arms[name] for name in arms if name.partition("/")[0] in ("stock", *options.only)}
    model = warm_start(options.cache)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.timing:
        return measure(options, arms, model)
    if not options.report:
        run_all(options, arms, model)
    before = evaluate(*load_warm_start(model), prompts(held_out=True))
    times = options.output / "timing.json"
    found = collect(options, arms)
    text = table(found, before, arms, json.loads(times.read_text()) if times.exists() else {})
    (options.output / "methods.md").write_text(text + "\n")
    plot(found, before, options.output / "methods.png")
    print(text)


if __name__ == "__main__":
    main()
