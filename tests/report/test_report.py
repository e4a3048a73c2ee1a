# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The report: its numbers are those of the runs, it loads nothing from outside, and errors are one line."""

import hashlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.report_runs import (
    ENTROPY,
    REWARD,
    Page,
    lines_of,
    one_run,
    panel_of,
    write_completions,
    write_run,
    write_tokens,
)

from trl_entropy import cli
from trl_entropy.commands.report import write_report
from trl_entropy.report.colors import color_of
from trl_entropy.report.heat import color_at, colored_text, heat_maps, scale_of
from trl_entropy.report.panels import build_panels, paired_changes
from trl_entropy.report.runs import labels_of, read_runs
from trl_entropy.report.samples import pass_at_k_points, tip_scatter, token_logs
from trl_entropy.report.summary import differing_settings, named_methods, summarize


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a report on two runs, and what it printed."""
    root = tmp_path_factory.mktemp("report")
    kept = [0.99 - 0.01 * step for step in range(12)]
    method = write_run(
        root / "<b>method",
        lines_of(entropy=[1.0] * 12, reward=REWARD, **{"clip_cov/kept_fraction": kept}),
        {"methods": ["clip_cov"], "clip_cov_ratio": 0.02, "seed": 1},
    )
    write_tokens(method, 1, ["a", "<script>alert(1)</script>", "\n", " z"], [0.0, 2.0, 0.5, None], "</script><i>")
    write_tokens(method, 12, ["last", " & least"], [1.0, 0.25])
    stock = write_run(root / "stock", settings={"seed": 0})
    text = write_report([stock, method], root / "out", 4)
    return root / "out", text


def test_page_holds_the_numbers_of_the_runs(report):
    page = Page((report[0] / "report.html").read_text())
    assert page.data["runs"] == ["stock", "<b>method"]
    panels = {panel["title"]: panel["series"] for panel in page.data["panels"]}
    entropy = panels["token entropy (nats)"]
    assert [item["run"] for item in entropy] == [0, 1]
    assert page.data["axes"][entropy[0]["x"]] == list(range(1, 13)) and entropy[0]["x"] == entropy[1]["x"]
    assert entropy[0]["y"] == pytest.approx(ENTROPY) and entropy[1]["y"] == [1.0] * 12  # six digits are kept
    assert panels["reward"][1]["y"] == pytest.approx(REWARD, abs=1e-6)
    (kept,) = panels["clip_cov/kept_fraction"]
    assert (kept["run"], kept["y"][-1]) == (1, pytest.approx(0.88))
    # The means over a tenth of twelve lines are those of one line.
    header, stock, method = page.tables["runs"]
    assert header[:5] == ["run", "methods", "steps", "entropy (nats)", "reward"]
    # A panel sums up its lines: first, last, lowest, highest, number of points.
    assert page.tables["numbers1"] == [
        ["run", "first", "last", "lowest", "highest", "points"],
        *([name, "0.3845", "0.7295", "0.3845", "0.7295", "12"] for name in ("stock", "<b>method")),
    ]
    assert stock[:5] == ["stock", "none", "12", "1.000 to 0.450", f"{REWARD[-1]:.4g}"]
    assert method[:4] == ["<b>method", "clip_cov", "12", "1.000 to 1.000"]
    assert page.tables["settings"][1:] == [
        ["clip_cov_ratio", "", "0.02"],
        ["methods", "none", "clip_cov"],
        ["seed", "0", "1"],
    ]


def test_page_loads_nothing_from_outside(report):
    page = Page((report[0] / "report.html").read_text())
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "embed", "base", "video", "audio"}
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert [attributes.get("type") for attributes in scripts] == ["application/json", "text/plain", None, None, None]
    assert not any({"src", "href", "srcset", "action"} & attributes.keys() for _, attributes in page.tags)
    # The browser refuses what the page may still try.
    (policy,) = [attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'"
    assert not re.search(r"url\(|@import", page.css)


def test_library_is_the_published_one_with_its_license(report):
    folder = ROOT / "trl_entropy" / "templates"
    license = (folder / "vega.license.txt").read_text()
    assert hashlib.sha256((folder / "vega.min.js").read_bytes()).hexdigest() in license
    text = (report[0] / "report.html").read_text()
    assert "University of Washington Interactive Data Lab" in text and "Mike Bostock" in text


def test_texts_of_runs_are_escaped(report):
    text = (report[0] / "report.html").read_text()
    page = Page(text)
    assert "<script>alert" not in text and "<b>method" not in text and text.count("</script>") == 5
    first, last = page.data["completions"]
    assert first["tokens"] == ["a", "<script>alert(1)</script>", "\n", " z"] and last["tokens"] == ["last", " & least"]


def test_entropies_of_tokens(report):
    page = Page((report[0] / "report.html").read_text())
    first, last = page.data["completions"]
    assert (first["entropies"], last["entropies"]) == ([0.0, 2.0, 0.5, None], [1.0, 0.25])
    assert page.data["scale"] == 2.0  # the hottest token
    assert [text for tag, text in page.texts if tag == "b"] == ["0.00", "0.50", "1.00", "1.50", "2.00"]
    heats = [attributes["style"] for tag, attributes in page.tags if tag == "b"]
    assert heats == [f"--heat: {share}" for share in (0.0, 0.25, 0.5, 0.75, 1.0)]


def test_page_is_for_keyboards_and_screen_readers(report):
    page = Page((report[0] / "report.html").read_text())
    assert ("html", {"lang": "en"}) in page.tags
    ranges = [attributes for tag, attributes in page.tags if tag == "input" and attributes["type"] == "range"]
    cursors = [attributes["aria-label"] for attributes in ranges if attributes.get("class") == "cursor"]
    titles = [panel["title"] for panel in page.data["panels"]]
    assert cursors[:2] == ["Values of token entropy (nats)", "Values of reward"] and len(cursors) == len(titles)
    # Besides: smoothing, and one slider for each completion, with a label around it.
    assert len(ranges) == len(cursors) + 1 + len(page.data["completions"])
    figures = [attributes["aria-labelledby"] for tag, attributes in page.tags if tag == "figure"]
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert set(figures) <= set(identifiers) and len(set(identifiers)) == len(identifiers)
    regions = [attributes for _, attributes in page.tags if attributes.get("role") == "region"]
    assert len(regions) == len(page.tables) and all(region["tabindex"] == "0" for region in regions)
    heads = [attributes["scope"] for tag, attributes in page.tags if tag == "th"]
    assert heads.count("row") == sum(len(rows) - 1 for rows in page.tables.values())
    assert heads.count("col") == sum(len(rows[0]) for rows in page.tables.values())
    captions = [text for tag, text in page.texts if tag == "caption"]
    assert captions[:2] == ["Runs", "Settings that differ"] and len(captions) == len(page.tables)


def test_table_of_the_terminal(report):
    header, stock, method, where = report[1].splitlines()
    assert header.split()[:3] == ["run", "methods", "steps"] and method.startswith("<b>method  clip_cov     12")
    assert "1.000 to 0.450" in stock and where == f"page: {report[0] / 'report.html'}"


@pytest.mark.parametrize(
    ("settings", "logged", "low", "high"),
    [
        (
            {"methods": ["epo"], "epo_low": 0.8, "epo_high": 1.2},
            {"epo/history_entropy": [2.0, 1.0]},
            [1.6, 0.8],
            [2.4, 1.2],
        ),
        ({"methods": ["epo"]}, {"epo/history_entropy": [2.0, 1.0]}, [0.0, 0.0], [4.0, 2.0]),
        ({"methods": ["aepo"]}, {"aepo/target_entropy": [0.7, 0.7]}, [0.7, 0.7], [0.7, 0.7]),
        (
            {"methods": ["epo"], "entropy_keep": 0.5},
            {"epo/history_entropy": [2.0, 1.0], "entropy_keep/target": [0.8, 0.7]},
            [0.8, 0.7],
            [0.8, 0.7],
        ),
        ({"use_adaptive_entropy": True, "entropy_target": 0.4}, {}, [0.4, 0.4], [0.4, 0.4]),
        ({"use_adaptive_entropy": True}, {}, [0.2, 0.2], [0.2, 0.2]),  # TRL's default
    ],
)
def test_target_is_drawn(tmp_path, settings, logged, low, high):
    runs = one_run(tmp_path / "run", lines_of(entropy=[1.5, 1.1], **logged), settings)
    panel = panel_of(runs, "token entropy")
    (band,) = [item for item in panel.series if item.kind == "band"]
    assert (band.x, band.y, band.upper) == ([1, 2], pytest.approx(low), pytest.approx(high))


def test_no_target(tmp_path):
    for settings in (None, {"methods": ["clip_cov"]}, {"entropy_target": 0.5}):
        assert one_run(tmp_path / "run", settings=settings)[0].target() is None


def test_pass_at_k_of_the_completions(tmp_path):
    """By hand, of four samples: 1 and 2 right give pass@1 (1/4 + 2/4) / 2 and pass@4 1; 0 and 1 give 1/8 and 1/2."""
    folder = tmp_path / "run"
    logged = {"rewards/shape/mean": [0.5] * 3, "rewards/right/mean": [0.1, 0.2, 0.3]}
    runs = one_run(folder, lines_of(entropy=[1.0, 0.9, 0.8], **logged))
    prompts = ["a"] * 4 + ["b"] * 4
    shape = [0.5] * 8
    write_completions(folder, 1, prompts, shape=shape, right=[1.0, 0, 0, 0, 1, 0, 1, 0], mean_entropy=[1.0] * 8)
    write_completions(folder, 2, prompts, shape=shape, right=[0.0, 0, 0, 0, 0, 0, 0, 1], mean_entropy=[1.0] * 8)
    # A completion that was not scored: a prompt with three of the usual four is left out.
    write_completions(folder, 3, prompts, shape=shape, right=[None, 1, 1, 1, 0, 0, 1, 1], mean_entropy=[1.0] * 8)
    panel = panel_of(runs, "pass@k")
    many, one = panel.series
    assert (many.label, many.x, many.y) == ("pass@4", [1, 2, 3], [1.0, 0.5, 1.0])
    assert (one.label, one.y) == ("pass@1", pytest.approx([0.375, 0.125, 0.5]))
    assert "`right`" in panel.about
    row = summarize(runs, [panel])[0]
    assert (row["pass@4"], row["pass@1"]) == ("1.000", "0.500")


def test_files_of_an_earlier_run_are_left_out(tmp_path):
    """Left out are steps that this run has not logged. Steps are in numerical order."""
    logged = {"entropy": 1.0, "rewards/right/mean": 0.5}
    steps = [90_000, 100_000, 110_000]
    runs = one_run(tmp_path, [{"step": step, **logged} for step in steps])
    for step in (50, *steps, 200_000):
        write_completions(tmp_path, step, ["a", "a"], right=[1.0, 0.0])
        write_tokens(tmp_path, step, ["a"], [1.0])
    (tmp_path / "tip_scatter.json").write_text('{"step": 200000, "entropy": [], "divergence": [], "kept": []}')
    assert [point["step"] for point in pass_at_k_points(runs[0])[1]] == steps
    assert [log["step"] for log in token_logs(runs[0])] == [90_000, 110_000]
    assert tip_scatter(runs[0]) is None
    runs[0].settings["seed"] = 1  # known settings, without `log_completions`
    assert pass_at_k_points(runs[0]) is None


def test_pass_at_k_needs_groups_and_rewards_of_0_and_1(tmp_path):
    runs = one_run(tmp_path / "run", lines_of(entropy=[1.0], **{"rewards/share/mean": [0.5]}))
    write_completions(tmp_path / "run", 1, ["a", "a"], share=[0.5, 1.0])
    assert not any(panel.title == "pass@k" for panel in build_panels(runs))
    write_completions(tmp_path / "run", 1, ["a", "b"], share=[0.0, 1.0])
    assert not any(panel.title == "pass@k" for panel in build_panels(runs))


def test_pass_at_k_of_conversations(tmp_path):
    """Prompts are told apart by what lies deep in them."""
    runs = one_run(tmp_path / "run", lines_of(entropy=[1.0], **{"rewards/right/mean": [0.5]}))
    words = [{"role": "user", "content": str(turn)} for turn in range(600)]
    prompts = [[*words, {"role": "user", "content": last}, *words] for last in "aabb"]
    write_completions(tmp_path / "run", 1, prompts, right=[1.0, 0.0, 0.0, 0.0])
    many, one = panel_of(runs, "pass@k").series
    assert (many.label, many.y, one.y) == ("pass@2", [0.5], [0.25])


def test_pass_at_k_as_logged(tmp_path):
    lines = lines_of(entropy=[1.0, 0.9], **{"eval_pass@16": [0.8, 0.7], "eval_pass@1": [0.2, 0.3]})
    many, one = panel_of(one_run(tmp_path / "run", lines), "pass@k").series
    assert (many.label, many.y, many.kind) == ("eval_pass@16", [0.8, 0.7], "line")
    assert (one.label, one.y, one.kind) == ("eval_pass@1", [0.2, 0.3], "second")


def test_law_of_points_on_it(tmp_path):
    runs = one_run(tmp_path / "run")
    panel = panel_of(runs, "reward against entropy")
    points, fit = panel.series
    assert (points.x, points.y) == (ENTROPY, REWARD)
    assert fit.y == pytest.approx([1.2 - 0.3 * math.exp(x) for x in fit.x])
    assert (min(fit.x), max(fit.x)) == pytest.approx((0.45, 1.0))
    assert panel.notes == {0: "a = 0.300, b = 1.200, R² = 1.00, at entropy 0: 0.900"}


def test_entropy_is_the_mean_over_tokens_if_a_run_has_it(tmp_path):
    """TRL's is a mean of micro-batch means, and 0 without a valid token. Lines of older versions have only TRL's."""
    lines = lines_of(entropy=[0.9, 0.7, 0.4, 0.0], reward=[0.1, 0.2, 0.3, 0.4])
    for line, mean in zip(lines[1:], (0.8, 0.5, None), strict=True):
        line["entropy/mean"] = mean
    lines += [{"step": 4, "eval_entropy": 0.3, "eval_entropy/mean": 0.35}, {"step": 5, "eval_entropy": 0.2}]
    runs = one_run(tmp_path / "run", lines, settings={"use_adaptive_entropy": True, "entropy_target": 0.6})
    law = panel_of(runs, "reward against entropy").series[0]
    assert (law.x, law.y) == ([0.9, 0.8, 0.5], [0.1, 0.2, 0.3])
    target, training, evaluation = panel_of(runs, "token entropy").series
    assert (target.x, target.y, target.upper) == ([1, 2, 3], [0.6] * 3, [0.6] * 3)
    assert (training.x, training.y) == ([1, 2, 3], [0.9, 0.8, 0.5])
    assert (evaluation.x, evaluation.y, evaluation.kind) == ([4, 5], [0.35, 0.2], "evaluation")
    assert summarize(runs, [])[0]["entropy (nats)"] == "0.900 to 0.500"


@pytest.mark.parametrize(("every", "pairs"), [(1, [(0.1, 1.0), (0.2, 2.0)]), (4, [(0.2, 1.0), (0.3, 2.0)])])
def test_changes_are_paired(tmp_path, every, pairs):
    """A log line has the prediction for its step and the realized change that the line before predicted."""
    lines = [
        {"step": every, "entropy": 1.0, "entropy/predicted_change": 0.1},
        {"step": 2 * every, "entropy": 1.0, "entropy/predicted_change": 0.2, "entropy/realized_change": 1.0},
        {"step": 3 * every, "entropy": 1.0, "entropy/predicted_change": 0.3, "entropy/realized_change": 2.0},
    ]
    runs = one_run(tmp_path / "run", lines)
    assert list(zip(*paired_changes(runs[0]), strict=True)) == pairs
    assert panel_of(runs, "realized entropy change").series[0].y == [1.0, 2.0]


def test_tokens_of_a_distillation(tmp_path):
    runs = one_run(
        tmp_path / "run", lines_of(loss=[2.0, 1.0], entropy=[1.0, 0.9], **{"tip/kept_fraction": [0.5, 0.5]})
    )
    scatter = {"step": 2, "entropy": [0.1, 0.2, 0.3], "divergence": [3.0, 2.0, 1.0], "kept": [False, True, True]}
    scatter |= {"entropy_threshold": 0.15, "divergence_threshold": 1.5}
    (tmp_path / "run" / "tip_scatter.json").write_text(json.dumps(scatter))
    dropped, kept, *thresholds = panel_of(runs, "divergence from the teacher").series
    assert (dropped.label, dropped.x, dropped.y) == ("dropped", [0.1], [3.0])
    assert (kept.label, kept.x, kept.y) == ("kept", [0.2, 0.3], [2.0, 1.0])
    assert [(item.x, item.y) for item in thresholds] == [([0.15, 0.15], [0.0, 3.0]), ([0.0, 0.3], [1.5, 1.5])]
    assert panel_of(runs, "loss").series[0].y == [2.0, 1.0] and panel_of(runs, "tip/kept_fraction")
    assert named_methods(runs[0]) == "tip"


def test_evaluations_are_points(tmp_path):
    lines = [*lines_of(entropy=[1.0, 0.9], reward=[0.1, 0.2]), {"step": 2, "eval_reward": 0.5, "eval_entropy": None}]
    runs = one_run(tmp_path / "run", lines)
    assert [(item.kind, item.x, item.y) for item in panel_of(runs, "reward").series] == [
        ("line", [1, 2], [0.1, 0.2]),
        ("evaluation", [2], [0.5]),
    ]


def test_values_that_are_no_numbers_are_left_out(tmp_path):
    lines = lines_of(entropy=[1.0, math.nan, 0.8], reward=[0.1, 0.2, None], note=["x", "y", "z"])
    (run,) = one_run(tmp_path / "run", lines)
    assert run.series("step", "entropy") == [[1, 3], [1.0, 0.8]] and run.series("reward") == [[0.1, 0.2]]


def test_state_is_that_of_the_last_checkpoint_where_it_is_newer(tmp_path):
    for step in (9, 100, 20):
        write_run(tmp_path / f"checkpoint-{step}", lines_of(entropy=[float(step)]), global_step=step)
    (tmp_path / "checkpoint-best").mkdir()
    assert read_runs([tmp_path])[0].lines[0]["entropy"] == 100
    for step, shown in ((50, 100), (None, 100), (100, 1)):  # the first two of before the run was resumed
        write_run(tmp_path, global_step=step)
        assert read_runs([tmp_path])[0].lines[0]["entropy"] == shown


@pytest.mark.parametrize("text", ["", "[]", '{"log_history": [{"step": 1', '{"global_step": 200, "log_history": []}'])
def test_an_older_state_stands_in_for_one_that_cannot_be_read(tmp_path, caplog, text):
    for step in (5, 10):
        write_run(tmp_path / f"checkpoint-{step}", lines_of(entropy=[float(step)]), global_step=step)
    broken = [tmp_path / "trainer_state.json", tmp_path / "checkpoint-10" / "trainer_state.json"]
    for path in broken:
        path.write_text(text)
    assert read_runs([tmp_path])[0].lines[0]["entropy"] == 5
    for path, record in zip(broken, caplog.records, strict=True):
        message = record.getMessage()
        assert message.startswith(f"{path} must ") and message.count("\n") == 0
        assert message.endswith(f" Showing the run from {tmp_path / 'checkpoint-5' / 'trainer_state.json'} instead.")
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text(text)
    with pytest.raises(ValueError, match=f"{re.escape(str(broken[0]))} must "):
        read_runs([tmp_path])


def test_labels_are_short_and_tell_runs_apart(tmp_path):
    paths = [tmp_path / "one" / "stock", tmp_path / "two" / "stock"]
    assert labels_of(paths) == ["one/stock", "two/stock"] and labels_of(paths[:1]) == ["stock"]


def test_settings_come_from_a_recipe_or_are_not_known(tmp_path):
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two")
    (one / "recipe.yaml").write_text(
        "methods: epo\nlearning_rate: 1.0e-4\noutput_dir: /somewhere\nreward_funcs: [x]\n"
    )
    runs = read_runs([one, two])
    assert [named_methods(run) for run in runs] == ["epo", "not known"]
    assert differing_settings(runs) == {
        "learning_rate": ["0.0001", "not known"],
        "methods": ["epo", "not known"],
    }


def contrast(one, other):
    """WCAG's contrast of two colors `#rrggbb`."""

    def luminance(color):
        parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("dark", "page"), [(False, "#ffffff"), (True, "#12161c")])
def test_colors_of_runs_differ_and_are_seen(dark, page):
    colors = [color_of(run, dark) for run in range(200)]
    assert len(set(colors)) == 200 and min(contrast(color, page) for color in colors) >= 3


def test_heat_in_the_terminal(tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    tokens = ["a", "\x1b[31m[b]", "c", "d", "e"]
    write_tokens(folder, 4, tokens, [0.0, 0.8, 0.4, None, math.nan], prompt="p", advantage=math.inf)
    runs = read_runs([folder])
    (shown,) = heat_maps(runs, 3)
    assert (shown.step, shown.mean, scale_of([shown])) == (4, pytest.approx(0.4), 0.8)
    assert (shown.advantage, shown.tokens[-1]) == (None, ("e", None))
    text = colored_text(shown, 0.8)
    assert text.plain == "p | a\ufffd[31m[b]cde"  # no escape reaches the terminal, and brackets are text
    styles = {text.plain[span.start : span.end]: span.style for span in text.spans}
    assert styles["\ufffd[31m[b]"].endswith("on #d94801") and styles["c"].endswith(f"on {color_at(0.4, 0.8)}")
    assert (styles["a"], styles["d"], styles["e"]) == ("not dim", "dim", "dim")
    assert cli.main(["report", str(folder), "--output", str(tmp_path / "out"), "--tokens", "1"]) == 0
    printed = capsys.readouterr().out
    assert "run, step 4, mean entropy 0.400 nats" in printed and "nats:  0.00  0.20  0.40  0.60  0.80" in printed


def test_long_completions_are_cut(tmp_path):
    folder = write_run(tmp_path / "run")
    write_tokens(folder, 1, ["t"] * 1000, [1.0] * 1000)
    (shown,) = heat_maps(read_runs([folder]), 1)
    assert (len(shown.tokens), shown.left_out) == (800, 200)
    assert colored_text(shown, 1.0).plain.endswith(" ... 200 more tokens")


def break_run(tmp_path, how):
    folder = write_run(tmp_path / "run")
    state, settings = folder / "trainer_state.json", folder / "run_settings.json"
    if how == "missing":
        return tmp_path / "nothing"
    if how == "file":
        return state
    if how in ("empty", "parent"):
        state.rename(folder / "other.json")
        if how == "parent":
            write_run(folder / "inner")
    elif how == "json":
        state.write_text('{"log_history": [')
    elif how == "history":
        state.write_text('{"log_history": 3}')
    elif how == "nothing":
        write_run(folder, [{"step": 3, "train_runtime": 1.0}])
    elif how == "settings":
        settings.write_text("{")
    elif how == "settings list":
        settings.write_text("[1]")
    elif how == "tokens":
        write_tokens(folder, 3, ["a", "b"], [1.0])
    elif how == "prompt":
        write_tokens(folder, 3, ["a"], [1.0], prompt=None)
    elif how == "entropy":
        write_tokens(folder, 3, ["a"], ["1.0"])
    elif how == "scatter":
        (folder / "tip_scatter.json").write_text('{"entropy": [1.0], "divergence": [], "kept": []}')
    elif how == "parquet":
        write_tokens(folder, 1, ["a"], [1.0])
        (folder / "completions" / "completions_00003.parquet").write_bytes(b"PAR1 no table")
    return folder


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "RUN must be the folder of a run, got '.*nothing', which does not exist"),
        ("file", "RUN must be the folder of a run, got '.*trainer_state.json', which is a file"),
        ("empty", r"run must hold trainer_state.json, .* and does not. `trainer.save_state\(\)` writes one"),
        ("parent", "run must hold trainer_state.json, .* There are runs in .*inner"),
        ("json", "trainer_state.json must be JSON, but cannot be read: Expecting value"),
        ("history", "trainer_state.json must have a list of log lines as `log_history`, got int"),
        ("nothing", "trainer_state.json must have logged something, but has no line with `entropy` or `loss`"),
        ("settings", "run_settings.json must be JSON or YAML, but cannot be read"),
        ("settings list", "run_settings.json must hold a mapping of settings, got list"),
        (
            "tokens",
            "token_entropies_00003.json must hold `step` and `completions` with as many `tokens` as `entropies`",
        ),
        ("prompt", "token_entropies_00003.json must hold .*: texts, also as `prompt`, and numbers or null"),
        ("entropy", "token_entropies_00003.json must hold .*: texts, also as `prompt`, and numbers or null"),
        ("scatter", "tip_scatter.json must hold lists `entropy`, `divergence` and `kept` of the same length"),
        ("parquet", "completions_00003.parquet must be a Parquet file, but cannot be read"),
        ("--tokens", "--tokens needs a run that kept tokens: train with `log_token_entropies` above 0"),
        ("--tokens=-1", "argument --tokens: must be a whole number >= 0, got '-1'"),
        ("twice", "RUN must be given once each, got 'run' twice"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, capsys, how, message):
    folder = str(break_run(tmp_path, how))
    extra = {"--tokens": ["--tokens", "2"], "--tokens=-1": ["--tokens=-1"], "twice": [f"{folder}/."]}.get(how, [])
    with pytest.raises(SystemExit, match="2"):
        cli.main(["report", folder, *extra, "--output", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert re.match(f"trl-entropy report: error: .*{message}", error) and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_rich_is_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trl_entropy.commands.report.find_spec", lambda package: None)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["report", str(tmp_path), "--tokens", "1"])
    assert (
        capsys.readouterr().err == "trl-entropy report: error: --tokens needs rich: pip install 'trl-entropy[rich]'\n"
    )


def test_wrong_path_is_an_error_before_anything_slow_is_loaded(tmp_path):
    code = f"""
import sys
from trl_entropy import cli
try:
    cli.main(["report", {str(tmp_path / "nothing")!r}])
except SystemExit as end:
    print(end.code, sorted({{"torch", "trl", "transformers", "pandas", "matplotlib"}} & {{*sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "2 []\n" and done.stderr.startswith(
        "trl-entropy report: error: RUN must be the folder of a run"
    )


def test_a_report_is_made_without_torch(tmp_path):
    """Methods are known from what is stored of them, also one that aims at an entropy. CPU time is below 3 s."""
    lines = [{"step": 1, "entropy": 1.0, "reward": 0.5, "epo/history_entropy": 1.0}]
    folders = [write_run(tmp_path / name, lines, {"methods": ["epo"]}) for name in ("a", "b")]
    code = f"""
import sys, time
from trl_entropy.commands import report
report.main([*{[str(folder) for folder in folders]}, "--output", {str(tmp_path / "out")!r}])
print(time.process_time() < 3, sorted({{"torch", "trl", "transformers", "matplotlib"}} & {{*sys.modules}}))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "True []" and (tmp_path / "out" / "report.html").exists()


def test_diagnosis_is_at_the_top(tmp_path):
    collapsed = write_run(
        tmp_path / "<i>low", lines_of(entropy=[0.97**step for step in range(100)], reward=[0.5] * 100)
    )
    healthy = write_run(tmp_path / "fine")
    text = write_report([healthy, collapsed], tmp_path / "out", None)
    finding = "collapse, step 78: Mean token entropy has fallen from 0.97 to 0.0506 nats."
    assert text.startswith(f"<i>low: {finding}") and text.count("collapse") == 1
    page = (tmp_path / "out" / "report.html").read_text()
    top, _, rest = page.partition("<h2>Runs</h2>")
    assert (
        f"<li>{finding}" in top
        and "a higher <code>epsilon_high</code>" in top
        and "<p>&lt;i&gt;low</p>" in top
        and "<p>fine</p>" not in page
    )
    write_report([healthy], tmp_path / "out", None)
    assert "<h2>Diagnosis</h2>" not in (tmp_path / "out" / "report.html").read_text()
