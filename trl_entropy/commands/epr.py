# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy epr`: scores answers by the entropies of their tokens, and says how well that finds wrong ones."""

import argparse
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .epr_files import write_files
from .parser import CommandParser, positive, whole_number
from .rows import read_rows


if TYPE_CHECKING:
    from ..uncertainty.completions import Scored
    from ..uncertainty.epr import Calibration
    from ..uncertainty.evaluation import Scores

logger = logging.getLogger(__name__)

RANKS = 15
HEADS = {
    "auroc": "AUROC", "average_precision": "AP", "aurc": "AURC", "ece": "ECE", "brier": "Brier", "nll": "NLL"
}  # fmt: skip


def share(text: str) -> float:
    """Type of an argument that is a number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a number in (0, 1), got {text!r}")
    return value


def build_parser() -> CommandParser:
    parser = CommandParser(
        prog="trl-entropy epr",
        description="Scores answers by the entropies of their tokens (EPR, and WEPR with fitted weights), and says "
        "how well that tells right from wrong ones. docs/uncertainty.md explains the numbers.",
    )
    parser.add_argument("--data", required=True, metavar="FILE", help="JSON lines, parquet or CSV with the answers")
    parser.add_argument("--model", help="folder or id on the Hub of the model that gave them; not with `logprobs`")
    parser.add_argument("--label", metavar="COLUMN", help="says whether an answer is right: true, or 0.5 and above")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--fit", type=Path, metavar="FILE", help="fit EPR and WEPR, and write WEPR's weights there")
    weights.add_argument("--weights", type=Path, metavar="FILE", help="weights that `--fit` or artefactual wrote")
    parser.add_argument("--k", type=positive, help=f"likeliest tokens per position ({RANKS}, or as in the weights)")
    parser.add_argument("--split", type=share, default=0.5, help="share of the prompts to fit on (%(default)s)")
    parser.add_argument("--seed", type=whole_number, default=0, help="of the split (%(default)s)")
    parser.add_argument("--batch-size", type=positive, default=4, help="answers per forward (%(default)s)")
    parser.add_argument("--samples", type=whole_number, default=8, help="answers in the heat map (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="writes scores, plots and the heat map there")
    return parser


def main(argv: list[str]) -> int:
    """Prints the table, writes the files asked for, and returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(argv)
    with parser.reporting():
        print(evaluate(options))  # noqa: T201 (the result of a command)
    return 0


def evaluate(options: argparse.Namespace) -> str:
    """Scores the answers, writes the files asked for, and returns the table."""
    from ..uncertainty.epr import Calibration
    from ..uncertainty.evaluation import EPR, WEPR, scores_of

    if options.fit and not options.label:
        raise ValueError("`--label` must name a column with `--fit`, got none.")
    given = Calibration.load(options.weights) if options.weights else None
    k = ranks(options.k, given)
    rows = read_rows(options.data)
    wrong = [wrong_of(row, options.label) for row in rows]
    scored = score(rows, options.model, k, options.batch_size)
    found = scores_of(scored, [prompt_key(row, place) for place, row in enumerate(rows)], wrong, k)
    if given is not None:
        found.calibrations = {EPR if given.k is None else WEPR: given}
    if options.fit:
        found.fit(options.split, options.seed)
        options.fit.parent.mkdir(parents=True, exist_ok=True)
        found.calibrations[WEPR].save(options.fit)
        found.calibrations[EPR].save(options.fit.with_suffix(".epr.json"))
    if options.out:
        write_files(options.out, rows, scored, found, k, options.samples)
    return table(found)


def ranks(asked: int | None, given: "Calibration | None") -> int:
    """The number of ranks. Raises `ValueError` if it is not that of the weights."""
    fixed = None if given is None else given.k
    if asked is not None and fixed is not None and asked != fixed:
        raise ValueError(f"`--k` must be {fixed}, as in the weights, got {asked}.")
    return fixed or asked or RANKS


def wrong_of(row: dict[str, Any], label: str | None) -> float:
    """1 if an answer is wrong, 0 if it is right, NaN if that is not known."""
    if label is None:
        return math.nan
    if label not in row:
        raise ValueError(f"`--label` must be a column of the data, got {label!r}: it has {', '.join(row)}.")
    value = row[label]
    if value is None:
        return math.nan
    if not isinstance(value, (bool, int, float)):
        raise ValueError(f"`--label` must be a column of numbers, or of true and false, got {value!r}.")
    return math.nan if math.isnan(value) else float(value < 0.5)


def prompt_key(row: dict[str, Any], place: int) -> str:
    """What answers to the same prompt share; a row without a prompt stands alone."""
    known = next((row[name] for name in ("prompt", "prompt_ids") if row.get(name) is not None), None)
    return f"row {place}" if known is None else json.dumps(known)


def score(rows: list[dict[str, Any]], model: str | None, k: int, batch: int) -> "list[Scored]":
    """The likeliest tokens of each answer: from its `logprobs`, or by a forward of the model."""
    from ..uncertainty.answers import answer_of
    from ..uncertainty.completions import score_answers, scored_api

    if all(row.get("logprobs") is not None for row in rows):
        if model is not None:
            logger.warning("`--model` does nothing: the data has `logprobs`.")
        return [scored_api(row["logprobs"]) for row in rows]
    if model is None:
        raise ValueError("`--model` must name a model, or all rows must have `logprobs`.")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    answers = [answer_of(row, tokenizer) for row in rows]  # before the model is loaded, so that errors come at once
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto").to(device)
    return list(score_answers(loaded, tokenizer, answers, k, batch))


def table(found: "Scores") -> str:
    """How many answers were judged, their EPR, and the quality of each score."""
    from ..tables import text_table
    from ..uncertainty.quality import FEWEST

    if found.wrong.isnan().all():
        return f"{len(found.wrong)} answers, mean EPR {float(found.epr.mean()):.4f} nats"
    rows = found.known
    epr, wrong = found.epr[rows], found.wrong[rows] > 0
    right, bad = int((~wrong).sum()), int(wrong.sum())
    if unknown := int(found.wrong.isnan().sum()):
        logger.warning(f"{unknown} answers have no label: they are scored, but not judged.")
    if min(right, bad) < FEWEST:
        logger.warning(f"AUROC and AP need {FEWEST} right and {FEWEST} wrong answers, got {right} and {bad}.")
    means = [float(part.mean()) for part in (epr[~wrong], epr[wrong])]
    prompts = len({prompt for prompt, there in zip(found.prompts, rows.tolist(), strict=True) if there})
    first = (
        f"{len(epr)} answers to {prompts} prompts, {right} right and {bad} wrong. "
        f"Mean EPR in nats: {means[0]:.4f} of right, {means[1]:.4f} of wrong ones."
    )
    lines = [
        {"score": name, **{HEADS[key]: str(value) for key, value in estimates.items()}}
        for name, estimates in found.quality.items()
    ]
    return f"{first}\n\n{text_table(lines, missing='-')}\n\nIn brackets: 95 % intervals over prompts."
