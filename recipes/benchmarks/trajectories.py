# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trajectories of pass@1 and pass@16 in training, compared with stock GRPO's own trajectory.

    python recipes/benchmarks/trajectories.py                         # runs of trajectories.yaml; repeat to continue
    python recipes/benchmarks/trajectories.py --worker 0 --workers 2  # half of them; `--worker 1` makes the others
    python recipes/benchmarks/trajectories.py --continue              # only runs without scores in the repository
    python recipes/benchmarks/trajectories.py --report                # tables and plots of the finished runs

A method that ends with less pass@1 and more pass@16 than stock may only have gone less far: stock stopped early may
have had both. So each run is evaluated every few steps, and compared with the trajectory of the stock run of the same
seed, at equal pass@1. `trl_entropy/curves/frontier.py` defines the comparison.

A plan in YAML lists arms and stages. In each stage all arms run on one seed before the next. Each run is a file in
`--output`; an interrupted run starts again. If its settings have changed, it is left out of the report and made
again. The report writes the scores of all runs into one file. Without runs it reads those of the repository, and with
`--continue` it adds to them.

The same module compares runs of other models: `recipes/real_model/addition.py` gives it another [`Task`].
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from countdown_scores import CountdownScores
from datasets import Dataset
from methods_report import fingerprint, run_file
from peft import LoraConfig
from trajectories_report import DIGITS, TEMPERATURE, Trajectories, read_scores, report, write_scores
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from trl_entropy import EntropyGRPOTrainer
from trl_entropy.commands import quickstart
from trl_entropy.commands.quickstart_common import read_recipe, silence_libraries
from trl_entropy.countdown.model import load_warm_start, warm_start
from trl_entropy.countdown.task import countdown_dataset, countdown_reward


HERE = Path(__file__).parent
OURS = ("evaluate_every", "evaluate_at", "then", "after", "lora")  # settings that the trainer's config does not have
KEPT = ("reward", "entropy", "completions/mean_length", "branching/shared_fraction", "tools/call_frequency")  # logs
SECOND_PHASE = 1000  # added to the seed, or a second phase would see the first one's prompts again
Evaluation = Callable[[PreTrainedModel, tuple[float, ...]], list[dict[str, float]]]


@dataclass
class Task:
    """What to train and how to evaluate it.

    Attributes:
        plan: default plan.
        recipe: of the settings that the plan changes: its path or name.
        reward: TRL reward function.
        load: model and tokenizer of a folder.
        dataset: training prompts, given the folder of the model to start from.
        evaluation: the function that scores a model at several temperatures, given the same folder and the tokenizer.
        cache: default folder of the model to start from.
        start: makes that model in the folder of the cache unless it is there, and returns its folder.
        tools: that the policy may call. Evaluations then also tell what has been spent until then.
    """

    plan: Path
    recipe: str | Path
    reward: Callable
    load: Callable[[str | Path], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
    dataset: Callable[[str | Path], Dataset]
    evaluation: Callable[[str | Path, PreTrainedTokenizerBase], Evaluation]
    cache: Path
    start: Callable[[Path], Path]
    tools: tuple[Callable, ...] = ()


COUNTDOWN = Task(
    plan=HERE / "trajectories.yaml",
    recipe=quickstart.RECIPE,
    reward=countdown_reward,
    load=load_warm_start,
    dataset=lambda folder: countdown_dataset(),
    evaluation=lambda folder, tokenizer: CountdownScores(tokenizer),
    cache=quickstart.CACHES["chain"],
    start=lambda cache: warm_start(cache),
)


@dataclass
class Plan:
    """Arms by name (`entry/strength`; the first is `stock`), stages of (arms, seeds), and pass@1 levels to compare."""

    arms: dict[str, dict[str, Any]]
    stages: list[tuple[list[str], list[int]]]
    levels: list[float]


def read_plan(path: Path, recipe: str | Path) -> Plan:
    """Reads a plan. Each arm's settings are those of the recipe, of `base`, of its entry, and of its strength."""
    plan = yaml.safe_load(path.read_text())
    base = read_recipe(recipe, {**plan["base"], "evaluate_every": plan["evaluate_every"], "methods": []})
    arms = {"stock": {**base, "evaluate_at": plan["evaluate_at"]}}
    for name, entry in plan["entries"].items():
        shared = {"methods": entry.get("methods", [name]), **entry.get("settings", {})}
        if "then" in entry:
            shared["then"] = {**base, **entry["then"]}
        for strength, changes in enumerate(entry["strengths"], start=1):
            arms[f"{name}/{strength}"] = {**base, **shared, **changes}
    stages = [(expand(stage["arms"], arms), stage["seeds"]) for stage in plan["stages"]]
    return Plan(arms, stages, plan["levels"])


def expand(names: list[str], arms: dict[str, dict]) -> list[str]:
    """Arms that a stage names. An entry's name stands for all its strengths."""
    found = [[arm for arm in arms if name in (arm, arm.partition("/")[0])] for name in names]
    if not all(found):
        raise ValueError(f"stages: no entry is named {names[found.index([])]!r}; there are {', '.join(arms)}")
    return [arm for arms_of_name in found for arm in arms_of_name]


def phases(settings: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """First step and settings of each phase of a run: one, or two if it has `then` and `after`."""
    total, after = settings["max_steps"], settings.get("after", 0)
    parts = [(0, settings, total)]
    if "then" in settings:
        if not 0 < after < total:
            raise ValueError(f"after={after} must lie between 0 and max_steps={total}")
        parts = [(0, settings, after), (after, settings["then"], total - after)]
    for first, own, steps in parts:
        yield first, {**{key: value for key, value in own.items() if key not in OURS}, "max_steps": steps}


class Recorder(TrainerCallback):
    """Evaluates the model before the first step, every `every` steps, and after the last.

    Args:
        evaluation: of the task.
        settings: of the arm.
        first: steps of earlier phases.
    """

    def __init__(self, evaluation: Evaluation, settings: dict[str, Any], first: int):
        self.evaluation, self.first, self.every = evaluation, first, settings["evaluate_every"]
        self.temperatures = (1.0, *settings.get("evaluate_at", ()))
        self.points: list[dict[str, float]] = []
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0  # of CPU, which other processes on the machine change less

    def evaluate(self, model: PreTrainedModel, step: int) -> None:
        start, training = time.process_time(), model.training
        model.eval()
        self.points += [{"step": step, **row} for row in self.evaluation(model, self.temperatures)]
        model.train(training)
        self.seconds += time.process_time() - start

    def on_train_begin(self, args, state, control, model, **kwargs):
        if self.first == 0:  # else the phase before has evaluated it
            self.evaluate(model, 0)

    def on_step_end(self, args, state, control, model, **kwargs):
        step = self.first + state.global_step
        if step % self.every == 0 or state.global_step == state.max_steps:
            self.evaluate(model, step)

    def on_log(self, args, state, control, logs, **kwargs):
        if "reward" in logs:
            kept = {k: v for k, v in logs.items() if k in KEPT or k.startswith("entropy_keep/")}
            self.history.append({"step": self.first + state.global_step, **kept})


def train_arm(settings: dict[str, Any], seed: int, task: Task, model_path: str | Path, folder: Path) -> dict[str, Any]:
    """One run: its settings, evaluations, logs, and CPU seconds of training and of evaluation."""
    if "lora" in settings and "then" in settings:
        raise ValueError(f"lora={settings['lora']!r} must not be set with `then`: a phase starts from whole weights")
    peft_config = LoraConfig(**settings["lora"]) if "lora" in settings else None
    result = {"settings": settings, "points": [], "history": [], "seconds": {"training": 0.0, "evaluation": 0.0}}
    start = model_path
    for number, (first, own) in enumerate(phases(settings)):
        model, tokenizer = task.load(start)
        own |= {"model_name_or_path": str(start), "seed": seed + SECOND_PHASE * number}
        config = quickstart.config_for(own, own["methods"], folder / "trainer")
        recorder = Recorder(task.evaluation(model_path, tokenizer), settings, first)
        trainer = EntropyGRPOTrainer(
            model=model,
            reward_funcs=task.reward,
            args=config,
            train_dataset=task.dataset(model_path),
            processing_class=tokenizer,
            tools=list(task.tools) or None,
            peft_config=peft_config,
            callbacks=[recorder],
        )
        trainer.remove_callback(PrinterCallback)
        began = time.process_time()
        trainer.train()
        result["seconds"]["training"] += time.process_time() - began - recorder.seconds
        result["seconds"]["evaluation"] += recorder.seconds
        result["points"] += recorder.points
        result["history"] += recorder.history
        completions = config.per_device_train_batch_size * config.gradient_accumulation_steps
        start = folder / "phase"
        if "then" in settings and number == 0:
            model.save_pretrained(start)
            tokenizer.save_pretrained(start)
    if task.tools:
        for point in result["points"]:
            point |= spent(result["history"], point["step"], completions)
    return result


def spent(history: list[dict[str, float]], step: int, completions: int) -> dict[str, float]:
    """Tokens that the policy sampled, and calls of tools that were run, in all of training up to a step.

    Args:
        history: logs of the run.
        step: the last step that counts.
        completions: of each step. Branches share the tokens before them, which are sampled once.
    """
    tokens, calls, last = 0.0, 0.0, 0
    for point in history:
        if point["step"] <= step:
            share = 1 - point.get("branching/shared_fraction", 0.0)
            count = (point["step"] - last) * completions
            tokens += count * share * point["completions/mean_length"]
            calls += count * point["tools/call_frequency"]
            last = point["step"]
    return {"tokens": tokens, "calls": calls}


def is_current(path: Path, settings: dict[str, Any]) -> bool:
    """Whether the run's file exists and was made with these settings."""
    return path.exists() and fingerprint(json.loads(path.read_text())["settings"]) == fingerprint(settings)


def run_all(options: argparse.Namespace, plan: Plan, task: Task, model_path: str | Path, stored: Trajectories) -> None:
    """Makes this worker's share of the runs that have neither a current file nor stored scores."""
    stages = plan.stages if options.stages is None else [plan.stages[number - 1] for number in options.stages]
    runs = dict.fromkeys((arm, seed) for arms, seeds in stages for seed in seeds for arm in arms)
    todo = [run for run in runs if options.only is None or run[0] in expand(options.only, plan.arms)]
    todo = todo[options.worker :: options.workers]
    for position, (arm, seed) in enumerate(todo, start=1):
        path = run_file(options.output, arm, seed)
        if is_current(path, plan.arms[arm]) or seed in stored.runs.get(arm, {}):
            continue
        result = train_arm(plan.arms[arm], seed, task, model_path, options.output / f"worker-{options.worker}")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result))
        part.rename(path)  # so that the file is complete if it exists
        own = [point for point in result["points"] if point["temperature"] == 1]
        shown = " ".join(f"{point['pass@1']:.3f}/{point['pass@16']:.3f}" for point in own)
        spent = " + ".join(f"{seconds:.0f}" for seconds in result["seconds"].values())
        print(f"{position}/{len(todo)} {arm} seed {seed} ({spent} CPU s): {shown}", flush=True)


def collect(output: Path, plan: Plan, stored: Trajectories) -> Trajectories:
    """The finished runs with current settings, added to the stored ones.

    Other temperatures of stock's evaluation become arms of their own.
    """
    found = deepcopy(stored)
    for arm, settings in plan.arms.items():
        for path in sorted((output / "runs" / arm.replace("/", "-")).glob("*.json"), key=lambda path: int(path.stem)):
            if not is_current(path, settings):
                found.left_out += 1
                continue
            found.settings[arm], fresh = fingerprint(settings), {}
            for point in json.loads(path.read_text())["points"]:
                temperature = point.pop("temperature")
                name = arm if temperature == 1 else f"{TEMPERATURE}/{temperature:g}"
                rounded = {key: round(value, DIGITS) for key, value in point.items()}  # as in the file of scores
                fresh.setdefault(name, []).append(rounded)
            for name, points in fresh.items():
                found.runs.setdefault(name, {})[int(path.stem)] = points
    return found


def name_of(model: str | None) -> list[str]:
    """The last word of a model's name or folder, for the folder of its runs; nothing without a model."""
    return [Path(model).resolve().name] if model else []


def main(task: Task = COUNTDOWN) -> None:
    """The command line of a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, default=task.plan, help="YAML file of the runs (%(default)s)")
    parser.add_argument("--stages", type=int, nargs="+", help="stages of the plan to run, from 1; all by default")
    parser.add_argument("--only", nargs="+", help="arms of the plan to run, or entries: all their strengths")
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes between which the runs are split")
    parser.add_argument("--continue", action="store_true", dest="add", help="add to the scores in the repository")
    parser.add_argument("--report", action="store_true", help="only make tables and plots of the finished runs")
    parser.add_argument("--scores", type=Path, metavar="FILE", help="only report on a file of scores")
    parser.add_argument("--output", type=Path, help="folder of the runs (runs/PLAN or runs/PLAN-MODEL)")
    parser.add_argument("--cache", type=Path, default=task.cache, help="folder of the task's model (%(default)s)")
    parser.add_argument("--model", help="model to start from instead: a folder, or a name on the Hub")
    options = parser.parse_args()
    options.output = options.output or Path("runs", "-".join([options.plan.stem, *name_of(options.model)]))
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    silence_libraries()
    plan = read_plan(options.plan, task.recipe)
    committed = options.plan.with_suffix(".json")
    made = any(options.output.glob("runs/*/*.json"))
    fingerprints = {arm: fingerprint(settings) for arm, settings in plan.arms.items()}
    if options.scores is None and options.report and not made and committed.exists():
        options.scores = committed
    if options.scores is not None:
        print(f"From {options.scores}:")
        return report(read_scores(options.scores, fingerprints), plan.arms, plan.levels, options.output)
    stored = Trajectories({}, {})
    if options.add and committed.exists():
        stored = read_scores(committed, fingerprints)
    if not options.report:
        run_all(options, plan, task, options.model or task.start(options.cache), stored)
    found = collect(options.output, plan, stored)
    write_scores(found, options.output / committed.name)
    report(found, plan.arms, plan.levels, options.output)


if __name__ == "__main__":
    main()
