# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The head on a model: TRL's call, outputs and gradients, and the additional statistics."""

import copy
import math
import pickle
import threading
import types

import peft
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from support.tensors import make_loss_batch
from support.tiny import EXACT, FLOAT32, build_model, loss_and_gradients
from torch.distributed.fsdp import fully_shard
from transformers import MixtralConfig, MixtralForCausalLM, Qwen2ForCausalLM
from trl.trainer.utils import add_fused_lm_head

from trl_entropy.head import EntropyCausalLMOutput, EntropyHead, add_entropy_head, patch
from trl_entropy.head.forwards import CAST_FORWARD, bind_cast_head, bind_to_module


ALL = ("second_moments", "nucleus_entropy", "second_temperature", "top_logps")
EXTRA = ("sum_sq_probs", "sum_sq_probs_log_probs", "nucleus_entropy", "second_log_probs", "top_log_probs")


@pytest.fixture
def batch():
    """Three sequences of a prompt, a completion and, in two of them, padding."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(2, 24, (3, 17), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 12:] = attention_mask[2, 15:] = 0
    labels = input_ids.masked_fill(attention_mask == 0, -100)
    labels[:, :6] = -100
    return dict(input_ids=input_ids, attention_mask=attention_mask, labels=labels, fused_lm_head=True)


def with_bias(model):
    head = torch.nn.Linear(16, 24)
    head.weight.data = model.lm_head.weight.data
    model.lm_head = head
    return model


MODELS = {
    "plain": build_model,
    "tied": lambda: build_model(tie_word_embeddings=True),
    "bias": lambda: with_bias(build_model()),
    "logit scale": lambda: build_model(logit_scale=0.4),
    "logits scaling": lambda: build_model(logits_scaling=3.0),
    "softcap": lambda: build_model(final_logit_softcapping=2.0),
    "bfloat16": lambda: build_model().to(torch.bfloat16),
}


def pair(build, **settings):
    """The same model twice: with TRL's head, and with our head over TRL's, as in a trainer."""
    stock = build().train()
    ours = copy.deepcopy(stock)
    for model in (stock, ours):
        add_fused_lm_head(
            model,
            temperature=settings.get("temperature", 1.0),
            cast_lm_head_to_fp32=settings.get("cast_lm_head_to_fp32", False),
            outputs=("log_probs", "entropy"),
        )
    add_entropy_head(ours, **settings)
    return stock, ours


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_outputs_and_gradients_are_trls(batch, name, temperature):
    stock, ours = pair(MODELS[name], temperature=temperature, statistics=ALL, second_temperature=1.2)
    theirs, outputs = stock(**batch), ours(**batch)
    assert isinstance(outputs, EntropyCausalLMOutput)
    torch.testing.assert_close(outputs.log_probs, theirs.log_probs, **EXACT)
    torch.testing.assert_close(outputs.label_mask, theirs.label_mask, **EXACT)
    torch.testing.assert_close(outputs.loss, theirs.loss, **FLOAT32)
    torch.testing.assert_close(outputs.entropy, theirs.entropy, **FLOAT32)
    weight = torch.randn(outputs.log_probs.shape, generator=torch.Generator().manual_seed(1))
    weight[:, 10:] = 0
    expected = gradients(stock, (theirs.log_probs * weight).sum())
    actual = gradients(ours, (outputs.log_probs * weight).sum())
    assert expected and actual.keys() == expected.keys()
    for parameter, gradient in expected.items():
        # A sum over live rows rounds differently from one over all rows; only the head's bias differed
        tolerance = FLOAT32 if parameter == "lm_head.bias" else EXACT
        torch.testing.assert_close(actual[parameter], gradient, **tolerance)


def test_statistics_are_those_of_the_logits(batch):
    model = build_model()
    head = add_entropy_head(model, temperature=0.7, statistics=ALL, second_temperature=1.2)
    out = model(**batch)
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    log_p, mask = (logits / 0.7).log_softmax(-1), batch["labels"][:, 1:] != -100
    label = batch["labels"][:, 1:, None].clamp(min=0)

    def close(actual, expected):
        torch.testing.assert_close(actual, expected * mask, **FLOAT32)

    close(out.entropy, -(log_p.exp() * log_p).sum(-1))
    close(out.sum_sq_probs, log_p.exp().square().sum(-1))
    close(out.sum_sq_probs_log_probs, (log_p.exp().square() * log_p).sum(-1))
    close(out.second_log_probs, (logits / 1.2).log_softmax(-1).gather(-1, label).squeeze(-1))
    assert ((out.nucleus_entropy >= 0) & (out.nucleus_entropy <= out.entropy + 1e-6)).all()
    assert [getattr(out, name).requires_grad for name in EXTRA] == [False, False, True, False, True]
    torch.testing.assert_close(out.top_log_probs.squeeze(-1), log_p.amax(-1) * mask, **FLOAT32)

    # Each forward reads the settings
    head.second_temperature = 0.5
    close(model(**batch).second_log_probs, (logits / 0.5).log_softmax(-1).gather(-1, label).squeeze(-1))
    head.nucleus_rule = "include"
    assert (model(**batch).nucleus_entropy >= out.nucleus_entropy).all()
    head.top_k = 3
    torch.testing.assert_close(model(**batch).top_log_probs, log_p.topk(3).values * mask.unsqueeze(-1), **FLOAT32)
    head.statistics = ()
    assert [getattr(model(**batch), name) for name in EXTRA] == [None] * 5


def test_cast_to_float32_and_autocast(batch):
    def cast():
        model = build_model().to(torch.bfloat16)
        model.lm_head.float()
        return model

    stock, ours = pair(cast, cast_lm_head_to_fp32=True)
    with torch.autocast("cpu", torch.bfloat16):
        theirs, outputs = stock(**batch), ours(**batch)
    torch.testing.assert_close(outputs.log_probs, theirs.log_probs, **EXACT)
    stock, ours = pair(build_model)
    with torch.autocast("cpu", torch.bfloat16):
        theirs, outputs = stock(**batch), ours(**batch)
    torch.testing.assert_close(outputs.log_probs, theirs.log_probs, **EXACT)
    expected, actual = gradients(stock, theirs.log_probs.sum()), gradients(ours, outputs.log_probs.sum())
    for parameter, gradient in expected.items():
        torch.testing.assert_close(actual[parameter], gradient, **EXACT)


def test_mixture_of_experts_returns_its_auxiliary_loss(batch):
    def build():
        torch.manual_seed(0)
        config = MixtralConfig(
            vocab_size=24,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=4,
        )
        return MixtralForCausalLM(config)

    stock, ours = pair(build)
    theirs, outputs = (model(**batch, output_router_logits=True) for model in (stock, ours))
    assert theirs.aux_loss > 0
    torch.testing.assert_close(outputs.aux_loss, theirs.aux_loss, **EXACT)


@pytest.mark.parametrize("labelled", [0, 1, 5])
def test_few_labelled_tokens(batch, labelled):
    """Without labeled tokens, the forward contributes a differentiable zero. Few tokens round as many do."""
    stock, ours = pair(build_model, statistics=ALL, second_temperature=1.2)
    batch["labels"][:] = -100
    batch["labels"][0, 7 : 7 + labelled] = 3
    theirs, outputs = stock(**batch), ours(**batch)
    torch.testing.assert_close(outputs.log_probs, theirs.log_probs, **EXACT)
    assert all((getattr(outputs, name) != 0).sum() <= labelled for name in EXTRA)
    expected, actual = gradients(stock, theirs.log_probs.sum()), gradients(ours, outputs.log_probs.sum())
    assert expected and actual.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(actual[parameter], gradient, **EXACT)


def test_shifted_labels_and_count_of_items(batch):
    stock, ours = pair(build_model)
    shifted = torch.nn.functional.pad(batch.pop("labels")[:, 1:], (0, 1), value=-100)
    theirs, outputs = (model(**batch, shift_labels=shifted, num_items_in_batch=5) for model in (stock, ours))
    torch.testing.assert_close(outputs.log_probs, theirs.log_probs, **EXACT)
    torch.testing.assert_close(outputs.loss, theirs.loss, **FLOAT32)


def test_where_shapes_are_compiled_every_position_is_scored(batch, monkeypatch):
    monkeypatch.setattr(patch, "DYNAMIC_DEVICES", ())
    _, ours = pair(build_model, statistics=ALL, second_temperature=1.2)
    rows = []
    monkeypatch.setattr(patch, "token_statistics", lambda h, *a: rows.append(len(h)) or original(h, *a))
    every = ours(**batch)
    monkeypatch.undo()
    _, ours = pair(build_model, statistics=ALL, second_temperature=1.2)
    labelled = ours(**batch)
    assert rows == [3 * 16]
    for name in ("log_probs", "entropy", *EXTRA):
        torch.testing.assert_close(getattr(every, name), getattr(labelled, name), **EXACT)


original = patch.token_statistics


def test_the_plain_forward_and_generation_are_untouched(batch):
    model = build_model()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    expected = model(**inputs), model.generate(inputs["input_ids"], max_new_tokens=3, do_sample=False)
    add_entropy_head(model)
    actual = model(**inputs), model.generate(inputs["input_ids"], max_new_tokens=3, do_sample=False)
    torch.testing.assert_close(actual[0].logits, expected[0].logits, **EXACT)
    torch.testing.assert_close(actual[0].loss, expected[0].loss, **EXACT)
    torch.testing.assert_close(actual[1], expected[1], **EXACT)


def test_outputs_survive_being_rebuilt_from_their_items(batch):
    """Mixed precision does this when it casts the outputs of a forward."""
    model = build_model()
    add_entropy_head(model, statistics=("second_moments",))
    outputs = model(**batch)
    rebuilt = type(outputs)({name: value.float() for name, value in outputs.items()})
    torch.testing.assert_close(rebuilt.sum_sq_probs, outputs.sum_sq_probs)


# Copies


def zeroed(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def hooked(model):
    """As accelerate splits a model across devices."""
    return add_hook_to_module(model, AlignDevicesHook("cpu"))


HEADS = {
    "ours": add_entropy_head,
    "TRL's": lambda model: (add_fused_lm_head(model, outputs=("log_probs", "entropy")), bind_to_module(model)),
    "ours after TRL's": lambda model: (add_fused_lm_head(model), add_entropy_head(model)),
    "twice": lambda model: (add_entropy_head(model), add_entropy_head(model)),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("wrapped", ["plain", "tied", "adapter", "hooked"])
def test_a_copy_computes_with_its_own_weights(batch, head, wrapped):
    model = build_model(tie_word_embeddings=wrapped == "tied")
    model = hooked(model) if wrapped == "hooked" else model
    HEADS[head](model)
    model = lora(model) if wrapped == "adapter" else model
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits, outputs = model(**inputs).logits, model(**batch)
    twin = zeroed(copy.deepcopy(copy.deepcopy(model)))
    assert twin(**inputs).logits.abs().max() == 0
    mask = outputs.label_mask
    torch.testing.assert_close(twin(**batch).entropy[mask], torch.full((int(mask.sum()),), math.log(24.0)))
    assert twin.generate(**inputs, max_new_tokens=2, do_sample=False)[:, -2:].unique().tolist() == [0]
    torch.testing.assert_close(model(**inputs).logits, logits, **EXACT)
    torch.testing.assert_close(model(**batch).log_probs, outputs.log_probs, **EXACT)
    zeroed(model)
    assert model(**inputs).logits.abs().max() == 0


def shallow(model):
    """A copy with weights of its own, which `copy.copy` alone shares with the original."""
    twin = copy.copy(model)
    twin._modules = {name: copy.deepcopy(module) for name, module in model._modules.items()}
    return twin


def replica(model):
    """As `torch.nn.DataParallel` makes one for another device: its parameters are plain tensors."""
    twins = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, twin in twins.items():
        for name, child in module._modules.items():
            twin._modules[name] = twins[child]
        for name, parameter in module._parameters.items():
            setattr(twin, name, None if parameter is None else parameter.detach().clone())
    return twins[model]


def tensors_zeroed(model):
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Tensor):
                value.zero_()
    return zeroed(model)


TENSORS = ("input_ids", "attention_mask", "labels")
COPIES = {"copy": shallow, "replica": replica, "copy of a replica": lambda model: shallow(replica(model))}
COPIES |= {"replica of a copy": lambda model: replica(shallow(model)), "deep": copy.deepcopy}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("wrapped", ["plain", "hooked before", "hooked after", "mixed precision"])
def test_copies_and_replicas_compute_with_their_own_weights(batch, head, how, wrapped):
    model = build_model()
    model = hooked(model) if wrapped == "hooked before" else model
    HEADS[head](model)
    model = hooked(model) if wrapped == "hooked after" else model
    if wrapped == "mixed precision":  # as accelerate wraps a forward
        model.forward = types.MethodType(torch.autocast("cpu", torch.bfloat16)(model.forward.__func__), model)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits, outputs = model(**inputs).logits, model(**batch)
    twin = COPIES[how](model)
    torch.testing.assert_close(twin(**inputs).logits, logits, **EXACT)
    torch.testing.assert_close(twin(**batch).log_probs, outputs.log_probs, **EXACT)
    tensors_zeroed(twin)
    assert twin(**inputs).logits.abs().max() == 0
    mask = outputs.label_mask
    torch.testing.assert_close(twin(**batch).entropy[mask], torch.full((int(mask.sum()),), math.log(24.0)))
    torch.testing.assert_close(model(**inputs).logits, logits, **EXACT)
    torch.testing.assert_close(model(**batch).log_probs, outputs.log_probs, **EXACT)


def test_copies_of_a_head_that_computes_in_float32():
    model = build_model()
    model.lm_head.forward = type("cast", (), {"__name__": CAST_FORWARD, "__call__": lambda *_: None})()
    bind_cast_head(model)
    hidden = torch.randn(2, 16, dtype=torch.bfloat16)
    expected = hidden.float() @ model.lm_head.weight.T
    twins = (
        copy.copy(model.lm_head),
        model.lm_head._replicate_for_data_parallel(),
        pickle.loads(pickle.dumps(model.lm_head)),
    )
    for twin in twins:
        twin._parameters = {"weight": 2 * model.lm_head.weight, "bias": None}
        torch.testing.assert_close(twin(hidden), 2 * expected)
    torch.testing.assert_close(model.lm_head(hidden), expected)


def test_replicas_side_by_side_do_not_mix_their_statistics(batch, monkeypatch):
    """Each thread has computed before one of them takes its results."""
    model, found, barrier = build_model(), {}, threading.Barrier(2, timeout=60)
    add_entropy_head(model, statistics=("second_moments",))
    halves = [{**batch, **{name: batch[name][rows] for name in TENSORS}} for rows in ([0, 1], [2])]
    expected = [model(**half) for half in halves]
    extend = EntropyHead.extend
    monkeypatch.setattr(EntropyHead, "extend", lambda head, outputs: (barrier.wait(), extend(head, outputs))[1])

    def work(index):
        found[index] = replica(model)(**halves[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(2):
        torch.testing.assert_close(found[index].sum_sq_probs, expected[index].sum_sq_probs, **EXACT)


def test_a_pickle_does_not_need_this_package():
    model = build_model()
    add_entropy_head(model)
    assert b"trl_entropy" not in pickle.dumps(model)


@pytest.mark.parametrize("head", HEADS)
def test_a_pickled_model_has_its_own_forward(batch, head):
    model = build_model()
    HEADS[head](model)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    twin = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(twin(**inputs).logits, model(**inputs).logits, **EXACT)
    assert zeroed(twin)(**inputs).logits.abs().max() == 0 < model(**inputs).logits.abs().max()


@pytest.mark.parametrize("fused_head", [True, False])
@pytest.mark.parametrize("cast", [False, True])
def test_a_copy_of_a_trained_model(make_trainer, batch, tmp_path, fused_head, cast):
    build_model().save_pretrained(tmp_path / "model")
    model = Qwen2ForCausalLM.from_pretrained(tmp_path / "model")  # the reference is loaded from its folder
    trainer = make_trainer(model=model, fused_head=fused_head, cast_lm_head_to_fp32=cast, max_steps=1, beta=0.1)
    trainer.train()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for model in (trainer.accelerator.unwrap_model(trainer.model), trainer.ref_model):
        expected = model(**inputs).logits
        twin = copy.deepcopy(model)
        torch.testing.assert_close(twin(**inputs).logits, expected, **EXACT)
        assert zeroed(twin)(**inputs).logits.abs().max() == 0
        torch.testing.assert_close(model(**inputs).logits, expected, **EXACT)


@pytest.mark.slow
def test_compiled_model(batch):
    _, model = pair(lambda: build_model(num_hidden_layers=1), statistics=ALL, second_temperature=1.2)
    expected = model(**batch)
    compiled = torch.compile(model, backend="eager")
    actual = compiled(**batch)
    for name in ("log_probs", "entropy", *EXTRA):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), **FLOAT32)
    expected, actual = (gradients(model, out.log_probs.sum()) for out in (expected, actual))
    for parameter, gradient in expected.items():
        torch.testing.assert_close(actual[parameter], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_compiled_models(batch):
    """Their forwards share code but not globals, in which Dynamo keeps what the code calls."""
    for seed in (0, 1):
        model = build_model(seed, num_hidden_layers=1)
        add_entropy_head(model)
        expected = model(**batch).log_probs
        torch.testing.assert_close(torch.compile(model, backend="eager")(**batch).log_probs, expected, **FLOAT32)


# PEFT and sharding


def lora(model, **settings):
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **settings))


@pytest.mark.parametrize("first", ["head", "adapter"])
def test_lora_beside_the_head(batch, first):
    """The adapter may come before or after. With `modules_to_save`, the head's saved copy is used and trained."""
    model = build_model()
    if first == "head":
        add_entropy_head(model)
    model = lora(model, modules_to_save=["lm_head"])
    if first == "adapter":
        add_entropy_head(model)
    saved = model.get_output_embeddings().modules_to_save["default"]
    saved.weight.data *= 0.5
    outputs = model(**batch)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    log_p = model(**inputs).logits[:, :-1].log_softmax(-1)
    mask = outputs.label_mask
    entropy = -(log_p.exp() * log_p).sum(-1) * mask
    torch.testing.assert_close(outputs.entropy, entropy, **FLOAT32)
    expected = torch.autograd.grad(entropy.sum(), saved.weight)[0]
    torch.testing.assert_close(gradients(model, outputs.entropy.sum())[weight_name(model, saved)], expected, **FLOAT32)


def weight_name(model, module):
    return next(name for name, parameter in model.named_parameters() if parameter is module.weight)


def test_frozen_head_under_lora_has_no_gradient(batch):
    model = build_model()
    add_entropy_head(model)
    model = lora(model)
    found = gradients(model, model(**batch).log_probs.sum())
    assert found and all("lora_" in name for name in found)


def test_an_adapter_on_the_head_is_refused(batch):
    model = peft.get_peft_model(build_model(), peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(ValueError, match="`target_modules` of the PEFT adapter must leave out `lm_head`"):
        add_entropy_head(model)
    model = build_model()
    add_entropy_head(model)
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(ValueError, match="`target_modules` of the PEFT adapter must leave out `lm_head`"):
        model(**batch)


def test_fully_sharded_head(batch, tmp_path):
    """FSDP2 on one process: the head and its gradient are DTensors."""
    stock, ours = pair(build_model, statistics=ALL, second_temperature=1.2)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        fully_shard(ours, mesh=mesh)
        theirs, outputs = stock(**batch), ours(**batch)
        torch.testing.assert_close(outputs.log_probs, theirs.log_probs, **EXACT)
        expected, actual = gradients(stock, theirs.log_probs.sum()), gradients(ours, outputs.log_probs.sum())
        for parameter, gradient in expected.items():
            torch.testing.assert_close(actual[parameter].full_tensor(), gradient, **EXACT)
    finally:
        torch.distributed.destroy_process_group()


# In a trainer


@pytest.mark.parametrize("settings", [dict(), dict(top_entropy_quantile=0.3), dict(entropy_coef=0.01)])
@pytest.mark.parametrize("loss_type", ["dapo", "cispo"])
def test_the_loss_of_a_trainer_is_trls(make_trainer, loss_type, settings):
    """An entropy bonus differentiates our entropy, which differs from TRL's by rounding."""
    batch = make_loss_batch()
    batch["old_per_token_logps"] = -2 - torch.rand(batch["completion_ids"].shape)
    results = []
    for head in (False, True):
        trainer = make_trainer(stock=True, loss_type=loss_type, model=build_model(), **settings)
        if head:
            add_entropy_head(trainer.model, trainer.temperature, statistics=ALL, second_temperature=1.2)
        results.append(loss_and_gradients(trainer, batch))
    (stock_loss, stock_gradients), (loss, gradients) = results
    tolerance = FLOAT32 if "entropy_coef" in settings else EXACT
    assert stock_loss != 0
    torch.testing.assert_close(loss, stock_loss, **tolerance)
    torch.testing.assert_close(gradients, stock_gradients, **tolerance)


def test_a_trainer_can_record_the_statistics(make_trainer):
    """TRL's trainer splits a batch into forwards and keeps only log-probabilities and entropy."""
    trainer = make_trainer(stock=True)
    head = add_entropy_head(trainer.model, statistics=("second_moments",))
    batch = make_loss_batch()
    input_ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention_mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    with head.recording("second_moments") as recorded:
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, input_ids, attention_mask, 6, batch_size=2
        )
    assert len(recorded.outputs) == 2 and all(out.sum_sq_probs.shape == (2, 8) for out in recorded.outputs)
    torch.testing.assert_close(torch.cat([out.log_probs for out in recorded.outputs])[:, -6:], logps, **EXACT)


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(statistics=("entropies",)), r"`statistics` must be a tuple of names among .*, got \('entropies',\)"),
        (dict(statistics="second_moments"), "`statistics` must be a tuple of names among .*, got 'second_moments'"),
        (dict(top_p=0.0), r"`top_p` must be in \(0, 1\), got 0.0"),
        (dict(top_p=1.0), r"`top_p` must be in \(0, 1\), got 1.0"),
        (dict(nucleus_rule="both"), r"`nucleus_rule` must be one of \('exclude', 'include'\), got 'both'"),
        (dict(statistics=("second_temperature",)), "`second_temperature` must be a finite number above 0, got None"),
        (dict(second_temperature=0.0), "`second_temperature` must be a finite number above 0, got 0.0"),
    ],
)
def test_settings_out_of_range(batch, settings, message):
    with pytest.raises(ValueError, match=message):
        add_entropy_head(build_model(), **settings)
    model = build_model()
    head = add_entropy_head(model)
    for name, value in settings.items():
        setattr(head, name, value)
    with pytest.raises(ValueError, match=message):
        model(**batch)


def test_a_release_of_trl_without_our_hooks_is_refused(monkeypatch):
    monkeypatch.setattr(patch, "KERNEL", "_another_kernel")
    with pytest.raises(RuntimeError, match=r"no longer uses \['_another_kernel'\]"):
        add_entropy_head(build_model())
