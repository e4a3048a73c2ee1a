# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Exactly the selected weights train: in our trainer, in TRL's, resumed, with adapters and without."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import IA3Config, LoHaConfig, LoraConfig, OFTConfig, get_peft_model
from support.distilling import build_distiller
from support.tiny import EXACT, build_model, build_tokenizer
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import Qwen2ForSequenceClassification, TrainerState
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from trl_entropy import (
    EntropyDistillationConfig,
    EntropyDistillationTrainer,
    EntropyGRPOConfig,
    KappaTuneCallback,
    kappa_peft_config,
)
from trl_entropy.kappa.analysis import analyze
from trl_entropy.kappa.callback import KappaMonitor
from trl_entropy.kappa.selection import Selection
from trl_entropy.kappa.sources import LiveSource
from trl_entropy.kappa.tuning import freeze_all_but, trained_weight, with_targets


pytestmark = pytest.mark.usefixtures("cache_folder")


def selected(model, **settings):
    selection = Selection(**settings)
    return selection.select(analyze(LiveSource(model), selection.candidate, progress=False))


def assert_trained(trainer, before, chosen):
    """Other weights stay the same to the bit, and the optimizer does not have them."""
    names = {layer.parameter for layer in chosen}
    after = dict(trainer.model.named_parameters())
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    held = {id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]}
    assert changed == names and held == {id(after[name]) for name in names} and 0 < len(names) < 14


def copies(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize(
    "settings",
    [
        dict(top_p=0.3),
        dict(num_modules=3, order="descending"),
        dict(include=["mlp"], num_modules=2),
        dict(order="random", num_modules=4),
    ],
    ids=str,
)
def test_freeze(make_trainer, tmp_path, settings):
    model = build_model()
    before, chosen = copies(model), selected(model, seed=7, **settings)
    fields = {f"kappa_{name}": value for name, value in settings.items()}
    trainer = make_trainer(model=model, kappa_mode="freeze", methods=["clip_cov"], **fields)
    trainer.train()
    assert_trained(trainer, before, chosen)
    report = json.loads((tmp_path / "kappa.json").read_text())
    assert report["selected"] == [layer.name for layer in chosen] and len(report["layers"]) > len(chosen)


def test_freeze_a_model_given_by_name(make_trainer, tmp_path, monkeypatch):
    model = build_model()
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(LiveSource, "read", None)  # weights come from the file
    trainer = make_trainer(model=str(tmp_path / "model"), kappa_mode="freeze", kappa_num_modules=2)
    trainer.train()
    monkeypatch.undo()
    assert_trained(trainer, copies(model), selected(model, num_modules=2))


def test_gradients_of_the_trained_weights_are_those_of_full_training(make_trainer):
    """One step of gradient descent from the same rollouts: trained weights move as in full training."""
    settings = dict(optim="sgd", max_steps=1, max_grad_norm=0.0)
    full = make_trainer(model=build_model(), **settings)
    full.train()
    part = make_trainer(model=build_model(), kappa_mode="freeze", kappa_num_modules=3, **settings)
    part.train()
    start, chosen = copies(build_model()), {layer.parameter for layer in selected(build_model(), num_modules=3)}
    for name, weight in part.model.named_parameters():
        expected = full.model.get_parameter(name) if name in chosen else start[name]
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-7)
        assert name not in chosen or not torch.equal(weight, start[name])


@pytest.mark.parametrize("reentrant", [False, True])
def test_freeze_with_gradient_checkpointing(make_trainer, reentrant):
    """Reentrant checkpoints pass gradients only if an input requires one. transformers sees to that."""
    model = build_model()
    before, chosen = copies(model), selected(model, include=["layers.0"], num_modules=2)
    trainer = make_trainer(
        model=model,
        kappa_mode="freeze",
        kappa_include=["layers.0"],
        kappa_num_modules=2,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )
    trainer.train()
    assert_trained(trainer, before, chosen)


def adapted(model):
    return {
        name.split(".lora_A")[0].removeprefix("base_model.model.")
        for name, _ in model.named_parameters()
        if "lora_A" in name
    }


@pytest.mark.parametrize("by_name", [False, True])
def test_lora_targets_are_the_selected_modules(tmp_path, by_name):
    from support.tiny import build_dataset, count_reward

    from trl_entropy import EntropyGRPOTrainer

    model = build_model()
    model.save_pretrained(tmp_path / "model")
    before, chosen = copies(model), selected(model, num_modules=3)
    args = EntropyGRPOConfig(
        str(tmp_path / "out"), kappa_mode="lora", kappa_num_modules=3, kappa_track_steps=1, learning_rate=0.05,
        per_device_train_batch_size=4, num_generations=4, max_completion_length=8, max_steps=2, logging_steps=1,
        use_cpu=True, bf16=False, report_to=[], save_strategy="no",
    )  # fmt: skip
    given = LoraConfig(r=2, lora_alpha=4)
    trainer = EntropyGRPOTrainer(
        str(tmp_path / "model") if by_name else model, count_reward, args, build_dataset(),
        processing_class=build_tokenizer(), peft_config=given,
    )  # fmt: skip
    assert given.target_modules is None  # the user's own stays the same
    trainer.train()
    assert adapted(trainer.model) == {layer.name for layer in chosen}
    merged = dict(trainer.model.merge_and_unload().named_parameters())
    assert {name for name in before if not torch.equal(before[name], merged[name])} == {
        row.parameter for row in chosen
    }
    # The last tracked value is the merged weight's.
    expected = [torch.linalg.cond(merged[layer.parameter].double()).item() for layer in chosen]
    assert trainer.state.log_history[1]["kappa/max"] == pytest.approx(max(expected), rel=1e-4)


@pytest.mark.parametrize("mode", ["freeze", "lora"])
def test_in_the_distillation_trainer_with_tip(tmp_path, mode):
    student = build_model()
    before, chosen = copies(student), selected(student, num_modules=2)
    adapters = dict(peft_config=LoraConfig(r=2)) if mode == "lora" else {}
    trainer = build_distiller(
        EntropyDistillationTrainer, EntropyDistillationConfig, tmp_path, model=student, kappa_mode=mode,
        kappa_num_modules=2, kappa_track_steps=1, tip_ratio=0.5, **adapters,
    )  # fmt: skip
    assert isinstance(trainer.callback_handler.callbacks[0], KappaMonitor)  # so reporting callbacks get its numbers
    trainer.train()
    if mode == "freeze":
        assert_trained(trainer, before, chosen)
    else:
        assert adapted(trainer.model) == {layer.name for layer in chosen}


def test_tracked_condition_numbers_are_logged(make_trainer):
    model = build_model()
    chosen = selected(model, num_modules=3)
    trainer = make_trainer(
        model=model, kappa_mode="freeze", kappa_num_modules=3, kappa_track_steps=2, max_steps=4, logging_steps=3
    )
    trainer.train()
    assert [line["step"] for line in trainer.state.log_history if "loss" in line] == [2, 3, 4]
    tracked = [line for line in trainer.state.log_history if "kappa/median" in line]
    assert [line["step"] for line in tracked] == [2, 4]
    after = dict(trainer.model.named_parameters())
    kappas = sorted(torch.linalg.cond(after[layer.parameter].detach().double()).item() for layer in chosen)
    assert tracked[-1]["kappa/median"] == pytest.approx(kappas[1], rel=1e-6)
    assert tracked[-1]["kappa/max"] == pytest.approx(kappas[2], rel=1e-6)
    types = {f"kappa/{layer.name.partition('layers.')[2][2:]}" for layer in chosen}  # kappa/mlp.up_proj
    assert types < tracked[-1].keys() and tracked[0]["kappa/max"] != tracked[1]["kappa/max"]


def test_resume(make_trainer, tmp_path):
    settings = dict(kappa_mode="freeze", kappa_num_modules=3, max_steps=4, save_strategy="steps", save_steps=2)
    whole = make_trainer(output_dir=tmp_path / "whole", **settings)
    whole.train()
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    resumed = make_trainer(output_dir=tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=checkpoint)
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), **EXACT)
    restoring = make_trainer(
        output_dir=tmp_path / "restoring", restore_callback_states_from_checkpoint=True, **settings
    )
    restoring.train(resume_from_checkpoint=checkpoint)
    torch.testing.assert_close(restoring.model.state_dict(), whole.model.state_dict(), **EXACT)
    other = make_trainer(output_dir=tmp_path / "other", **{**settings, "kappa_order": "descending"})
    with pytest.raises(
        ValueError,
        match="The checkpoint was trained on 3 selected modules, this run selects 3: .* only in the "
        "checkpoint, .* only in this run",
    ):
        other.train(resume_from_checkpoint=checkpoint)


def begin(callback, model, rows=None, **kwargs):
    """What the trainer asks of a callback before the first step."""
    state = TrainerState(is_world_process_zero=False)
    if rows is not None:
        state.stateful_callbacks = {type(callback).__name__: {"attributes": {"restored": rows}}}
    callback.on_train_begin(None, state, None, model=model, **kwargs)


def test_resume_with_the_same_modules_in_another_order():
    model = build_model()
    callback = KappaTuneCallback(num_modules=3, cache="none")
    callback.on_init_end(SimpleNamespace(disable_tqdm=True), None, None, model=model)
    rows = callback.restored[::-1]
    begin(callback, model, rows)
    with pytest.raises(
        ValueError, match=f"on 2 selected modules, this run selects 3: '{rows[0]['name']}' only in this run. Resume"
    ):
        begin(callback, model, rows[1:])


def test_callback_is_for_the_trainer_that_was_made_last():
    callback = KappaTuneCallback(num_modules=1, cache="none")
    for zeros in (set(), {"model.layers.0.mlp.up_proj.weight"}):
        model = build_model()
        with torch.no_grad():
            for name in zeros:
                model.get_parameter(name).zero_()
        callback.on_init_end(SimpleNamespace(disable_tqdm=True), None, None, model=model)
        (layer,) = callback.chosen
        assert [layer.name] == [row.name for row in selected(model, num_modules=1)]
        assert [name for name, weight in model.named_parameters() if weight.requires_grad] == [layer.parameter]


def sft_trainer(tmp_path, model, callbacks, **keywords):
    config = SFTConfig(
        str(tmp_path), max_length=16, per_device_train_batch_size=2, max_steps=2, learning_rate=0.05, logging_steps=1,
        use_cpu=True, bf16=False, report_to=[], save_strategy="no", gradient_checkpointing=False,
    )  # fmt: skip
    data = Dataset.from_dict({"text": [f"w{index} w{index + 1} w{index + 2}" for index in range(8)]})
    return SFTTrainer(
        model, args=config, train_dataset=data, processing_class=build_tokenizer(), callbacks=callbacks, **keywords
    )


def dpo_trainer(tmp_path, model, callbacks):
    config = DPOConfig(
        str(tmp_path), max_length=16, per_device_train_batch_size=2, max_steps=2, learning_rate=0.05, logging_steps=1,
        use_cpu=True, bf16=False, report_to=[], save_strategy="no", gradient_checkpointing=False,
    )  # fmt: skip
    rows = range(8)
    data = Dataset.from_dict(
        {
            "prompt": [f"w{row}" for row in rows],
            "chosen": [f" w{row + 1}" for row in rows],
            "rejected": [f" w{row + 2}" for row in rows],
        }
    )
    reference = build_model()
    return DPOTrainer(
        model, reference, args=config, train_dataset=data, processing_class=build_tokenizer(), callbacks=callbacks
    )


@pytest.mark.parametrize("make", [sft_trainer, dpo_trainer])
def test_callback_in_trainers_of_trl(tmp_path, make):
    model = build_model()
    before, chosen = copies(model), selected(model, top_p=0.3)
    callback = KappaTuneCallback(top_p=0.3, track_steps=1)
    trainer = make(tmp_path, model, [callback])
    assert callback.selected == [layer.name for layer in chosen]
    trainer.train()
    assert_trained(trainer, before, chosen)
    assert trainer.state.log_history[1]["kappa/median"] > 1
    assert json.loads((tmp_path / "kappa.json").read_text())["selected"] == callback.selected


def test_peft_config_for_trainers_of_trl(tmp_path):
    model = build_model()
    chosen = selected(model, num_modules=2)
    trainer = sft_trainer(tmp_path, model, None, peft_config=kappa_peft_config(model, LoraConfig(r=2), num_modules=2))
    trainer.train()
    assert adapted(trainer.model) == {layer.name for layer in chosen}


@pytest.mark.parametrize(
    "peft_config", [LoraConfig(r=2), LoraConfig(r=2, use_dora=True), LoHaConfig(r=2)], ids=["lora", "dora", "loha"]
)
def test_tracked_weights_are_the_merged_ones(peft_config):
    base, callback = build_model(), KappaMonitor(num_modules=3, cache="none", track_steps=1)
    callback.analyze(base)
    model = get_peft_model(base, with_targets(peft_config, callback.chosen))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.3)
    begin(callback, model)
    found = {layer.parameter: trained_weight(model, layer) for layer in callback.chosen}
    kappas = callback.measure(model)
    model.merge_adapter()
    merged = {layer.parameter: trained_weight(model, layer) for layer in callback.chosen}  # nothing is added twice
    whole = model.merge_and_unload()
    expected = {name: whole.get_parameter(name).detach() for name in found}
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(merged, expected, rtol=0, atol=0)
    conditions = [torch.linalg.cond(weight.double()).item() for weight in expected.values()]
    assert kappas["kappa/max"] == pytest.approx(max(conditions), rel=1e-3)


@pytest.mark.parametrize(
    "peft_config", [OFTConfig(r=0, oft_block_size=4), IA3Config(feedforward_modules=[])], ids=["oft", "ia3"]
)
def test_adapters_that_cannot_be_tracked_are_refused(peft_config):
    base, callback = build_model(), KappaMonitor(num_modules=2, cache="none")
    callback.analyze(base)
    model = get_peft_model(base, with_targets(peft_config, callback.chosen))
    begin(callback, model)
    callback.track_steps = 5
    with pytest.raises(ValueError, match="cannot be tracked: the weights of the model are adapted by peft.tuners"):
        begin(callback, model)


def test_layers_that_checkpoint_their_activations(tmp_path):
    """As accelerate wraps them for FSDP."""
    model = build_model()
    before, chosen = copies(model), selected(model, num_modules=2)
    trainer = sft_trainer(tmp_path, model, [KappaTuneCallback(num_modules=2, track_steps=1)])
    for name, layer in list(model.model.layers.named_children()):
        model.model.layers.register_module(name, checkpoint_wrapper(layer))
    trainer.train()
    after = {name.replace("_checkpoint_wrapped_module.", ""): weight for name, weight in model.named_parameters()}
    assert {name for name in before if not torch.equal(before[name], after[name])} == {row.parameter for row in chosen}
    assert trainer.state.log_history[1]["kappa/median"] > 1


def test_fused_experts_are_trained_whole_or_become_target_parameters(tmp_path):
    from support.tiny import build_moe

    settings = dict(include=["experts"], num_modules=1, order="descending")
    (chosen,) = selected(build_moe(), **settings)
    assert chosen.name == chosen.parameter
    with pytest.raises(ValueError, match="`lora_dropout` of `peft_config` must be 0 if fused experts are selected"):
        kappa_peft_config(build_moe(), LoraConfig(r=2, lora_dropout=0.05), **settings)
    peft_config = kappa_peft_config(build_moe(), LoraConfig(r=2), **settings)
    assert peft_config.target_parameters == [chosen.parameter] and not peft_config.target_modules
    model = get_peft_model(build_moe(), peft_config)
    assert all(
        chosen.parameter.rpartition(".")[0] in name
        for name, weight in model.named_parameters()
        if weight.requires_grad
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)
    with_adapter = trained_weight(model, chosen)
    merged = model.merge_and_unload()
    torch.testing.assert_close(with_adapter, merged.get_parameter(chosen.parameter).detach(), rtol=1e-5, atol=1e-6)
    assert (with_adapter - build_moe().get_parameter(chosen.parameter)).abs().max() > 0.01
    whole = build_moe()
    freeze_all_but(whole, [chosen])
    assert [name for name, weight in whole.named_parameters() if weight.requires_grad] == [chosen.parameter]


def test_callback_that_comes_too_late_is_refused(tmp_path):
    trainer = sft_trainer(tmp_path, build_model(), None)
    trainer.add_callback(KappaTuneCallback())
    with pytest.raises(ValueError, match="must be given to the trainer as one of its `callbacks`"):
        trainer.train()


def test_selection_is_shown_once(tmp_path, caplog):
    model = build_model()
    chosen = selected(model, num_modules=2)
    with caplog.at_level(logging.WARNING):
        sft_trainer(tmp_path, model, [KappaTuneCallback(num_modules=2)])
        with pytest.raises(ValueError, match="No weight"):
            kappa_peft_config(model, LoraConfig(), include=["nothing"])
        kappa_peft_config(build_model(), LoraConfig(), num_modules=99)
    shown = [record.getMessage() for record in caplog.records if record.name.startswith("trl_entropy.kappa")]
    names = ", ".join(layer.name for layer in chosen)
    assert len(shown) == 3 and shown[0].endswith(
        f"KappaTune selects 2 of 14 modules, 1024 of 5120 parameters (20.0 %): {names}."
    )
    assert "`num_modules`=99 is more than there are" in shown[1] and "selects 14 of 14" in shown[2]


class Packed(torch.nn.Module):
    """Replaces a linear layer, as GPTQ does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("qweight", torch.zeros(2, 2, dtype=torch.int32))
        self.register_buffer("qweight_zeros", torch.zeros(2, 2, dtype=torch.int32))


def test_weights_that_cannot_be_dequantized_are_counted(caplog):
    model = build_model()
    for layer in model.model.layers:
        layer.mlp.up_proj, layer.self_attn.k_proj = Packed(), Packed()
    with caplog.at_level(logging.WARNING):
        found = kappa_peft_config(model, LoraConfig(), num_modules=10)
    assert len(found.target_modules) == 10
    (shown,) = [record.getMessage() for record in caplog.records if "dequantized" in record.getMessage()]
    first = "model.layers.0.self_attn.k_proj"
    assert "4 modules are not candidates, because their weights are quantized and cannot be dequantized" in shown
    assert f"the first being `{first}`" in shown
    with pytest.raises(
        ValueError, match="`include` asks with 'up_proj' for `model.layers.0.mlp.up_proj` of shape 2x2"
    ):
        kappa_peft_config(model, LoraConfig(), include=["up_proj"])


def test_scores_of_a_reward_model_have_no_condition_number():
    config = build_model().config
    config.num_labels = 1
    model = Qwen2ForSequenceClassification(config)
    with pytest.raises(ValueError, match="`include` asks with '.score.' for `score` of shape 1x16, which has no"):
        kappa_peft_config(model, LoraConfig(), include=["^score$", "q_proj"])


def test_models_with_adapters_are_refused(tmp_path):
    model = get_peft_model(build_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="weights of a model without adapters, got a PEFT model"):
        kappa_peft_config(model, LoraConfig(r=2))
    with pytest.raises(ValueError, match="weights of a model without adapters, got a PEFT model"):
        sft_trainer(tmp_path, model, [KappaTuneCallback()])


def test_optimizer_with_frozen_weights_is_refused(tmp_path):
    model = build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = sft_trainer(tmp_path, model, [KappaTuneCallback()], optimizers=(optimizer, None))
    with pytest.raises(ValueError, match="must hold trained weights only"):
        trainer.train()


def test_weights_unfrozen_afterwards_are_refused(tmp_path):
    model = build_model()
    trainer = sft_trainer(tmp_path, model, [KappaTuneCallback()])
    model.lm_head.requires_grad_(True)
    with pytest.raises(ValueError, match="not the selected ones; they differ in `lm_head.weight`"):
        trainer.train()


@pytest.mark.parametrize(
    "settings, keywords, message",
    [
        (
            dict(kappa_mode="lora"),
            {},
            "`peft_config` must be given, a LoRA config without targets, with `kappa_mode` 'lora', got None.",
        ),
        (
            dict(kappa_mode="freeze"),
            dict(peft_config=LoraConfig()),
            "`peft_config` must be left out, with `kappa_mode` 'freeze'",
        ),
        (
            dict(kappa_mode="lora"),
            dict(peft_config=LoraConfig(target_modules=["q_proj"])),
            "`target_modules` of `peft_config` must be unset",
        ),
        (dict(kappa_mode="freeze", kappa_top_p=0.001), {}, "`kappa_top_p`=0.001 selects nothing"),
        (
            dict(kappa_mode="freeze", kappa_include=["attn"], kappa_exclude=["attn"]),
            {},
            "No weight of full rank is a candidate with `kappa_include`",
        ),
    ],
)
def test_errors_at_construction(tmp_path, settings, keywords, message):
    from support.tiny import build_dataset, count_reward

    from trl_entropy import EntropyGRPOTrainer

    args = EntropyGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to=[], **settings)
    with pytest.raises(ValueError) as error:
        EntropyGRPOTrainer(
            build_model(), count_reward, args, build_dataset(), processing_class=build_tokenizer(), **keywords
        )
    assert message in str(error.value)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(kappa_mode="on"), "`kappa_mode` must be one of 'none', 'freeze', 'lora', got 'on'."),
        (dict(kappa_top_p=2), "`kappa_top_p` must be a share of the parameters in (0, 1], got 2."),
        (dict(kappa_track_steps=0), "`kappa_track_steps` must be an integer above 0 or unset, got 0."),
    ],
)
def test_errors_of_the_config(tmp_path, settings, message):
    with pytest.raises(ValueError) as error:
        EntropyGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **settings)
    assert str(error.value) == message


def test_field_without_effect_is_reported(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="trl_entropy"):
        EntropyGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, kappa_top_p=0.1, kappa_include=["mlp"])
    messages = [record.getMessage() for record in caplog.records if "kappa" in record.getMessage()]
    assert len(messages) == 2 and "`kappa_top_p` is set to 0.1, but `kappa_mode` is 'none'" in messages[0]
    caplog.clear()
    EntropyGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, kappa_mode="freeze", kappa_top_p=0.1)
    assert "kappa" not in caplog.text
