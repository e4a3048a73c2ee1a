# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The forward of a model with a fused head, found on the module that is called.

TRL's head keeps the model's own forward as a method that is bound to the model. A copy shares it, so that the copy's
plain forward computes with the weights of the original. Here the forward is a function of the module.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

from accelerate.utils import is_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from .copies import copies_rebind
from .masked import FiniteLogProbs
from .rebinding import rebound


# The code of the forward that TRL gives a model, and the name by which it knows the model's own
FUSED_FORWARD = next(
    code for code in add_fused_lm_head.__code__.co_consts if getattr(code, "co_name", None) == "_fused_forward"
)
ORIGINAL = "original_forward"
# Global name under which TRL's fused forward looks up its kernel
KERNEL = "_ChunkedLogProbFunction"
# Name of the function by which TRL has a head compute in float32
CAST_FORWARD = "cast_forward_to_fp32"


def own_forward(model: PreTrainedModel) -> Callable:
    """The forward of `model` without a fused head: a function whose first argument is the module."""
    forward = model.forward
    while isinstance(forward, types.MethodType):
        function = forward.__func__
        if hasattr(function, "own_forward"):
            return function.own_forward
        if getattr(function, "__code__", None) != FUSED_FORWARD:
            break
        forward = function.__closure__[FUSED_FORWARD.co_freevars.index(ORIGINAL)].cell_contents
    if isinstance(forward, types.MethodType) and isinstance(forward.__self__, type(model)):
        return forward.__func__
    if isinstance(forward, functools.partial) and forward.args and isinstance(forward.args[0], type(model)):
        # As accelerate puts it on a model that is split across devices
        return functools.partial(_call_bound, forward.func, forward.args[1:], forward.keywords)
    return functools.partial(_call_unbound, forward)


def set_forward(model: PreTrainedModel, fused: Callable) -> None:
    """Have `model` call `fused` for `fused_lm_head=True`, and its own forward otherwise.

    Copies made by `copy`, and replicas of `torch.nn.DataParallel`, do the same with their own weights. What `pickle`
    makes has no fused head.
    """
    own = own_forward(model)

    # Keep the original signature: `generate` validates its model kwargs against it
    @functools.wraps(type(model).forward)
    def forward(self, *args, fused_lm_head: bool = False, **kwargs):
        if fused_lm_head:
            return fused(self, *args, fused_lm_head=True, **kwargs)
        return own(self, *args, **kwargs)

    setattr(forward, "own_forward", own)  # noqa: B010 (mypy knows no attributes of functions)
    model.forward = types.MethodType(forward, model)
    copies_rebind(model)


def bind_to_module(model: nn.Module | None) -> None:
    """Have copies of a model to which TRL has given its head compute with their own weights.

    TRL's head then also takes a vocabulary that a bias masks.
    """
    if model is None:
        return
    model = model.get_base_model() if is_peft_model(model) else model
    if getattr(getattr(model.forward, "__func__", None), "__code__", None) == FUSED_FORWARD:
        set_forward(model, rebound(model.forward.__func__, {KERNEL: FiniteLogProbs}))
    bind_cast_head(model)


def bind_cast_head(model: PreTrainedModel) -> None:
    """The same for a head that TRL has computing in float32."""
    head = model.get_output_embeddings()
    if getattr(vars(head).get("forward"), "__name__", None) == CAST_FORWARD:
        head.forward = functools.partial(float32_projection, head)
        copies_rebind(head)


def float32_projection(head: nn.Linear, hidden: Tensor) -> Tensor:
    """(..., H) -> (..., V) logits of a linear layer in float32."""
    return nn.functional.linear(hidden.float(), head.weight.float(), None if head.bias is None else head.bias.float())


def _call_bound(function: Callable, first: tuple, named: dict, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return function(module, *first, *args, **{**named, **kwargs})


def _call_unbound(forward: Callable, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return forward(*args, **kwargs)
