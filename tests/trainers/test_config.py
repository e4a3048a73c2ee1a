# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Bad input: one clear error, or one warning, before anything is computed."""

import inspect
import logging
import math
import re
import warnings
from dataclasses import fields
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import trl
from datasets import Dataset
from support.registry import required
from support.tiny import LOSS_TYPES, build_dataset, build_model, build_tokenizer, count_reward

from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer
from trl_entropy.methods import METHODS
from trl_entropy.trainers import grpo_config as config_module
from trl_entropy.trainers.checks import check_trl_version, refuse_unsloth


def make_config(tmp_path, **fields):
    return EntropyGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **fields)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(methods=["clipcov"]), "unknown name 'clipcov'. Did you mean 'clip_cov'?"),
        (dict(methods=["Clip-Cov"]), "unknown name 'Clip-Cov'. Did you mean 'clip_cov'?"),
        (dict(methods=["zzz"]), "unknown name 'zzz'. Known: clip_cov, kl_cov, steer, clip_b, clip_v"),
        (dict(methods=["steer", "steer"]), "`methods` must list each name once, got 'steer' twice."),
        (dict(methods="clip_cov"), "`methods` must be a list of names, got 'clip_cov'."),
        (dict(methods=[1]), "`methods` must be a list of names, got [1]."),
        (dict(methods=None), "`methods` must be a list of names, got None."),
        (dict(methods=["clip_cov"], clip_cov_ratio=0.0), "`clip_cov_ratio` must be a ratio in (0, 1], got 0.0."),
        (dict(methods=["clip_cov"], clip_cov_ratio=1.5), "`clip_cov_ratio` must be a ratio in (0, 1], got 1.5."),
        (dict(methods=["clip_cov"], clip_cov_ratio="x"), "`clip_cov_ratio` must be a ratio in (0, 1], got 'x'."),
        (
            dict(methods=["clip_cov"], clip_cov_ratio=float("nan")),
            "`clip_cov_ratio` must be a ratio in (0, 1], got nan.",
        ),
        (
            dict(methods=["clip_cov"], clip_cov_low=5.0),
            "`clip_cov_low` must be less than `clip_cov_high` (5.0), got 5.0.",
        ),
        (
            dict(methods=["clip_cov"], clip_cov_scope="rank"),
            "`clip_cov_scope` must be one of 'micro_batch', 'world', got 'rank'.",
        ),
        (dict(methods=["kl_cov"], kl_cov_ratio=-0.1), "`kl_cov_ratio` must be a ratio in (0, 1], got -0.1."),
        (dict(methods=["kl_cov"], kl_cov_ratio=2), "`kl_cov_ratio` must be a ratio in (0, 1], got 2."),
        (dict(methods=["kl_cov"], kl_cov_coef=-1.0), "`kl_cov_coef` must be a finite number >= 0, got -1.0."),
        (
            dict(methods=["kl_cov"], kl_cov_penalty="k1"),
            "`kl_cov_penalty` must be one of 'abs', 'k2', 'k3', got 'k1'.",
        ),
        (dict(methods=["kl_cov"], kl_cov_ppo_clip="yes"), "`kl_cov_ppo_clip` must be true or false, got 'yes'."),
        (dict(methods=["steer"], steer_lambda_min=0.0), "`steer_lambda_min` must be a weight in (0, 1], got 0.0."),
        (dict(methods=["steer"], steer_lambda_min=1.1), "`steer_lambda_min` must be a weight in (0, 1], got 1.1."),
        (
            dict(methods=["steer"], steer_mapping="linear", steer_lambda_min=0.9, steer_lambda_max=0.8),
            "`steer_lambda_min` must be a weight in (0, `steer_lambda_max`], which is 0.8, got 0.9.",
        ),
        (
            dict(methods=["steer"], steer_omega="exakt"),
            "`steer_omega` must be one of 'theorem', 'exact', 'released', got 'exakt'.",
        ),
        (dict(methods=["clip_b"], clip_b_mu=-2.5), "`clip_b_mu` must be a finite number >= 0, got -2.5."),
        (dict(methods=["clip_v"], clip_v_mu=-1), "`clip_v_mu` must be a finite number >= 0, got -1."),
        (dict(methods=["clip_v"], clip_v_max_ratio=0), "`clip_v_max_ratio` must be a ratio in (0, 1], got 0."),
        (dict(methods=["clip_v"], fused_head=False), "`fused_head` must be true for method 'clip_v', got False."),
        (
            dict(methods=["steer"], steer_omega="exact", fused_head=False),
            "`fused_head` must be true for method 'steer', got False.",
        ),
        (
            dict(entropy_forecast=True, fused_head=False),
            "`fused_head` must be true for `entropy_forecast`, got False.",
        ),
        (dict(methods=["siren"], siren_coef=-0.1), "`siren_coef` must be a finite number >= 0, got -0.1."),
        (dict(methods=["siren"], siren_top_p=1.0), "`siren_top_p` must be a mass in (0, 1), got 1.0."),
        (dict(methods=["siren"], siren_quantile=1.0), "`siren_quantile` must be a quantile in [0, 1), got 1.0."),
        (
            dict(methods=["siren"], siren_nucleus="in"),
            "`siren_nucleus` must be one of 'exclude', 'include', got 'in'.",
        ),
        (
            dict(methods=["siren"], siren_square="sum"),
            "`siren_square` must be one of 'micro_batch', 'ema', got 'sum'.",
        ),
        (dict(methods=["epo"], epo_low=2.0), "`epo_low` must be in [0, `epo_high`), which is 2.0, got 2.0."),
        (dict(methods=["epo"], epo_coef=float("inf")), "`epo_coef` must be a finite number >= 0, got inf."),
        (dict(methods=["aepo"]), "`aepo_target_entropy` must be an entropy in nats > 0, and set, got None."),
        (
            dict(methods=["aepo"], aepo_target_entropy=0.5, aepo_temperature_min=1.1),
            "`aepo_temperature_min` must be a temperature in (0, 1], got 1.1.",
        ),
        (
            dict(methods=["aepo"], aepo_target_entropy=0.5, aepo_temperature_max=0.9),
            "`aepo_temperature_max` must be a temperature >= 1, got 0.9.",
        ),
        (
            dict(methods=["aepo"], aepo_target_entropy=0.5, aepo_rule="pid"),
            "`aepo_rule` must be one of 'clip', 'binary', got 'pid'.",
        ),
        (
            dict(entropy_coef_schedule="step"),
            "`entropy_coef_schedule` must be one of 'constant', 'linear', 'cosine', got 'step'.",
        ),
        (
            dict(entropy_coef_schedule="linear", use_adaptive_entropy=True),
            "`entropy_coef_schedule` must be 'constant' with `use_adaptive_entropy`",
        ),
        (
            dict(entropy_controller="pi"),
            "`entropy_controller` must be 'step' without `use_adaptive_entropy`, got 'pi'.",
        ),
        (
            dict(entropy_controller="band"),
            "`entropy_controller` must be 'step' without `use_adaptive_entropy`, got 'band'.",
        ),
        (
            dict(entropy_controller_high=0.05),
            "`entropy_controller_high` must be a finite number of at least `entropy_controller_low`, which is 0.1, "
            "got 0.05.",
        ),
        (
            dict(entropy_controller_box=[0.1, 0.01]),
            "`entropy_controller_box` must be two finite numbers, the smaller one first, got [0.1, 0.01].",
        ),
        (dict(entropy_controller_warmup=-1), "`entropy_controller_warmup` must be an integer >= 0, got -1."),
        (
            dict(use_adaptive_entropy=True, entropy_controller_ki=-1),
            "`entropy_controller_ki` must be a finite number >= 0, got -1.",
        ),
        (dict(methods=["clip_b"], clip_b_renormalize=1.0), "`clip_b_renormalize` must be true or false, got 1.0."),
        (dict(methods=["clip_cov"], clip_cov_ratio=True), "`clip_cov_ratio` must be a ratio in (0, 1], got True."),
        (
            dict(kappa_mode=False),
            "`kappa_mode` must be one of 'none', 'freeze', 'lora', got False. YAML reads unquoted yes, no, on and off",
        ),
        (dict(entropy_coef=math.nan), "`entropy_coef` must be a finite number, got nan."),
        (dict(entropy_coef="x"), "`entropy_coef` must be a finite number, got 'x'."),
        (dict(use_adaptive_entropy=True, entropy_target=math.nan), "`entropy_target` must be a number, got nan."),
        (
            dict(use_adaptive_entropy=True, entropy_controller="pi", entropy_target=-1.0),
            "`entropy_target` must be a finite number >= 0, got -1.0.",
        ),
        (dict(use_adaptive_entropy=True, entropy_coef_delta="x"), "`entropy_coef_delta` must be a number, got 'x'."),
        (
            dict(use_adaptive_entropy=True, entropy_coef_min=1.0, entropy_coef_max=0.1),
            "`entropy_coef_min` must be at most `entropy_coef_max`, which is 0.1, got 1.0.",
        ),
        (dict(num_generations=0), "`num_generations` must be an integer >= 2, got 0."),
        (dict(num_generations=1), "`num_generations` must be an integer >= 2, got 1."),
        (dict(num_iterations=0), "`num_iterations` must be an integer >= 1, got 0."),
        (dict(num_iterations=1.5), "`num_iterations` must be an integer >= 1, got 1.5."),
        (dict(gradient_accumulation_steps=0), "`gradient_accumulation_steps` must be an integer >= 1, got 0."),
        (dict(gradient_accumulation_steps=True), "`gradient_accumulation_steps` must be an integer >= 1, got True."),
        (dict(per_device_train_batch_size=0), "`per_device_train_batch_size` must be an integer >= 1, got 0."),
        (dict(steps_per_generation=0), "`steps_per_generation` must be an integer >= 1 or none, got 0."),
        (dict(steps_per_generation=-2), "`steps_per_generation` must be an integer >= 1 or none, got -2."),
        (dict(generation_batch_size=0), "`generation_batch_size` must be an integer >= 1 or none, got 0."),
        (dict(max_completion_length=-5), "`max_completion_length` must be an integer >= 1 or none, got -5."),
        (dict(top_entropy_quantile=1.5), "`top_entropy_quantile` must be a share in [0, 1], got 1.5."),
        (dict(temperature=0), "`temperature` must be a finite number > 0, got 0."),
        (
            dict(importance_sampling_level="seq"),
            "`importance_sampling_level` must be one of 'token', 'sequence', got 'seq'.",
        ),
        (dict(scale_rewards="foo"), "`scale_rewards` must be one of 'group', 'batch', 'none', got 'foo'."),
        (
            dict(multi_objective_aggregation="sum"),
            "`multi_objective_aggregation` must be one of 'sum_then_normalize', 'normalize_then_sum', got 'sum'.",
        ),
        (
            dict(model_init_kwargs="{bad"),
            "`model_init_kwargs` must be a mapping, or one as JSON, got '{bad': Expecting property name",
        ),
        (
            dict(deepspeed="nope.json"),
            "`deepspeed` must be a mapping, or the path of a file that exists, got 'nope.json'.",
        ),
    ],
)
def test_errors_name_field_value_and_what_is_accepted(tmp_path, fields, message):
    with pytest.raises(ValueError) as error:
        make_config(tmp_path, **fields)
    assert message in str(error.value) and "\n" not in str(error.value)


def wrong_values(kind):
    """Values that a field of this type never accepts."""
    parts = get_args(kind) or (kind,)
    if get_origin(kind) is Literal:
        return ["nothing", 3, None, []]
    if get_origin(kind) is list:
        return ["x", 3, None, [1.5] if int in parts else [3]]
    found = [] if type(None) in parts else [None]
    for part, values in {
        float: ["x", math.nan, []],
        int: ["x", 1.5, []],
        bool: ["yes", 1.0, 2],
        str: [3, []],
        dict: ["x", 3, ["a"]],
        list[float]: ["x", 3, [3]],
    }.items():
        if part in parts:
            return found + values
    raise AssertionError(f"no wrong value is known for {kind}")


OWN = [field.name for field in fields(EntropyGRPOConfig) if field.name not in {f.name for f in fields(trl.GRPOConfig)}]


@pytest.mark.parametrize("name", [name for name in OWN if name != "methods"])
@pytest.mark.filterwarnings("ignore")
def test_no_field_takes_a_value_of_another_type(tmp_path, name):
    owner = sorted((method for method in METHODS if name.startswith(f"{method}_")), key=len)[-1:]
    settings = dict(methods=owner, use_adaptive_entropy=name == "entropy_controller")
    settings |= required(owner)
    values = wrong_values(get_type_hints(EntropyGRPOConfig)[name])
    assert len(values) > 1
    for value in values:
        with pytest.raises(ValueError) as error:
            make_config(tmp_path, **{**settings, name: value})
        message = str(error.value)
        assert f"`{name}`" in message and repr(value) in message and "\n" not in message


def rows(**columns):
    return Dataset.from_dict(columns)


@pytest.mark.parametrize(
    "given, message",
    [
        (
            dict(model="/no/model"),
            "`model` must be a model, a name on the Hub, or a folder that exists, got '/no/model'.",
        ),
        (dict(model="./model"), "`model` must be a model, a name on the Hub, or a folder that exists, got './model'."),
        (dict(model=""), "`model` must be a model, a name on the Hub, or a folder that exists, got ''."),
        (dict(model=None), "`model` must be a model, a name on the Hub, or a folder that exists, got None."),
        (dict(model=3), "`model` must be a model, a name on the Hub, or a folder that exists, got 3."),
        (dict(reward_funcs=None), "No reward source provided. Pass `reward_funcs`"),
        (dict(reward_funcs=[]), "No reward source provided. Pass `reward_funcs`"),
        (
            dict(reward_funcs=3),
            "`reward_funcs` must be functions, or a model, a name on the Hub, or a folder that exists, got 3.",
        ),
        (
            dict(reward_funcs=[count_reward, None]),
            "`reward_funcs` must be functions, or a model, a name on the Hub, or a folder that exists, got None.",
        ),
        (
            dict(reward_funcs="./reward"),
            "`reward_funcs` must be functions, or a model, a name on the Hub, or a folder that exists, "
            "got './reward'.",
        ),
        (dict(reward_weights=[1.0, 2.0]), "Number of reward weights (2) must match number of reward functions (1)"),
        (
            dict(train_dataset=rows(text=["w1"])),
            "`train_dataset` must have the column 'prompt', got the columns ['text'].",
        ),
        (dict(train_dataset=rows(prompt=[])), "`train_dataset` must have at least one row, got Dataset("),
        (dict(train_dataset=None), "`train_dataset` is required"),
        (
            dict(loss_type="ppo"),
            "`loss_type` must be one of 'grpo', 'bnpo', 'dr_grpo', 'dapo', 'cispo', 'sapo', 'luspo', "
            "'vespo', got 'ppo'.",
        ),
        (dict(num_generations=3), "generation_batch_size (4) must be divisible by num_generations (3)."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_trainer_is_given(tmp_path, given, message):
    settings = dict(per_device_train_batch_size=4, num_generations=4)
    objects = dict(model=build_model(), reward_funcs=count_reward, train_dataset=build_dataset())
    objects |= {name: given[name] for name in objects if name in given}
    with pytest.raises(ValueError) as error:
        args = make_config(tmp_path, **settings | {name: given[name] for name in given if name not in objects})
        EntropyGRPOTrainer(args=args, processing_class=build_tokenizer(), **objects)
    assert message in str(error.value) and "\n" not in str(error.value)


def warnings_of(caplog, tmp_path, **fields):
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="trl_entropy"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_config(tmp_path, **{"max_completion_length": 8192, **fields})  # enough tokens for every ratio
    return [record.getMessage() for record in caplog.records if record.name.startswith("trl_entropy")]


def test_field_of_a_method_that_is_off(caplog, tmp_path):
    (message,) = warnings_of(caplog, tmp_path, methods=["clip_cov"], steer_lambda_min=0.8)
    assert "`steer_lambda_min` is set to 0.8, but its method is not in `methods`" in message
    assert not warnings_of(caplog, tmp_path, methods=["steer"], steer_lambda_min=0.8)


def test_ratio_method_with_one_update_per_generation_batch(caplog, tmp_path):
    (message,) = warnings_of(caplog, tmp_path, methods=["kl_cov"])
    assert "'kl_cov'" in message and "`num_iterations`" in message and "`steps_per_generation`" in message
    (message,) = warnings_of(
        caplog, tmp_path, methods=["kl_cov"], gradient_accumulation_steps=4, steps_per_generation=2
    )
    assert "does nothing" in message
    (message,) = warnings_of(caplog, tmp_path, methods=["kl_cov"], use_vllm=True)
    assert "numerical noise" in message
    assert not warnings_of(caplog, tmp_path, methods=["kl_cov"], num_iterations=2)
    assert not warnings_of(caplog, tmp_path, methods=["kl_cov"], steps_per_generation=4)
    assert not warnings_of(caplog, tmp_path, methods=["clip_cov", "steer", "clip_b"])


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            dict(methods=["clip_cov"]),
            "`clip_cov_ratio` 0.0002 of at most 512 tokens (4 completions of `max_completion_length` 128) is 0.102, "
            "less than one token. Method 'clip_cov' takes one token all the same, whatever the ratio is. The smallest "
            "ratio that acts is 0.00196.",
        ),
        (
            dict(methods=["clip_v"], gradient_accumulation_steps=2, num_iterations=3),
            "`clip_v_max_ratio` 0.0001 of at most 1024 tokens (8 completions of `max_completion_length` 128) is "
            "0.102, less than one token. Method 'clip_v' takes one token all the same, whatever the ratio is. The "
            "smallest ratio that acts is 0.000977.",
        ),
        (
            dict(methods=["kl_cov"], num_iterations=2, kl_cov_ratio=1.9e-3),
            "`kl_cov_ratio` 0.0019 of at most 512 tokens (4 completions of `max_completion_length` 128) is 0.973, "
            "less than one token. Method 'kl_cov' takes one token all the same, whatever the ratio is. The smallest "
            "ratio that acts is 0.00196.",
        ),
    ],
)
def test_ratio_of_less_than_one_token(caplog, tmp_path, fields, message):
    fields = dict(per_device_train_batch_size=4, num_generations=4, max_completion_length=128) | fields
    (found,) = warnings_of(caplog, tmp_path, **fields)
    assert found.removeprefix("[RANK 0] ") == message
    enough = {METHODS[fields["methods"][0]].token_ratio: float(message.split()[-1][:-1])}
    assert warnings_of(caplog, tmp_path, **{**fields, **enough}) == []


def test_thresholds_without_scaled_advantages(caplog, tmp_path):
    (message,) = warnings_of(caplog, tmp_path, methods=["clip_cov"], scale_rewards="none")
    assert "'clip_cov'" in message and "`scale_rewards`" in message
    assert not warnings_of(caplog, tmp_path, methods=["clip_cov"], scale_rewards="batch")
    assert not warnings_of(caplog, tmp_path, methods=["steer"], scale_rewards="none")


AEPO = dict(methods=["aepo"], aepo_target_entropy=0.5)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(methods=["siren"], siren_coef=0.0), "Method 'siren' does nothing, since `siren_coef` is 0."),
        (
            dict(methods=["empg"], empg_k=0, empg_zeta=0),
            "Method 'empg' only subtracts the mean over steps, since `empg_k` and",
        ),
        (
            dict(methods=["canon"], canon_mu=0.5),
            "Method 'canon' with `canon_mu: 0.5` gives the reward minus the group mean",
        ),
        (
            dict(methods=["agentic_aepo"], agentic_aepo_coef=0.0, agentic_aepo_keep_gradient=False),
            "Method 'agentic_aepo' does nothing, since `agentic_aepo_coef` is 0",
        ),
        (dict(methods=["epo"], epo_coef=0.0), "Method 'epo' does nothing, since `epo_coef` is 0."),
        (
            dict(methods=["kl_cov"], kl_cov_coef=0.0, kl_cov_ppo_clip=True),
            "Method 'kl_cov' does nothing, since `kl_cov_coef` is 0.",
        ),
        (dict(methods=["kl_cov"], kl_cov_coef=0), "nothing but for `kl_cov_ppo_clip: false`"),
        (dict(methods=["steer"], steer_lambda_min=1), "one weight, since `steer_lambda_min` is 1."),
        (
            dict(methods=["steer"], steer_lambda_max=2.0),
            "`steer_lambda_max` is set to 2.0, but `steer_mapping` is not",
        ),
        (AEPO | dict(aepo_gain=30.0), "`aepo_gain` is set to 30.0, but `aepo_mode` is 'rollout': it does nothing."),
        (AEPO | dict(aepo_coef=0.0), "Method 'aepo' does nothing, since `aepo_coef` is 0."),
        (AEPO | dict(aepo_mode="reweight", aepo_gain=0.0), "Method 'aepo' does nothing, since `aepo_gain` is 0."),
        (
            AEPO | dict(aepo_mode="reweight", aepo_ratio=0.5),
            "`aepo_ratio` is set to 0.5, but `aepo_mode` is 'reweight'",
        ),
        (
            AEPO | dict(aepo_temperature_min=1.0, aepo_temperature_max=1),
            "Method 'aepo' regulates nothing, since `aepo_t",
        ),
        (
            dict(entropy_coef_schedule="linear"),
            "`entropy_coef_schedule` 'linear' does nothing, as `entropy_coef` is 0.",
        ),
        (
            dict(entropy_controller_box=[0.0, 0.1]),
            "`entropy_controller_box` is set to [0.0, 0.1], but `entropy_controller` is not 'band'",
        ),
        (
            dict(use_adaptive_entropy=True, entropy_controller="band", entropy_target=0.3),
            "`entropy_target` is set to 0.3, but `entropy_controller` is 'band'",
        ),
        (
            dict(entropy_controller_kp=5.0),
            "`entropy_controller_kp` is set to 5.0, but `entropy_controller` is not 'pi'",
        ),
        (dict(entropy_coef=-0.1), "`entropy_coef` is -0.1: below 0 it lowers entropy."),
    ],
)
def test_settings_without_effect(caplog, tmp_path, fields, message):
    (found,) = warnings_of(caplog, tmp_path, num_iterations=2, **fields)
    assert message in found


def test_loss_types_are_those_of_trl():
    assert config_module.LOSS_TYPES == LOSS_TYPES  # with each of which test_parity.py compares the two trainers
    source = inspect.getsource(trl.GRPOTrainer._compute_loss)
    assert set(LOSS_TYPES) == set(
        re.findall(r'"([a-z_]+)"', " ".join(re.findall(r"self\.loss_type (?:==|in) (.*):", source)))
    )


@pytest.mark.filterwarnings("ignore")
def test_what_trl_takes_is_taken(tmp_path):
    """Unusual valid values are accepted too."""
    taken = [dict(scale_rewards=value) for value in (True, False, "batch")]
    taken += [dict(num_generations=2, generation_batch_size=4), dict(max_completion_length=None), dict(deepspeed=None)]
    taken += [dict(top_entropy_quantile=0.0), dict(entropy_coef=-0.1), dict(entropy_target=-1.0)]
    taken += [dict(use_adaptive_entropy=True, entropy_target=math.inf, entropy_coef_max=math.inf)]
    taken += [dict(model_init_kwargs='{"dtype": "float32"}')]
    for settings in taken:
        config = make_config(tmp_path, per_device_train_batch_size=4, **{"num_generations": 4, **settings})
        stock = trl.GRPOConfig(
            str(tmp_path),
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=4,
            **{"num_generations": 4, **settings},
        )
        assert all(getattr(config, name) == getattr(stock, name) for name in (*settings, "steps_per_generation"))


@pytest.mark.parametrize("version, fits", [("1.15.0", False), ("1.16.0", True), ("1.16.3", True), ("1.17.0", False)])
def test_trl_version(version, fits):
    if fits:
        check_trl_version(version)
        return
    with pytest.raises(ImportError) as error:
        check_trl_version(version)
    assert version in str(error.value) and "trl>=1.16,<1.17" in str(error.value)


def test_trl_config_is_refused(tmp_path):
    args = trl.GRPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(TypeError, match="`args` must be an `EntropyGRPOConfig`, got `GRPOConfig`"):
        EntropyGRPOTrainer(build_model(), count_reward, args, build_dataset(), processing_class=build_tokenizer())


def test_unsloth_is_refused(make_trainer, monkeypatch):
    def forward(self, *args, **kwargs):
        return None, None, None

    forward.__module__ = "UnslothGRPOTrainer"
    monkeypatch.setattr(trl.GRPOTrainer, "_get_per_token_logps_and_entropies", forward)
    with pytest.raises(RuntimeError, match="Unsloth has patched the GRPO trainer"):
        make_trainer()


def test_unsloth_base_class_is_refused():
    base = type("UnslothGRPOTrainer", (trl.GRPOTrainer,), {})
    with pytest.raises(RuntimeError, match="UnslothGRPOTrainer"):
        refuse_unsloth(type("Trainer", (base,), {}))


def test_one_completion_in_a_micro_batch(caplog, tmp_path):
    one = dict(
        num_generations=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        num_iterations=2,
        max_completion_length=5000,
    )
    for name in ("clip_cov", "kl_cov"):
        (found,) = warnings_of(caplog, tmp_path, methods=[name], **one)
        assert f"Method '{name}' centers advantages over the completions of a micro-batch. There is one" in found
    # A method before it may tell the tokens of a completion apart.
    assert warnings_of(caplog, tmp_path, methods=["steer", "clip_cov"], **one) == []


def test_a_driven_ratio_may_be_less_than_one_token(caplog, tmp_path):
    """The thermostat rounds its tokens at random, so the ratio says what is taken on average."""
    small = dict(methods=["clip_cov"], clip_cov_ratio=0.001, clip_cov_low=0.1, max_completion_length=16)
    assert len(warnings_of(caplog, tmp_path, **small)) == 1
    caplog.clear()
    assert warnings_of(caplog, tmp_path, **small, entropy_keep=0.7) == []
    assert len(warnings_of(caplog, tmp_path, **small, entropy_keep=0.7, entropy_keep_knob="entropy_coef")) == 1
