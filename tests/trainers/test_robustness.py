# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every method under hard conditions: precision, adapters, compilation, and rollouts with holes."""

import math

import pytest
import torch
from support.registry import covered, method_sets, rewarded, settings_of, steps, strong, together_sets, untested
from support.tiny import EXACT, LOSS_TYPES, build_model

from trl_entropy.methods import METHODS


# The runs do the same arithmetic in another order. Three steps at a high learning rate amplify rounding.
SAME_RUN = dict(rtol=1e-3, atol=1e-4)


def run(make_trainer, methods, **settings):
    """A short off-policy run: all weights stay finite, and each method has acted."""
    trainer = make_trainer(
        methods=methods, **{"steps_per_generation": 2, "max_steps": 3, **settings}, **strong(methods)
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    logged = {key for row in trainer.state.log_history for key in row}
    assert all(any(key.startswith(f"{name}/") for key in logged) for name in methods)
    assert all(math.isfinite(row["loss"]) for row in trainer.state.log_history if "loss" in row)
    return trainer, after


@pytest.fixture(scope="module")
def plain_runs():
    """Weights after runs without methods, by settings: made once, compared by the test of each method."""
    return {}


@pytest.fixture
def check_acts(make_trainer, plain_runs):
    """`check_acts(methods, **settings)`: the run differs from the run without methods."""

    def check(methods, **settings):
        settings = {"max_steps": steps(methods), **rewarded(methods), **settings}
        key = repr(settings)
        if key not in plain_runs:
            plain_runs[key] = run(make_trainer, [], **settings)[1]
        trainer, weights = run(make_trainer, methods, **settings)
        assert any(not torch.equal(value, plain_runs[key][name]) for name, value in weights.items())
        return trainer

    return check


def pairs(first, second):
    """All pairs of `first` and `second`."""
    return [pytest.param([one], other, id=f"{one}-{other}") for one in first for other in second]


# test_composition.py covers each loss type by default, the tests of a method those that matter to it.
@pytest.mark.slow
@pytest.mark.compatibility("{loss_type}")
@pytest.mark.parametrize("methods, loss_type", pairs(covered(), LOSS_TYPES))
def test_loss_types(check_acts, record_property, methods, loss_type):
    """A method may refuse a loss type, in an error that names both."""
    try:
        check_acts(methods, loss_type=loss_type)
    except ValueError as error:
        assert f"`loss_type` must be one of {LOSS_TYPES[0]!r}" in str(error) and repr(methods[0]) in str(error)
        record_property("compatibility", "refused")


@pytest.mark.compatibility("bf16")
@pytest.mark.parametrize("methods", method_sets())
def test_bf16_autocast(check_acts, methods):
    trainer = check_acts(methods, bf16=True)
    assert trainer.accelerator.mixed_precision == "bf16"
    assert all(value.dtype == torch.float32 for value in trainer.model.state_dict().values())


@pytest.mark.compatibility("LoRA")
@pytest.mark.parametrize("methods", method_sets())
def test_lora(check_acts, methods):
    from peft import LoraConfig

    trainer = check_acts(methods, peft_config=LoraConfig(r=2, target_modules="all-linear"))
    base, weights = build_model().state_dict(), trainer.model.state_dict()
    assert any("lora_" in name for name in weights)
    for name in (name for name in weights if "lora_" not in name):  # these stay as they were
        assert torch.equal(weights[name], base[name.removeprefix("base_model.model.").replace(".base_layer", "")]), (
            name
        )


@pytest.mark.compatibility("num_iterations: 2")
@pytest.mark.parametrize("methods", method_sets())
def test_two_iterations(check_acts, methods):
    count = max(4, steps(methods))
    trainer = check_acts(methods, num_iterations=2, max_steps=count)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    rollouts = {row["num_tokens"] for row in rows if "num_tokens" in row}
    assert len(rows) == count and len(rollouts) == math.ceil(count / 4)


@pytest.mark.compatibility("gradient checkpointing")
@pytest.mark.parametrize("methods", method_sets())
def test_gradient_checkpointing_changes_nothing(make_trainer, methods):
    _, plain = run(make_trainer, methods)
    trainer, weights = run(make_trainer, methods, gradient_checkpointing=True)
    assert trainer.model.is_gradient_checkpointing
    torch.testing.assert_close(weights, plain, **SAME_RUN)


@pytest.mark.slow  # by default only test_head_model.py compiles the forward
@pytest.mark.compatibility("torch.compile")
@pytest.mark.parametrize("methods", method_sets())
def test_compiled_model(make_trainer, methods):
    """Real Dynamo and AOTAutograd, without code generation, which would take a minute per method."""
    _, plain = run(make_trainer, methods)
    trainer, weights = run(make_trainer, methods, torch_compile=True, torch_compile_backend="aot_eager")
    assert isinstance(trainer.model_wrapped, torch._dynamo.eval_frame.OptimizedModule)
    torch.testing.assert_close(weights, plain, **SAME_RUN)


# Rollouts with holes


def reward_with_holes(completion_ids, **kwargs):
    """The first group of four has no rewards. Each other group has one right, two wrong, and one missing reward."""
    return [None if row < 4 or row % 4 == 1 else float(row % 4 == 3) for row in range(len(completion_ids))]


def nan_reward(completion_ids, **kwargs):
    return [math.nan if value is None else value for value in reward_with_holes(completion_ids)]


@pytest.mark.parametrize("reward", [reward_with_holes, nan_reward])
@pytest.mark.parametrize("methods", method_sets())
@pytest.mark.filterwarnings("ignore")
def test_missing_rewards(make_trainer, methods, reward):
    trainer, _ = run(make_trainer, methods, reward_funcs=reward)
    advantages = torch.tensor(list(trainer._logs["advantages"]))
    assert advantages.isfinite().all() and advantages.abs().max() > 0


def rollouts(own):
    """A `rollout_func` whose completions have three tokens, of which the policy wrote the first `own(row)`."""

    def rollout(prompts, trainer):
        rows = range(len(prompts))
        return {
            "prompt_ids": [[2, 3]] * len(prompts),
            "completion_ids": [[3 + (row * 5 + place) % 20 for place in range(3)] for row in rows],
            "env_mask": [[int(place < own(row)) for place in range(3)] for row in rows],
            "logprobs": None,
        }

    return rollout


# TRL rejects completions without tokens (test_contracts.py), so here they have none that the loss counts.
WRITTEN = {"one token": lambda row: 1, "some empty": lambda row: row % 3, "a group empty": lambda row: 3 * (row > 3)}


@pytest.mark.parametrize("own", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("methods", method_sets())
@pytest.mark.filterwarnings("ignore")
def test_short_completions(make_trainer, methods, own):
    trainer, _ = run(make_trainer, methods, rollout_func=rollouts(own))
    assert torch.tensor(list(trainer._logs["advantages"])).isfinite().all()


@pytest.mark.parametrize("methods", method_sets())
@pytest.mark.filterwarnings("ignore")
def test_nothing_to_learn_at_all(make_trainer, methods):
    """No token of the generation batch counts: weights stay the same, and nothing fails."""
    trainer = make_trainer(
        methods=methods, rollout_func=rollouts(lambda row: 0), steps_per_generation=2, **strong(methods)
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    torch.testing.assert_close(trainer.model.state_dict(), before, **EXACT)


@pytest.mark.parametrize("methods", method_sets())
def test_one_token_of_the_models_own(make_trainer, methods):
    trainer, _ = run(make_trainer, methods, max_completion_length=1)
    lengths = {row["completions/max_length"] for row in trainer.state.log_history if "completions/max_length" in row}
    assert lengths == {1.0}


@pytest.mark.parametrize("name", METHODS)
def test_each_method_is_run(name):
    """Each method is tested with others and alone, or its tests say why not."""
    sets = [param.values[0] for param in method_sets()]
    if settings_of(name).not_tested:
        assert not any(name in names for names in sets) and name in untested()
    else:
        assert name not in untested(), untested()[name]
        assert [name] in sets and any(name in names for names in together_sets())
