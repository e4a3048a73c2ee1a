# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A page of completions whose tokens are colored by any score, such as those of `trl-entropy epr`."""

from collections.abc import Sequence

from markupsafe import Markup

from .._version import __version__
from .heat import FEWEST_TOKENS, MOST_TOKENS, SHOWN_TOKENS, HeatMap, heat_map, scale_of, ticks
from .page import page_environment, read


def score_maps(rows: Sequence[tuple[str, Sequence[str], Sequence[float | None]]]) -> list[HeatMap]:
    """Heat maps of completions: each a prompt, the texts of its tokens, and their scores, `None` if not scored."""
    most = max(FEWEST_TOKENS, min(SHOWN_TOKENS, MOST_TOKENS // max(1, len(rows))))
    records = [{"prompt": prompt, "tokens": tokens, "entropies": scores} for prompt, tokens, scores in rows]
    return [heat_map(0, 0, record, most) for record in records]


def render_scores(title: str, unit: str, about: str, labels: Sequence[str], maps: Sequence[HeatMap]) -> str:
    """The page as HTML. All texts are escaped.

    Args:
        title: of the page.
        unit: what a score is, beside the color scale.
        about: a sentence on what is shown.
        labels: a line above each completion.
        maps: the completions.
    """
    scale = scale_of(list(maps))
    return (
        page_environment()
        .get_template("scores.html")
        .render(
            version=__version__,
            css=Markup(read("report.css")),
            title=title,
            unit=unit,
            about=about,
            scale=scale,
            ticks=ticks(scale),
            shown=[*zip(labels, maps, strict=True)],
        )
    )
