# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Fields and values under their old names still work, with one warning."""

import logging
import warnings

import pytest
import yaml

from trl_entropy import EntropyDistillationConfig, EntropyGRPOConfig
from trl_entropy.commands.arguments import StrictParser
from trl_entropy.commands.methods import describe, known_methods
from trl_entropy.methods import build_methods
from trl_entropy.methods.prompt_templates import Template, read_template
from trl_entropy.methods.tip import Tip


AEPO = dict(aepo_target_entropy=0.5)
GRPO = dict(num_generations=4, per_device_train_batch_size=4, use_cpu=True, bf16=False)
FIELDS = [  # method, old name, new name, attribute of the method, other settings
    ("clip_v", "clip_v_max_frac", "clip_v_max_ratio", "max_ratio", {}),
    ("aepo", "aepo_share", "aepo_ratio", "ratio", AEPO),
]


def deprecations(build):
    """What `build` returns, and our warnings."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        built = build()
    ours = [str(one.message) for one in seen if "gradient_checkpointing" not in str(one.message)]
    return built, [text for text in ours if "is deprecated: use" in text]


def grpo(tmp_path, **settings):
    return EntropyGRPOConfig(str(tmp_path), **GRPO, **settings)


@pytest.mark.parametrize("name, old, new, attribute, settings", FIELDS)
def test_old_field(tmp_path, name, old, new, attribute, settings):
    config, seen = deprecations(lambda: grpo(tmp_path, methods=[name], **settings, **{old: 0.3}))
    assert seen == [f"`{old}` is deprecated: use `{new}`."]
    assert getattr(config, new) == 0.3 and getattr(config, old) is None
    (method,), again = deprecations(lambda: build_methods(config))  # the trainer builds them once more
    assert getattr(method, attribute) == 0.3 and not again


@pytest.mark.parametrize("name, old, new, attribute, settings", FIELDS)
def test_old_field_refused(tmp_path, name, old, new, attribute, settings):
    with pytest.raises(ValueError, match=f"`{old}` must be none with `{new}`, which is its new name, got 0.3."):
        grpo(tmp_path, methods=[name], **settings, **{old: 0.3, new: 0.4})
    with pytest.raises(ValueError, match=rf"`{old}` must be a ratio in \(0, 1\], got 2."):
        grpo(tmp_path, methods=[name], **settings, **{old: 2})


@pytest.mark.parametrize("name, old, new, attribute, settings", FIELDS)
def test_old_field_is_listed_as_deprecated(name, old, new, attribute, settings):
    lines = describe(name, known_methods()[name]).splitlines()
    place = lines.index(f"  {old}: float or none = None")
    assert lines[place + 1].endswith(f": deprecated, use `{new}`.")


def test_idle_old_fields(caplog, tmp_path):
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        grpo(tmp_path, methods=["steer"], clip_v_max_frac=0.3)
        grpo(tmp_path, methods=["aepo"], aepo_mode="reweight", aepo_share=0.3, **AEPO)
    assert "`clip_v_max_frac` is set to 0.3, but its method is not in `methods`" in caplog.text
    assert "`aepo_ratio` is set to 0.3, but `aepo_mode` is 'reweight'" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        deprecations(lambda: grpo(tmp_path, methods=["steer"]))
    assert "does nothing" not in caplog.text


def test_old_scope_of_agentic_aepo(tmp_path):
    settings = dict(methods=["agentic_aepo"], num_iterations=2)
    config, seen = deprecations(lambda: grpo(tmp_path, agentic_aepo_scope="generation_batch", **settings))
    assert seen == ["`agentic_aepo_scope: generation_batch` is deprecated: use `agentic_aepo_scope: world`."]
    (method,), again = deprecations(lambda: build_methods(config))
    assert method.whole_batch and method.needs == ("rollout_entropy",) and not again
    assert config.agentic_aepo_scope == grpo(tmp_path, **settings).agentic_aepo_scope == "world"


def test_old_scope_of_tip(tmp_path):
    settings = dict(use_cpu=True, bf16=False)
    config, seen = deprecations(lambda: EntropyDistillationConfig(str(tmp_path), tip_scope="global", **settings))
    assert seen == ["`tip_scope: global` is deprecated: use `tip_scope: world`."]
    tip, again = deprecations(lambda: Tip(config))
    assert tip.scope == config.tip_scope == "world" and not again


@pytest.mark.parametrize("by_flag", [True, False])
def test_old_names_on_the_command_line(tmp_path, by_flag):
    old = {"agentic_aepo_scope": "generation_batch", "clip_v_max_frac": 0.3}
    recipe = {"methods": ["agentic_aepo", "clip_v"], "num_iterations": 2, "output_dir": str(tmp_path), **GRPO}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | ({} if by_flag else old)))
    flags = [word for name, value in old.items() for word in (f"--{name}", str(value))] if by_flag else []
    parser = StrictParser((EntropyGRPOConfig,), prog="test")
    (config,) = parser.parse(["--config", str(tmp_path / "recipe.yaml"), *flags])
    assert config.agentic_aepo_scope == "world" and config.clip_v_max_ratio == 0.3


def test_old_key_of_a_template():
    template, seen = deprecations(lambda: read_template("odd", {"opening": "w10"}))
    assert template == Template(prefill="w10")
    entry = "`prompt_augmentation_templates` entry 'odd'"
    assert seen == [f"{entry}: the key `opening` is deprecated: use `prefill`."]
    with pytest.raises(ValueError, match=f"{entry} must be a mapping of system, user, prefill, markers, got"):
        read_template("odd", {"opening": "w10", "prefill": "w11"})
