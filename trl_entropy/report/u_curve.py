# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The panel of the U-curve: token entropy over the difficulty of prompts."""

from ..uncertainty.u_curve import overthinking, u_curve
from .panel import Panel, Series
from .runs import Run
from .samples import questions_asked


FEWEST = 20  # prompts of a run, from which it has a curve


def u_curve_panel(runs: list[Run]) -> Panel:
    """Mean entropy of completions over their accuracy: means over prompts in tenths of accuracy."""
    series, notes = [], {}
    for index, run in enumerate(runs):
        questions = questions_asked(run)
        if len(questions) < FEWEST:
            continue
        curve = u_curve(questions)
        x, y = [part.accuracy for part in curve], [part.entropy for part in curve]
        series += [Series(index, x, y, "points"), Series(index, x, y, "fit")]
        fall = overthinking(curve)
        notes[index] = f"{len(questions)} prompts" + (
            "" if fall is None else f", from the easiest to the lowest: {-100 * fall:.1f} %"
        )
    about = (
        "Prompts of each logged batch, in tenths by the share of right completions. A rise at the right end is "
        "entropy on prompts that the model can already answer."
    )
    return Panel("entropy by difficulty (nats)", series, "share of right completions", about, notes, from_zero=True)
