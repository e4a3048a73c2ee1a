# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Encoders of sparse autoencoders: a function of the user, or weights in a safetensors file."""

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor


FIELD = "effective_features_encoder"
ACCEPTED = "a function, the dotted path of one, or a .safetensors file"
ARCHITECTURES = ("standard", "jumprelu")
Encode = Callable[[Tensor], Tensor]


def encoder_of(value: Any) -> Encode:
    """The encoder, (n, d) -> (n, F).

    Args:
        value: a function, the dotted path of one, such as `my_sae.encode`, or a safetensors file. Modules in the
            current folder are found too.

    Raises:
        `ValueError`: it is none of these.
    """
    if callable(value):
        return value
    if not isinstance(value, str) or "." not in value:
        raise ValueError(f"`{FIELD}` must be {ACCEPTED}, got {value!r}.")
    if value.endswith(".safetensors"):
        return FileEncoder(Path(value))
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return _imported(value)


def _imported(path: str) -> Encode:
    """What a dotted path names: an attribute of a module, or of an object in it."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:end])
        try:
            found: Any = importlib.import_module(name)
            for part in parts[end:]:
                found = getattr(found, part)
        except ModuleNotFoundError as error:
            if error.name is not None and name.startswith(error.name):
                continue
            raise ValueError(f"`{FIELD}` has {path!r}, which cannot be imported: {error}.") from error
        except AttributeError as error:
            raise ValueError(f"`{FIELD}` has {path!r}, which cannot be imported: {error}.") from error
        if not callable(found):
            raise ValueError(f"`{FIELD}` must be {ACCEPTED}, got {path!r}, which is {found!r:.80}.")
        return found
    raise ValueError(f"`{FIELD}` has {path!r}, which cannot be imported: there is no module {parts[0]!r}.")


class FileEncoder:
    """relu(h W_enc + b_enc), or with `threshold` the same cut at it (JumpReLU), from a safetensors file.

    The file has `W_enc` (d, F), `b_enc` (F,) and perhaps `threshold` (F,). With `b_dec` (d,) it is one of SAELens, and
    the `cfg.json` beside it says whether `b_dec` is subtracted from h first.

    Raises:
        `ValueError`: the file cannot be read, or its autoencoder is of another kind.
    """

    def __init__(self, path: Path):
        try:
            with safe_open(path, "pt") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
            weight, bias = shapes["W_enc"], shapes["b_enc"]
        except (OSError, SafetensorError, KeyError) as error:
            raise ValueError(f"`{FIELD}` must hold `W_enc` and `b_enc`, got {str(path)!r}: {error}.") from error
        if len(weight) != 2 or bias != weight[1:]:
            raise ValueError(f"`{FIELD}` must have `W_enc` (d, F) and `b_enc` (F,), got {weight} and {bias}.")
        self.path = path
        self.names = [name for name in ("W_enc", "b_enc", "threshold") if name in shapes]
        self.names += ["b_dec"] if "b_dec" in shapes and _subtracts(path) else []
        self.weights: dict[str, Tensor] = {}  # read with the first hidden states

    def __call__(self, hidden: Tensor) -> Tensor:
        """(n, d) -> (n, F) codes in float32."""
        if not self.weights:
            found = load_file(self.path, device=str(hidden.device))
            self.weights = {name: found[name].float() for name in self.names}
        w = self.weights
        centered = hidden.float() - w["b_dec"] if "b_dec" in w else hidden.float()
        codes = centered @ w["W_enc"] + w["b_enc"]
        return codes.relu() * (codes > w["threshold"]) if "threshold" in w else codes.relu()


def _subtracts(path: Path) -> bool:
    """Whether an autoencoder of SAELens subtracts `b_dec` first."""
    try:
        config = json.loads((path.parent / "cfg.json").read_text(encoding="utf-8"))
        kind, normalized = config.get("architecture", "standard"), config.get("normalize_activations") or "none"
        subtracts = config["apply_b_dec_to_input"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"`{FIELD}` with `b_dec` needs a cfg.json beside it with `apply_b_dec_to_input`, got {str(path)!r}: "
            "give the dotted path of its encoder instead."
        ) from error
    if kind not in ARCHITECTURES or normalized != "none":
        raise ValueError(
            f"`{FIELD}` reads the architectures {' and '.join(ARCHITECTURES)} without normalized activations, got "
            f"{kind!r} with {normalized!r}: give the dotted path of its encoder instead."
        )
    return bool(subtracts)


def encoded(encode: Encode, hidden: Tensor, chunk: int = 256) -> Tensor:
    """Σ over tokens of |z|.

    Args:
        encode: the encoder.
        hidden: (n, d) in float32.
        chunk: tokens encoded at once. It changes the result by rounding only.

    Returns:
        (F,) in float64.

    Raises:
        `ValueError`: the encoder does not return (n, F).
    """
    total: Tensor | None = None
    for part in hidden.split(chunk):
        with torch.no_grad():
            codes = encode(part)
        if not isinstance(codes, Tensor) or codes.dim() != 2 or len(codes) != len(part):
            got = tuple(codes.shape) if isinstance(codes, Tensor) else type(codes).__name__
            raise ValueError(f"`{FIELD}` must map ({len(part)}, {part.size(1)}) to ({len(part)}, F), got {got}.")
        found = codes.abs().sum(0, dtype=torch.float64)
        total = found if total is None else total + found
    assert total is not None  # a sequence has a token
    return total
