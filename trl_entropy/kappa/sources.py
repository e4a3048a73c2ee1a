# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the weights of an analysis come from: a model in memory, or the safetensors of a checkpoint."""

import hashlib
import logging
import os
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from .checkpoint import CONFIG, checkpoint_folder, weight_files
from .fingerprint import files_fingerprint, read_header, tensor_sums
from .layers import UNREADABLE, Layer


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

FLOATS = {"F64", "F32", "F16", "BF16"}  # what safetensors calls weights that are not quantised


class Source(Protocol):
    """`name` for messages, the weights there are, one of them as a tensor, and what a cached analysis belongs to."""

    name: str

    def layers(self) -> list[Layer]: ...

    def read(self, layer: Layer) -> "Tensor": ...

    def fingerprint(self) -> str: ...


class LiveSource:
    """A model in memory, whose weights this process holds in full."""

    def __init__(self, model: "PreTrainedModel"):
        self.model = model
        self.name = getattr(model.config, "_name_or_path", "") or type(model).__name__

    def layers(self) -> list[Layer]:
        from .inventory import layers_of

        return layers_of(self.model)

    def read(self, layer: Layer) -> "Tensor":
        from .inventory import read_weight

        return read_weight(self.model, layer)

    def fingerprint(self) -> str:
        """Of the names, kinds, shapes and types of all weights, and every byte of them."""
        digest = hashlib.blake2b(digest_size=16)
        for layer in self.layers():
            if layer.kind == UNREADABLE:
                continue
            weight = self.model.get_parameter(layer.parameter).detach()
            digest.update(f"{layer.parameter} {layer.kind} {tuple(weight.shape)} {weight.dtype}".encode())
            digest.update(tensor_sums(weight))
        return digest.hexdigest()


class CheckpointSource:
    """A folder, or a repository of the Hub, that holds a model in safetensors.

    Weights are read one at a time. Where the file stores them in another layout than the model has them in memory (as
    with experts that are fused on loading, or quantised weights), the whole model is loaded to the CPU instead.

    Args:
        model: path of a folder, or id on the Hub.
        revision: of the repository.
        trust_remote_code: run code that comes with the checkpoint.

    Raises:
        `ValueError`: the folder is missing, has no `config.json` or no safetensors.
    """

    def __init__(self, model: str, revision: str | None = None, trust_remote_code: bool = False):
        self.name, self.trust_remote_code = model, trust_remote_code
        self.folder, self._loading = checkpoint_folder(model, revision, trust_remote_code), Lock()
        if not (self.folder / CONFIG).exists() or not self.files:
            raise ValueError(f"The model must have a `config.json` and its weights in safetensors, got {model!r}.")

    @cached_property
    def files(self) -> list[Path]:
        return weight_files(self.folder)

    @cached_property
    def stored(self) -> dict[str, tuple[Path, tuple[int, ...], str]]:
        """Of each tensor in the files: which file, its shape and its type."""
        found = {}
        for path in self.files:
            header, _ = read_header(path)
            header.pop("__metadata__", None)
            found |= {name: (path, tuple(entry["shape"]), entry["dtype"]) for name, entry in header.items()}
        return found

    def fingerprint(self) -> str:
        """Of the weights, and of what decides how they are called: the config, and code that comes with them."""
        code = self.folder.glob("*.py") if self.trust_remote_code else ()
        return files_fingerprint([*self.files, self.folder / CONFIG, *code])

    def _architecture(self):
        import transformers
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)
        names = config.architectures or [""]
        return config, getattr(transformers, names[0], AutoModelForCausalLM)

    def layers(self) -> list[Layer]:
        import torch

        from .inventory import layers_of

        config, architecture = self._architecture()
        with torch.device("meta"):
            if hasattr(architecture, "from_config"):  # an auto class, for code that comes with the checkpoint
                return layers_of(architecture.from_config(config, trust_remote_code=self.trust_remote_code))
            return layers_of(architecture(config))

    def read(self, layer: Layer) -> "Tensor":
        if not self.readable(layer):
            with self._loading:
                source = self._loaded
            return source.read(layer)
        from safetensors import safe_open

        with safe_open(self.stored[layer.parameter][0], framework="pt") as file:
            return file.get_tensor(layer.parameter)

    def readable(self, layer: Layer) -> bool:
        """Whether a file has the weight as the model has it in memory."""
        _, shape, kind = self.stored.get(layer.parameter, (None, None, None))
        return shape == layer.shape and kind in FLOATS

    @cached_property
    def _loaded(self) -> LiveSource:
        from transformers.integrations import is_deepspeed_zero3_enabled

        if is_deepspeed_zero3_enabled():
            raise ValueError(
                f"The weights of {self.name!r} are stored in another layout than the model's, and with DeepSpeed ZeRO-3 "
                f"no process can load it whole: run `trl-entropy kappa {self.name}` before, which fills the cache."
            )
        logger.warning(f"The weights of {self.name} are stored in another layout than the model's: loading all of it.")
        _, architecture = self._architecture()
        options = dict(dtype="auto", device_map={"": "cpu"}, trust_remote_code=self.trust_remote_code)
        try:
            return LiveSource(architecture.from_pretrained(self.folder, **options))
        except (ImportError, RuntimeError) as error:  # what its quantisation needs is missing
            raise ValueError(f"The weights of {self.name} cannot be loaded: {error}") from error


def source_of(model: "PreTrainedModel") -> Source:
    """The model itself, or, where its weights cannot be read, the checkpoint that it was loaded from.

    Raises `ValueError` where there is none, and where the model has adapters.
    """
    from accelerate.utils import is_peft_model

    from .inventory import why_unreadable

    if is_peft_model(model):
        raise ValueError("KappaTune chooses among the weights of a model without adapters, got a PEFT model.")
    reason = why_unreadable(model)
    if reason is None:
        return LiveSource(model)
    path = getattr(model.config, "_name_or_path", "")
    if not path:
        raise ValueError(f"The weights of the model are {reason}, and it comes from no checkpoint to read them from.")
    logger.warning(f"The weights of the model are {reason}: the condition numbers are those of {os.fspath(path)}.")
    trusted = type(model).__module__.startswith("transformers_modules")  # its code runs already
    return CheckpointSource(path, getattr(model.config, "_commit_hash", None), trusted)
