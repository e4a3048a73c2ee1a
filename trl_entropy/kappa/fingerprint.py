# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of weights, by which a cached analysis is found again. XXH3 reads memory about as fast as it comes."""

import json
import mmap
import re
from pathlib import Path
from typing import TYPE_CHECKING

from xxhash import xxh3_128, xxh3_128_hexdigest


if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1 << 26  # bytes of a tensor on an accelerator that are copied to the CPU at a time
SHA256 = re.compile(r"[0-9a-f]{64}")


def add_tensor(digest: xxh3_128, weight: "Tensor") -> None:
    """Adds every byte of a tensor to `digest`, in order. A tensor on an accelerator is copied in chunks."""
    import torch

    for chunk in weight.contiguous().view(-1).view(torch.uint8).split(CHUNK):
        digest.update(chunk.cpu().numpy())


def read_header(path: Path) -> tuple[dict, int]:
    """The header of a safetensors file and the offset of its data. Raises `ValueError` if the file is not complete."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        try:
            header: dict = json.loads(file.read(start - 8) if start <= size else b"")
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise ValueError(f"{path} is not a safetensors file, or it is truncated.") from None
    expected = start + max(ends, default=0)
    if expected != size:
        raise ValueError(f"{path} is damaged: it has {size} bytes, but its header describes {expected}.")
    return header, start


def file_fingerprint(path: Path) -> str:
    """A hash of all bytes of a file. For safetensors in the Hub's cache: the SHA-256 that is the name of the blob.

    Raises `ValueError` if a safetensors file is not complete.
    """
    if path.suffix != ".safetensors":
        return xxh3_128_hexdigest(path.read_bytes())
    name = path.resolve().name
    if SHA256.fullmatch(name):
        return name
    read_header(path)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return xxh3_128_hexdigest(data)


def files_fingerprint(paths: list[Path]) -> str:
    """A hash of the names and contents of all files of a checkpoint. The folder does not matter."""
    parts = sorted((path.name, file_fingerprint(path)) for path in paths)
    return xxh3_128_hexdigest(json.dumps(parts).encode())
