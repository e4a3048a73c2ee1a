# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy difficulty {label,fit,generate}`: how hard questions are for a model, and a token budget for each."""

import argparse
import logging
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .difficulty_generate import generate, load_model, write_lines
from .epr import positive, prompt_key, read_rows, wrong_of
from .parser import CommandParser, whole_number


if TYPE_CHECKING:
    from ..uncertainty.u_curve import Bin, Question

logger = logging.getLogger(__name__)

ENTROPY = "token_entropy_mean"  # the column that our trainers log


def number(text: str) -> float:
    """Type of an argument that is a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}")
    return value


def above_zero(text: str) -> float:
    """Type of an argument that is a number above 0."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def build_parser() -> CommandParser:
    parser = CommandParser(
        prog="trl-entropy difficulty",
        description="DiffAdapt: labels questions as easy, normal or hard for a model, fits a probe that tells the "
        "label from the prompt, and answers questions with the budget of their label. docs/uncertainty.md says more.",
    )
    kinds: Any = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    label = kinds.add_parser("label", help="labels of questions, and entropy over their difficulty")
    label.add_argument("--data", nargs="+", required=True, metavar="FILE", help="JSON lines, parquet or CSV: answers")
    label.add_argument("--label", required=True, metavar="COLUMN", help="says whether an answer is right: from 0.5 on")
    label.add_argument("--entropy", default=ENTROPY, metavar="COLUMN", help="mean token entropy in nats (%(default)s)")
    label.add_argument("--tokens", metavar="COLUMN", help="number of tokens of an answer")
    label.add_argument("--model", help="model that gave the answers: computes entropies and numbers of tokens")
    label.add_argument("--temperature", type=above_zero, default=1.0, help="of sampling, with --model (%(default)s)")
    label.add_argument("--alpha", type=number, default=0.7, help="accuracy from which one is normal (%(default)s)")
    label.add_argument("--beta", type=number, help="entropy up to which one is normal (the median)")
    label.add_argument("--gamma", type=number, default=0.3, help="accuracy below which one is hard (%(default)s)")
    label.add_argument("--drop-truncated", type=positive, metavar="N", help="leave out answers of N tokens or more")
    label.add_argument("--batch-size", type=positive, default=4, help="answers per forward (%(default)s)")
    label.add_argument("--out", type=Path, metavar="FILE", help="writes the labels there, and a picture beside it")
    fit = kinds.add_parser("fit", help="a probe that tells the label from the prompt")
    fit.add_argument("--labels", required=True, metavar="FILE", help="what `label --out` wrote")
    fit.add_argument("--model", required=True, help="folder or id on the Hub of the model")
    fit.add_argument("--out", type=Path, required=True, metavar="DIR", help="writes the probe there")
    fit.add_argument("--width", type=positive, default=128, help="of the hidden layer (%(default)s)")
    fit.add_argument("--epochs", type=positive, default=100, help="passes over the questions (%(default)s)")
    fit.add_argument("--batch-size", type=positive, default=8, help="prompts per forward (%(default)s)")
    fit.add_argument("--seed", type=whole_number, default=0, help="of the split and the weights (%(default)s)")
    generate = kinds.add_parser("generate", help="answers, each with the strategy of its question")
    generate.add_argument("--data", required=True, metavar="FILE", help="questions, in the column `prompt`")
    generate.add_argument("--probe", type=Path, required=True, metavar="DIR", help="what `fit --out` wrote")
    generate.add_argument("--model", required=True, help="folder or id on the Hub of the model")
    generate.add_argument("--max-new-tokens", type=positive, required=True, metavar="N", help="limit of an answer")
    generate.add_argument("--reward", metavar="NAME", help="reward function that says whether an answer is right")
    generate.add_argument("--baseline", action="store_true", help="also answer all as normal ones, and compare")
    generate.add_argument("--batch-size", type=positive, default=8, help="prompts per call (%(default)s)")
    generate.add_argument("--seed", type=whole_number, default=0, help="of sampling (%(default)s)")
    generate.add_argument("--out", type=Path, required=True, metavar="FILE", help="writes the answers there")
    return parser


def main(argv: list[str]) -> int:
    """Prints the table, writes the files, and returns the exit status."""
    kinds = {"label": label, "fit": fit, "generate": generate}
    parser = build_parser()
    options = parser.parse_args(argv)
    with parser.reporting():
        print(kinds[options.kind](options))  # noqa: T201 (the result of a command)
    return 0


def label(options: argparse.Namespace) -> str:
    """Labels the questions, writes the files asked for, and returns the table of bins."""
    from ..uncertainty.diffadapt import difficulty_labels
    from ..uncertainty.plots import plot_u_curve
    from ..uncertainty.u_curve import questions_of, u_curve

    rows = [row for path in options.data for row in read_rows(path)]
    right = [1 - wrong_of(row, options.label) for row in rows]
    entropy, tokens = measured(rows, options)
    kept = [n for n, values in enumerate(zip(right, entropy, strict=True)) if not any(map(math.isnan, values))]
    if missing := len(rows) - len(kept):
        logger.warning(f"{missing} answers are left out: their label or their entropy is missing.")
    if options.drop_truncated:
        if any(tokens[n] is None for n in kept):
            raise ValueError("`--drop-truncated` needs the numbers of tokens: give `--tokens` or `--model`.")
        whole = [n for n in kept if (tokens[n] or 0) < options.drop_truncated]
        logger.warning(f"{len(kept) - len(whole)} answers of {options.drop_truncated} tokens or more are left out.")
        kept = whole
    if not kept:
        raise ValueError("`--data` must have answers with a label and an entropy, got none that count.")
    keys = [prompt_key(rows[n], n) for n in kept]
    questions = questions_of(keys, [right[n] for n in kept], [entropy[n] for n in kept], [tokens[n] for n in kept])
    if max(question.samples for question in questions) == 1:
        logger.warning("Each question has one answer, so its accuracy is 0 or 1. The paper samples 10.")
    accuracy, h = [question.accuracy for question in questions], [question.entropy for question in questions]
    labels = difficulty_labels(accuracy, h, options.alpha, options.beta, options.gamma)
    curve = u_curve(questions)
    if options.out:
        records = [
            {
                **{key: value for key, value in rows[kept[one.place]].items() if key in ("prompt", "prompt_ids")},
                **{"samples": one.samples, "accuracy": one.accuracy, "entropy": one.entropy, "tokens": one.tokens},
                "label": name,
            }
            for one, name in zip(questions, labels, strict=True)
        ]
        write_lines(options.out, records)
        plot_u_curve(options.out.with_suffix(".png"), questions, labels, curve)
    return table(questions, labels, curve)


def measured(rows: list[dict[str, Any]], options: argparse.Namespace) -> tuple[list[float], list[float | None]]:
    """Mean token entropies in nats, NaN if missing, and numbers of tokens, `None` if not known."""
    if options.model is not None:
        from ..uncertainty.answers import answer_of
        from ..uncertainty.entropies import answer_entropies

        model, tokenizer = load_model(options.model)
        answers = [answer_of(row, tokenizer) for row in rows]
        entropy, counts = answer_entropies(model, answers, options.temperature, options.batch_size)
        return entropy, [*map(float, counts)]
    for name, column in (("entropy", options.entropy), ("tokens", options.tokens)):
        if column is not None and any(column not in row for row in rows):
            hint = " or give `--model`" if name == "entropy" else ""
            raise ValueError(
                f"`--{name}` must be a column of the data{hint}, got {column!r}: it has {', '.join(rows[0])}."
            )
    entropy = [math.nan if row[options.entropy] is None else float(row[options.entropy]) for row in rows]
    counted = [row[options.tokens] if options.tokens else None for row in rows]
    return entropy, [None if count is None else float(count) for count in counted]


def table(questions: "list[Question]", labels: list[str], curve: "list[Bin]") -> str:
    """The bins, the labels, and how far entropy falls from easy questions to others."""
    from ..tables import text_table
    from ..uncertainty.diffadapt import LABELS
    from ..uncertainty.u_curve import overthinking

    lines = [
        {
            "accuracy": f"{part.low:.1f} to {part.high:.1f}",
            "questions": str(part.count),
            "entropy (nats)": f"{part.entropy:.4f}",
            "tokens": "-" if part.tokens is None else f"{part.tokens:.1f}",
        }
        for part in curve
    ]
    counts = Counter(labels)
    named = ", ".join(f"{counts[name]} {name}" for name in LABELS)
    answers = sum(question.samples for question in questions)
    text = f"{text_table(lines)}\n\n{len(questions)} questions with {answers} answers: {named}."
    fall = overthinking(curve)
    if fall is not None:
        text += f" From the easiest bin to the lowest one, entropy falls by {100 * fall:.1f} %."
    return text


def fit(options: argparse.Namespace) -> str:
    """Fits a probe, writes it, and returns its quality on held-out questions."""
    from ..tables import text_table
    from ..uncertainty.difficulty_probe import DifficultyProbe, prompt_features

    rows = read_rows(options.labels)
    if any(row.get("label") is None or row.get("prompt") is None for row in rows):
        raise ValueError(f"`--labels` must have the columns `prompt` and `label`, got {', '.join(rows[0])}.")
    model, tokenizer = load_model(options.model)
    features = prompt_features(model, tokenizer, [row["prompt"] for row in rows], options.batch_size)
    labels = [row["label"] for row in rows]
    probe = DifficultyProbe.fit(features, labels, options.width, options.epochs, seed=options.seed)
    probe.save(options.out)
    quality, counts = probe.held_out, Counter(labels)
    assert quality is not None  # of a probe that was just fitted
    lines = [
        {"label": name, "questions": str(counts[name]), "found": f"{quality.recall[name]:.3f}"}
        for name in probe.labels
    ]
    return (
        f"{text_table(lines)}\n\nOf {quality.count} held-out questions {quality.accuracy:.3f} get the right label, "
        f"{quality.balanced:.3f} as a mean over labels. Always saying the most common label: {quality.majority:.3f}."
    )
