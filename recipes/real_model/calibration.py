# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Does a model's entropy tell its wrong sums from its right ones, before and after training?

    python recipes/real_model/diagnostics.py          # the training; leaves its model in runs/diagnostics/model
    python recipes/real_model/calibration.py          # samples and scores answers of both models
    python recipes/real_model/calibration.py --report # tables and picture of the last scores, or of calibration.json

Both models answer the same held-out sums at temperature 1. EPR and WEPR score the answers; their probabilities of a
wrong answer are fitted to answers to other held-out sums. *Confidence* is the probability that the model itself gives
to the number that it wrote. The answers are written as JSON lines, which `trl-entropy epr --label correct` reads.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch


HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from addition import ADDITION, load, sums  # noqa: E402
from sampled_sums import RANKS, Answers, answers_to  # noqa: E402

from trl_entropy.commands.quickstart_common import silence_libraries  # noqa: E402
from trl_entropy.uncertainty.epr import Calibration, fit_epr, fit_wepr  # noqa: E402
from trl_entropy.uncertainty.evaluation import Scores, scores_of  # noqa: E402
from trl_entropy.uncertainty.quality import calibration_bins, quality  # noqa: E402


BINS = 10  # of confidence
SCORES = HERE / "calibration.json"
BEFORE, AFTER = "before", "after"
HEADS = {"auroc": "AUROC", "ece": "ECE", "brier": "Brier"}


def features_of(answers: Answers, part: str) -> Scores:
    """Features and labels of the answers, by `whole` or `number`."""
    wrong = [float(not row["correct"]) for row in answers.rows]
    return scores_of(getattr(answers, part), [row["prompt"] for row in answers.rows], wrong, RANKS)


def fits(answers: Answers) -> dict[str, dict[str, Calibration]]:
    """EPR and WEPR fitted to the answers, by part."""
    found = {}
    for part in ("whole", "number"):
        scores = features_of(answers, part)
        found[part] = {"EPR": fit_epr(scores.features, scores.wrong), "WEPR": fit_wepr(scores.features, scores.wrong)}
    return found


def measured(answers: Answers, own: dict, earlier: dict | None, draws: int) -> dict[str, Any]:
    """The numbers of a model: its answers, their confidence, and the quality of each score.

    Args:
        answers: to judge.
        own: calibrations fitted to answers of this model to other sums.
        earlier: those fitted to the model before training.
        draws: of the bootstrap over prompts.
    """
    wrong = features_of(answers, "whole").wrong
    right, found = wrong == 0, {}
    named = {"confidence": 1 - answers.confidence}
    for part in ("whole", "number"):
        scores = features_of(answers, part)
        for label, calibrations in (("", own), (", fitted before", earlier)):
            for name, calibration in (calibrations or {}).get(part, {}).items():
                named[f"{name}, {part}{label}"] = calibration.probabilities(scores.features)
        means = [float(scores.epr[rows].mean()) if rows.any() else None for rows in (right, ~right)]
        edges = torch.linspace(0, 4, 21, dtype=torch.float64)
        counts = [torch.histogram(scores.epr[rows].clamp(max=3.999), edges).hist.tolist() for rows in (right, ~right)]
        found[part] = {"epr_right": means[0], "epr_wrong": means[1], "histograms": counts}
    prompt_numbers = features_of(answers, "whole").prompts
    found["quality"] = {
        name: {key: [value.value, value.low, value.high] for key, value in estimates.items() if key in HEADS}
        for name, values in named.items()
        for estimates in [quality(values, wrong, prompt_numbers, draws=draws)]
    }
    bins = [values.tolist() for values in calibration_bins(answers.confidence, right, BINS)]
    found["bins"] = [[value if value == value else None for value in values] for values in bins]
    found |= {"answers": len(wrong), "right": float(right.double().mean())}
    return found | {"confidence": float(answers.confidence.mean())}


def tables(found: dict[str, Any]) -> str:
    """Two tables in Markdown: the answers of each model, and the quality of each score."""
    head = ["", "answers", "share right", "mean confidence"]
    head += [f"EPR, {part}: {label}" for part in ("whole", "number") for label in ("right", "wrong")]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, row in found.items():
        pairs = [f"{row[part][key]:.3f}" for part in ("whole", "number") for key in ("epr_right", "epr_wrong")]
        cells = [name, str(row["answers"]), f"{row['right']:.3f}", f"{row['confidence']:.3f}", *pairs]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| | score | " + " | ".join(HEADS.values()) + " |", "|---|---|" + "---|" * len(HEADS)]
    for name, row in found.items():
        for score, values in row["quality"].items():
            cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*values[key]) for key in HEADS]
            lines.append("| " + " | ".join([name, score, *cells]) + " |")
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """Share of right answers over confidence, and EPR of right and wrong answers before and after training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    first, *others = figure.subplots(1, 3)
    first.plot([0, 1], [0, 1], color="gray", linewidth=0.8)
    for name, row in found.items():
        count, confidence, share = row["bins"]
        kept = [n for n in range(BINS) if count[n] >= 10]
        first.plot([confidence[n] for n in kept], [share[n] for n in kept], "o-", label=name)
    first.set(title="right answers, by confidence", xlabel="probability of the number", ylabel="share right")
    first.legend(fontsize="small")
    centers = [0.1 + 0.2 * n for n in range(20)]
    for panel, (name, row) in zip(others, found.items(), strict=True):
        for label, counts in zip(("right", "wrong"), row["number"]["histograms"], strict=True):
            panel.bar(centers, counts, width=0.2, alpha=0.5, label=label)
        panel.set(title=f"EPR of the number, {name}", xlabel="nats", ylabel="answers", xlim=(0, 2))
        panel.legend(fontsize="small")
    figure.savefig(path, dpi=100)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/diagnostics/model"), help="after training")
    parser.add_argument("--cache", type=Path, default=ADDITION.cache, help="folder of the model before (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/calibration"), help="folder (%(default)s)")
    parser.add_argument("--prompts", type=int, default=128, help="to judge, and as many to fit (%(default)s)")
    parser.add_argument("--samples", type=int, default=8, help="of each prompt (%(default)s)")
    parser.add_argument("--report", action="store_true", help="only make tables and picture")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    silence_libraries()
    written = options.output / SCORES.name
    if not options.report:
        rows, found, earlier = sums(True, 2 * options.prompts), {}, None
        for name, path in ((BEFORE, ADDITION.start(options.cache)), (AFTER, options.model)):
            model, tokenizer = load(path)
            judged = answers_to(model, tokenizer, rows[: options.prompts], options.samples, seed=0)
            other = answers_to(model, tokenizer, rows[options.prompts :], options.samples, seed=1)
            lines = [json.dumps(row) + "\n" for row in judged.rows + other.rows]
            (options.output / f"{name}.jsonl").write_text("".join(lines))
            own = fits(other)
            found[name] = measured(judged, own, earlier, draws=500)
            earlier = own
        written.write_text(json.dumps(found, indent=1) + "\n")
    source = written if written.exists() else SCORES
    found = json.loads(source.read_text())
    print(f"From {source}:", tables(found), sep="\n\n")
    draw(found, options.output / "calibration.png")


if __name__ == "__main__":
    main()
