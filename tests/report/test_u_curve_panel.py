# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The panel of entropy over the difficulty of prompts."""

import pandas as pd
import pytest
from support.report_runs import lines_of, panel_of, write_run

from trl_entropy.report.panels import build_panels
from trl_entropy.report.runs import read_runs


TITLE = "entropy by difficulty"


def run_with(folder, prompts=12, **changes):
    """Two logs of four completions to each prompt; the share of right ones is that of the prompt's number in 0..4."""
    write_run(folder, lines_of(entropy=[0.5] * 2, reward=[0.5] * 2, **{"rewards/right/mean": [0.5] * 2}))
    (folder / "completions").mkdir()
    for step in (1, 2):
        rows = [
            {"step": step, "prompt": f"p{n}", "completion": "x", "right": float(sample < n % 5)}
            | {"token_entropy_mean": 0.1 * (n % 5 - 2) ** 2 + 0.2, "advantage": 0.0} | changes
            for n in range(prompts)
            for sample in range(4)
        ]  # fmt: skip
        pd.DataFrame(rows).to_parquet(folder / "completions" / f"completions_{step:05d}.parquet")
    return folder


def test_bins_of_prompts(tmp_path):
    runs = read_runs([run_with(tmp_path / "a")])
    panel = panel_of(runs, TITLE)
    points, line = panel.series
    assert (points.kind, line.kind) == ("points", "fit") and points.x == line.x == [0, 0.25, 0.5, 0.75, 1]
    assert points.y == line.y == pytest.approx([0.6, 0.3, 0.2, 0.3, 0.6])  # a U
    assert panel.notes == {0: "24 prompts, from the easiest to the lowest: -66.7 %"}
    assert panel.x_label == "share of right completions"


def test_without_entropies_or_with_few_prompts_there_is_none(tmp_path):
    for name, made in (
        ("no entropies", run_with(tmp_path / "a", token_entropy_mean=None)),
        ("no 0 and 1", run_with(tmp_path / "b", right=0.3)),
        ("few prompts", run_with(tmp_path / "c", prompts=9)),
        ("no tables", write_run(tmp_path / "d")),
    ):
        assert not [panel for panel in build_panels(read_runs([made])) if panel.title.startswith(TITLE)], name
