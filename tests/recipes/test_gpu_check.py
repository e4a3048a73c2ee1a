# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`recipes/benchmarks/gpu_check.py`: its checks can fail, and its report can be read whatever happens to a part."""

import argparse
import importlib
import json
import math
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.version import Version
from transformers.utils import is_triton_available

from trl_entropy.head import torch_tiles


BENCHMARKS = Path(__file__).parents[2] / "recipes" / "benchmarks"
OWN = ("gpu_check", "gpu_report", "gpu_heads", "gpu_training", "head", "kappa", "distillation", "overhead")


@pytest.fixture(scope="module")
def scripts():
    """The modules of the script. Afterwards names such as `head` are free again."""
    before = dict(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in OWN})
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in OWN:
            sys.modules.pop(name, None)
        sys.modules.update({name: before[name] for name in OWN if name in before})


@pytest.fixture
def sizes(scripts):
    return argparse.Namespace(**scripts.gpu_check.SIZES["small"])


def started(scripts, folder, *names, seconds=60.0):
    """A report with parts whose boxes have begun."""
    parts = [scripts.gpu_report.Part(name, name, box=seconds, deadline=time.time() + seconds) for name in names]
    return scripts.gpu_report.Report(folder, {"device": "CPU"}, parts)


def rows_of(folder, name):
    part = json.loads((folder / "gpu_check.json").read_text())["parts"][name]
    return {row.pop("row"): row for row in part["rows"]}


# What the parts measure


def test_steps(scripts, sizes, tmp_path, monkeypatch):
    names = ("no method", "no method, 80/20 on both sides", "clip_cov", "branching")
    monkeypatch.setattr(scripts.gpu_training, "ROWS", {name: scripts.gpu_training.ROWS[name] for name in names})
    report = started(scripts, tmp_path, "steps")
    scripts.gpu_training.steps(report.parts["steps"], sizes)
    rows = rows_of(tmp_path, "steps")
    assert list(rows) == list(names[:3])
    for row in rows.values():
        assert row["ms"] > 0 and row["stock ms"] > 0 and row["ratio"] > 0 and row["rounds"] == sizes.rounds
        assert row["peak MiB"] is None  # no device that counts it
    assert rows["no method"]["live"] == 1
    assert rows["no method, 80/20 on both sides"]["live"] == pytest.approx(0.2, abs=0.02)
    part = report.parts["steps"]
    assert part.missing == ["branching"] and "branching: not measured. `tools`" in part.notes[-1]


def test_rows_of_steps_are_all_methods(scripts):
    from trl_entropy import METHODS

    assert set(METHODS) < set(scripts.gpu_training.ROWS)
    assert scripts.gpu_training.ROWS["no method, 80/20 on both sides"][1:] == ({"top_entropy_quantile": 0.2},) * 2


def test_heads_and_condition_numbers(scripts, sizes, tmp_path):
    report = started(scripts, tmp_path, "head", "distillation", "kappa")
    scripts.gpu_heads.speed(report.parts["head"], sizes, width=32)
    scripts.gpu_heads.distillation_heads(report.parts["distillation"], sizes)
    scripts.gpu_training.condition_numbers(report.parts["kappa"], sizes)
    assert [part.missing for part in report.parts.values()] == [[], [], []]
    head = rows_of(tmp_path, "head")
    assert head["TRL's head"]["ratio"] == head["TRL's head"]["ratio of backward"] == 1
    assert head["full logits"]["backward ms"] > 0 and head["ours, 10% live"]["forward ms"] > 0
    assert rows_of(tmp_path, "distillation")["stock"]["ratio"] == 1
    kappa = rows_of(tmp_path, "kappa")
    assert kappa["ours"]["ok"] and kappa["ours"]["difference"] < 1e-9 < kappa["PEFT's selector"]["difference"] < 1e-2


def checked(scripts, sizes, tmp_path, spec):
    """The rows of the check, of the tiles that this device uses: torch's."""
    report = started(scripts, tmp_path, "kernels")
    data = scripts.head.example(scripts.gpu_heads.settings(sizes, "float32", 24, 100), 32)
    scripts.gpu_heads.check_statistics(report.parts["kernels"], "x", data[:3], spec, "float32")
    return report.parts["kernels"]


def test_checks_of_the_head(scripts, sizes, tmp_path):
    part = checked(scripts, sizes, tmp_path, scripts.gpu_heads.ALL)
    assert part.wrong == [] and len(part.rows) == 9
    assert all(row["ok"] and row["error"] < row["limit"] for row in part.rows)


def test_checks_of_the_head_find_a_wrong_kernel(scripts, sizes, tmp_path, monkeypatch):
    original = torch_tiles.differentiate

    def wrong(tile, *args):
        original(tile, *args)
        tile[:, 0] *= 1.5

    monkeypatch.setattr(torch_tiles, "differentiate", wrong)
    part = checked(scripts, sizes, tmp_path, scripts.gpu_heads.SPECS["log-probability, entropy"])
    assert part.wrong == ["x, gradient of hidden", "x, gradient of weight"]
    assert "x, gradient of hidden, x, gradient of weight" in (tmp_path / "gpu_check.md").read_text()


def test_nucleus_of_the_reference(scripts):
    """Probabilities 0.4, 0.2, 0.2, 0.1, 0.1: tokens of equal probability are in the nucleus together."""
    log_p = torch.tensor([[0.2, 0.4, 0.1, 0.2, 0.1]], dtype=torch.float64).log()
    of_two = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))  # of 0.4, 0.2, 0.2
    for top_p, include, expected in ((0.7, False, 0.0), (0.7, True, of_two), (0.85, False, of_two)):
        found = scripts.gpu_heads.nucleus_entropy(log_p, top_p, include)
        torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64), rtol=0, atol=1e-12)


# What becomes of a part


def test_a_failing_and_a_late_part_leave_a_report(scripts, tmp_path):
    gpu_report = scripts.gpu_report

    def failing(part):
        part.row("before", ms=1.5)
        raise KeyError("a kernel | that broke")

    def late(part):
        part.plan(["first", "second"])
        part.row("first", ms=2.5, ok=False)
        time.sleep(60)

    def last(part):
        """While a part runs, files are those that a kill would leave."""
        part.row("one", ms=3.25)
        text = (tmp_path / "gpu_check.md").read_text()
        assert "| last | running |" in text and "| one | 3.25 |" in text and "KeyError" in text
        assert rows_of(tmp_path, "last")["one"] == {"ms": 3.25}

    report = started(scripts, tmp_path, "failing", "late", "last")
    functions, weights = {"failing": failing, "late": late, "last": last}, {"failing": 1, "late": 0.02, "last": 1}
    begin = time.time()
    assert gpu_report.run_parts(report, functions, weights, begin + 20)
    assert time.time() - begin < 5
    statuses = {name: part.status for name, part in gpu_report.Report.read(tmp_path).parts.items()}
    assert statuses == {"failing": "failed", "late": "out of time", "last": "done"}
    text = (tmp_path / "gpu_check.md").read_text()
    assert "Not measured: second." in text and "| late | out of time |" in text and "| before | 1.5 |" in text
    assert report.parts["last"].box > 10 > report.parts["failing"].box  # it had what the others left


def test_no_part_runs_in_a_process_that_cannot(scripts, tmp_path):
    def failing(part):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    report = started(scripts, tmp_path, "a", "b")
    functions = {"a": failing, "b": failing}
    assert not scripts.gpu_report.run_parts(report, functions, {"a": 1, "b": 1}, time.time() + 9, usable=lambda: False)
    assert [part.status for part in report.parts.values()] == ["failed", "not run"]


WORKER = """
import os, sys, time
from pathlib import Path
from gpu_report import Report, run_parts

def crashes(part):
    part.row("before", ms=1.0)
    os._exit(7)

def hangs(part):
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass

functions = {"crashes": crashes, "hangs": hangs, "works": lambda part: part.row("one", ms=2.0)}
run_parts(Report.read(Path(sys.argv[1])), functions, {"crashes": 1, "hangs": 0.02, "works": 1}, float(sys.argv[2]))
"""


def test_a_part_that_crashes_or_hangs_does_not_end_the_run(scripts, tmp_path):
    started(scripts, tmp_path, "crashes", "hangs", "works").write()
    end = time.time() + 20
    command = [sys.executable, "-c", WORKER, str(tmp_path), str(end)]
    scripts.gpu_report.supervise(command, tmp_path, end, grace=0.2, environment={"PYTHONPATH": str(BENCHMARKS)})
    parts = scripts.gpu_report.Report.read(tmp_path).parts
    assert {name: part.status for name, part in parts.items()} == {"crashes": "cut", "hangs": "cut", "works": "done"}
    assert "exit status 7" in parts["crashes"].error and rows_of(tmp_path, "crashes") == {"before": {"ms": 1.0}}
    assert time.time() < end


def test_a_worker_that_cannot_start_ends_the_run(scripts, tmp_path):
    started(scripts, tmp_path, "a").write()
    scripts.gpu_report.supervise([sys.executable, "-c", "raise SystemExit(5)"], tmp_path, time.time() + 20)
    report = scripts.gpu_report.Report.read(tmp_path)
    assert report.facts["worker"] == "ended with exit status 5" and report.parts["a"].status == "not run"


# The command


def test_missing_packages_are_named_at_once(scripts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scripts.gpu_check, "requirements", lambda: ["no-such-a>=1", "torch>=99", "no-such-b"])
    assert scripts.gpu_check.main(["--output", str(tmp_path), "--small"]) == 2
    assert "Missing: no-such-a, no-such-b\n" in capsys.readouterr().out
    text = (tmp_path / "gpu_check.md").read_text()
    assert "- missing: no-such-a, no-such-b" in text and "is not torch>=99" in text and "| kappa | not run |" in text


def test_no_gpu_is_named(scripts, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert scripts.gpu_check.main(["--output", str(tmp_path)]) == 2
    assert "use --small" in json.loads((tmp_path / "gpu_check.json").read_text())["facts"]["missing"]


@pytest.mark.slow
@pytest.mark.skipif(not is_triton_available(), reason="needs Triton")
def test_rehearsal(scripts, tmp_path):
    """The kernels in Triton's interpreter, in a process of their own."""
    if Version(version("triton")) < Version("3.7") and Version(version("numpy")) >= Version("2.4"):
        pytest.skip("this interpreter takes no array of one element for a number, and this NumPy insists")
    assert scripts.gpu_check.main(["--output", str(tmp_path), "--small", "--parts", "kernels", "--budget", "200"]) == 0
    rows = rows_of(tmp_path, "kernels")
    assert len(rows) == 46 and all(row["ok"] and 0 <= row["error"] < row["limit"] for row in rows.values())
    for dtype in ("bfloat16", "float32"):
        assert f"{dtype}, all statistics, nucleus_entropy" in rows and f"{dtype}, divergence, reverse" in rows
    assert rows["bfloat16, log-probability, entropy, log_probs"]["TRL"] > 1e-4  # the rounding of logits
