# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The committed matrix lists the current methods, and only outcomes of tests."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.compatibility import LOSSES, OUTCOMES, SECTIONS, TABLE, Recorder, merged, render
from support.tiny import LOSS_TYPES

from trl_entropy.methods import METHODS


def check_page(text, outcomes, methods):
    """The page shows the outcomes. A method without outcomes has a row "not tested" or is missing."""
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    rows = [re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE) for section in sections]
    assert len(rows) == len(SECTIONS) and all(names == rows[0] for names in rows)
    assert rows[0] == [name for name in methods if name in outcomes or name in rows[0]]
    assert set(outcomes) <= set(methods) and text == render(outcomes, rows[0])


def test_committed_matrix_has_each_method_and_is_made_of_the_outcomes():
    outcomes = json.loads(OUTCOMES.read_text())
    check_page(TABLE.read_text(), outcomes, list(METHODS))
    features = {feature for section in SECTIONS.values() for feature in section}
    assert all(set(row) <= features for row in outcomes.values()) and LOSSES == LOSS_TYPES


def test_a_method_without_outcomes_needs_no_new_page():
    outcomes = json.loads(OUTCOMES.read_text())
    page = render(outcomes, list(METHODS))
    for methods in ([*METHODS, "new"], ["new", *METHODS]):
        check_page(page, outcomes, methods)  # as committed, and as `make compatibility` makes it
        check_page(render(outcomes, methods), outcomes, methods)
        row = next(line for line in render(outcomes, methods).splitlines() if line.startswith("| `new`"))
        assert set(row.removeprefix("| `new` | ").removesuffix(" |").split(" | ")) == {"not tested"}


@pytest.mark.parametrize(
    "change",
    [
        lambda page, outcomes, methods: (page.replace("| yes |", "| **no** |", 1), outcomes, methods),
        lambda page, outcomes, methods: (page, outcomes, methods[::-1]),
        lambda page, outcomes, methods: (page, outcomes, methods[1:]),
        lambda page, outcomes, methods: (page, {**outcomes, methods[0]: {}}, methods),
        lambda page, outcomes, methods: (render(outcomes, methods[1:]), outcomes, methods),
    ],
    ids=["other outcome", "other order", "method gone", "outcome gone", "row gone"],
)
def test_a_stale_page_is_found(change):
    outcomes, methods = json.loads(OUTCOMES.read_text()), list(METHODS)
    with pytest.raises(AssertionError):
        check_page(*change(render(outcomes, methods), outcomes, methods))


def item(nodeid, marker="{kind} loss", **params):
    mark = marker and SimpleNamespace(args=(marker,))
    return SimpleNamespace(
        nodeid=nodeid, get_closest_marker=lambda name: mark, callspec=SimpleNamespace(params=params)
    )


def report(nodeid, when="call", outcome="passed"):
    flags = {name: outcome == name for name in ("passed", "failed", "skipped")}
    return SimpleNamespace(nodeid=nodeid, when=when, **flags, user_properties=[])


def test_outcomes_are_recorded():
    recorder = Recorder()
    items = [
        item("good", methods=["one"], kind="some"),
        item("both", methods=["one", "two"], kind="some"),
        item("unmarked", None, methods=["three"]),
        item("bad", "own", methods=["two"]),
        item("bad too", "own", methods=["one"]),
        item("skipped", "own", methods=["three"]),
    ]
    recorder.pytest_collection_modifyitems(items)
    assert [kept.nodeid for kept in items] == ["good", "bad", "bad too", "skipped"]
    for found in (
        *(report("good", when) for when in ("setup", "call", "teardown")),
        *(report("bad", "setup"), report("bad", "call", "failed"), report("bad"), report("bad", "teardown")),
        *(report("bad too", "setup", "failed"), report("skipped", "setup"), report("skipped", "call", "skipped")),
    ):
        recorder.pytest_runtest_logreport(found)
    assert recorder.outcomes == {"one": {"some loss": "passed", "own": "failed"}, "two": {"own": "failed"}}


def test_some_rows_are_run_and_the_others_kept():
    recorder = Recorder(only=["two"])
    items = [item("one", methods=["one"], kind="some"), item("two", methods=["two"], kind="some")]
    recorder.pytest_collection_modifyitems(items)
    assert [kept.nodeid for kept in items] == ["two"]
    recorder.pytest_runtest_logreport(report("two", outcome="failed"))
    stored = {"one": {"LoRA": "passed"}, "two": {"LoRA": "passed", "some loss": "passed"}}
    found = merged(stored, recorder.outcomes, recorder.only)
    assert found == {"one": {"LoRA": "passed"}, "two": {"some loss": "failed"}}  # nothing of an older run stays
    assert merged(stored, recorder.outcomes, None) == {"two": {"some loss": "failed"}}


def test_outcomes_of_other_environments_are_kept():
    recorder = Recorder(features=["own", "other"])
    items = [item("one", "own", methods=["one"]), item("some", methods=["one"], kind="some")]
    items += [item("two", "other", methods=["two"])]
    recorder.pytest_collection_modifyitems(items)
    assert [kept.nodeid for kept in items] == ["one", "two"]
    recorder.pytest_runtest_logreport(report("one"))
    recorder.pytest_runtest_logreport(report("two", "setup", "skipped"))
    assert recorder.outcomes == {"one": {"own": "passed"}} and recorder.skipped == [("two", "other")]
    stored = {
        "one": {"own": "failed", "other": "passed", "LoRA": "failed"},
        "two": {"own": "passed", "other": "failed"},
    }
    found = merged(stored, recorder.outcomes, None, recorder.features, recorder.skipped)
    # A test that is gone leaves no outcome, one that was skipped or not asked for does
    assert found == {"one": {"own": "passed", "LoRA": "failed"}, "two": {"other": "failed"}}


def test_words_of_the_table():
    page = render({"one": {"LoRA": "passed", "QLoRA": "failed"}}, ["one", "two"])
    assert "| `one` | yes | **no** | not tested |" in page and "| `two` | not tested | not tested |" in page


def test_every_feature_has_a_test():
    sources = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    marked = set(re.findall(r'^@pytest.mark.compatibility\("(.*)"\)', sources, flags=re.MULTILINE))
    features = {feature for section in SECTIONS.values() for feature in section}
    assert marked == features - {*LOSSES} | {"{loss_type}"}
