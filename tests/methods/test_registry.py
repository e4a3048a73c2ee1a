# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Methods of other packages are known everywhere that ours are."""

import json
import os
import pickle
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass, field, fields, make_dataclass
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from support.compatibility import render
from support.packages import MINE, SETTINGS, site, write_package, write_run

import trl_entropy
from trl_entropy import METHODS, EntropyGRPOConfig
from trl_entropy.commands.arguments import StrictParser
from trl_entropy.commands.methods import describe, known_methods
from trl_entropy.methods import REGISTRY, Method, MethodsConfig, Paper, idle_fields
from trl_entropy.methods.clip_cov import ClipCov
from trl_entropy.methods.registry import check_config
from trl_entropy.report.panels import metric_groups
from trl_entropy.report.runs import read_runs
from trl_entropy.report.summary import differing_settings, named_methods


ROOT = Path(__file__).parents[2]
OURS = tuple(METHODS)


@pytest.fixture
def module(tmp_path):
    """`module(source)` imports a module that is written into a folder of its own; its methods leave with the test."""
    folder = tmp_path / "site"
    folder.mkdir()

    def load(source=MINE, name="mine_method"):
        (folder / f"{name}.py").write_text(source)
        return import_module(name)

    load.folder = folder
    with site(folder):
        yield load


@pytest.fixture
def mine(module):
    """The class of a method that is registered."""
    method = module().Mine
    trl_entropy.register(method)
    return method


def test_bases_of_the_settings_are_those_that_methods_declare():
    assert MethodsConfig.__bases__ == tuple(method.config for method in METHODS.values())


def test_registered_bases_follow(mine):
    assert MethodsConfig.__bases__ == tuple(method.config for method in METHODS.values())
    assert list(METHODS) == [*OURS, "mine"] and METHODS["mine"] is mine


def test_trains_and_is_known_to_cards_and_reports(mine, make_trainer, tmp_path):
    folders = [tmp_path / "run0.25", tmp_path / "run1.0"]
    for folder, weight in zip(folders, (0.25, 1.0), strict=True):
        trainer = make_trainer(output_dir=folder, methods=["mine"], mine_weight=weight)
        assert isinstance(trainer.methods[0], mine) and trainer.methods[0].weight == weight
        trainer.train()
        trainer.save_state()
        trainer.create_model_card()
        lines = trainer.state.log_history[:2]
        assert [line["mine/forwards"] for line in lines] == [1, 2]
        assert 0 < lines[0]["mine/positive_fraction"] < 1
    card = (folders[0] / "README.md").read_text()
    assert mine.paper.url in card and mine.paper.bibtex in card and "| `mine_weight` | `0.25` | `0.5` |" in card
    runs = read_runs(folders)
    assert runs[0].lines[1]["loss"] != runs[1].lines[1]["loss"]
    assert named_methods(runs[0]) == "mine" and "mine" in metric_groups(runs)
    assert differing_settings(runs) == {"mine_weight": ["0.25", "1.0"]}
    assert [set(run.target()[2]) for run in runs] == [{0.25}, {1.0}]
    assert "| `mine` | not tested |" in render({}, list(METHODS))


def test_settings_are_those_of_the_config(mine, tmp_path, caplog, capsys):
    before = EntropyGRPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    parser = StrictParser((EntropyGRPOConfig,), prog="here")
    common = ["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false"]
    (config,) = parser.parse([*common, "--methods", "mine", "--mine_weight", "0.25", "--mine_words", "a", "b"])
    assert (config.mine_weight, config.mine_words) == (0.25, ["a", "b"])
    loaded = pickle.loads(pickle.dumps(config))
    assert type(loaded) is EntropyGRPOConfig and loaded.mine_weight == 0.25 and "mine_weight=0.25" in repr(loaded)
    assert before != config and before.mine_weight == 0.5 and before.output_dir == str(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        parser.parse([*common, "--mine_wieght", "1"])
    assert "Unknown flag `--mine_wieght`: did you mean `--mine_weight`?" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        parser.parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Known: clip_cov, " in text and f"{OURS[-1]}, mine." in text and "positive advantages, in" in text
    with pytest.raises(ValueError, match=r"`mine_weight` must be a ratio in \(0, 1\], got 2."):
        EntropyGRPOConfig(str(tmp_path), methods=["mine"], mine_weight=2, use_cpu=True, bf16=False)


def test_settings_of_a_method_that_is_off(mine):
    assert idle_fields(MethodsConfig(methods=["clip_cov"], mine_weight=0.25)) == ["mine_weight"]
    assert idle_fields(MethodsConfig(methods=["mine"], mine_weight=0.25, steer_lambda_min=0.8)) == ["steer_lambda_min"]
    assert idle_fields(MethodsConfig()) == []


def test_knob_must_name_a_field_of_the_method():
    class Other(METHODS["epo"]):
        name = "other"

    with pytest.raises(ValueError, match="`knob` of .*Other` must name a field of .*EpoConfig`, got 'clip_b_mu'."):
        Other.knob = METHODS["clip_b"].knob
        check_config(Other, METHODS["epo"].config)


def test_listed_like_ours(mine):
    lines = describe("mine", known_methods()["mine"]).splitlines()
    assert lines[:2] == ["mine", f"  {mine.summary}"] and "  acts on: advantages, in every forward" in lines
    assert {"  mine_weight: float = 0.5", "  mine_words: list of str = []"} <= set(lines)


def test_configs_that_derive_from_ours_stay_what_they_are(module):
    @dataclass
    class Derived(EntropyGRPOConfig):
        derived_setting: int = 3
        derived_list: list = field(default_factory=list)

        def __repr__(self):
            return "Derived"

    class Plain(EntropyGRPOConfig):
        pass

    kinds, inits = (Derived, Plain, EntropyGRPOConfig, MethodsConfig), Derived.__init__
    names = [[item.name for item in fields(kind)] for kind in kinds]
    trl_entropy.register(module().Mine)
    assert kinds[2] is trl_entropy.EntropyGRPOConfig and Derived.__init__ is not inits
    for kind in (Derived, Plain):
        made = kind("out", mine_weight=0.25, use_cpu=True, bf16=False)
        assert made.mine_weight == 0.25 and made.output_dir == "out" and made.mine_words == []
    found = Derived("out", derived_setting=4, use_cpu=True, bf16=False)
    assert repr(found) == "Derived" and (found.derived_setting, found.derived_list, found.clip_cov_ratio) == (
        4,
        [],
        2e-4,
    )
    REGISTRY.unregister("mine")
    assert [[item.name for item in fields(kind)] for kind in kinds] == names
    with pytest.raises(TypeError, match="unexpected keyword argument 'mine_weight'"):
        EntropyGRPOConfig("out", mine_weight=0.25)


def test_registering_twice_does_nothing(mine):
    trl_entropy.register(mine)
    assert list(METHODS) == [*OURS, "mine"]


def test_config_given_apart_and_no_settings_at_all(module):
    class Bare(Method):
        name, summary, paper = "bare", "does nothing", Paper("2506.01347", "A title", "@article{x, arXiv:2506.01347}")

    class Apart(Bare):
        name = "apart"

    config = make_dataclass("ApartConfig", [("apart_size", int, field(default=3, metadata={"help": "A size."}))])
    trl_entropy.register(Bare)
    trl_entropy.register(Apart, config)
    assert Apart.config is config and MethodsConfig(methods=["apart", "bare"]).apart_size == 3


# Refusals

HELP = dict(metadata={"help": "A help text."})


def other(config=None, name="other", settings=None):
    """A method; `config` are the fields of its `settings`, if these are not given."""
    paper = Paper("2506.01347", "A title", "@article{x, arXiv:2506.01347}")
    declared = dict(name=name, summary="does nothing", paper=paper, __module__="some.module")
    if config is not None:
        settings = make_dataclass("Settings", config, namespace={"__module__": "some.module"})
    if settings is not None:
        declared["config"] = settings
    return type("Other", (Method,), declared)


def without(attribute):
    method = other()
    delattr(method, attribute)
    return method


@pytest.mark.parametrize(
    "method, message",
    [
        (3, "`method` must be a subclass of `trl_entropy.methods.Method`, got 3."),
        (dict, "`method` must be a subclass of `trl_entropy.methods.Method`, got <class 'dict'>."),
        (
            other(name="clip_cov"),
            "`name` of `some.module.Other` must be free, got 'clip_cov', the name of "
            "`trl_entropy.methods.clip_cov.ClipCov`.",
        ),
        (other(name="kappa"), "`name` of `some.module.Other` must be free, got 'kappa', which is reserved."),
        (
            other(name="clip_cov_soft"),
            "`name` of `some.module.Other` must not begin with the name of another method, got "
            "'clip_cov_soft': 'clip_cov' exists.",
        ),
        (
            other(name="get"),
            "must be one with which no other field begins, got 'get': "
            "`transformers.training_args.TrainingArguments` has `get_",
        ),
        (
            other(name="My-Method"),
            "`name` of `some.module.Other` must be lower-case letters, digits and _, got 'My-Method'.",
        ),
        (without("name"), "`name` of `some.module.Other` must be lower-case letters, digits and _, got None."),
        (without("summary"), "`summary` of `some.module.Other` must be one line of text, got None."),
        (without("paper"), "`paper` of `some.module.Other` must be a `trl_entropy.methods.Paper`, got None."),
        (
            type("Variant", (ClipCov,), dict(name="variant")),
            "Field `clip_cov_ratio` of `trl_entropy.methods.clip_cov.ClipCovConfig` must begin with "
            "'variant_', the name of its method.",
        ),
        (other([("other_size", int)]), "Field `other_size` of `some.module.Settings` must have a default."),
        (
            other([("other_size", int, field(default=3))]),
            "Field `other_size` of `some.module.Settings` must have a help text without '%' as "
            "`metadata={'help': ...}`, got None.",
        ),
        (
            other([("other_size", int, field(default=3, metadata={"help": "5 %"}))]),
            "must have a help text without '%' as `metadata={'help': ...}`, got '5 %'.",
        ),
        (
            other([("size", int, field(default=3, **HELP))]),
            "Field `size` of `some.module.Settings` must begin with 'other_', the name of its method.",
        ),
        (
            other([("top_k", int, field(default=3, **HELP))], name="top"),
            "`name` of `some.module.Other` must be one with which no other field begins, got 'top': "
            "`trl.trainer.grpo_config.GRPOConfig` has `top_p`.",
        ),
        (
            other([("clip_cov_ratio", int, field(default=3, **HELP))], name="clip"),
            "`name` of `some.module.Other` must be one with which no other field begins, got 'clip': "
            "`trl_entropy.methods.",
        ),
        (
            other([("fused_head", int, field(default=3, **HELP))], name="fused"),
            "`name` of `some.module.Other` must be one with which no other field begins, got 'fused': "
            "`trl_entropy.trainers.grpo_config.EntropyGRPOConfig` has `fused_head`.",
        ),
        (other(settings=3), "`config` of `some.module.Other` must be a dataclass that is not frozen, got 3."),
    ],
    ids=str,
)
def test_refused(method, message):
    names = [item.name for item in fields(EntropyGRPOConfig)]
    with pytest.raises((TypeError, ValueError)) as error:
        trl_entropy.register(method)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert tuple(METHODS) == OURS and [item.name for item in fields(EntropyGRPOConfig)] == names


# Entry points


def messages(action):
    """The warnings of an action."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        action()
    return [str(one.message) for one in found]


def test_entry_points_that_cannot_be_loaded(module):
    twin = MINE.replace('"mine"', '"clip_cov"').replace("config = MineConfig", "")
    write_package(
        module.folder,
        "bad-methods",
        {"gone": "nowhere_to_be_found:Mine", "raises": "raising_method:Mine", "twin": "twin_method:Mine"},
        raising_method="raise RuntimeError('what went wrong')",
        twin_method=twin,
    )
    write_package(module.folder, "good-methods", {"mine": "mine_method:Mine"}, mine_method=MINE)
    found = messages(REGISTRY.load_entry_points)
    start = "Method '{}' of the package 'bad-methods' is left out. "
    assert [message.split(". ")[0] + ". " for message in found] == [
        start.format(n) for n in ("gone", "raises", "twin")
    ]
    assert "ModuleNotFoundError: No module named 'nowhere_to_be_found'" in found[0]
    assert "RuntimeError: what went wrong" in found[1]
    assert "got 'clip_cov', the name of `trl_entropy.methods.clip_cov.ClipCov`" in found[2]
    assert list(METHODS) == [*OURS, "mine"] and messages(REGISTRY.load_entry_points) == []


def loading(again=False):
    """Source that imports torch, and does what importing `trl_entropy` does."""
    return f"import torch\n\nfrom trl_entropy.methods import REGISTRY\n\n\nREGISTRY.load_entry_points({again})\n"


def test_package_that_is_imported_before_ours(module):
    """Its import leads to ours, which finds its entry point before its method is defined."""
    write_package(module.folder, "early-methods", {"mine": "mine_method:Mine"})
    assert messages(lambda: module(MINE.replace("import torch", loading()))) == []
    assert "mine" not in METHODS
    assert messages(lambda: REGISTRY.load_entry_points(again=True)) == []
    assert METHODS["mine"] is sys.modules["mine_method"].Mine


def test_package_that_imports_the_trainers_too_early(module):
    write_package(module.folder, "hasty-methods", {"mine": "mine_method:Mine"})
    (message,) = messages(lambda: module(MINE.replace("import torch", loading(again=True))))
    assert "'mine' of the package 'hasty-methods' is left out" in message and "partially initialized module" in message


def test_fields_that_only_a_later_config_has(mine, module):
    """As `EntropyGRPOConfig` is, if methods are registered before the trainers are imported."""
    later = make_dataclass("Later", [("mine_weight", int, field(default=3))])
    with pytest.raises(ValueError, match="no other field begins, got 'mine': `.*Later` has `mine_weight`"):
        REGISTRY.check_fields(later)
    REGISTRY.unregister("mine")
    write_package(module.folder, "late-methods", {"mine": "mine_method:Mine"})
    REGISTRY.load_entry_points()
    assert "mine" in METHODS
    (message,) = messages(lambda: REGISTRY.check_fields(later))
    assert (
        "Method 'mine' of the package 'late-methods' is left out. `name` of `mine_method.Mine` must be one with"
        in message
    )
    assert tuple(METHODS) == OURS and messages(REGISTRY.load_entry_points) == [] and tuple(METHODS) == OURS


DRIVE = """
import json, sys
from trl_entropy import cli
for argv in json.loads(sys.argv[1]):
    try:
        status = cli.main(argv, launch=False)
    except SystemExit as stop:
        status = stop.code
    print("status", status)
"""


def logged(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


@pytest.mark.slow
def test_installed_package_on_the_command_line(tmp_path):
    """Listed, trained, resumed, a misspelt field refused. A process knows it by its entry point."""
    write_package(tmp_path, "my-methods", {"mine": "mine_method:Mine"}, mine_method=MINE)
    write_run(tmp_path)
    recipe = SETTINGS | dict(methods=["mine"], mine_weight=0.25, save_steps=1)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(recipe | {"mine_wieght": 1}))
    train = ["grpo", "--config", "recipe.yaml"]
    resume = [*train, "--output_dir", "again", "--resume_from_checkpoint", "out/checkpoint-1"]
    commands = [["methods", "mine"], ["grpo", "--config", "wrong.yaml"], train, resume]
    place = dict(PYTHONPATH=f"{tmp_path}:{ROOT}", HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=str(tmp_path / "cache"))
    done = subprocess.run(
        [sys.executable, "-c", DRIVE, json.dumps(commands)],
        cwd=tmp_path,
        env={**os.environ, **place},
        capture_output=True,
        text=True,
    )
    assert re.findall(r"^status (.*)", done.stdout, flags=re.MULTILINE) == ["0", "2", "0", "0"], done.stderr[-3000:]
    assert (
        done.stdout.startswith("mine\n  weighs positive advantages less\n")
        and "mine_weight: float = 0.5" in done.stdout
    )
    assert "Unknown key `mine_wieght` in wrong.yaml: did you mean `mine_weight`?" in done.stderr
    whole, resumed = logged(tmp_path / "out" / "checkpoint-2"), logged(tmp_path / "again" / "checkpoint-2")
    assert [line["mine/forwards"] for line in whole] == [1, 2] and resumed[1]["mine/forwards"] == 2
    card = (tmp_path / "out" / "README.md").read_text()
    assert "https://huggingface.co/papers/2506.01347" in card and "@article{zhu2025" in card
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])["mine_weight"] == 0.25
