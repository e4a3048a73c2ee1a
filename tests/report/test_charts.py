# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Charts of the report: the scripts of the page run here, on the data that the page embeds."""

import json
import math
import random
import re
from pathlib import Path

import pytest
from support.browser import Charts
from support.report_runs import REWARD, lines_of, write_run

from trl_entropy.commands.report import write_report
from trl_entropy.report import numbers
from trl_entropy.report.evaluations import read_evaluations, run_folders
from trl_entropy.report.groups import Group, group_runs, with_baseline
from trl_entropy.report.known import Known
from trl_entropy.report.numbers import embedded, least_span, noise_of, stride_of, thinned
from trl_entropy.report.page import Report, page_data, render_page
from trl_entropy.report.panel import Panel, Series
from trl_entropy.report.panels import build_panels, law_panel
from trl_entropy.report.runs import Run, read_runs
from trl_entropy.report.summary import panel_rows, summarize, summarize_groups


DEFAULTS = {"seed": 42, "learning_rate": 1e-6}


def run_of(label, settings=None, **columns):
    """A run that was not read from files."""
    lines = lines_of(**columns)
    return Run(label, Path("/nowhere") / label, lines, settings or {}, Known(defaults=DEFAULTS))


def report_of(runs, panels=None, **keywords):
    return Report(runs, build_panels(runs) if panels is None else panels, group_runs(runs), **keywords)


def charts_of(runs, panels=None, **keywords):
    return Charts(json.loads(json.dumps(page_data(report_of(runs, panels, **keywords)))))


@pytest.fixture(scope="module")
def seeds():
    """Two seeds of one setting, and a third run that is the baseline."""
    entropies = ([1.0, 0.8, 0.6], [1.2, 1.0, 0.4], [0.9, 0.5])
    settings = ({"seed": 0, "learning_rate": 1e-4}, {"seed": 1, "learning_rate": 1e-4}, {"seed": 0})
    runs = [
        run_of(f"r{index}", own, entropy=values)
        for index, (own, values) in enumerate(zip(settings, entropies, strict=True))
    ]
    return charts_of(runs, baseline=2)


TITLE = "token entropy (nats)"


def test_runs_on_and_off(seeds):
    assert [item["run"] for item in seeds.drawn(TITLE)] == [0, 1, 2]
    (item,) = seeds.drawn(TITLE, hidden=[0, 2])
    assert (item["name"], item["x"], item["y"]) == ("r1", [1, 2, 3], [1.2, 1.0, 0.4])


def test_seeds_are_a_mean_and_a_band(seeds):
    mean, alone = seeds.drawn(TITLE, grouped=True)
    assert (mean["name"], mean["color"], mean["runs"], alone["name"]) == ("r", 0, [0, 1], "r2")
    assert mean["y"] == pytest.approx([1.1, 0.9, 0.5])
    assert (mean["low"], mean["high"], mean["seeds"]) == ([1.0, 0.8, 0.4], [1.2, 1.0, 0.6], [2, 2, 2])
    mean, _ = seeds.drawn(TITLE, grouped=True, hidden=[1])  # the mean is over the runs shown
    assert mean["y"] == [1.0, 0.8, 0.6] and mean["low"] == mean["high"]


@pytest.mark.parametrize("hidden", [[], [2]])
def test_difference_to_the_baseline(seeds, hidden):
    """At the steps that both have. The baseline may be hidden."""
    first, second = seeds.drawn(TITLE, difference=True, hidden=hidden)
    assert (first["x"], first["y"]) == ([1, 2], pytest.approx([0.1, 0.3]))
    assert second["y"] == pytest.approx([0.3, 0.5])
    (mean,) = seeds.drawn(TITLE, difference=True, grouped=True, hidden=hidden)
    assert mean["y"] == pytest.approx([0.2, 0.4]) and mean["low"] == pytest.approx([0.1, 0.3])
    assert seeds.call("rangeOfY(panel, items, state)", TITLE, difference=True) == [0, 0.5]  # 0 is always seen


def test_smoothing_is_a_centered_mean_over_a_share_of_the_steps():
    values = [float(index % 2) for index in range(21)]
    charts = charts_of([run_of("a", entropy=values)])
    (item,) = charts.drawn(TITLE, smooth=20)  # 4 of 20 steps: two to each side
    assert item["raw"] == values and item["y"][10] == pytest.approx(2 / 5) and item["y"][11] == pytest.approx(3 / 5)
    assert item["y"][0] == pytest.approx(1 / 3)  # the ends have neighbors on one side
    (item,) = charts.drawn(TITLE, smooth=0)
    assert item["y"] == values and "raw" not in item


def test_values_in_words(seeds):
    words = "valuesAt(panel, items, {}).map((point) => inWords(point, panel))"
    assert seeds.call(words.format(3), TITLE, grouped=True) == ["r: 0.5 (0.4 to 0.6)"]
    assert seeds.call(words.format(2), TITLE) == ["r0: 0.8", "r1: 1", "r2: 0.5"]
    assert seeds.call("stopsOf(panel, items)", TITLE) == [1, 2, 3]
    reward = [0.9, 0.7, 0.5]
    charts = charts_of([run_of("a", entropy=[1.0, 1.2, 1.4], reward=reward)])
    law = "reward against entropy"
    assert charts.call("stopsOf(panel, items)", law) == [0, 1, 2]
    assert charts.call(words.format(1), law) == ["a at step 2: token entropy (nats) 1.2, reward 0.7"]


def test_vega_draws_it(seeds):
    """Text is text, colors are those of the page, and the chart is described."""
    svg = seeds.svg(TITLE)
    assert "<text" in svg and ">optimizer step<" in svg and ">1.0<" in svg
    lines = re.findall(r'stroke="var\(--c(\d)\)"', svg)
    assert lines == ["0", "1", "2"]
    assert "values from 1.0 to 3.0" in svg and "for a linear scale" in svg  # Vega's description of the axes
    assert len(re.findall(r'fill="var\(--c0\)"', seeds.svg(TITLE, grouped=True))) == 1  # the band
    assert "values from 2.0 to 3.0" in seeds.svg(TITLE, zoom=[2, 3])
    described = seeds.call("specOf(panel, items, state, null, [400, 220]).description", TITLE, hidden=[0])
    assert described.startswith("token entropy (nats) over optimizer step: 2 runs or means of seeds.")


@pytest.mark.parametrize(("y", "upper", "area"), [([0.4, 0.5], [0.8, 0.9], True), ([0.4, 0.4], [0.4, 0.4], False)])
def test_target_is_a_band_or_a_dotted_line(y, upper, area):
    panel = Panel(TITLE, [Series(0, [1, 2], y, "band", "target", upper), Series(0, [1, 2], [0.5, 0.5])])
    svg = charts_of([run_of("a", entropy=[0.5, 0.5])], [panel]).svg(TITLE)
    assert ('fill-opacity="0.13"' in svg) is area and ('stroke-dasharray="2,3"' in svg) is not area


def test_dropped_tokens_are_hollow_and_thresholds_dotted():
    series = [
        Series(0, [0.1], [3.0], "points", "dropped"),
        Series(0, [0.2, 0.3], [2.0, 1.0], "points", "kept"),
        Series(0, [0.15, 0.15], [0.0, 3.0], "threshold"),
    ]
    svg = charts_of([run_of("a", entropy=[1.0])], [Panel("divergence", series, "entropy")]).svg("divergence")
    assert svg.count('stroke="var(--c0)"') == 4 and svg.count('fill="var(--c0)"') == 2 and "2,3" in svg


def test_strength_has_a_logarithmic_axis():
    """From one power of ten on; a value of 0 has no logarithm."""
    key = "entropy_keep/strength"
    charts = charts_of([run_of("a", entropy=[1.0] * 3, **{key: [0.01, 0.1, 2.0]})])
    panel = next(panel for panel in page_panels(charts) if panel["title"] == key)
    assert panel["log"] and panel["can_log"]
    assert charts.call("rangeOfY(panel, items, state)", key, log=True) == pytest.approx([0.01, 2.0])
    assert charts.call("logTicks([0.01, 2])", key) == [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2]
    assert "for a log scale" in charts.svg(key, log=True)
    charts = charts_of([run_of("a", entropy=[1.0] * 2, **{key: [1.0, 1.1]})])
    low, high = charts.call("rangeOfY(panel, items, state)", key, log=True)
    assert high / low == pytest.approx(10)
    charts = charts_of([run_of("a", entropy=[1.0] * 2, **{key: [0.0, 1.0]})])
    panel = next(panel for panel in page_panels(charts) if panel["title"] == key)
    assert not panel["log"] and not panel["can_log"]


def page_panels(charts):
    return json.loads(charts.engine.eval("JSON.stringify(data.panels)"))


def test_noise_is_not_magnified():
    """A line that only jitters fills at most half of the axis; a trend fills it; 2 % are not magnified."""
    draw = random.Random(0)
    jitter = [0.5 + 0.001 * draw.gauss(0, 1) for _ in range(400)]
    assert noise_of(jitter) == pytest.approx(0.001, rel=0.15) and noise_of([1.0, 2.0, 3.0, 4.0]) == 0
    low, high = charts_of([run_of("a", entropy=jitter, reward=jitter)]).call("rangeOfY(panel, items, state)", "reward")
    assert high - low >= 2 * (max(jitter) - min(jitter)) * 0.99 and high - low == pytest.approx(0.05, rel=0.02)
    noisy = [draw.gauss(0, 1) for _ in range(400)]
    span = least_span(Panel("reward", [Series(0, [*range(400)], noisy)]))
    assert 1.4 < span / (max(noisy) - min(noisy)) <= 2
    trend = [index / 100 + 0.001 * draw.gauss(0, 1) for index in range(100)]
    assert least_span(Panel("reward", [Series(0, [*range(100)], trend)])) < 0.1
    fractions = charts_of([run_of("a", entropy=[1.0] * 2, reward=[0.98, 1.0])])
    assert fractions.call("rangeOfY(panel, items, state)", "reward") == pytest.approx([0.9, 1.0])


def test_laws_that_do_not_hold_are_hidden():
    """R² is 1 for a run on the law, and below 0.3 for one without."""
    law = [1.2 - 0.3 * math.exp(1.0 - 0.05 * step) for step in range(12)]
    entropy = [1.0 - 0.05 * step for step in range(12)]
    holds = run_of("holds", entropy=entropy, reward=law)
    fails = run_of("fails", entropy=entropy, reward=[float(step % 2) for step in range(12)])
    panel = law_panel([holds, fails])
    assert [(item.run, item.kind) for item in panel.series] == [(0, "points"), (0, "fit"), (1, "points")]
    assert re.fullmatch(r"no law: R² = 0\.0\d", panel.notes[1])
    assert not law_panel([fails]).series and "reward against entropy" not in {p.title for p in build_panels([fails])}
    assert "R = -a exp(H) + b" not in summarize([fails], build_panels([fails]))[0]


def test_front_of_pass_rates():
    """Means over tenths of the run. Seeds are merged point by point."""
    steps = 40
    rates = {"pass@1": [step / 100 for step in range(steps)], "pass@8": [0.8 - step / 100 for step in range(steps)]}
    runs = [
        run_of(f"r{seed}", {"seed": seed}, entropy=[1.0] * steps, **rates | {"pass@4": [0.5] * steps})
        for seed in range(2)
    ]
    charts = charts_of(runs)
    first, second = charts.drawn("pass@8")
    assert (first["kind"], len(first["x"]), first["steps"][:2]) == ("front", 10, [4, 8])
    assert (first["x"][0], first["y"][0]) == (pytest.approx(0.015), pytest.approx(0.785))
    assert (second["x"][-1], second["y"][-1]) == (pytest.approx(0.375), pytest.approx(0.425))
    (merged,) = charts.drawn("pass@8", grouped=True)
    assert merged["x"] == pytest.approx(first["x"]) and merged["steps"][-1] == 40
    words = "valuesAt(panel, items, 9).map((point) => inWords(point, panel))"
    assert charts.call(words, "pass@8") == ["r0 at step 40: pass@1 0.375, pass@8 0.425"]
    # Evaluations are shown instead, if a run has two.
    evaluated = {"eval_pass@1": [0.1] * steps, "eval_pass@8": [0.3] * steps}
    (item,) = charts_of([run_of("e", entropy=[1.0] * steps, **rates, **evaluated)]).drawn("pass@8")
    assert set(item["x"]) == {0.1} and set(item["y"]) == {0.3}


def test_groups_of_seeds():
    runs = [
        run_of("a/stock", {"seed": 0}, entropy=[1.0]),
        run_of("b/stock", {"seed": 1}, entropy=[2.0]),
        run_of("epo-seed-3", {"learning_rate": 1e-4, "seed": 3}, entropy=[3.0]),
        run_of("epo-seed-4", {"learning_rate": 1e-4, "run_name": "x"}, entropy=[5.0]),
        run_of("unknown", {}, entropy=[1.0]),
        run_of("unknown2", {}, entropy=[1.0]),
    ]
    groups = group_runs(runs)
    assert groups == [Group("stock", [0, 1]), Group("epo", [2, 3]), Group("unknown", [4]), Group("unknown2", [5])]
    rows = summarize_groups(runs, [], groups)
    assert [(row["runs"], row["seeds"], row["entropy (nats)"]) for row in rows[:3]] == [
        ("stock", "2", "1.500 ± 0.71"),
        ("epo", "2", "4.000 ± 1.4"),
        ("unknown", "1", "1.000"),
    ]
    assert summarize_groups(runs[4:], [], group_runs(runs[4:])) == []


def test_tables_compare_with_the_baseline(tmp_path):
    runs = [run_of("a", entropy=[1.0, 0.5], reward=[0.1, 0.4]), run_of("b", entropy=[1.0, 0.7], reward=[0.1, 0.2])]
    panels = build_panels(runs)
    row, base = summarize(runs, panels, 1)
    assert (row["entropy (nats)"], row["reward"]) == ("1.000 to 0.500 (-0.2)", "0.4 (+0.2)")
    assert (base["entropy (nats)"], base["reward"]) == ("1.000 to 0.700", "0.2")
    assert [found["last − baseline"] for found in panel_rows(runs, panels[0], 1)] == ["-0.2", ""]
    one, two, three = (tmp_path / name for name in "abc")
    assert with_baseline([one, two], two) == ([one, two], 1)
    assert with_baseline([one, two], three) == ([three, one, two], 0)
    assert with_baseline([one], None) == ([one], None)


def quickstart(root):
    """A quickstart's folder with two runs, one of them listed first although its name comes last."""
    for name in ("stock", "clip_cov"):
        write_run(root / name, lines_of(entropy=[1.0, 0.9], reward=[0.1, 0.2]), {"seed": 0, "methods": [name]})
    rows = {"before": {"pass@1": 0.1}, "stock": {"pass@1": 0.2, "pass@16": 0.5}, "clip_cov": {"pass@1": 0.3}}
    history = {"stock": [], "clip_cov": []}
    (root / "results.json").write_text(json.dumps({"settings": {}, "rows": rows, "history": history}))
    return root


def test_results_of_quickstarts_are_read(tmp_path):
    root = quickstart(tmp_path / "quickstart")
    assert run_folders(root) == [root / "stock", root / "clip_cov"] and run_folders(root / "stock") == [root / "stock"]
    runs = read_runs(run_folders(root), Known())
    assert [(found.label, found.run, found.scores) for found in read_evaluations(runs)] == [
        ("before", None, {"pass@1": 0.1}),
        ("stock", 0, {"pass@1": 0.2, "pass@16": 0.5}),
        ("clip_cov", 1, {"pass@1": 0.3}),
    ]
    assert [found.label for found in read_evaluations(runs[:1])] == ["before", "stock"]  # not of the other run
    text = render_page(report_of(runs, evaluations=read_evaluations(runs)))
    assert '<th scope="row">before</th><td>0.1</td>' in text and "Evaluation" in text
    (root / "results.json").write_text('["of another program"]')
    assert read_evaluations(runs) == [] and run_folders(root) == [root]
    (root / "results.json").write_text("{")
    assert read_evaluations(runs) == []


def test_numbers_are_rounded_shared_and_thinned(monkeypatch):
    steps = [*range(1, 1001)]
    series = [Series(run, [*steps], [step / 3 for step in steps]) for run in range(2)]
    series.append(Series(0, [*steps], [0.0] * 1000, "points"))
    data = embedded([Panel("reward", series)])
    assert data["stride"] == 1 and data["axes"] == [steps] and data["panels"][0]["series"][0]["y"][0] == 0.333333
    monkeypatch.setattr(numbers, "MOST_NUMBERS", 300)
    assert stride_of([Panel("reward", series)]) == 10
    mean, _, points = (thinned(item, 10) for item in series)
    assert len(mean.x) == 100 and (mean.x[0], mean.y[0]) == (5.5, pytest.approx(5.5 / 3))
    assert len(points.x) == 100 and points.x[:2] == [1, 11]
    short = Series(0, [1, 2], [0.0, 1.0])
    assert thinned(short, 10) is short


def test_page_of_eight_long_runs_is_below_a_megabyte_and_a_half():
    """Thirty metrics of 2000 log lines, and 48 completions of 800 tokens, both more than the page can hold."""
    draw = random.Random(0)
    columns = {f"clip_cov/m{index}": [draw.random() for _ in range(2000)] for index in range(30)}
    runs = [run_of(f"r{index}", {"seed": index}, entropy=REWARD[:1] * 2000, **columns) for index in range(8)]
    runs = [Run(run.label, run.folder, run.lines, run.settings, Known(methods=("clip_cov",))) for run in runs]
    from trl_entropy.report.heat import MOST_TOKENS, HeatMap

    tokens = [(f" word{draw.randrange(99)}", draw.random()) for _ in range(MOST_TOKENS // 48)]
    maps = [HeatMap(run, step, "?", 0.5, tokens, 300) for run in range(8) for step in (1, 2000) for _ in range(3)]
    report = report_of(runs, maps=maps)
    size = len(render_page(report).encode())
    assert len(report.panels) == 31 and 1_000_000 < size < 1_500_000


def test_a_quickstart_is_reported_by_its_folder_with_a_baseline(tmp_path, capsys):
    root = quickstart(tmp_path / "quickstart")
    text = write_report([root], tmp_path / "out", baseline=root / "stock")
    assert [line.split()[0] for line in text.splitlines()] == ["run", "stock", "clip_cov", "page:"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'name="difference"' in page and "stock (baseline)" in page and 'name="grouped"' not in page
