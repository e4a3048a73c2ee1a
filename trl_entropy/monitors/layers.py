# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The parts of a language model at which monitors look."""

from accelerate.utils import is_peft_model
from torch import nn


def language_model(model: nn.Module) -> nn.Module:
    """The model of transformers inside PEFT, or the model itself."""
    return model.get_base_model() if is_peft_model(model) else model


def decoder_of(model: nn.Module) -> nn.Module:
    """The module whose first output is the last hidden state, after the final norm.

    Raises:
        `ValueError`: the model has none.
    """
    inner = language_model(model)
    find = getattr(inner, "get_decoder", None)
    decoder = find() if find is not None else None
    if decoder is None or decoder is inner:
        raise ValueError(f"`model` must be a decoder with a language-model head, got {type(inner).__name__}.")
    return decoder


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The decoder's layers, in order.

    Raises:
        `ValueError`: the decoder has no list of layers.
    """
    decoder = decoder_of(model)
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        layers = next((child for child in decoder.children() if isinstance(child, nn.ModuleList)), None)
    if layers is None:
        raise ValueError(f"`model` must have a list of decoder layers, got {type(decoder).__name__}, which has none.")
    return layers
