# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The page: one HTML file that contains all drawings and numbers and loads nothing else."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .._version import __version__
from .drawing import color_of, draw_svg
from .heat import HeatMap, color_at, scale_of, ticks
from .panels import Panel
from .runs import Run
from .summary import differing_settings, summarize


TEMPLATES = Path(__file__).parents[1] / "templates"


def as_script(data: Any) -> Markup:
    """Data as JSON that is safe inside a script element: no text can end the element or open a comment."""
    return Markup(json.dumps(data).replace("<", "\\u003c"))


def visible(token: str) -> str:
    """A token with visible line breaks."""
    return token.replace("\n", "\u21b5\n")


def render_page(
    runs: list[Run], panels: list[Panel], maps: list[HeatMap], findings: Sequence[tuple[str, list[str]]] = ()
) -> str:
    """The page as HTML. All texts of runs (labels, prompts, tokens) are escaped.

    Args:
        runs, panels, maps: what to show.
        findings: labels of runs, each with what is wrong with it.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    scale = scale_of(maps)
    labels = [run.label for run in runs]
    drawn = [(panel, Markup(draw_svg(panel, f"panel{index}"))) for index, panel in enumerate(panels)]
    return environment.get_template("report.html").render(
        version=__version__,
        labels=labels,
        findings=[(label, found) for label, found in findings if found],
        colors=[color_of(index) for index in range(len(runs))],
        rows=summarize(runs, panels),
        settings=differing_settings(runs) if len(runs) > 1 else {},
        panels=[(panel, svg) for panel, svg in drawn if "/" not in panel.title],
        method_panels=[(panel, svg) for panel, svg in drawn if "/" in panel.title],
        maps=maps,
        scale=scale,
        ticks=[(value, color_at(value, scale)) for value in ticks(scale)],
        color_at=lambda entropy: color_at(entropy, scale),
        data=as_script({"runs": labels, "panels": [asdict(panel) for panel in panels]}),
    )
