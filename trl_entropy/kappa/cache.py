# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The cache: all singular values of a checkpoint in safetensors, and a JSON file that describes them."""

import json
import logging
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from xxhash import xxh3_128_hexdigest

from .._version import __version__
from .layers import Layer


logger = logging.getLogger(__name__)

SCHEMA = 4  # of the files and of their keys: raise it when either changes


def default_folder() -> Path:
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "trl_entropy" / "kappa"


def cache_key(fingerprint: str) -> str:
    """A hash of a source's fingerprint and of the versions, which also decide names, shapes and kinds of weights."""
    parts = [SCHEMA, __version__, version("transformers"), fingerprint]
    return xxh3_128_hexdigest(json.dumps(parts).encode())


def digest(values: bytes, rows: list[dict[str, Any]]) -> str:
    """A checksum of a cached analysis: singular values and rows."""
    return xxh3_128_hexdigest(values + json.dumps(rows, sort_keys=True).encode())


class KappaCache:
    """Analyses of models in one folder, each as `<key>.safetensors` and `<key>.json` with the key of `cache_key`.

    Args:
        folder: created on the first write. Defaults to a folder in the Hugging Face cache.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        self.folder = default_folder() if folder is None else Path(folder).expanduser()

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self.folder / f"{key}.json", self.folder / f"{key}.safetensors"

    def load(self, key: str) -> tuple[list[Layer], dict[str, np.ndarray]] | None:
        """All weights of a model, and the singular values of the analyzed ones by name; `None` if it is not cached.

        Files that cannot be read or do not match each other are reported and ignored.
        """
        described, stored = self._paths(key)
        if not described.exists():
            return None
        try:
            record, data = json.loads(described.read_text()), stored.read_bytes()
            if record["schema"] != SCHEMA or record["key"] != key:
                raise ValueError(f"schema {record['schema']}, key {record['key']}")
            if record["digest"] != digest(data, record["layers"]):
                raise ValueError("the digest does not match")
            values, layers = load(data), [Layer.from_json(entry) for entry in record["layers"]]
            if set(values) != {layer.parameter for layer in layers if layer.kappas}:
                raise ValueError("the names of the singular values do not match")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            logger.warning(
                f"Ignoring the cached condition numbers in {described} and computing them again: {error!r}."
            )
            return None
        return layers, values

    def save(self, key: str, model: str, layers: list[Layer], values: dict[str, np.ndarray]) -> None:
        """Writes both files atomically. A failure is only reported, because a run does not need the cache."""
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
