# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
r"""σReparam: weights whose spectral norm is a parameter of its own.

[Stabilizing Transformer Training by Preventing Attention Entropy
Collapse](https://huggingface.co/papers/2303.06296). A weight W (out, in) is replaced by

    Ŵ = (γ / σ) W,        σ = vᵀ W u

1. before the first training forward after W has changed, one power step: v = W u / ‖W u‖, then u = Wᵀ v / ‖Wᵀ v‖;
2. u and v are constants for the gradient, which goes through W and γ;
3. γ starts at σ and u, v at the first singular vectors, so that Ŵ = W at first.

Departs from the paper: one power step for each change of W instead of each forward. Forwards in gradient accumulation,
and those that activation checkpointing repeats, then see the same Ŵ. The authors' code draws new weights in the
conversion, and makes power steps in evaluation too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..monitors.attention import Attention
from .warning import warn_once


PAPER = Attention.paper
INCLUDE = ("q_proj", "k_proj")


class SigmaReparam(nn.Module):
    """Maps W to (γ / σ) W.

    Args:
        weight: (out, in) W, at which γ, u and v start.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        w = _wide(weight.detach())
        left, _, right = torch.linalg.svd(w, full_matrices=False)
        self.u: Tensor
        self.v: Tensor
        self.register_buffer("u", right[0].clone())
        self.register_buffer("v", left[:, 0].clone())
        self.gamma = nn.Parameter(self.v @ (w @ self.u))
        self._seen = weight._version  # of the weights after the last power step

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            w = _wide(weight)
            if self.training and weight._version != self._seen:
                self._seen = weight._version
                self.step(w)
            sigma = self.v.clone() @ (w @ self.u.clone())  # copies, as a later step changes u and v in place
            return (self.gamma / sigma * w).to(weight.dtype)

    @torch.no_grad()
    def step(self, w: Tensor) -> None:
        """One power step."""
        v = nn.functional.normalize(w @ self.u, dim=0)
        self.v.copy_(v)
        self.u.copy_(nn.functional.normalize(w.T @ v, dim=0))


def _wide(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def apply_sigma_reparam(model: nn.Module, include: Sequence[str] = INCLUDE) -> list[str]:
    """Reparametrizes linear layers of a model in place. Its outputs stay the same up to rounding.

    Call it before the optimizer is made, which must see γ. Call [`remove_sigma_reparam`] before the model is saved for
    use.

    Args:
        model: any model.
        include: names of the layers, such as `q_proj`, or ends of their full names, such as `0.self_attn.q_proj`.

    Returns:
        The full names of the layers.

    Raises:
        `ValueError`: no layer has such a name, or one of them is no plain linear layer (LoRA or quantized), is
            reparametrized already, or is 0.
    """
    warn_once("apply_sigma_reparam")
    if isinstance(include, str) or not include:
        raise ValueError(f"`include` must be a list of names of layers, got {include!r}.")
    chosen = {
        name: module
        for name, module in model.named_modules()
        if any(name == end or name.endswith(f".{end}") for end in include)
    }
    if not chosen:
        raise ValueError(f"`include` must name layers of the model, got {list(include)}: it has none of these.")
    for name, module in chosen.items():
        if parametrize.is_parametrized(module):
            raise ValueError(f"`include` must name layers without a parametrization, got {name!r}, which has one.")
        if type(module) is not nn.Linear or not module.weight.is_floating_point():
            raise ValueError(f"`include` must name plain linear layers, got {name!r}: {type(module).__name__}.")
        if not module.weight.any():
            raise ValueError(f"`include` must name layers whose weights are not all 0, got {name!r}.")
    for module in chosen.values():
        scaled = SigmaReparam(module.weight).eval()  # what registers it calls it once
        parametrize.register_parametrization(module, "weight", scaled)
        scaled.train(module.training)
        scaled._seen = module.parametrizations.weight.original._version
    return [*chosen]


def remove_sigma_reparam(model: nn.Module) -> list[str]:
    """Puts Ŵ in the place of W, so that the model can be saved and loaded like any other.

    Returns:
        The full names of the layers. Empty if none is reparametrized.
    """
    found = []
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module, "weight"):
            continue
        if any(isinstance(part, SigmaReparam) for part in module.parametrizations.weight):
            module.parametrizations.weight.eval()
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            found.append(name)
    return found
