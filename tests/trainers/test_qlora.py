# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""LoRA on a model of 4 bits, by bitsandbytes itself on the CPU. `make test-qlora` runs this file."""

import math

import pytest
import torch
from support.quantized import NEEDS_BITSANDBYTES, adapter, load_quantized, nf4, save_model
from support.reference import dense_logps_and_entropy
from support.registry import covered, rewarded, steps, strong
from support.tensors import make_loss_batch
from support.tiny import EXACT

from trl_entropy import cli


pytestmark = [*NEEDS_BITSANDBYTES, pytest.mark.usefixtures("cache_folder")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("float32"))


@pytest.fixture
def run(make_trainer, folder):
    """`run(**settings)`: a short run of a quantized model, and a check that its base stays as it was."""

    def run(**settings):
        settings = {"steps_per_generation": 2, "max_steps": 3, "peft_config": adapter(), **settings}
        torch.manual_seed(0)  # of the adapter's first weights
        trainer = make_trainer(model=load_quantized(folder), **settings)
        before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
        trainer.train()
        after = trainer.model.state_dict()
        assert sum(value.dtype == torch.uint8 and "proj" in key for key, value in after.items()) >= 14
        for key, value in after.items():
            if "lora_" not in key:
                torch.testing.assert_close(value, before[key], **EXACT)
        adapters = {key: value for key, value in after.items() if "lora_" in key}
        assert all(value.isfinite().all() for value in adapters.values())
        assert any(not torch.equal(value, before[key]) for key, value in adapters.items())
        rows = [row for row in trainer.state.log_history if "loss" in row]
        assert len(rows) == settings["max_steps"] and all(math.isfinite(row["loss"]) for row in rows)
        return [{key: value for key, value in row.items() if key != "step_time"} for row in rows], adapters

    return run


def test_log_probabilities_are_those_of_the_dequantized_model(make_trainer, folder):
    """Through the fused head, before the adapter has learned anything.

    In training: on some CPUs bitsandbytes evaluates in bfloat16, whatever the compute type. Weights that were
    evaluated once have other scales, so the comparison of the head with the plain logits must not evaluate them.
    """
    trainer, batch = make_trainer(model=load_quantized(folder), peft_config=adapter()), make_loss_batch()
    trainer.model.train()
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    plain = load_quantized(folder).dequantize()
    assert all(value.is_floating_point() for value in plain.state_dict().values())
    with torch.no_grad():
        logps, entropy, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, batch["completion_ids"].size(1), compute_entropy=True
        )
        expected = dense_logps_and_entropy(plain, batch)
    valid = batch["completion_mask"].bool()
    for found, other in zip((logps, entropy), expected, strict=True):
        torch.testing.assert_close(found[valid], other[valid], rtol=1e-4, atol=1e-4)
    rounded = max((value - plain.state_dict()[key]).abs().max() for key, value in build_plain(folder).items())
    assert rounded > 0.01  # by the quantization


def build_plain(folder):
    from transformers import Qwen2ForCausalLM

    return Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def test_no_method_is_stock_trl(run):
    stock, plain = run(stock=True), run(fused_head=False)
    for row, other in zip(plain[0], stock[0], strict=True):
        assert {key: row[key] for key in other} == other
    torch.testing.assert_close(plain[1], stock[1], **EXACT)


@pytest.fixture(scope="module")
def plain_runs():
    return {}


@pytest.mark.compatibility("QLoRA")
@pytest.mark.parametrize("methods", [[name] for name in covered()], ids="+".join)
def test_methods(run, plain_runs, methods):
    """Only the adapter moves, and otherwise than without the method."""
    settings = dict(max_steps=steps(methods), **rewarded(methods))
    key = repr(settings)
    if key not in plain_runs:
        plain_runs[key] = run(**settings)[1]
    rows, adapters = run(methods=methods, **settings, **strong(methods))
    assert any(not torch.equal(value, plain_runs[key][name]) for name, value in adapters.items())
    assert any(key.startswith(f"{methods[0]}/") for row in rows for key in row)


def test_kappa_tune_selects_adapters(run):
    chosen = dict(kappa_mode="lora", kappa_num_modules=3, peft_config=adapter(target_modules=None))
    _, adapters = run(methods=["siren"], **chosen)
    assert len({key.split(".lora_")[0] for key in adapters}) == 3


@pytest.mark.parametrize("named", [False, True], ids=["in memory", "by name"])
def test_kappa_tune_cannot_train_packed_weights(make_trainer, folder, named):
    given = folder if named else load_quantized(folder)
    options = dict(model_init_kwargs=dict(quantization_config=nf4(), dtype="float32")) if named else {}
    with pytest.raises(ValueError, match="`kappa_mode` must be 'lora' for a quantized model, .* got 'freeze'"):
        make_trainer(model=given, kappa_mode="freeze", kappa_num_modules=2, **options)


def test_quantized_heads_are_refused(make_trainer, folder):
    """transformers leaves the head out unless it is told which modules to leave out."""
    load_quantized(folder, llm_int8_skip_modules=None)
    model = load_quantized(folder, llm_int8_skip_modules=["no_module"])
    with pytest.raises(ValueError, match="LM head that is not quantized, got Qwen2ForCausalLM with Linear4bit"):
        make_trainer(model=model, peft_config=adapter())


def test_condition_numbers_of_a_quantized_checkpoint(folder, tmp_path, capsys):
    """The command reads them. They are near those of the weights before they were quantized."""
    load_quantized(folder).save_pretrained(tmp_path / "nf4")
    found = []
    for model in (folder, tmp_path / "nf4"):
        assert cli.main(["kappa", str(model), "--num-modules", "3"]) == 0
        lines = capsys.readouterr().out.splitlines()[1:]
        found.append({words[0]: float(words[2]) for words in map(str.split, lines) if words[0].endswith("_proj")})
    assert len(found[0]) == 14 and found[0].keys() == found[1].keys() and found[0] != found[1]
    close = [abs(math.log(found[1][name] / value)) for name, value in found[0].items()]
    assert sorted(close)[7] < 0.5
