# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sources of weights: a model in memory, or the safetensors of a checkpoint."""

import copy
import logging
import os
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from xxhash import xxh3_128

from .checkpoint import CONFIG, checkpoint_folder, weight_files
from .fingerprint import add_tensor, files_fingerprint, read_header
from .layers import UNREADABLE, Layer


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

FLOATS = {"F64", "F32", "F16", "BF16"}  # the types in safetensors of weights that are not quantized


class Source(Protocol):
    """A name for messages, the weights, a model without data, one weight as a tensor, a fingerprint for the cache."""

    name: str

    def layers(self) -> list[Layer]: ...

    def skeleton(self) -> "PreTrainedModel | None": ...

    def read(self, layer: Layer) -> "Tensor": ...

    def fingerprint(self) -> str: ...


class LiveSource:
    """A model in memory. This process must hold all its weights, not only a shard."""

    def __init__(self, model: "PreTrainedModel"):
        self.model = model
        self.name = getattr(model.config, "_name_or_path", "") or type(model).__name__

    def layers(self) -> list[Layer]:
        from .inventory import layers_of

        return layers_of(self.model)

    def skeleton(self) -> "PreTrainedModel | None":
        """A copy of the model without data; `None` if it is quantized and its config alone does not give its modules.

        That of a quantized model is not quantized, because PEFT would look at the data.
        """
        from torch import device, empty_like, nn

        weights = list(self.model.parameters())
        if any(type(weight) is not nn.Parameter or not weight.is_floating_point() for weight in weights):
            config = copy.deepcopy(self.model.config)
            vars(config).pop("quantization_config", None)
            with device("meta"):
                whole = type(self.model)(config)
            names, own = (set(dict(model.named_modules())) for model in (whole, self.model))
            return whole if names == own else None
        empty = {id(weight): nn.Parameter(empty_like(weight, device="meta")) for weight in weights}
        return copy.deepcopy(self.model, empty)

    def read(self, layer: Layer) -> "Tensor":
        from .inventory import read_weight

        return read_weight(self.model, layer)

    def fingerprint(self) -> str:
        """A hash of names, kinds, shapes and types of all weights, and of every byte of them."""
        digest = xxh3_128()
        for layer in self.layers():
            if layer.kind == UNREADABLE:
                continue
            weight = self.model.get_parameter(layer.parameter).detach()
            digest.update(f"{layer.parameter} {layer.kind} {tuple(weight.shape)} {weight.dtype}".encode())
            add_tensor(digest, weight)
        return digest.hexdigest()


class CheckpointSource:
    """A model in safetensors, in a folder or on the Hub.

    Weights are read one at a time. If a file stores them in a different layout than the model in memory (experts that
    are fused on loading, quantized weights), the whole model is loaded to the CPU instead.

    Args:
        model: path of a folder, or id on the Hub.
        revision: revision of the repository.
        trust_remote_code: whether to run code that comes with the checkpoint.

    Raises:
        `ValueError`: the folder does not exist, or it lacks `config.json` or safetensors.
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
        """File, shape and type of each tensor in the files."""
        found: dict[str, tuple[Path, tuple[int, ...], str]] = {}
        for path in self.files:
            header, _ = read_header(path)
            header.pop("__metadata__", None)
            found |= {name: (path, tuple(entry["shape"]), entry["dtype"]) for name, entry in header.items()}
        return found

    def fingerprint(self) -> str:
        """A hash of the weights and of what decides their names: the config, and trusted code in the checkpoint."""
        code = self.folder.glob("*.py") if self.trust_remote_code else ()
        return files_fingerprint([*self.files, self.folder / CONFIG, *code])

    def _architecture(self):
        import transformers
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)
        names = config.architectures or [""]
        return config, getattr(transformers, names[0], AutoModelForCausalLM)

    def layers(self) -> list[Layer]:
        from .inventory import layers_of

        return layers_of(self.skeleton())

    def skeleton(self) -> "PreTrainedModel":
        """The model without data."""
        import torch

        config, architecture = self._architecture()
        with torch.device("meta"):
            if hasattr(architecture, "from_config"):  # an auto class, which also runs trusted code in the checkpoint
                return architecture.from_config(config, trust_remote_code=self.trust_remote_code)
            return architecture(config)

    def read(self, layer: Layer) -> "Tensor":
        if not self.readable(layer):
            with self._loading:
                source = self._loaded
            return source.read(layer)
        from safetensors import safe_open

        with safe_open(self.stored[layer.parameter][0], framework="pt") as file:
            return file.get_tensor(layer.parameter)

    def readable(self, layer: Layer) -> bool:
        """Whether a file stores the weight in the layout that the model has in memory."""
        _, shape, kind = self.stored.get(layer.parameter, (None, None, None))
        return shape == layer.shape and kind in FLOATS

    @cached_property
    def _loaded(self) -> LiveSource:
        from transformers.integrations import is_deepspeed_zero3_enabled

        if is_deepspeed_zero3_enabled():
            raise ValueError(
                f"The weights of {self.name!r} are stored in a different layout than the model's, and with DeepSpeed "
                f"ZeRO-3 no process can load the whole model. Fill the cache first: `trl-entropy kappa {self.name}`."
            )
        logger.warning(f"Loading all of {self.name}: its weights are stored in a different layout than the model's.")
        _, architecture = self._architecture()
        options = dict(dtype="auto", device_map={"": "cpu"}, trust_remote_code=self.trust_remote_code)
        try:
            return LiveSource(architecture.from_pretrained(self.folder, **options))
        except (ImportError, RuntimeError) as error:  # a package or device for its quantization is missing
            raise ValueError(f"The weights of {self.name} cannot be loaded: {error}") from error


def source_of(model: "PreTrainedModel") -> Source:
    """The model itself or, if its weights cannot be read, the checkpoint that it was loaded from.

    Raises:
        `ValueError`: the model has adapters, or its weights cannot be read and it was not loaded from a checkpoint.
    """
    from accelerate.utils import is_peft_model

    from .inventory import why_unreadable

    if is_peft_model(model):
        raise ValueError("KappaTune selects among the weights of a model without adapters, got a PEFT model.")
    reason = why_unreadable(model)
    if reason is None:
        return LiveSource(model)
    path = getattr(model.config, "_name_or_path", "")
    if not path:
        raise ValueError(
            f"The weights of the model are {reason}, and it was not loaded from a checkpoint to read instead."
        )
    logger.warning(
        f"The weights of the model are {reason}: computing the condition numbers of {os.fspath(path)} instead."
    )
    trusted = type(model).__module__.startswith("transformers_modules")  # its code is running already
    return CheckpointSource(path, getattr(model.config, "_commit_hash", None), trusted)
