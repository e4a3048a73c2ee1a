# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The page: one HTML file that contains the chart library and all numbers, and loads nothing else."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from .._version import __version__
from .colors import color_of
from .evaluations import Evaluation
from .groups import Group
from .heat import HeatMap, scale_of, ticks
from .numbers import embedded
from .panel import Panel
from .runs import Run
from .summary import differing_settings, panel_rows, score_rows, summarize, summarize_groups


TEMPLATES = Path(__file__).parents[1] / "templates"
LIBRARY, SCRIPTS = "vega.min.js", ("chart.js", "report.js")
PLACES = 3  # decimals of the entropy of a token


@dataclass(frozen=True)
class Report:
    """What a page shows.

    Attributes:
        runs, panels, groups, evaluations, maps: its parts.
        findings: labels of runs, each with what is wrong with it.
        baseline: index of the run with which others are compared.
        watch: seconds after which the page loads itself again.
    """

    runs: list[Run]
    panels: list[Panel]
    groups: list[Group]
    maps: list[HeatMap] = field(default_factory=list)
    evaluations: Sequence[Evaluation] = ()
    findings: Sequence[tuple[str, list[str]]] = ()
    baseline: int | None = None
    watch: int | None = None


def as_script(data: Any) -> Markup:
    """Data as JSON that is safe inside a script element: no text can end the element or open a comment."""
    return Markup(json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c"))


def styles(panel: Panel) -> str:
    """Which lines of a panel are solid and which are dashed, if runs have several."""
    named = {
        style: dict.fromkeys(item.label for item in panel.series if item.kind == kind and item.label)
        for kind, style in (("line", "Solid"), ("second", "dashed"))
    }
    return "; ".join(f"{style}: {', '.join(labels)}" for style, labels in named.items() if labels)


def code(text: str) -> Markup:
    """A text in which words in backticks are code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def page_data(report: Report) -> dict[str, Any]:
    """What the scripts of the page read."""
    return {
        "runs": [run.label for run in report.runs],
        "groups": [{"label": group.label, "runs": group.runs} for group in report.groups],
        "baseline": report.baseline,
        "watch": report.watch,
        "scale": scale_of(report.maps),
        "completions": [
            {
                "tokens": [token for token, _ in shown.tokens],
                "entropies": [None if entropy is None else round(entropy, PLACES) for _, entropy in shown.tokens],
            }
            for shown in report.maps
        ],
        **embedded(report.panels),
    }


def page_environment() -> Environment:
    """Where pages are rendered: their templates, with all values escaped."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(report: Report) -> str:
    """The page as HTML. All texts of runs (labels, prompts, tokens) are escaped."""
    environment = page_environment()
    environment.filters |= {"styles": styles, "code": code}
    runs, panels, baseline = report.runs, report.panels, report.baseline
    labels = [run.label for run in runs]
    drawn = [(place, panel, panel_rows(runs, panel, baseline)) for place, panel in enumerate(panels)]
    of_methods = [part for part in drawn if "/" in part[1].title]
    data = page_data(report)
    settings = differing_settings(runs) if len(runs) > 1 else {}
    return environment.get_template("report.html").render(
        version=__version__,
        css=Markup(read("report.css")),
        license=read("vega.license.txt"),
        scripts=[Markup(read(name)) for name in (LIBRARY, *SCRIPTS)],
        labels=labels,
        colors=[(color_of(index), color_of(index, dark=True)) for index in range(len(runs))],
        findings=[(label, found) for label, found in report.findings if found],
        rows=summarize(runs, panels, baseline),
        seeds=summarize_groups(runs, panels, report.groups),
        scores=score_rows(report.evaluations),
        settings=[{"field": name} | dict(zip(labels, row, strict=True)) for name, row in settings.items()],
        baseline=baseline,
        watch=report.watch,
        panels=[part for part in drawn if "/" not in part[1].title],
        methods=[(name, [*part]) for name, part in groupby(of_methods, lambda part: part[1].title.partition("/")[0])],
        stride=data["stride"],
        maps=report.maps,
        ticks=ticks(data["scale"]),
        data=as_script(data),
    )


def read(name: str) -> str:
    """The text of a file that becomes part of the page."""
    return (TEMPLATES / name).read_text(encoding="utf-8")
