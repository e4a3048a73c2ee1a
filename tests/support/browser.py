# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The scripts of a report's page in a JavaScript engine, without a browser."""

import json
from functools import cached_property
from typing import Any

from py_mini_racer import MiniRacer

from trl_entropy.report.page import LIBRARY, read


STATE = {"hidden": [], "smooth": 0, "grouped": False, "difference": False, "log": False}


class Charts:
    """What `chart.js` makes of the data of a page.

    Args:
        data: as the page embeds it.
    """

    def __init__(self, data: dict[str, Any]):
        self.engine = MiniRacer()
        self.engine.eval(read("chart.js") + f"\nconst data = {json.dumps(data)};\n")
        self.titles = [panel["title"] for panel in data["panels"]]

    def call(self, code: str, title: str, **state: Any) -> Any:
        """The value of an expression of `panel`, `state` and `items`, which are what is drawn."""
        place, chosen = self.titles.index(title), json.dumps(STATE | state)
        function = (
            f"(() => {{ const panel = data.panels[{place}], state = {chosen}, items = drawn(data, panel, state);"
        )
        return json.loads(self.engine.eval(f"{function} return JSON.stringify({code}); }})()"))

    def drawn(self, title: str, **state: Any) -> list[dict[str, Any]]:
        """The series of a panel as they are drawn."""
        return self.call("items", title, **state)

    @cached_property
    def _library(self) -> None:
        self.engine.eval("var window = this, self = this, performance = {now: () => Date.now()};")
        self.engine.eval(read(LIBRARY))

    def svg(self, title: str, zoom: list[float] | None = None, **state: Any) -> str:
        """The chart as Vega draws it, 400 by 220 pixels."""
        _ = self._library
        place, chosen = self.titles.index(title), json.dumps(STATE | state)
        return self.engine.eval(
            f"(() => {{ const panel = data.panels[{place}], state = {chosen};"
            f"const spec = specOf(panel, drawn(data, panel, state), state, {json.dumps(zoom)}, [400, 220]);"
            "return new vega.View(vega.parse(spec), {renderer: 'none'}).toSVG(); })()"
        ).get(timeout=60)
