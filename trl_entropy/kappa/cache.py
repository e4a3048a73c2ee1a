# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The cache: all singular values of a checkpoint in safetensors, and a JSON file that says what they are."""

import hashlib
import json
import logging
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from .._version import __version__
from .layers import Layer


logger = logging.getLogger(__name__)

SCHEMA = 2


def default_folder() -> Path:
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "trl_entropy" / "kappa"


def cache_key(fingerprint: str) -> str:
    """Of a source's fingerprint with what else decides the names, shapes and kinds of its weights: the versions."""
    parts = [SCHEMA, __version__, version("transformers"), fingerprint]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def digest(values: bytes, rows: list[dict[str, Any]]) -> str:
    """Of all that a cached analysis says."""
    return hashlib.blake2b(values + json.dumps(rows, sort_keys=True).encode(), digest_size=16).hexdigest()


class KappaCache:
    """Analyses of models below one folder, each in `<key>.safetensors` and `<key>.json`, by `cache_key`.

    Args:
        folder: made when something is written. Below the cache of Hugging Face by default.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        self.folder = default_folder() if folder is None else Path(folder).expanduser()

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self.folder / f"{key}.json", self.folder / f"{key}.safetensors"

    def load(self, key: str) -> tuple[list[Layer], dict[str, np.ndarray]] | None:
        """Every weight of the model, analysed or not, and the singular values of those that are; `None` if unknown.

        What cannot be read, or does not fit together, is reported and counts as unknown.
        """
        described, stored = self._paths(key)
        if not described.exists():
            return None
        try:
            record, data = json.loads(described.read_text()), stored.read_bytes()
            if record["schema"] != SCHEMA or record["key"] != key:
                raise ValueError(f"schema {record['schema']} of {record['key']}")
            if record["digest"] != digest(data, record["layers"]):
                raise ValueError("the digest of the numbers is another")
            values, layers = load(data), [Layer.from_json(entry) for entry in record["layers"]]
            if set(values) != {layer.parameter for layer in layers if layer.kappas}:
                raise ValueError("the names of the singular values are others")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            logger.warning(f"The cached condition numbers in {described} are of no use and computed again: {error!r}.")
            return None
        return layers, values

    def save(self, key: str, model: str, layers: list[Layer], values: dict[str, np.ndarray]) -> None:
        """Writes both files, whole or not at all. Where that fails it is reported: a run does not need them."""
        described, stored = self._paths(key)
        data = save({name: np.ascontiguousarray(array, dtype=np.float32) for name, array in values.items()})
        rows = [layer.as_json() for layer in layers]
        record = {
            "schema": SCHEMA,
            "model": model,
            "key": key,
            "digest": digest(data, rows),
            "numpy": np.__version__,
            "layers": rows,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path, content in ((stored, data), (described, json.dumps(record, allow_nan=False).encode())):
                part = path.with_name(f"{path.name}.{os.getpid()}")
                part.write_bytes(content)
                os.replace(part, path)
        except OSError as error:
            logger.warning(f"The condition numbers could not be cached in {self.folder}: {error}.")
