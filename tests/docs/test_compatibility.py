# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The committed matrix is that of the present methods, and of outcomes alone."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

from support.compatibility import LOSSES, OUTCOMES, SECTIONS, TABLE, Recorder, render
from support.tiny import LOSS_TYPES

from trl_entropy.methods import METHODS


def test_committed_matrix_has_each_method_and_is_made_of_the_outcomes():
    text = TABLE.read_text()
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        assert re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE) == list(METHODS)
    outcomes = json.loads(OUTCOMES.read_text())
    assert text == render(outcomes, list(METHODS))
    features = {feature for section in SECTIONS.values() for feature in section}
    assert all(set(row) <= features for row in outcomes.values()) and LOSSES == LOSS_TYPES
    assert all("vLLM" not in row and "DeepSpeed" not in row for row in outcomes.values())  # nothing runs them


def item(nodeid, marker="{kind} loss", **params):
    mark = marker and SimpleNamespace(args=(marker,))
    return SimpleNamespace(
        nodeid=nodeid, get_closest_marker=lambda name: mark, callspec=SimpleNamespace(params=params)
    )


def report(nodeid, when="call", outcome="passed"):
    return SimpleNamespace(nodeid=nodeid, when=when, passed=outcome == "passed", failed=outcome == "failed")


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


def test_words_of_the_table():
    page = render({"one": {"LoRA": "passed", "bf16": "failed"}}, ["one", "two"])
    assert "| `one` | yes | **no** | not tested |" in page and "| `two` | not tested | not tested |" in page


def test_every_feature_has_a_test():
    sources = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    marked = set(re.findall(r'^@pytest.mark.compatibility\("(.*)"\)', sources, flags=re.MULTILINE))
    features = {feature for section in SECTIONS.values() for feature in section}
    assert marked == features - {*LOSSES, "vLLM", "DeepSpeed"} | {"{loss_type}"}
