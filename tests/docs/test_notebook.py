# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""docs/notebook.ipynb: its cells run from top to bottom, scaled down."""

import json
import math
import sys
from pathlib import Path
from types import ModuleType

import matplotlib
import pytest
from support.packages import site


NOTEBOOK = json.loads((Path(__file__).parents[2] / "docs" / "notebook.ipynb").read_text())
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
PARAMETERS = """
from pathlib import Path
from trl_entropy.countdown.model import WarmStart
steps, folder, start = 4, Path("runs"), WarmStart(hidden_size=16, layers=1, heads=2, steps=2)
"""


@pytest.fixture
def namespace(tmp_path, monkeypatch, capsys):
    """What the notebook has defined once its last cell has run, and what it printed."""
    matplotlib.use("agg")
    display = ModuleType("IPython.display")
    display.IFrame = lambda path, **size: path  # IPython is there wherever a notebook is, but not in the tests
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    python = ModuleType("IPython")
    python.get_ipython, python.version_info = lambda: None, (9, 0)  # matplotlib asks
    monkeypatch.setitem(sys.modules, "IPython", python)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    with site(tmp_path):
        for cell in CODE:
            given = "parameters" in cell["metadata"].get("tags", ())
            exec(compile(PARAMETERS if given else "".join(cell["source"]), cell["id"], "exec"), names)
        yield names | {"printed": capsys.readouterr().out}


@pytest.mark.filterwarnings("ignore")
def test_all_cells_run(namespace, tmp_path):
    assert list(namespace["runs"]) == ["stock", "clip_cov", "fewer_right"]
    for logs, scores in namespace["runs"].values():
        assert logs[-1]["step"] == 4 and math.isfinite(logs[-1]["entropy"]) and 0 <= scores["pass@1"] <= 1
    assert "fewer_right/positive_fraction" in namespace["runs"]["fewer_right"][0][-1]
    assert (tmp_path / "runs" / "report" / "report.html").stat().st_size > 10_000
    assert all(name in namespace["printed"] for name in namespace["runs"])


def test_stored_outputs_are_those_of_a_whole_run_without_errors():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    kinds = [output["output_type"] for cell in CODE for output in cell["outputs"]]
    assert "display_data" in kinds and "error" not in kinds
    assert "steps = 100" in "".join(CODE[0]["source"])
