# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Folders of runs for the tests of the report, and its page taken apart."""

import json
import math
from html.parser import HTMLParser

import pandas as pd

from trl_entropy.report.panels import build_panels
from trl_entropy.report.runs import read_runs


ENTROPY = [1.0 - 0.05 * step for step in range(12)]
REWARD = [1.2 - 0.3 * math.exp(entropy) for entropy in ENTROPY]


def lines_of(**columns):
    """Log lines from columns, one per optimizer step."""
    names, rows = list(columns), zip(*columns.values(), strict=True)
    return [{"step": step, **dict(zip(names, row, strict=True))} for step, row in enumerate(rows, start=1)]


def write_run(folder, lines=None, settings=None, **state):
    """A run's folder, by default of twelve steps on the law R = 1.2 - 0.3 exp(H)."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = lines_of(entropy=ENTROPY, reward=REWARD) if lines is None else lines
    state = {"global_step": lines[-1]["step"] if lines else 0, "log_history": lines, **state}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    if settings is not None:
        (folder / "run_settings.json").write_text(json.dumps(settings))
    return folder


def write_tokens(folder, step, tokens, entropies, prompt="?", **extra):
    (folder / "completions").mkdir(exist_ok=True)
    record = {"prompt": prompt, "advantage": 0.5, "tokens": tokens, "entropies": entropies, **extra}
    path = folder / "completions" / f"token_entropies_{step:05d}.json"
    path.write_text(json.dumps({"step": step, "completions": [record]}))
    return path


def write_completions(folder, step, prompts, **rewards):
    (folder / "completions").mkdir(exist_ok=True)
    table = pd.DataFrame({"step": step, "prompt": prompts, "completion": "x", **rewards, "advantage": 0.0})
    table.to_parquet(folder / "completions" / f"completions_{step:05d}.parquet")


def one_run(folder, *args, **keywords):
    return read_runs([write_run(folder, *args, **keywords)])


def panel_of(runs, title):
    (panel,) = [panel for panel in build_panels(runs) if panel.title.startswith(title)]
    return panel


class Page(HTMLParser):
    """The parts of a page: start tags with their attributes, texts with their tag, the cells of tables, the data."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.texts, self.open = [], {}, [], []
        self.feed(text)
        self.data = json.loads(next(text for tag, text in self.texts if tag == "script"))
        self.css = next(text for tag, text in self.texts if tag == "style")

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.open.append(tag)
        if tag == "table":
            self.table = self.tables.setdefault(attributes["id"], [])
        elif tag == "tr":
            self.table.append([])
        elif tag in ("td", "th"):
            self.table[-1].append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, text):
        if {"td", "th"} & {*self.open}:
            self.table[-1][-1] += text
        if self.open and text.strip():
            self.texts.append((self.open[-1], text))
