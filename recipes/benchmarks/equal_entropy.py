# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Methods at equal entropy: how well the thermostat holds its target, and what each method makes of the same entropy.

    python recipes/benchmarks/trajectories.py --plan recipes/benchmarks/equal_entropy.yaml --output runs/equal_entropy
    python recipes/benchmarks/equal_entropy.py         # tables of the finished runs
    python recipes/benchmarks/equal_entropy.py --scores recipes/benchmarks/equal_entropy_held.json  # the docs

The first command makes the runs of the plan, goes on where it was stopped, and compares the runs with stock's
trajectory at equal pass@1. The second prints two tables: the deviation of log entropy from log target in each run, and
final scores minus those of TRL's entropy bonus, held at the same share, with the same seed.
"""

import argparse
import json
import math
from pathlib import Path
from statistics import fmean, median, quantiles

from methods_report import fingerprint
from trajectories import COUNTDOWN, HERE, Plan, is_current, read_plan, run_file
from trajectories_report import cell


BASELINE = "entropy_coef"
SCORES = {"pass@1": 3, "pass@16": 3, "distinct": 2, "coverage": 3}  # compared, with their digits
NEAR = 0.02  # of the target: reached
FEW, MORE = 5, 10  # generation batches that are averaged
Numbers = dict[str, float | None]


def means(values: list[float], count: int) -> list[float]:
    """The mean of each `count` values in a row."""
    return [fmean(values[end - count : end]) for end in range(count, len(values) + 1)]


def rms(values: list[float]) -> float:
    return math.sqrt(fmean(value * value for value in values))


def held(history: list[dict[str, float]]) -> Numbers:
    """How well a run held its target, from one log row per generation batch.

    `mean`, `rms` and `rms_10` (of means over ten batches) are of the deviation ln H - ln T over the last half of the
    run. `reached` is the batch at which the mean of five is within 2 % of the target for the first time, `lowest` the
    lowest such mean from then on; both are None if that never happens. `strength` is the median over the last half,
    with its 10 % and 90 % quantiles.
    """
    rows = [row for row in history if row.get("entropy_keep/target")]
    deviations = [math.log(row["entropy_keep/entropy"] / row["entropy_keep/target"]) for row in rows]
    before = len(history) - len(rows)  # batches in which the starting value is measured
    few, late = means(deviations, FEW), len(history) // 2 - before
    reached = next((place for place, value in enumerate(few) if abs(value) < NEAR), None)
    strengths = [row["entropy_keep/strength"] for row in rows[late:]]
    cuts = quantiles(strengths, n=10)
    return {
        "mean": fmean(deviations[late:]),
        "rms": rms(deviations[late:]),
        "rms_10": rms(means(deviations[late:], MORE)),
        "reached": None if reached is None else before + reached + FEW,
        "lowest": None if reached is None else math.expm1(min(few[reached:])),
        "strength": median(strengths),
        "strength_low": cuts[0],
        "strength_high": cuts[-1],
    }


def collect(output: Path, plan: Plan) -> dict[str, dict[int, Numbers]]:
    """Numbers of the finished runs with current settings, by arm and seed."""
    found: dict[str, dict[int, Numbers]] = {}
    for arm, settings in plan.arms.items():
        for seed in sorted({seed for arms, seeds in plan.stages for seed in seeds if arm in arms}):
            path = run_file(output, arm, seed)
            if is_current(path, settings):
                run = json.loads(path.read_text())
                numbers = {key: run["points"][-1][key] for key in ("entropy", *SCORES)}
                numbers |= held(run["history"]) if "entropy_keep" in settings else {}
                found.setdefault(arm, {})[seed] = numbers
    return found


def write(found: dict[str, dict[int, Numbers]], plan: Plan, path: Path) -> None:
    """One line per run."""
    lines = []
    for arm, runs in found.items():
        for seed, numbers in runs.items():
            rounded = {k: v if v is None else float(f"{v:.5g}") for k, v in numbers.items()}
            row = {"arm": arm, "seed": seed, "settings": fingerprint(plan.arms[arm]), **rounded}
            lines.append(json.dumps(row))
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def read(path: Path, plan: Plan) -> dict[str, dict[int, Numbers]]:
    """The runs of a file of `write` that have the plan's settings."""
    found: dict[str, dict[int, Numbers]] = {}
    for row in json.loads(path.read_text()):
        arm, seed, settings = (row.pop(key) for key in ("arm", "seed", "settings"))
        if arm in plan.arms and settings == fingerprint(plan.arms[arm]):
            found.setdefault(arm, {})[seed] = row
    return found


def deviations(found: dict[str, dict[int, Numbers]], plan: Plan) -> str:
    """A table in Markdown, one line per run."""
    head = ["", "share", "seed", "mean", "rms", "rms of ten", "reached", "lowest", "strength (10 to 90 %)"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for arm, runs in found.items():
        share = plan.arms[arm].get("entropy_keep")
        for seed, run in runs.items() if share else ():
            deviation = [f"{run['mean']:+.3f}", f"{run['rms']:.3f}", f"{run['rms_10']:.3f}"]
            course = ["never", ""] if run["reached"] is None else [f"{run['reached']:.0f}", f"{run['lowest']:+.0%}"]
            strength = f"{run['strength']:.2g} ({run['strength_low']:.2g} to {run['strength_high']:.2g})"
            cells = [f"`{arm.partition('/')[0]}`", f"{share:g}", str(seed), *deviation, *course, strength]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def baseline_of(arm: str, found: dict[str, dict[int, Numbers]], plan: Plan) -> str | None:
    """The arm of the entropy bonus with the share and the batch of another arm, or None if it has no run."""
    settings, same = plan.arms[arm], ("entropy_keep", "per_device_train_batch_size")
    bonus = (other for other in found if other.startswith(BASELINE))
    return next((other for other in bonus if all(plan.arms[other][key] == settings[key] for key in same)), None)


def differences(found: dict[str, dict[int, Numbers]], plan: Plan) -> str:
    """A table in Markdown: scores of stock and the bonus; those of each other method minus those of the bonus."""
    head = ["", "share", *SCORES, "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for arm, runs in found.items():
        share, entry = plan.arms[arm].get("entropy_keep"), arm.partition("/")[0]
        values, paired = list(runs.values()), share is not None and not entry.startswith(BASELINE)
        if paired:
            other = found.get(baseline_of(arm, found, plan), {})
            values = [
                {key: run[key] - other[seed][key] for key in SCORES} for seed, run in runs.items() if seed in other
            ]
        if values:
            cells = [cell([run[key] for run in values], digits, paired) for key, digits in SCORES.items()]
            cells = [f"`{entry}`", f"{share:g}" if share else "", *cells, str(len(values))]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, default=HERE / "equal_entropy.yaml", help="YAML file of the runs")
    parser.add_argument("--output", type=Path, default=Path("runs/equal_entropy"), help="folder of the runs")
    parser.add_argument("--scores", type=Path, metavar="FILE", help="report on a file of scores instead")
    options = parser.parse_args()
    plan = read_plan(options.plan, COUNTDOWN.recipe)
    found = read(options.scores, plan) if options.scores else collect(options.output, plan)
    if not found:
        raise SystemExit(f"equal_entropy.py: no finished run of {options.plan} is in {options.output}")
    if not options.scores:
        write(found, plan, options.output / "equal_entropy_held.json")
    print(f"Deviation from the target\n\n{deviations(found, plan)}\n")
    print(f"Scores at equal entropy\n\n{differences(found, plan)}")


if __name__ == "__main__":
    main()
