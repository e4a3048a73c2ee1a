# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What `trl-entropy epr --out` writes: scores, their quality, plots, and a page of tokens colored by their scores."""

import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..uncertainty.completions import Scored
    from ..uncertainty.evaluation import Scores

logger = logging.getLogger(__name__)

SATURATED = 0.05  # of token scores: below this spread a picture shows nothing


def write_files(folder: Path, rows: list[dict], scored: "list[Scored]", found: "Scores", k: int, samples: int) -> None:
    """Writes scores, quality, plots and the heat map."""
    from ..uncertainty.plots import plot_reliability, plot_risk_coverage

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "scores.jsonl", "w", encoding="utf-8") as file:
        for place, answer in enumerate(scored):
            file.write(json.dumps(record_of(place, answer, found, k)) + "\n")
    (folder / "tokens.html").write_text(heat_page(rows, scored, found, k, samples), encoding="utf-8")
    judged = found.known
    if not judged.any():
        return
    named = {
        name: {
            key: {part: x if math.isfinite(x) else None for part, x in vars(value).items()}
            for key, value in estimates.items()
        }
        for name, estimates in found.quality.items()
    }
    (folder / "quality.json").write_text(json.dumps({"k": k, "quality": named}, indent=1, allow_nan=False) + "\n")
    wrong, probabilities = found.wrong[judged], {name: x[judged] for name, x in found.probabilities.items()}
    plot_risk_coverage(folder / "risk_coverage.png", {name: x[judged] for name, x in found.all.items()}, wrong)
    if probabilities:
        plot_reliability(folder / "reliability.png", probabilities, wrong)


def record_of(place: int, answer: "Scored", found: "Scores", k: int) -> dict[str, Any]:
    """The scores of one answer."""
    record: dict[str, Any] = {"row": place, "tokens": answer.length, "epr": float(found.epr[place])}
    missing = answer.missing(k)
    record |= {} if missing is None else {"epr_upper": record["epr"] + missing}
    record |= {f"p_wrong_{name.lower()}": float(values[place]) for name, values in found.probabilities.items()}
    wrong = float(found.wrong[place])
    return record | {"wrong": None if math.isnan(wrong) else wrong > 0, "judged": bool(found.judged[place])}


def heat_page(rows: list[dict], scored: "list[Scored]", found: "Scores", k: int, samples: int) -> str:
    """The page of the judged answers with the highest scores and the lowest, their tokens colored by their scores."""
    from ..report.scores import render_scores, score_maps
    from ..uncertainty.evaluation import EPR, WEPR

    name = WEPR if WEPR in found.calibrations else EPR
    places = found.judged.nonzero().flatten()
    order = places[found.all[name][places].argsort(descending=True, stable=True)].tolist()
    half = min(samples, len(order))
    chosen = [*order[: half - half // 2], *order[len(order) - half // 2 :]]
    drawn = {place: scored[place].ranked(k).double() for place in chosen}
    unit, about = "nats", f"Entropy of the {k} likeliest tokens at each position."
    values = {place: ranked.sum(-1) for place, ranked in drawn.items()}
    if name == WEPR:
        of_tokens = {place: found.calibrations[WEPR].token_scores(ranked) for place, ranked in drawn.items()}
        ends = [x for value in of_tokens.values() for x in value.tolist()]
        if ends and max(ends) - min(ends) >= SATURATED:
            values, unit, about = of_tokens, "token score", "WEPR's score of each token: σ(β₀ + Σ βₖ sₖ)."
        elif ends:
            logger.warning("WEPR's token scores are nearly equal: the heat map shows entropies instead.")
    maps, labels = [], []
    for place in chosen:
        answer = scored[place]
        shown = [x if there else None for x, there in zip(values[place].tolist(), answer.mask.tolist(), strict=True)]
        maps.append((prompt_text(rows[place]), answer.tokens, shown))
        verdict = {0.0: ", right", 1.0: ", wrong"}.get(float(found.wrong[place]), "")
        probability = f", {name} {float(found.all[name][place]):.3f}" if name in found.calibrations else ""
        labels.append(f"Row {place}{verdict}, EPR {float(found.epr[place]):.4f} nats{probability}")
    about = f"{about} The answers with the highest scores, then those with the lowest."
    return render_scores("Token scores", unit, about, labels, score_maps(maps))


def prompt_text(row: dict[str, Any]) -> str:
    """The end of a prompt, to be read."""
    prompt = row.get("prompt") or ""
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
