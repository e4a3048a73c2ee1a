# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy curves {length,annealing,refine}`: what the loss curve of a finished run tells."""

import argparse
import json
import logging
import math
from pathlib import Path
from typing import Any

from ..curves.base import Curve
from .parser import CommandParser, whole_number


logger = logging.getLogger(__name__)

ONCE = 1 + 1e-6  # epochs
SCHEDULES = ("cosine", "linear", "wsd", "constant")


def build_parser() -> CommandParser:
    parser = CommandParser(
        prog="trl-entropy curves",
        description="What the loss curve of a finished run tells. For supervised training and distillation with one "
        "pass over the data; docs/curves.md says how to read the numbers.",
    )
    kinds: Any = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    length = kinds.add_parser("length", help="how many bits the model learned from its data")
    add_runs(length, "+")
    length.add_argument("--tokens-per-step", type=float, metavar="N", help="tokens of a step, if they are not logged")
    length.add_argument("--teacher", action="store_true", help="the loss is KL(teacher || student): add its integral")
    length.add_argument("--allow-epochs", action="store_true", help="also take runs with several passes over the data")
    annealing = kinds.add_parser("annealing", help="the loss that another learning-rate schedule would have given")
    add_runs(annealing, "+")
    annealing.add_argument("--predict", nargs="+", choices=SCHEDULES, default=[], help="schedules to predict")
    annealing.add_argument("--steps", type=whole_number, metavar="N", help="steps to predict; those of the first RUN")
    annealing.add_argument("--skip", type=whole_number, metavar="N", help="first steps to leave out of the fit")
    annealing.add_argument(
        "--draws", type=whole_number, default=200, metavar="N", help="of the bootstrap for intervals (%(default)s)"
    )
    annealing.add_argument("--eval", action="store_true", help="fit the losses of evaluations")
    refine = kinds.add_parser("refine", help="a schedule of the learning rate from the run's gradient norms")
    add_runs(refine, 1)
    refine.add_argument("--out", type=Path, required=True, metavar="FILE", help="writes the schedule there, as JSON")
    refine.add_argument("--norm", choices=("l1", "l2"), default="l1", help="l1 for Adam, l2 for SGD (%(default)s)")
    return parser


def add_runs(parser: argparse.ArgumentParser, count: str | int) -> None:
    parser.add_argument("runs", nargs=count, type=Path, metavar="RUN", help="folder of a run, or a trainer state")
    parser.add_argument("--output", type=Path, metavar="DIR", help="writes the numbers and a picture there")


def main(argv: list[str]) -> int:
    """Prints the table, writes the files that `--output` asks for, and returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(argv)
    with parser.reporting():
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
        print(KINDS[options.kind](options))  # noqa: T201 (the result of a command)
    return 0


def read(options: argparse.Namespace, **reading: Any) -> dict[str, Curve]:
    """The curves of the given runs by their labels."""
    from ..report.curves import read_curve
    from ..report.runs import labels_of

    curves = [read_curve(path, **reading) for path in options.runs]
    folders = [path.parent if path.is_file() else path for path in options.runs]
    found = dict(zip(labels_of(folders), curves, strict=True))
    for label, curve in found.items():
        if curve.dropped:
            logger.warning(f"{label}: {curve.dropped} losses are not finite and are left out.")
    return found


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def length(options: argparse.Namespace) -> str:
    """The table of code lengths, in megabits."""
    from ..curves.code_length import code_length
    from ..report.curves import draw_lengths
    from ..tables import text_table

    curves = read(options, tokens_per_step=options.tokens_per_step)
    rows, records = [], {}
    found = {label: code_length(curve, teacher=options.teacher) for label, curve in curves.items()}
    for label, one in found.items():
        epochs = curves[label].epochs
        if epochs > ONCE and not options.allow_epochs:
            raise ValueError(
                f"{label} makes {epochs:.3g} passes over its data, whose code length is no longer that of the data: "
                "`--allow-epochs` takes it as it is."
            )
        if one.rising:
            logger.warning(f"{label}: the loss rises at the end, which makes its code length smaller.")
        low, high = (nats / math.log(2) for nats in one.interval)
        teacher = None if one.teacher_nats is None else one.teacher_nats / math.log(2)
        numbers = {"tokens": one.tokens, "end loss": one.end_loss, "bits": one.bits, "low": low, "high": high}
        numbers |= {"bits/token": one.bits_per_token, "MB": one.megabytes, "data bits": one.data_nats / math.log(2)}
        numbers |= {} if teacher is None else {"teacher bits": teacher}
        rows.append({"run": label, **{key: f"{value:.6g}" for key, value in numbers.items()}})
        records[label] = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
    if options.output:
        write(options.output / "length.json", records)
        draw_lengths(options.output / "length.png", curves, [one.end_loss for one in found.values()])
    return text_table(rows)


def annealing(options: argparse.Namespace) -> str:
    """The table of the law's parameters, and of the losses that it predicts."""
    import numpy as np

    from ..curves.annealing import warmup_steps
    from ..curves.annealing_fit import fit_annealing_law
    from ..curves.schedules import scheduled_rates
    from ..report.curves import draw_annealing
    from ..tables import text_table

    curves = read(options, evaluation=options.eval)
    for label, curve in curves.items():
        if curve.epochs > ONCE:
            logger.warning(f"{label} makes {curve.epochs:.3g} passes over its data: the law is for one.")
    law = fit_annealing_law([*curves.values()], options.skip, options.draws)
    first = next(iter(curves.values()))
    steps, peak = options.steps or len(first.rates), float(first.rates.max())
    predictions = {
        name: law.predict(scheduled_rates(name, steps, peak, warmup_steps(first.rates))) for name in options.predict
    }
    numbers = {"floor": law.floor, "scale": law.scale, "alpha": law.alpha, "gain": law.gain}
    rows = [
        {"parameter": name, "value": shown(value), **dict(zip(("low", "high"), map(shown, ends), strict=True))}
        for name, value in numbers.items()
        for ends in [law.intervals.get(name, (None, None))]
    ]
    rows.append({"parameter": "momentum", "value": "unknown" if law.gain is None else f"{law.momentum:g}"})
    text = f"{text_table(rows)}\n{law.points} losses, median relative residual {law.error:.2g}"
    if law.gain is None:
        text += "\nThe learning rate is constant: the gain from its decay is unknown."
    if predictions:
        ends = [{"schedule": name, f"loss at step {steps}": f"{y[-1]:.4f}"} for name, y in predictions.items()]
        text += f"\n\n{text_table(ends)}"
    if options.output:
        record = {**numbers, "momentum": law.momentum, "intervals": law.intervals, "points": law.points}
        ends_json = {name: float(losses[-1]) for name, losses in predictions.items()}
        write(options.output / "annealing.json", {**record, "error": law.error, "steps": steps, "loss": ends_json})
        fits: list[np.ndarray] = [law.predict(curve.rates) for curve in curves.values()]
        draw_annealing(options.output / "annealing.png", curves, fits, predictions)
    return text


def refine(options: argparse.Namespace) -> str:
    """Writes the schedule, and returns a table of it."""
    import numpy as np

    from ..curves.refinement import NORMS_FILE, RefinedSchedule, read_norms, smoothed
    from ..report.curves import draw_refined
    from ..report.diagnosis import history_and_folder
    from ..tables import text_table

    lines, folder = history_and_folder(options.runs[0])
    curve, norm = Curve.of(lines), options.norm
    if curve.rewarded:
        logger.warning("The run logs rewards, whose noise drives its gradient norms: the schedule follows that.")
    if (folder / NORMS_FILE).exists():
        norms = read_norms(folder / NORMS_FILE, norm)
    else:
        norm = "l2"
        logged = {line["step"]: line["grad_norm"] for line in lines if line.get("grad_norm") is not None}
        norms = np.array([logged[step] for step in sorted(logged)], dtype=float)
        logger.warning(
            f"{folder} has no {NORMS_FILE}, which the monitor 'gradient_norms' writes: the schedule is made of the L2 "
            "norms in the log, by the rule for SGD."
        )
    schedule = RefinedSchedule.of(norms, norm)
    schedule.save(options.out)
    factors = np.array(schedule.factors)
    if options.output:
        draw_refined(options.output / "refine.png", norms, smoothed(norms), factors)
    places = np.linspace(0, 1, 11)
    values = np.interp(places, np.linspace(0, 1, len(factors)), factors)
    return text_table(
        [{"share of training": f"{at:.1f}", "of the peak": f"{y:.3f}"} for at, y in zip(places, values, strict=True)]
    )


KINDS = {"length": length, "annealing": annealing, "refine": refine}


def shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
