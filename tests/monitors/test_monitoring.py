# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Monitors in training: what they log, and that they change nothing."""

import logging
import math

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from support.distilling import build_distiller
from support.tiny import EXACT, build_model, build_tokenizer
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from trl_entropy import EntropyDistillationConfig, EntropyDistillationTrainer, MonitorCallback
from trl_entropy.monitors.attention import Attention
from trl_entropy.monitors.geometry import effective_rank, spectrum
from trl_entropy.monitors.looking import evaluated
from trl_entropy.monitors.probe import FILE, Probe


BOTH = dict(monitors=["geometry", "attention"], monitor_steps=2, geometry_layers=[0], geometry_dse=True)
KEYS = {
    f"geometry/{key}{end}"
    for key in ("rankme", "alpha", "alpha_r2", "participation", "top_share", "dse")
    for end in ("", "_layer_0")
}
KEYS |= {"geometry/samples", "geometry/rankme_ratio"}
KEYS |= {
    f"attention/{key}"
    for key in ("entropy_mean", "entropy_min_head", "relative_mean", "relative_p10", "collapsed_heads")
}


def measured(trainer):
    """Step -> numbers of the monitors, and the other log lines of training without times."""
    lines = [line for line in trainer.state.log_history if "train_runtime" not in line]
    found = {line["step"]: {k: v for k, v in line.items() if k in KEYS} for line in lines if KEYS & set(line)}
    others = [
        {k: v for k, v in line.items() if k not in KEYS and "time" not in k} for line in lines if line["step"] > 0
    ]
    return found, others


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run with both monitors, and the features of its probe after the last step, computed apart."""
    from support.tiny import build_trainer

    from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer

    folder = tmp_path_factory.mktemp("watched")
    settings = dict(max_steps=4, logging_steps=1, methods=["clip_cov"], steps_per_generation=2)
    plain = build_trainer(EntropyGRPOTrainer, EntropyGRPOConfig, folder / "plain", **settings)
    plain.train()
    trainer = build_trainer(EntropyGRPOTrainer, EntropyGRPOConfig, folder / "watched", **settings, **BOTH)
    trainer.train()
    return plain, trainer


def test_a_run_is_the_same_to_the_bit(watched):
    plain, trainer = watched
    found, others = measured(trainer)
    assert others == measured(plain)[1] and measured(plain)[0] == {}
    for name, weight in plain.model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], weight, **EXACT)
    assert list(found) == [0, 2, 4] and all(set(numbers) == KEYS for numbers in found.values())


def test_numbers_are_those_of_the_model(watched):
    trainer = watched[1]
    found = measured(trainer)[0]
    model, probe = trainer.model, Probe.load(trainer.callback_handler.callbacks[0].folder / FILE)
    assert len(probe.sequences) == len(trainer.train_dataset) < 256
    texts = [row["prompt"] for row in trainer.train_dataset]
    assert probe.sequences == build_tokenizer()(texts)["input_ids"]
    model.eval()
    features, first = [], []
    with torch.no_grad():
        for ids in probe.sequences:
            out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
            features.append(out.hidden_states[-1][0, -1])
            first.append(out.hidden_states[1][0, -1])
    last = found[4]
    assert last["geometry/rankme"] == pytest.approx(effective_rank(spectrum(torch.stack(features))), rel=1e-4)
    assert last["geometry/rankme_layer_0"] == pytest.approx(effective_rank(spectrum(torch.stack(first))), rel=1e-4)
    assert last["geometry/samples"] == len(features)
    assert found[0]["geometry/rankme_ratio"] == 1
    assert last["geometry/rankme_ratio"] == last["geometry/rankme"] / found[0]["geometry/rankme"] != 1
    heads = load_file(trainer.callback_handler.callbacks[0].folder / "monitors" / "attention-4.safetensors")
    assert heads["entropy"].shape == (model.config.num_hidden_layers, model.config.num_attention_heads)
    assert last["attention/entropy_min_head"] == pytest.approx(heads["entropy"].min().item())


def test_a_resumed_run_keeps_probe_and_reference(watched, tmp_path, make_trainer):
    settings = dict(max_steps=2, save_steps=2, save_strategy="steps", logging_steps=1, **BOTH)
    first = make_trainer(output_dir=tmp_path, **settings)
    first.train()
    start = measured(first)[0][0]["geometry/rankme"]
    short = Probe.load(tmp_path / FILE).sequences[:5]
    Probe(short).save(tmp_path / FILE)
    resumed = make_trainer(output_dir=tmp_path, **settings | dict(max_steps=4))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    found = measured(resumed)[0]
    assert list(found) == [0, 2, 4] and found[4]["geometry/samples"] == 5
    assert found[4]["geometry/rankme_ratio"] == found[4]["geometry/rankme"] / start


def test_monitor_that_fails_on_the_way_is_left_out(make_trainer, monkeypatch, caplog):
    calls = []

    def collected(self):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no attention today")
        return own(self)

    own = Attention.collected
    monkeypatch.setattr(Attention, "collected", collected)
    caplog.set_level(logging.WARNING)
    trainer = make_trainer(max_steps=4, logging_steps=1, **BOTH)
    trainer.train()
    found = measured(trainer)[0]
    assert "attention/entropy_mean" in found[0] and len(calls) == 2
    assert all(set(found[step]) == {key for key in KEYS if key.startswith("geometry")} for step in (2, 4))
    (warning,) = [record.getMessage() for record in caplog.records if "is off" in record.getMessage()]
    assert "Monitor 'attention' is off from step 2 on. RuntimeError: no attention today" in warning


def test_monitor_that_fails_before_the_first_step_stops_the_run(make_trainer, monkeypatch):
    monkeypatch.setattr(Attention, "collected", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_trainer(max_steps=1, **BOTH).train()


def test_other_trainers(tmp_path):
    """TRL's for supervised training, with the callback itself, and ours for distillation, by its settings."""
    rows = Dataset.from_dict({"text": ["w3 w4 w5 w6", "w7 w8", "w9 w3 w4", "w5 w5 w6"] * 3})
    weights = []
    for monitors in ([], ["geometry", "attention"]):
        set_seed(0)
        config = SFTConfig(
            str(tmp_path / "sft"), max_steps=2, logging_steps=1, use_cpu=True, bf16=False, report_to="none",
            per_device_train_batch_size=2, gradient_checkpointing=False,
        )  # fmt: skip
        added = [MonitorCallback(monitors, every=1, geometry_samples=6)] if monitors else []
        trainer = SFTTrainer(
            build_model(), config, train_dataset=rows, processing_class=build_tokenizer(), callbacks=added
        )
        trainer.train()
        weights.append(trainer.model.state_dict())
    torch.testing.assert_close(weights[1], weights[0], **EXACT)
    found = measured(trainer)[0]
    assert list(found) == [0, 1, 2] and found[2]["geometry/samples"] == 6
    assert 0 < found[2]["attention/entropy_mean"] < math.log(4)

    distiller = build_distiller(
        EntropyDistillationTrainer, EntropyDistillationConfig, tmp_path / "distilled", max_steps=2, logging_steps=1,
        monitors=["geometry"], monitor_steps=1,
    )  # fmt: skip
    distiller.train()
    assert list(measured(distiller)[0]) == [0, 1, 2]


def test_shares_of_processes_cover_the_probe():
    probe = Probe([[n + 1] * (n % 3 + 1) for n in range(7)])
    for processes in (1, 2, 3, 8):
        own = [list(probe.batches(5, rank, processes, 2, torch.device("cpu"))) for rank in range(processes)]
        assert len({len(batches) for batches in own}) == 1  # all run the same number of forwards
        rows = torch.cat([batch.input_ids[:, :1] for batches in own for batch in batches])
        assert probe.in_order(rows, 5, processes).flatten().tolist() == [1, 2, 3, 4, 5]
        assert all(batch.input_ids.ne(0).sum(1).tolist() == batch.lengths.tolist() for b in own for batch in b)


def test_conversations_texts_and_tokens_become_sequences():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}w9{% endif %}"
    )
    ids = tokenizer("w3 w4 w9")["input_ids"]
    from trl_entropy.monitors.probe import row_ids

    assert row_ids({"prompt": [{"role": "user", "content": "w3 w4"}]}, tokenizer) == ids
    assert (
        row_ids({"messages": [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4"}]}, tokenizer)
        == ids[:2]
    )
    assert row_ids({"input_ids": [5, 6], "text": "w3"}, tokenizer) == [5, 6]
    assert Probe.of([{"prompt": "w3 w4 w9"}, {"prompt": ""}], tokenizer, 2, 2).sequences == [ids[-2:]]
    with pytest.raises(ValueError, match="one of the columns 'prompt'.*got question, answer"):
        row_ids({"question": "w3", "answer": "w4"}, tokenizer)
    with pytest.raises(ValueError, match="at least one prompt that is not empty"):
        Probe([[]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(monitors=["geomtry"]), "unknown name 'geomtry'. Did you mean 'geometry'?"),
        (dict(monitors="geometry"), "must be a list of names, got 'geometry'"),
        (dict(monitors=["geometry", "geometry"]), "got 'geometry' twice"),
        (dict(monitors=["geometry"], monitor_steps=0), "`monitor_steps` must be a whole number >= 1, got 0"),
        (dict(monitors=["geometry"], geometry_ranks=[9]), "`geometry_ranks` must be two whole numbers"),
        (dict(monitors=["geometry"], geometry_samples=1), "`geometry_samples` must be a whole number >= 2, got 1"),
        (dict(monitors=["attention"], attention_queries=0), "`attention_queries` must be a whole number >= 1, got 0"),
    ],
)
def test_bad_fields(make_trainer, settings, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        make_trainer(**settings)


def test_bad_arguments_of_the_callback_and_layers_beyond_the_model(make_trainer):
    with pytest.raises(
        ValueError, match="`geometry_sample` is no field of a monitor. Did you mean 'geometry_samples'"
    ):
        MonitorCallback(["geometry"], geometry_sample=3)
    with pytest.raises(ValueError, match="must name at least one monitor"):
        MonitorCallback([])
    with pytest.raises(ValueError, match="`geometry_layers` must be below 2, the model's number of layers, got 7"):
        make_trainer(max_steps=1, monitors=["geometry"], geometry_layers=[7]).train()


def test_fields_of_monitors_that_are_not_listed_warn(make_trainer, caplog):
    caplog.set_level(logging.WARNING)
    make_trainer(monitors=["attention"], geometry_samples=9)
    make_trainer(monitor_steps=9)
    texts = [record.getMessage() for record in caplog.records if "its monitor is not" in record.getMessage()]
    assert (
        "`geometry_samples` is set to 9" in texts[0] and "`monitor_steps` is set to 9" in texts[1] and len(texts) == 2
    )


def test_modes_of_modules_come_back():
    model = build_model().train()
    model.get_decoder().layers[0].eval()
    before = [module.training for module in model.modules()]
    with evaluated(model):
        assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == before and len(set(before)) == 2
