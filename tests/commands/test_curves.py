# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy curves`, from runs that are only their logs."""

import json
import logging

import numpy as np
import pytest

from trl_entropy.commands.main import main
from trl_entropy.curves.annealing import Law


def save_run(folder, lines):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": lines[-1]["step"], "log_history": lines}))
    return str(folder)


def save_law(folder, **more):
    """A run of 300 steps with linear decay, which follows a law."""
    rates = 3e-3 * (1 - np.arange(300) / 300)
    losses = Law(2.0, 0.4, 0.5, 0.3, 0.99).predict(rates)
    pairs = zip(losses.tolist(), rates.tolist(), strict=True)
    return save_run(
        folder, [{"step": n, "loss": loss, "learning_rate": rate, **more} for n, (loss, rate) in enumerate(pairs, 1)]
    )


def test_length(tmp_path, capsys):
    lines = [{"step": n, "loss": 2 + 2 / n, "num_tokens": 100 * n, "epoch": n / 50} for n in range(1, 51)]
    one = save_run(tmp_path / "one", lines)
    two = save_run(tmp_path / "two", [line | {"loss": 3.0} for line in lines])
    assert main(["curves", "length", one, two, "--output", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "bits/token" in text.splitlines()[0] and text.splitlines()[1].startswith("one ")
    found = json.loads((tmp_path / "out" / "length.json").read_text())
    assert found["one"]["tokens"] == 5000 and found["two"]["bits"] == pytest.approx(0, abs=1e-9)
    assert found["one"]["low"] < found["one"]["bits"] < found["one"]["high"] and "teacher bits" not in found["one"]
    assert (tmp_path / "out" / "length.png").stat().st_size > 5000
    assert main(["curves", "length", one, "--teacher", "--tokens-per-step", "200"]) == 0
    assert "teacher bits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "more", "message"),
    [
        (["length"], {"num_tokens": 9, "reward": 1.0}, "the run logs rewards, so its loss is no likelihood"),
        (["length"], {}, "has neither: `--tokens-per-step` says"),
        (["length", "--tokens-per-step", "5"], {"epoch": 3.0}, "makes 3 passes over its data"),
        (["annealing"], {"reward": 1.0}, "the run logs rewards, so its loss is no likelihood"),
        (["annealing", "--skip", "270"], {}, "at least 50 logged losses after warm-up, got 30"),
        (["annealing", "--eval"], {}, "at least two lines with a finite `eval_loss`, got 0"),
    ],
)
def test_runs_that_do_not_fit(tmp_path, capsys, words, more, message):
    run = save_law(tmp_path / "run", **more)
    with pytest.raises(SystemExit) as stopped:
        main(["curves", words[0], run, *words[1:]])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("trl-entropy curves: error: ") and error.count("\n") == 1


def test_passes_over_the_data_are_allowed_on_demand(tmp_path, capsys):
    run = save_law(tmp_path / "run", epoch=3.0)
    assert main(["curves", "length", run, "--tokens-per-step", "5", "--allow-epochs"]) == 0


def test_annealing(tmp_path, capsys, caplog):
    run = save_law(tmp_path / "run", epoch=2.0)
    words = ["--predict", "wsd", "constant", "--steps", "2000", "--draws", "5", "--output", str(tmp_path / "out")]
    with caplog.at_level(logging.WARNING):
        assert main(["curves", "annealing", run, *words]) == 0
    assert "makes 2 passes over its data: the law is for one" in caplog.text
    assert "times the summed learning rate of the fit" in caplog.text
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "annealing.json").read_text())
    assert (found["floor"], found["gain"], found["momentum"]) == pytest.approx((2, 0.3, 0.99), rel=0.01)
    assert found["intervals"]["floor"] == pytest.approx([2, 2], rel=0.01)
    assert set(found["loss"]) == {"wsd", "constant"} and found["loss"]["wsd"] < found["loss"]["constant"]
    assert f"{found['loss']['wsd']:.4f}" in text and "loss at step 2000" in text
    assert (tmp_path / "out" / "annealing.png").stat().st_size > 5000


def test_refine(tmp_path, capsys, caplog):
    from trl_entropy import refined_schedule

    lines = [{"step": n, "loss": 2.0, "grad_norm": 1 + n / 100, "reward": 0.5} for n in range(1, 201)]
    run, out = save_run(tmp_path / "run", lines), tmp_path / "schedule.json"
    with caplog.at_level(logging.WARNING):
        assert main(["curves", "refine", run, "--out", str(out)]) == 0
    assert "has no gradient_norms.csv" in caplog.text and "by the rule for SGD" in caplog.text
    assert "The run logs rewards, whose noise drives its gradient norms" in caplog.text
    assert json.loads(out.read_text())["norm"] == "l2"
    rows = "".join(f"{n},{5.0},{1 + n / 100}\n" for n in range(1, 201))
    (tmp_path / "run" / "gradient_norms.csv").write_text(f"step,l1,l2\n{rows}")
    caplog.clear()
    assert main(["curves", "refine", run, "--out", str(out), "--output", str(tmp_path / "out")]) == 0
    assert "gradient_norms.csv" not in caplog.text and (tmp_path / "out" / "refine.png").stat().st_size > 5000
    assert refined_schedule(out, 10)(3) == pytest.approx(0.7)  # of constant L1 norms
    assert " 0.700" in capsys.readouterr().out
    assert main(["curves", "refine", run, "--out", str(out), "--norm", "l2"]) == 0
    assert refined_schedule(out, 10)(3) < 0.6
    (tmp_path / "run" / "gradient_norms.csv").write_text("step,l1\n1,2\n")
    for words, message in ((["--norm", "l2"], "must have a column `l2`"), ([], "at least 100 finite gradient norms")):
        with pytest.raises(SystemExit):
            main(["curves", "refine", run, "--out", str(out), *words])
        assert message in capsys.readouterr().err
