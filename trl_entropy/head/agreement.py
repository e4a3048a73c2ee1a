# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether a fused head computes with the logits of its model.

A fused head projects the last hidden state, and takes a scale and a soft cap from the config. A model that does more
to its logits would get wrong numbers without an error. So both are compared on a few tokens.
"""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, is_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from .forwards import FUSED_FORWARD
from .spec import FLOOR
from .zero3 import forget_order


TOKENS = 8
# Rounding may make a difference of ABSOLUTE nats, and of ROUNDINGS epsilons of the logits' dtype times their size.
# Both sides multiply the same hidden states by the same weight, but in other orders, and the model rounds a scaled or
# capped logit to its dtype where the head does not. Over 16 architectures and logits of 3 and 30, the largest
# differences were 6e-6 nats in float32, and 0.42 epsilons times size in bfloat16 and float16. Models that do more to
# their logits than the head knows differed by at least 2 nats, or 190 epsilons times size.
ABSOLUTE, ROUNDINGS = 1e-3, 2
# Hidden states are multiplied so that logits are at least this large, as those of trained models are: a cap of 30 does
# next to nothing to the small logits of a new model, and would show only once it is trained
LARGE = 20.0


def is_sharded(accelerator: Accelerator, *models: nn.Module | None) -> bool:
    """Whether a model cannot compute before it is wrapped: sharded by ZeRO-3 or FSDP, or without weights yet."""
    kind = accelerator.distributed_type
    if kind == DistributedType.FSDP:  # which may load the weights in one process only
        return True
    if kind == DistributedType.DEEPSPEED and accelerator.state.deepspeed_plugin.zero_stage == 3:
        return True
    return any(parameter.is_meta for model in models if model is not None for parameter in model.parameters())


def check_head(
    model: nn.Module,
    temperature: float = 1.0,
    unwrapped: PreTrainedModel | None = None,
    autocast: AbstractContextManager | None = None,
    field: str = "model",
) -> None:
    """Compare log-probabilities and entropies of the fused head with those of the plain logits, on a few tokens.

    Costs three forwards of `TOKENS` tokens without gradient. Leaves random state and training mode as they were.

    Args:
        model: with a fused head or without, wrapped for several processes or not, with an adapter or not. Without a
            head it gets TRL's for the time of the comparison.
        temperature: of the head.
        unwrapped: the model below the wrapper.
        autocast: context in which the model is trained.
        field: name of the argument that holds the model.

    Raises:
        `ValueError`: they differ by more than rounding does.
    """
    unwrapped = model if unwrapped is None else unwrapped
    base = unwrapped.get_base_model() if is_peft_model(unwrapped) else unwrapped
    with torch.no_grad(), _unchanged(unwrapped), autocast or nullcontext(), _with_head(base, temperature):
        ids = _probe_ids(base)
        inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        try:
            largest = model(**inputs).logits.float().amax(-1).abs().max().item()
        except Exception as error:  # a model that takes no text alone is not wrong for that
            forget_order(model)
            warnings.warn(
                f"The fused head of `{type(base).__name__}` was not compared with its plain logits, as a forward of "
                f"{TOKENS} tokens failed: {error}",
                stacklevel=2,
            )
            return
        with _enlarged(base, LARGE / largest if 0 < largest < LARGE else 1.0):
            logits = model(**inputs).logits[:, -TOKENS:-1]
            labels, expected, tolerance, masked = _expected(logits, temperature, base)
            labels = torch.cat([ids[:, :1], labels.to(ids.device)], 1)
            forget_order(model)
            outputs = model(**inputs, labels=labels, fused_lm_head=True)
    found = torch.stack([outputs.log_probs, outputs.entropy])[..., 1 - TOKENS :].float().to(expected.device)
    differences = (found - expected).abs()
    if masked:  # TRL's entropy is then NaN, which it only logs
        differences[1].nan_to_num_(nan=0.0)
    difference = differences.max().item()
    if expected.isfinite().all() and not difference <= tolerance:
        raise ValueError(
            f"`{field}` must be a model whose logits are its last hidden state times the LM head, with a scale and a "
            f"cap that TRL knows, got `{type(base).__name__}`: log-probabilities or entropies of the fused head "
            f"differ from those of its plain logits by {difference:.3g} nats (rounding explains {tolerance:.2g}). "
            "TRL would train on these wrong numbers too. Use another model class, or ask TRL to support this one in "
            "`add_fused_lm_head`."
        )


def _expected(logits: Tensor, temperature: float, base: PreTrainedModel) -> tuple[Tensor, Tensor, float, bool]:
    """What plain logits (1, T, V) say: labels (1, T), log-probabilities and entropies (2, 1, T), tolerance, masking.

    The tolerance is in nats. A vocabulary is masked if a token has probability 0.
    Labels are the likeliest token and one of medium logit in turn: what is done to large logits shows in one of them.
    """
    z = logits.float() / temperature
    logps = z.log_softmax(-1).clamp(min=FLOOR)
    top, medium = z.argmax(-1), z.median(-1).indices
    impossible = logps <= FLOOR
    takes_top = torch.arange(top.size(1), device=z.device) % 2 == 0
    takes_top = takes_top | impossible.gather(-1, medium.unsqueeze(-1)).squeeze(-1)
    labels = torch.where(takes_top, top, medium)
    size = z.gather(-1, torch.stack([top, labels], -1)).abs().max().item()
    log_probs = logps.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    dtypes = [logits.dtype, base.get_output_embeddings().weight.dtype]
    if torch.is_autocast_enabled(logits.device.type):
        dtypes.append(torch.get_autocast_dtype(logits.device.type))
    epsilon = max(torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point)
    tolerance = ABSOLUTE + ROUNDINGS * epsilon * size
    entropy = -(logps.exp() * logps).sum(-1)
    return labels, torch.stack([log_probs, entropy]), tolerance, bool(impossible.any())


def _probe_ids(model: PreTrainedModel) -> Tensor:
    """(1, TOKENS) ids of ordinary text: none that the config names, such as that of an image."""
    config = model.config.get_text_config()
    named = {value for part in (model.config, config) for value in vars(part).values() if isinstance(value, int)}
    ids = [token for token in range(config.vocab_size // 10, config.vocab_size) if token not in named]
    ids = [ids[len(ids) * index // (2 * TOKENS)] for index in range(TOKENS)]
    return torch.tensor([ids], device=model.get_input_embeddings().weight.device)


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Within the context modules are in evaluation mode; mode and random state are restored after it."""
    modes = {module: module.training for module in model.modules()}
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type not in ("cpu", "meta")}
    kind = next((device.type for device in devices), "cuda")
    with torch.random.fork_rng(devices=sorted(device.index or 0 for device in devices), device_type=kind):
        try:
            # Evaluated on a CPU, bitsandbytes packs its weights and rounds their scales for good
            for module in modes:
                module.training = type(module).__module__.startswith("bitsandbytes.")
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


@contextmanager
def _enlarged(model: PreTrainedModel, factor: float) -> Iterator[None]:
    """Within the context the last hidden states of `model` are multiplied by `factor`."""

    def enlarge(module, inputs, output):
        if isinstance(output, tuple):
            return output[0] * factor, *output[1:]
        output.last_hidden_state = output.last_hidden_state * factor
        return output

    if factor == 1.0:
        yield
        return
    hook = model.base_model.register_forward_hook(enlarge)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _with_head(model: PreTrainedModel, temperature: float) -> Iterator[None]:
    """Within the context `model` has a fused head: TRL's if it has none."""
    if _has_head(model):
        yield
        return
    before = vars(model).get("forward")
    try:
        add_fused_lm_head(model, temperature, outputs=("log_probs", "entropy"))
        yield
    finally:
        del model.forward
        if before is not None:
            model.forward = before


def _has_head(model: PreTrainedModel) -> bool:
    function = getattr(model.forward, "__func__", None)
    while function is not None:  # accelerate wraps it for mixed precision
        if hasattr(function, "own_forward") or getattr(function, "__code__", None) == FUSED_FORWARD:
            return True
        function = getattr(function, "__wrapped__", None)
    return False
