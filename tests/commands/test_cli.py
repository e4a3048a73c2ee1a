# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The command line trains and launches. Errors are one line, with status 2."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.chat_template_utils import qwen3_chat_template

from trl_entropy import METHODS, cli
from trl_entropy.commands import launch
from trl_entropy.commands import train as training_commands
from trl_entropy.report.heat import heat_maps
from trl_entropy.report.runs import read_runs
from trl_entropy.report.summary import named_methods


ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
BY_DEFAULT = ("clip_cov", "aepo", "pear")  # one that acts on advantages, one with rollouts of its own, one on rewards
SCALED_DOWN = [name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
# Recipes with tools, for which a chat template must know how to write calls, and what else they change scaled down.
AGENTS = {"branching": dict(branching_initial=2)}
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="real problem sets lie beside the repository, not in it")
# What `probe_rewards.py`, in the folder of the run, holds: a reward function of the user's own.
PROBE = """
import os
import runpy
import shutil
def even(completions, **kwargs):
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    with open(f"rank{rank}of{size}.txt", "a") as file:
        file.write("x")
    return [float(len(completion[0]["content"]) % 2) for completion in completions]
"""


@pytest.fixture
def run(tiny, tmp_path, monkeypatch, capfd, caplog):
    """`run(key=value, ...)` trains by a recipe with these keys -> (status, stderr and log)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("RANK", "WORLD_SIZE", launch.LAUNCHED):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "probe_rewards.py").write_text(PROBE)
    rows = [{"role": "user", "content": f"{number} + {number}?"} for number in range(8)]
    Dataset.from_dict({"prompt": [[row] for row in rows], "solution": ["2"] * 8}).to_json(
        str(tmp_path / "train.jsonl")
    )

    def call(*flags, recipe=None, started=False, command="grpo", **keys):
        Path("recipe.yaml").write_text(yaml.safe_dump(settings(tiny, **keys)) if recipe is None else recipe)
        try:
            status = cli.main([command, "--config", "recipe.yaml", *flags], launch=started)
        except SystemExit as stop:
            status = stop.code
        return status, capfd.readouterr().err + caplog.text

    yield call
    sys.modules.pop("probe_rewards", None)


def settings(model, **keys):
    defaults = dict(
        model_name_or_path=str(model),
        dataset_name="train.jsonl",
        reward_funcs=["probe_rewards.even"],
        output_dir="out",
        methods=["clip_cov", "steer"],
        learning_rate="1e-3",  # YAML 1.1 reads a bare 1e-3 as text
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=8,
        steps_per_generation=2,
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    return {key: value for key, value in {**defaults, **keys}.items() if value is not ...}


# For a command that distills: keys that it lacks, without the other command's methods.
OF_GRPO = dict(reward_funcs=..., methods=..., num_generations=..., steps_per_generation=...)


def error_of(result, command="grpo"):
    """The one line of an error, from (status, stderr)."""
    status, text = result
    prefix = f"trl-entropy {command}: error: "
    lines = [line for line in text.splitlines() if line.startswith(prefix)]
    assert status == 2 and len(lines) == 1 and "Traceback" not in text
    return lines[0].removeprefix(prefix)


def logged(folder="out"):
    return json.loads(Path(folder, "trainer_state.json").read_text())["log_history"]


# Training


def test_command_trains_with_the_methods_of_the_recipe(run, tiny):
    status, _ = run(save_strategy="steps", save_steps=1)
    assert status == 0
    history = logged("out/checkpoint-2")
    assert [entry["step"] for entry in history] == [1, 2]
    assert 0 < history[0]["steer/weight_mean"] <= 1 and "clip_cov/kept_fraction" in history[0]
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tiny, "out"))
    assert any((old != new).any() for old, new in zip(before.parameters(), after.parameters(), strict=True))
    card = Path("out/README.md").read_text()
    assert METHODS["steer"].paper.url in card and str(tiny.parent) not in card
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert (recipe["dataset_name"], recipe["model_name_or_path"]) == ("train.jsonl", "/path/to/" + tiny.name)


def test_command_resumes_and_evaluates(run):
    dataset = Dataset.from_json("train.jsonl")
    Path("data").mkdir()
    dataset.to_parquet("data/train.parquet")
    dataset.select(range(2)).to_parquet("data/test.parquet")
    common = dict(
        dataset_name="data", eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=2, save_strategy="steps"
    )
    assert run(save_steps=1, max_steps=1, **common)[0] == 0
    assert run("--resume_from_checkpoint=out/checkpoint-1", save_steps=2, **common)[0] == 0
    history = logged("out/checkpoint-2")
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2]
    assert [entry["step"] for entry in history if "eval_steer/weight_mean" in entry] == [1, 2]


def test_flags_win_over_the_recipe(run):
    assert run("--max_steps", "1", "--save_strategy", "steps", "--save_steps", "1", max_steps=7)[0] == 0
    assert [entry["step"] for entry in logged("out/checkpoint-1")] == [1]


def test_lora_and_two_rewards(run):
    keys = dict(use_peft=True, lora_r=2, lora_target_modules=["q_proj", "v_proj"])
    assert run(reward_funcs=["accuracy_reward", "probe_rewards.even"], reward_weights=["1e-1", 1], **keys)[0] == 0
    assert Path("out/adapter_model.safetensors").exists()


def test_distillation_trains_on_the_tokens_of_the_recipe(run, tiny):
    keys = {**OF_GRPO, "teacher_model_name_or_path": str(tiny), "tip_ratio": 0.25, "tip_scope": "ema"}
    evaluation = dict(eval_strategy="steps", eval_steps=1, dataset_test_split="train")
    assert run(command="distillation", save_strategy="steps", save_steps=1, **evaluation, **keys)[0] == 0
    history = logged("out/checkpoint-2")
    assert [entry["tip/kept_fraction"] for entry in history if "loss" in entry] == [0.25, 0.25]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [1, 2]
    AutoModelForCausalLM.from_pretrained("out")


@pytest.mark.parametrize(
    "keys, message",
    [
        (
            dict(teacher_model_name_or_path=...),
            "`teacher_model_name_or_path` must be a model, a name on the Hub, or a folder that exists, got None.",
        ),
        (
            dict(teacher_model_name_or_path="./nowhere"),
            "`teacher_model_name_or_path` must be a model, a name on the Hub, or a folder that exists, "
            "got './nowhere'.",
        ),
        (dict(tip_ration=0.5), "Unknown key `tip_ration` in recipe.yaml: did you mean `tip_ratio`?"),
        (dict(tip_ratio=0), "`tip_ratio` must be a ratio in (0, 1], got 0."),
        (dict(tip_rule="softor"), "`tip_rule` in recipe.yaml must be one of 'none', 'soft_or', "),
    ],
)
def test_distillation_names_what_is_wrong(run, tiny, keys, message):
    keys = {**OF_GRPO, "teacher_model_name_or_path": str(tiny), **keys}
    assert error_of(run(command="distillation", **keys), "distillation").startswith(message)


@pytest.mark.slow
def test_recipe_of_tip_runs_scaled_down(run, tiny):
    changes = dict(
        model_name_or_path=tiny,
        teacher_model_name_or_path=tiny,
        dataset_name="train.jsonl",
        output_dir="out",
        use_vllm="false",
        use_cpu="true",
        bf16="false",
        report_to="none",
        per_device_train_batch_size=2,
        max_completion_length=8,
        tip_scatter_steps=1,
        save_steps=2,
        max_steps=2,
    )
    flags = [f"--{key}={value}" for key, value in changes.items()]
    assert run(*flags, command="distillation", recipe=(ROOT / "recipes" / "tip.yaml").read_text())[0] == 0
    assert [entry["tip/kept_fraction"] for entry in logged("out/checkpoint-2")] == [0.5, 0.5]
    assert Path("out/tip_scatter.json").exists()


def test_recipe_sets_the_environment(run, monkeypatch):
    monkeypatch.setenv("PROBE_VARIABLE", "")
    assert run(env={"PROBE_VARIABLE": 3}, max_steps=1)[0] == 0
    assert os.environ["PROBE_VARIABLE"] == "3"


@needs_data
@pytest.mark.parametrize(
    "name", ["gsm8k_test", *(pytest.param(name, marks=pytest.mark.slow) for name in ("math500", "DAPO-Math-17k"))]
)
def test_real_files_train_as_they_are(run, name):
    status, text = run(
        "--dataset_name",
        str(SHARED / f"{name}.parquet"),
        reward_funcs=["accuracy_reward", "probe_rewards.even"],
        max_steps=3,
        save_strategy="steps",
        save_steps=3,
    )
    assert status == 0
    assert [entry["rewards/accuracy_reward/mean"] for entry in logged("out/checkpoint-3")[::2]] == [0.0, 0.0]
    assert ("Use `answer_line_accuracy_reward`" in text) == (name == "gsm8k_test")


@needs_data
def test_real_files_mix_with_a_dataset_of_trl(run):
    verl = [
        {"path": str(SHARED / f"{name}.parquet"), "columns": ["prompt", "reward_model"]}
        for name in ("math500", "gsm8k_test")
    ]
    mixture = [*verl, {"path": "train.jsonl"}]
    assert run(datasets=mixture, dataset_name=..., reward_funcs=["accuracy_reward"], max_steps=1)[0] == 0


@needs_data
@pytest.mark.parametrize("name", SCALED_DOWN)
def test_recipe_of_each_method_runs_scaled_down(run, tiny, tmp_path, name):
    if name in AGENTS:
        tiny = shutil.copytree(tiny, tmp_path / "agent")
        tokenizer = AutoTokenizer.from_pretrained(tiny)
        tokenizer.chat_template = qwen3_chat_template
        tokenizer.save_pretrained(tiny)
    changes = dict(
        model_name_or_path=tiny,
        dataset_name=SHARED / "DAPO-Math-17k.parquet",
        output_dir="out",
        use_vllm="false",
        use_cpu="true",
        bf16="false",
        report_to="none",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        num_generations=4,
        num_iterations=1,  # a generation batch for each step, so that both lines have what is logged once for each
        steps_per_generation=2 if METHODS[name].acts_on_ratio else 1,
        max_completion_length=8,
        learning_rate=1e-2,
        save_steps=2,
        max_steps=2,
        reward_funcs="probe_rewards.even",
        **AGENTS.get(name, {}),
    )
    flags = [f"--{key}={value}" for key, value in changes.items()]
    assert run(*flags, recipe=(ROOT / "recipes" / f"{name}.yaml").read_text())[0] == 0
    history = logged("out/checkpoint-2")
    assert len(history) == 2 and all(any(key.startswith(f"{name}/") for key in entry) for entry in history)


# Errors


@pytest.mark.parametrize("started", [False, True], ids=["train", "launch"])
def test_unknown_key_is_named_with_its_nearest(run, started):
    result = run(clip_cov_ration=0.1, started=started)
    assert error_of(result) == "Unknown key `clip_cov_ration` in recipe.yaml: did you mean `clip_cov_ratio`?"


@pytest.mark.parametrize("started", [False, True], ids=["train", "launch"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--clip_cov_ration", "1"], "Unknown flag `--clip_cov_ration`: did you mean `--clip_cov_ratio`?"),
        (["--clip-cov-rati=1"], "Unknown flag `--clip-cov-rati`: did you mean `--clip_cov_ratio`?"),
        (["--xyzzy"], "Unknown flag `--xyzzy`."),
        (["stray"], "Unexpected argument 'stray'."),
        (["--max_steps", "many"], "argument --max_steps/--max-steps: invalid int value: 'many'"),
        (["--config", "b.yaml"], "`--config` must be given once, with a YAML file or the name of a recipe."),
    ],
)
def test_bad_flag_is_named(run, flags, message, started):
    assert error_of(run(*flags, started=started)) == message


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            dict(foo_bar=1, max_step=2),
            "Unknown key `foo_bar` in recipe.yaml. Unknown key `max_step` in recipe.yaml: did you mean `max_steps`?",
        ),
        (dict(max_steps="many"), "`max_steps` in recipe.yaml must be an integer, got 'many'."),
        (dict(max_steps=1.5), "`max_steps` in recipe.yaml must be an integer, got 1.5."),
        (dict(max_steps=[1]), "`max_steps` in recipe.yaml must be an integer, got [1]."),
        (dict(clip_cov_ratio=None), "`clip_cov_ratio` in recipe.yaml must be a number, got None."),
        (dict(bf16="perhaps"), "`bf16` in recipe.yaml must be true or false, got 'perhaps'."),
        (dict(kl_cov_penalty="k9"), "`kl_cov_penalty` in recipe.yaml must be one of 'abs', 'k2', 'k3', got 'k9'."),
        (
            dict(methods={"clip_cov": {"ratio": 0.1}}),
            "`methods` in recipe.yaml must be a list, each entry text, got {'clip_cov': {'ratio': 0.1}}.",
        ),
        (
            dict(methods=[{"clip_cov": None}]),
            "`methods` in recipe.yaml must be a list, each entry text, got {'clip_cov': None}.",
        ),
        (dict(methods=[["clip_cov"]]), "`methods` in recipe.yaml must be a list, each entry text, got ['clip_cov']."),
        (dict(num_iterations=0), "`num_iterations` must be an integer >= 1, got 0."),
        (dict(reward_weights=["a"]), "`reward_weights` in recipe.yaml must be a list, each entry a number, got 'a'."),
        (dict(output_dir={"a": 1}), "`output_dir` in recipe.yaml must be text, got {'a': 1}."),
        (
            dict(eval_strategy=False),
            "`eval_strategy` in recipe.yaml must be one of 'no', 'steps', 'epoch', got False. YAML reads "
            "unquoted yes, no, on and off as true and false.",
        ),
        (dict(datasets=[{"pth": "x"}]), "Unknown key `pth` of `datasets` in recipe.yaml: did you mean `path`?"),
        (dict(env=3), "`env` in recipe.yaml must map names of variables to values, got 3."),
        (dict(multi_gpu="two"), "`multi_gpu` must be true or false, got 'two'."),
        (
            dict(methods=["clip_cof"]),
            "`methods` has the unknown name 'clip_cof'. Did you mean 'clip_cov'? Known: " + ", ".join(METHODS) + ".",
        ),
        (dict(clip_cov_low=9.0), "`clip_cov_low` must be less than `clip_cov_high` (5.0), got 9.0."),
        (dict(num_generations=1), "`num_generations` must be an integer >= 2, got 1."),
        (dict(dataset_name="none.parquet"), "The dataset must exist, got 'none.parquet', which is no file or folder."),
        (dict(dataset_name=...), "Either `dataset_name` or `datasets` must be given, and not both."),
        (
            dict(dataset_train_split="tran"),
            "`dataset_train_split` must be one of the splits ['train'] of the dataset, got 'tran'.",
        ),
        (
            dict(model_name_or_path="./none"),
            "`model_name_or_path` must be a model, a name on the Hub, or a folder that exists, got './none'.",
        ),
        (
            dict(model_name_or_path=...),
            "`model_name_or_path` must be a model, a name on the Hub, or a folder that exists, got None.",
        ),
        (dict(reward_funcs=...), "One of `reward_funcs` and `reward_model_name_or_path` must be given."),
        (
            dict(reward_funcs=["no.such"]),
            "`reward_funcs` has 'no.such', which cannot be imported: No module named 'no'.",
        ),
        (
            dict(reward_funcs=["probe_rewards.odd"]),
            "`reward_funcs` has 'probe_rewards.odd', which cannot be imported: module 'probe_rewards' has "
            "no attribute 'odd'.",
        ),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_bad_value_is_one_line(run, keys, message):
    assert error_of(run(**keys)) == message


def test_unknown_reward_lists_what_is_known(run):
    message = error_of(run(reward_funcs=["acuracy_reward"]))
    assert message.startswith("`reward_funcs` has the unknown name 'acuracy_reward'. Did you mean 'accuracy_reward'?")
    assert "answer_line_accuracy_reward" in message and message.endswith("or a dotted path.")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("- a", "recipe.yaml must hold a mapping of keys to values, got ['a']."),
        ("a: [1", "recipe.yaml is not valid YAML: while parsing a flow sequence"),
    ],
)
def test_broken_recipe_is_named(run, recipe, message):
    assert error_of(run(recipe=recipe)).startswith(message)


def test_missing_recipe_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["grpo", f"--config={tmp_path}/none.yaml"], launch=False)
    assert "No such file or directory" in capsys.readouterr().err


def test_processes_that_do_not_see_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched, but each sees 1: .* set `use_cpu: true`"):
        training_commands.check_processes(SimpleNamespace(world_size=1))


# Launching


@pytest.fixture
def launched(monkeypatch):
    """Records the arguments for `accelerate launch` instead of running it."""
    calls = []
    monkeypatch.setattr(launch, "launch_command", calls.append)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return calls


def test_launch_options_and_training_options_part(run, launched):
    flags = ["--num_processes", "3", "--max_steps=5", "--accelerate_config", "zero2", "--multi-gpu", "--seed", "3"]
    keys = dict(num_processes=2, mixed_precision="fp16", accelerate_config="fsdp1", multi_gpu=False)
    assert run(*flags, started=True, **keys)[0] == 0
    (arguments,) = launched
    assert (arguments.num_processes, arguments.mixed_precision, arguments.multi_gpu) == (3, "fp16", True)
    assert Path(arguments.config_file).parts[-3:] == ("trl", "accelerate_configs", "zero2.yaml")
    assert arguments.module and arguments.training_script == "trl_entropy.cli"
    assert arguments.training_script_args == ["grpo", "--config", "recipe.yaml", "--max_steps=5", "--seed", "3"]


def test_launch_builds_no_dataclass(run, launched):
    """Two completions per prompt fit two processes with one completion each, but not the launching process."""
    assert run(started=True, per_device_train_batch_size=1, steps_per_generation=1, num_processes=2)[0] == 0
    assert launched[0].num_processes == 2


def test_switch_of_a_recipe_is_a_flag_without_value(run, launched):
    assert run(started=True, multi_gpu=True, num_processes=2)[0] == 0
    assert launched[0].multi_gpu is True and launched[0].training_script == "trl_entropy.cli"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--accelerate_config", "zero9"], "Accelerate config zero9 is neither a file nor a valid config"),
        (["--num_processes", "x"], "argument --num_processes/--num-processes: invalid int value: 'x'"),
        (["--num_processes"], "argument --num_processes/--num-processes: expected one argument"),
    ],
)
def test_bad_launch_option_is_one_line(run, launched, flags, message):
    assert error_of(run(*flags, started=True)).startswith(message) and launched == []


def test_launch_flag_after_the_launch_is_refused(run):
    assert error_of(run("--num_processes", "2")) == (
        "`--num_processes` is for the launcher: give it to `accelerate launch`, or use `trl-entropy`."
    )


@pytest.mark.parametrize("by_us", [False, True])
def test_launch_key_after_the_launch_warns_unless_read_before(run, monkeypatch, by_us):
    if by_us:
        monkeypatch.setenv(launch.LAUNCHED, "1")
    status, text = run(num_processes=8, max_steps=1)
    assert status == 0
    assert ("The processes run already: recipe.yaml sets num_processes to no effect." in text) is not by_us


def test_recipe_with_kappa_and_adapters(run, cache_folder):
    fields = dict(kappa_mode="lora", kappa_num_modules=2, use_peft=True, lora_r=2, kappa_track_steps=1)
    assert run(save_strategy="steps", save_steps=2, **fields)[0] == 0
    selected = json.loads(Path("out/kappa.json").read_text())["selected"]
    adapter = json.loads(Path("out/adapter_config.json").read_text())
    assert len(selected) == 2 and sorted(adapter["target_modules"]) == sorted(selected)
    assert logged("out/checkpoint-2")[0]["kappa/max"] > 1 and len(list(cache_folder.iterdir())) == 2


def test_failure_of_a_process_is_the_status(run, monkeypatch):
    def fail(arguments):
        raise subprocess.CalledProcessError(returncode=7, cmd=["python"])

    monkeypatch.setattr(launch, "launch_command", fail)
    assert run(started=True)[0] == 7


@pytest.mark.slow
def test_two_processes_on_cpu_from_the_command(run, tiny):
    """The real thing: `trl-entropy` starts two processes by the packaged configuration, and they train one model."""
    Path("recipe.yaml").write_text(
        yaml.safe_dump(settings(tiny, save_strategy="steps", save_steps=2, log_token_entropies=1))
    )
    config = str(ROOT / "recipes" / "accelerate" / "cpu_two_processes.yaml")
    code = "import sys; from trl_entropy.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "grpo", "--config", "recipe.yaml", "--accelerate_config", config]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in Path().glob("rank*.txt")) == ["rank0of2.txt", "rank1of2.txt"]
    history = logged("out/checkpoint-2")
    assert [entry["step"] for entry in history] == [1, 2] and "steer/weight_mean" in history[0]
    assert done.stdout.count("Model saved to out.") == 1
    # The report's input exists once, not once per process.
    (run_there,) = read_runs([Path("out")])
    assert (run_there.steps, named_methods(run_there)) == (2, "clip_cov, steer") and Path(
        "out/trainer_state.json"
    ).exists()
    assert [shown.step for shown in heat_maps([run_there], 9)] == [1, 2]
    card = Path("out/README.md").read_text()
    shown = "trl-entropy grpo --config recipe.yaml --accelerate_config /path/to/cpu_two_processes.yaml"
    assert shown in card and "\n2 processes. " in card


def test_help_lists_the_commands_and_imports_nothing_slow():
    command = [sys.executable, "-X", "importtime", "-m", "trl_entropy.cli", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "torch" not in done.stderr
    assert all(name in done.stdout for name in cli.COMMANDS)


def test_no_command_and_unknown_command_are_refused(capsys):
    for argv in ([], ["gpro"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(argv)
    assert "invalid choice: 'gpro'" in capsys.readouterr().err


def test_script_trains_what_kappa_tune_selects(tiny, tmp_path, monkeypatch):
    Dataset.from_dict({"text": ["Solve the following problem."] * 8}).to_parquet(str(tmp_path / "train.parquet"))
    changes = dict(
        model_name_or_path=tiny, dataset_name=tmp_path, output_dir=tmp_path / "out", max_steps=2, use_cpu="true",
        bf16="false", packing="false", max_length=16, report_to="none", save_strategy="no", logging_steps=1,
        kappa_track_steps=1, kappa_cache="none", learning_rate=0.05, gradient_checkpointing="false", dtype="float32",
    )  # fmt: skip
    script = ROOT / "recipes" / "kappa_sft.py"
    flags = [word for key, value in changes.items() for word in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", [str(script), "--config", str(script.with_suffix(".yaml")), *flags])
    runpy.run_path(str(script), run_name="__main__")
    selected = json.loads((tmp_path / "out" / "kappa.json").read_text())["selected"]
    before, after = load_file(tiny / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    moved = {name.removesuffix(".weight") for name in after if not torch.equal(after[name], before[name])}
    assert moved == set(selected) and 0 < len(moved) < 7
