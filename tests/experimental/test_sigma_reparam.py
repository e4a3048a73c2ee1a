# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""σReparam: its power step and gradient against literals, conversion and folding back."""

import copy
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.tiny import build_model
from torch import nn

from trl_entropy.experimental.sigma_reparam import SigmaReparam, apply_sigma_reparam, remove_sigma_reparam


IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])
ROOT = math.sqrt(2)


def changed(weight):
    """Tells the module that the weight is another than at its last power step."""
    with torch.no_grad():
        weight.add_(0)
    return weight


def example():
    weight = torch.diag(torch.tensor([3.0, 1], dtype=torch.float64))
    found = SigmaReparam(weight)
    with torch.no_grad():
        found.u.copy_(torch.ones(2, dtype=torch.float64) / ROOT)
        found.v.copy_(torch.tensor([3, 1], dtype=torch.float64) / math.sqrt(10))
        found.gamma.fill_(3)
    return found, weight


def test_worked_example():
    found, weight = example()
    before = 3 / found.eval()(weight)[0, 0] * 3  # σ = γ W_11 / Ŵ_11, without a step
    assert before.item() == pytest.approx(2.2360679775, abs=1e-9)
    mapped = found.train()(changed(weight))
    assert (3 / mapped[0, 0] * 3).item() == pytest.approx(2.8635642127, abs=1e-9)
    assert mapped.flatten().tolist() == pytest.approx([3.1429363309, 0, 0, 1.0476454436], abs=1e-9)


def test_starts_at_the_weight_and_its_spectral_norm():
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = SigmaReparam(weight)
    torch.testing.assert_close(found(weight), weight, rtol=1e-14, atol=0)
    assert float(found.gamma.detach()) == pytest.approx(float(torch.linalg.matrix_norm(weight, 2)), rel=1e-12)
    torch.testing.assert_close(found(changed(weight)), weight, rtol=1e-12, atol=1e-12)  # the step stays there


def test_one_step_for_each_change_of_the_weight_in_training():
    found, weight = example()
    once = found(changed(weight))
    assert found(weight).equal(once)  # a forward that is repeated
    again = found(changed(weight))
    assert not again.equal(once)
    found.eval()
    assert found(changed(weight)).equal(found(weight)) and found(weight).equal(again)
    # Steps lead to the spectral norm.
    found.train()
    for _ in range(60):
        found(changed(weight))
    assert (9 / found(weight)[0, 0]).item() == pytest.approx(3, abs=1e-9)


def test_gradient_goes_through_the_norm():
    """With u and v constant: dL/dW = γ/σ G - γ/σ² <G, W> v uᵀ, and dL/dγ = <G, W> / σ."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    found = SigmaReparam(weight)
    with torch.no_grad():
        weight += 0.3 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    w = weight.requires_grad_()
    g = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    u = found.u.clone()
    (found(w) * g).sum().backward()
    x = w.detach()
    v = x @ u / (x @ u).norm()
    u = x.T @ v / (x.T @ v).norm()
    sigma, gamma, inner = v @ x @ u, float(found.gamma.detach()), (g * x).sum()
    expected = gamma / sigma * g - gamma / sigma**2 * inner * torch.outer(v, u)
    torch.testing.assert_close(w.grad, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.gamma.grad, inner / sigma, rtol=1e-9, atol=1e-12)
    # Ŵ does not depend on the scale of W, so the gradient is orthogonal to W once u and v are exact.
    exact = SigmaReparam(x).double()
    w = x.clone().requires_grad_()
    (exact.eval()(w) * g).sum().backward()
    assert abs(float((w.grad * x).sum())) < 1e-9


def test_scale_of_the_weight_does_not_matter():
    found, weight = example()
    other = copy.deepcopy(found)
    torch.testing.assert_close(other(changed(5 * weight)), found(changed(weight)), rtol=1e-12, atol=1e-12)


def test_backward_after_a_later_forward():
    """Two micro-batches, and a step between the forwards."""
    found, weight = example()
    w = weight.clone().requires_grad_()
    first = found(w)
    with torch.no_grad():
        other = 2 * weight
    found(other.requires_grad_())
    first.sum().backward()  # u and v of the first forward are untouched
    assert w.grad.isfinite().all() and w.grad.any()


def test_conversion_changes_no_output_and_folds_back(tmp_path):
    plain, model = build_model(), build_model()
    names = apply_sigma_reparam(model)
    assert names == [f"model.layers.{n}.self_attn.{part}" for n in (0, 1) for part in ("q_proj", "k_proj")]
    torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, rtol=1e-5, atol=1e-5)  # γ / σ is 1 to rounding
    parameters = dict(model.named_parameters())
    assert sum(name.endswith("weight.0.gamma") for name in parameters) == 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert all(weight.grad is not None and weight.grad.any() for name, weight in parameters.items() if "gamma" in name)
    trained = model.eval()(IDS).logits
    assert not torch.allclose(trained, plain(IDS).logits, atol=1e-3)
    model.train()
    assert remove_sigma_reparam(model) == names and remove_sigma_reparam(model) == []
    assert set(model.state_dict()) == set(plain.state_dict())
    torch.testing.assert_close(model.eval()(IDS).logits, trained, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)


def test_other_layers_and_bf16():
    model = build_model().to(torch.bfloat16)
    before = model(IDS).logits
    assert apply_sigma_reparam(model, ["0.mlp.up_proj"]) == ["model.layers.0.mlp.up_proj"]
    assert model.model.layers[0].mlp.up_proj.parametrizations.weight[0].gamma.dtype == torch.float32
    torch.testing.assert_close(model(IDS).logits, before, rtol=0.02, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(IDS).logits.isfinite().all()


def test_checkpointed_forwards_are_repeated_alike():
    gradients = []
    for repeats in (False, True):
        model = build_model()
        apply_sigma_reparam(model)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith("original"):
                    weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        if repeats:
            model.activation_checkpointing_enable()
        model.train()(IDS, labels=IDS).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("include", "message"),
    [
        ("q_proj", "`include` must be a list of names of layers, got 'q_proj'"),
        ([], r"got \[\]"),
        (["nothing"], r"must name layers of the model, got \['nothing'\]"),
        (["self_attn"], "plain linear layers, got 'model.layers.0.self_attn': Qwen2Attention"),
    ],
)
def test_bad_names(include, message):
    with pytest.raises(ValueError, match=message):
        apply_sigma_reparam(build_model(), include)


def test_layers_that_cannot_be_converted_leave_all_as_they_are():
    tuned = get_peft_model(build_model(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="must name plain linear layers, got .*q_proj"):
        apply_sigma_reparam(tuned)
    model = build_model()
    nn.init.zeros_(model.model.layers[1].self_attn.k_proj.weight)
    with pytest.raises(ValueError, match="weights are not all 0, got 'model.layers.1.self_attn.k_proj'"):
        apply_sigma_reparam(model)
    assert not any("parametrizations" in name for name, _ in model.named_parameters())
    apply_sigma_reparam(model, ["q_proj"])
    with pytest.raises(ValueError, match="without a parametrization"):
        apply_sigma_reparam(model, ["q_proj"])
