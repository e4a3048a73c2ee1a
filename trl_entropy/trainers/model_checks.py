# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Models and tokenizers, checked where a trainer is built: what is known by their structure."""

from collections.abc import Iterable
from typing import Any

from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from transformers.utils import is_peft_available


logger = get_logger(__name__)


def check_fusible(model: Any, field: str = "model") -> None:
    """Checks that a loss can be computed from the last hidden state and the weight of the LM head.

    Raises:
        `ValueError`: the model has an encoder, has no LM head, its head is quantized, or PEFT wraps it.
    """
    name = type(model.get_base_model() if is_peft_model(model) else model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"`{field}` must be a model with a decoder only, got {name}, which has an encoder.")
    find_head = getattr(model, "get_output_embeddings", None)
    head = find_head() if find_head is not None else None
    if head is None:
        raise ValueError(f"`{field}` must have an LM head, got {name}, which has no output embeddings.")
    if is_peft_available():
        from peft.utils.other import TrainableTokensWrapper

        if isinstance(head, TrainableTokensWrapper):
            raise ValueError(
                "`trainable_token_indices` of the PEFT config must be unset for a model with tied embeddings, got "
                f"{name} with trainable tokens in its LM head: the loss reads the weight of the head without them."
            )
    if not (hasattr(head, "weight") and hasattr(head, "bias")):
        raise ValueError(f"`{field}` must have a linear LM head, got {name} with {type(head).__name__} as its head.")
    if not head.weight.is_floating_point():  # packed, so that not even its shape is that of the head
        raise ValueError(
            f"`{field}` must have an LM head that is not quantized, got {name} with {type(head).__name__} of "
            f"{head.weight.dtype} as its head: the loss reads its weight. Name the head among the modules that the "
            "quantization skips."
        )


def check_eos(processing_class: Any, field: str = "processing_class") -> None:
    """Raises `ValueError` for a tokenizer or processor without an EOS token, which ends completions."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if tokenizer is not None and getattr(tokenizer, "eos_token_id", None) is None:
        raise ValueError(f"`eos_token` of `{field}` must be a token, got {getattr(tokenizer, 'eos_token', None)!r}.")


def check_vocabulary(processing_class: Any, model: Any, texts: Iterable[tuple[int, str]] = ()) -> None:
    """Checks that the model has an embedding for each token that it will be given, and warns if it lacks others.

    Some models come with a tokenizer that is larger than their embedding: its last tokens are never used.

    Args:
        texts: number and text of rows, whose tokens the model will be given.

    Raises:
        `ValueError`: the id of a special token, or of a token in `texts`, is too high.
    """
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    size = embeddings_of(model)
    if tokenizer is None or size is None or not hasattr(tokenizer, "get_vocab") or len(tokenizer) <= size:
        return
    accepted = f"must be below {size}, the number of embeddings of `model`"
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None and token >= size:
            raise ValueError(f"`{name}` of `processing_class` {accepted}, got {token}.")
    for row, text in texts:
        if (highest := max(tokenizer(text, add_special_tokens=False)["input_ids"], default=0)) >= size:
            raise ValueError(
                f"Token ids of `processing_class` {accepted}, got {highest} in row {row} of `train_dataset`."
            )
    logger.warning(
        f"`processing_class` has {len(tokenizer)} tokens, but `model` has {size} embeddings: a prompt with one of the "
        "last tokens fails. If you added tokens, call `model.resize_token_embeddings(len(tokenizer))`."
    )


def embeddings_of(model: Any) -> int | None:
    """The number of embeddings of a model, also if its weights are sharded; `None` if it is not known."""
    found = getattr(model.get_input_embeddings(), "num_embeddings", None)
    return found or getattr(model.config.get_text_config(), "vocab_size", None)
