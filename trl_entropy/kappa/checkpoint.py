# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The files of a checkpoint that transformers would load, from a folder or from the Hub."""

import json
from pathlib import Path


INDEX, SINGLE, CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights: as in transformers, the single file if it exists, else the files of the index."""
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.exists():
        return []
    return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def checkpoint_folder(model: str, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """The folder of a model. A Hub model is downloaded first: config, weights, and code if it is trusted.

    Raises:
        `ValueError`: `model` looks like a path, but no such folder exists.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if model.startswith(("/", ".", "~")):
        raise ValueError(f"The model must be a folder or an id on the Hub, got {model!r}, which is not a folder.")
    from huggingface_hub import snapshot_download

    names = [CONFIG, "generation_config.json", INDEX, SINGLE, *(["*.py"] if trust_remote_code else [])]
    folder = Path(snapshot_download(model, revision=revision, allow_patterns=names))
    shards = [path.name for path in weight_files(folder) if path.name != SINGLE]
    if shards:
        snapshot_download(model, revision=revision, allow_patterns=shards)
    return folder
