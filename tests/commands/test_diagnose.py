# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy diagnose`."""

import json
import math
import subprocess
import sys

import pytest

from trl_entropy import cli


COLLAPSED = [{"step": step, "entropy": 0.97**step, "reward": 0.5} for step in range(1, 101)]


def write(path, lines, settings=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"global_step": lines[-1]["step"], "log_history": lines}))
    if settings is not None:
        (path.parent / "run_settings.json").write_text(json.dumps(settings))
    return path


def test_folder_and_file(tmp_path, capsys):
    path = write(tmp_path / "run" / "trainer_state.json", COLLAPSED)
    for given in (path, path.parent):
        assert cli.main(["diagnose", str(given)]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith("collapse, step 78: Mean token entropy has fallen from 0.941 to 0.049 nats. The policy")


def test_json(tmp_path, capsys):
    path = write(tmp_path / "trainer_state.json", COLLAPSED)
    assert cli.main(["diagnose", str(path), "--json"]) == 0
    (finding,) = json.loads(capsys.readouterr().out)
    assert finding["rule"] == "collapse" and finding["step"] == 78 and finding["severe"] is True
    assert finding["numbers"]["first"] == pytest.approx((0.97 + 0.97**2 + 0.97**3) / 3)
    assert finding.keys() == {"rule", "step", "numbers", "evidence", "meaning", "turn", "severe"}


def test_settings_are_read_above_a_checkpoint(tmp_path, capsys):
    """Twelve steps are not yet three generation batches of eight steps each."""
    lines = [{"step": step, "loss": 0.1, "clip_cov/kept_fraction": 1.0} for step in range(1, 13)]
    settings = {"methods": ["clip_cov"], "steps_per_generation": 8}
    path = write(tmp_path / "checkpoint-12" / "trainer_state.json", lines)
    assert cli.main(["diagnose", str(path)]) == 0
    assert "Method 'clip_cov' has done nothing in 12 log lines" in capsys.readouterr().out
    (tmp_path / "run_settings.json").write_text(json.dumps(settings))
    for given in (path, tmp_path):
        assert cli.main(["diagnose", str(given)]) == 0
        assert capsys.readouterr().out == "Nothing wrong found in 12 log lines.\n"


def test_tip_that_is_off_is_not_a_method(tmp_path, capsys):
    lines = [{"step": step, "loss": 0.1, "tip/kept_fraction": 1.0} for step in range(1, 13)]
    path = write(tmp_path / "trainer_state.json", lines, {"tip_rule": "entropy"})
    assert cli.main(["diagnose", str(path)]) == 0
    assert "Method 'tip' has done nothing in 12 log lines" in capsys.readouterr().out
    write(path, lines, {"tip_rule": "none"})
    assert cli.main(["diagnose", str(path)]) == 0
    assert capsys.readouterr().out == "Nothing wrong found in 12 log lines.\n"


def test_numbers_that_are_not_finite(tmp_path, capsys):
    lines = [{"step": step, "loss": 0.1, "grad_norm": math.nan if step > 3 else 1.0} for step in range(1, 6)]
    assert cli.main(["diagnose", str(write(tmp_path / "trainer_state.json", lines))]) == 0
    assert capsys.readouterr().out.startswith("divergence, step 5: `grad_norm` is not a finite number in 2 log lines")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: folder / "no", "RUN must be the folder of a run, got '{0}', which does not exist."),
        (lambda folder: folder, "{0} must hold trainer_state.json, itself or in a checkpoint, and does not."),
    ],
)
def test_path_without_a_run_is_one_error(tmp_path, capsys, make, message):
    path = make(tmp_path)
    with pytest.raises(SystemExit) as error:
        cli.main(["diagnose", str(path)])
    assert error.value.code == 2
    text = capsys.readouterr().err
    assert message.format(path) in text and text.startswith("trl-entropy diagnose: error: ") and text.count("\n") == 1


def test_no_torch(tmp_path):
    path = write(tmp_path / "trainer_state.json", COLLAPSED)
    code = (
        "import sys; from trl_entropy import cli; cli.main(sys.argv[1:]); "
        "print({'torch', 'transformers', 'trl'} & {*sys.modules})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "diagnose", str(path)], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    "text, expected", [("true", "true"), ("false", "false"), ("stop", "stop"), ("'true'", "true")]
)
def test_setting_in_yaml_and_on_the_command_line(tmp_path, text, expected):
    from trl_entropy.commands.arguments import StrictParser
    from trl_entropy.trainers.grpo_config import EntropyGRPOConfig

    path = tmp_path / "recipe.yaml"
    path.write_text(f"output_dir: {tmp_path}\nuse_cpu: true\nbf16: false\ndiagnosis: {text}\n")
    parser = StrictParser([EntropyGRPOConfig], "trl-entropy grpo")
    assert parser.parse(["--config", str(path)])[0].diagnosis == expected
    flags = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false", "--diagnosis", expected]
    assert parser.parse(flags)[0].diagnosis == expected


def test_bad_setting_is_one_error(tmp_path, capsys):
    from trl_entropy.commands.arguments import StrictParser
    from trl_entropy.trainers.grpo_config import EntropyGRPOConfig

    parser = StrictParser([EntropyGRPOConfig], "trl-entropy grpo")
    with pytest.raises(SystemExit):
        parser.parse(["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false", "--diagnosis", "yes"])
    error = "trl-entropy grpo: error: `diagnosis` must be true, false or 'stop', got 'yes'.\n"
    assert capsys.readouterr().err.endswith(error)
