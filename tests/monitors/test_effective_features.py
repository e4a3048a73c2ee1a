# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Effective features against literals, the encoders that it takes, and what it logs in a run."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from support.tiny import EXACT, build_model
from torch import nn

from trl_entropy import EntropyGRPOConfig, MonitorCallback
from trl_entropy.monitors.effective_features import effective_features
from trl_entropy.monitors.encoders import encoded, encoder_of
from trl_entropy.monitors.looking import look
from trl_entropy.monitors.probe import FILE, Probe


CODES = torch.tensor([[1.0, 0, 0, 2], [0, 1, 0, 2], [0, 0, 0, 4]])  # of the worked example
WIDTH, FEATURES = 16, 40
FIELDS = dict(monitors=["effective_features"], effective_features_layer=1, monitor_steps=2)


class Autoencoder(nn.Module):
    """Encodes with fixed weights. Only even features are ever active."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.W_enc = nn.Parameter(torch.randn(WIDTH, FEATURES, generator=generator))
        self.b_enc = nn.Parameter(torch.where(torch.arange(FEATURES) % 2 == 0, 0.1, -1e6))

    def encode(self, hidden):
        return (hidden @ self.W_enc + self.b_enc).relu()


AUTOENCODER = Autoencoder()
NUMBER = 3


def test_worked_example():
    activity = encoded(lambda rows: rows, CODES)
    assert activity.tolist() == [1, 1, 0, 8]
    assert effective_features(activity) == pytest.approx(1.8946457081, abs=1e-9)
    assert effective_features(activity) / 2 == pytest.approx(0.9473228541, abs=1e-9)


def test_scale_order_and_sign_do_not_matter():
    found = effective_features(encoded(lambda rows: rows, CODES))
    for changed in (7.5 * CODES, CODES[:, [2, 0, 3, 1]], CODES[[2, 0, 1]], -CODES):
        assert effective_features(encoded(lambda rows: rows, changed)) == pytest.approx(found, rel=1e-12)


def test_ends():
    assert effective_features(torch.zeros(5)) == 0  # all features are dead
    assert effective_features(torch.tensor([0.0, 3, 0])) == 1
    assert effective_features(torch.ones(9)) == pytest.approx(9)
    assert math.isnan(effective_features(torch.tensor([1.0, math.nan])))
    assert math.isnan(effective_features(torch.tensor([1.0, math.inf])))


@pytest.mark.parametrize("chunk", [1, 2, 256])
def test_chunks(chunk):
    rows = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(0))
    literal = AUTOENCODER.encode(rows).abs().double().sum(0)
    found = encoded(AUTOENCODER.encode, rows, chunk)
    torch.testing.assert_close(found, literal, rtol=1e-5, atol=1e-6)
    assert not found.requires_grad


def test_encoders_by_path_file_and_function(tmp_path):
    rows = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))
    expected = AUTOENCODER.encode(rows).detach()
    assert encoder_of(AUTOENCODER.encode)(rows).equal(expected)
    assert encoder_of(f"{__name__}.AUTOENCODER.encode")(rows).equal(expected)
    weights = {"W_enc": AUTOENCODER.W_enc.detach(), "b_enc": AUTOENCODER.b_enc.detach()}
    save_file(weights, tmp_path / "sae.safetensors")
    torch.testing.assert_close(encoder_of(str(tmp_path / "sae.safetensors"))(rows), expected, **EXACT)
    save_file(weights | {"threshold": torch.full((FEATURES,), 1.5)}, tmp_path / "sae.safetensors")
    jump = encoder_of(str(tmp_path / "sae.safetensors"))(rows)
    torch.testing.assert_close(jump, torch.where(expected > 1.5, expected, 0), **EXACT)
    assert 0 < (jump > 0).sum() < (expected > 0).sum()


def test_files_of_saelens(tmp_path):
    rows = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))
    offset = torch.linspace(-1, 1, WIDTH)
    weights = {"W_enc": AUTOENCODER.W_enc.detach(), "b_enc": AUTOENCODER.b_enc.detach(), "b_dec": offset}
    path, described = tmp_path / "sae_weights.safetensors", tmp_path / "cfg.json"
    save_file(weights, path)
    with pytest.raises(ValueError, match="needs a cfg.json beside it"):
        encoder_of(str(path))
    for subtracts, shown in ((True, rows - offset), (False, rows)):
        described.write_text(json.dumps({"architecture": "standard", "apply_b_dec_to_input": subtracts}))
        torch.testing.assert_close(encoder_of(str(path))(rows), AUTOENCODER.encode(shown).detach(), **EXACT)
    described.write_text(json.dumps({"architecture": "topk", "apply_b_dec_to_input": True}))
    with pytest.raises(ValueError, match="architectures standard and jumprelu.*got 'topk'"):
        encoder_of(str(path))
    described.write_text(json.dumps({"normalize_activations": "layer_norm", "apply_b_dec_to_input": True}))
    with pytest.raises(ValueError, match="got 'standard' with 'layer_norm'"):
        encoder_of(str(path))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("encode", "must be a function, the dotted path of one, or a .safetensors file, got 'encode'"),
        (3, "got 3"),
        ("nothing_at_all.encode", "'nothing_at_all.encode', which cannot be imported: there is no module"),
        ("math.nothing", "'math.nothing', which cannot be imported: module 'math' has no attribute 'nothing'"),
        (f"{__name__}.NUMBER", "which is 3"),
        ("none.safetensors", "must hold `W_enc` and `b_enc`, got 'none.safetensors'"),
    ],
)
def test_bad_encoders(value, message):
    with pytest.raises(ValueError, match=message):
        encoder_of(value)


def test_bad_files_and_shapes(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"W_enc": torch.zeros(4, 6)}, path)
    with pytest.raises(ValueError, match="must hold `W_enc` and `b_enc`"):
        encoder_of(str(path))
    save_file({"W_enc": torch.zeros(4, 6), "b_enc": torch.zeros(5)}, path)
    with pytest.raises(ValueError, match=r"must have `W_enc` \(d, F\) and `b_enc` \(F,\), got \(4, 6\) and \(5,\)"):
        encoder_of(str(path))
    with pytest.raises(ValueError, match=r"must map \(3, 4\) to \(3, F\), got \(4,\)"):
        encoded(lambda rows: rows[0], CODES)
    with pytest.raises(ValueError, match=r"to \(3, F\), got tuple"):
        encoded(lambda rows: (rows, rows), CODES)


def test_fields():
    with pytest.raises(ValueError, match="`effective_features_encoder` must be set with the monitor"):
        MonitorCallback(["effective_features"], effective_features_layer=1)
    with pytest.raises(ValueError, match="`effective_features_layer` must be set with the monitor"):
        MonitorCallback(["effective_features"], effective_features_encoder=AUTOENCODER.encode)
    given = dict(effective_features_encoder=f"{__name__}.AUTOENCODER.encode")
    for name, value in (("layer", -1), ("samples", 0)):
        with pytest.raises(ValueError, match=f"`effective_features_{name}` must be a whole number"):
            EntropyGRPOConfig(
                "out", use_cpu=True, bf16=False, **FIELDS | given | {f"effective_features_{name}": value}
            )


def test_layer_beyond_the_model(make_trainer):
    given = FIELDS | dict(effective_features_layer=2, effective_features_encoder=f"{__name__}.AUTOENCODER.encode")
    with pytest.raises(ValueError, match="`effective_features_layer` must be below 2"):
        make_trainer(max_steps=1, **given).train()


def test_run_logs_what_the_layer_uses_and_is_the_same_to_the_bit(make_trainer, tmp_path):
    plain = make_trainer(max_steps=2, logging_steps=1)
    plain.train()
    given = FIELDS | dict(effective_features_encoder=f"{__name__}.AUTOENCODER.encode", effective_features_samples=6)
    trainer = make_trainer(output_dir=tmp_path / "run", max_steps=2, logging_steps=1, **given)
    trainer.train()
    for name, weight in plain.model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], weight, **EXACT)
    lines = {line["step"]: line for line in trainer.state.log_history if "effective_features/count" in line}
    assert list(lines) == [0, 2]
    total, model = torch.zeros(FEATURES, dtype=torch.float64), trainer.model.eval()
    for ids in Probe.load(tmp_path / "run" / FILE).sequences[:6]:
        with torch.no_grad():
            kept = []
            hook = model.model.layers[1].register_forward_hook(lambda *call: kept.append(call[-1]))  # noqa: B023
            model(torch.tensor([ids]))
            hook.remove()
        hidden = kept[0] if isinstance(kept[0], torch.Tensor) else kept[0][0]
        total += AUTOENCODER.encode(hidden[0]).detach().double().sum(0)
    p = (total / total.sum())[total > 0]
    literal = math.exp(-sum(x * math.log(x) for x in p.tolist()))
    last = lines[2]
    assert last["effective_features/count"] == pytest.approx(literal, rel=1e-4) and 1 < literal <= FEATURES / 2
    assert last["effective_features/per_dimension"] == last["effective_features/count"] / WIDTH
    assert last["effective_features/dead"] == float((total == 0).double().mean()) >= 0.5


def test_padding_does_not_count():
    """Sequences of different lengths in one forward give what each gives alone."""
    callback = MonitorCallback(
        ["effective_features"], effective_features_encoder=AUTOENCODER.encode, effective_features_layer=0
    )
    (monitor,) = callback.monitors
    model, sequences = build_model(), [[3, 4, 5, 6, 7], [8], [9, 10]]
    together = look(model, monitor, Probe(sequences))["activity"]
    for n, ids in enumerate(sequences):
        alone = look(model, monitor, Probe([ids]))["activity"]
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-5, atol=1e-5)
