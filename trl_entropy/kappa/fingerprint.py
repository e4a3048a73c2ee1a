# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of weights: what a cached analysis belongs to."""

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1 << 20  # bytes that are summed together
PLACES = np.arange(1, CHUNK // 4, 2, dtype=np.uint64)  # weights of the words of a chunk: odd, so that no bit is lost
BLOCK = 256  # chunks that an accelerator sums at a time
SHA256 = re.compile(r"[0-9a-f]{64}")


def chunk_sums(data: np.ndarray) -> bytes:
    """Weighted sums of the 64-bit words of each chunk of (N,) uint8, modulo 2^64: every byte counts, and its place."""
    whole = len(data) // CHUNK * CHUNK
    sums = data[:whole].view(np.uint64).reshape(-1, CHUNK // 8) @ PLACES
    rest = np.zeros((len(data) - whole + 7) // 8 * 8, dtype=np.uint8)
    rest[: len(data) - whole] = data[whole:]
    return sums.tobytes() + (rest.view(np.uint64) @ PLACES[: len(rest) // 8]).tobytes()


def tensor_sums(weight: "Tensor") -> bytes:
    """`chunk_sums` of the bytes of a tensor, on the device where it is."""
    import torch

    data = weight.contiguous().view(-1).view(torch.uint8)
    return chunk_sums(data.numpy()) if data.device.type == "cpu" else device_sums(data)


def device_sums(data: "Tensor") -> bytes:
    """`chunk_sums` of (N,) uint8 in int64, which wraps as uint64 does; accelerators multiply no matrices of integers."""
    import torch

    whole = len(data) // CHUNK * CHUNK
    places = torch.from_numpy(PLACES.view(np.int64)).to(data.device)
    words = data[:whole].clone() if data.storage_offset() % 8 else data[:whole]
    blocks = words.view(torch.int64).view(-1, CHUNK // 8).split(BLOCK)
    sums = [(block * places).sum(1).cpu().numpy().tobytes() for block in blocks]
    return b"".join(sums) + chunk_sums(data[whole:].cpu().numpy())


def read_header(path: Path) -> tuple[dict, int]:
    """The header of a safetensors file, and where its data begin. Raises `ValueError` where the file is not whole."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(start - 8)) if start <= size else None
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise ValueError(f"{path} is no file of safetensors, or cut short.") from None
    if start + max(ends, default=0) != size:
        raise ValueError(
            f"{path} is damaged: it has {size} bytes, its header tells of {start + max(ends, default=0)}."
        )
    return header, start


def file_fingerprint(path: Path) -> str:
    """Of a file; of safetensors the SHA-256 by which the Hub's cache names it, or else of its header and sums of its data."""
    if path.suffix != ".safetensors":
        return hashlib.blake2b(path.read_bytes(), digest_size=32).hexdigest()
    if SHA256.fullmatch(path.resolve().name):
        return path.resolve().name
    _, start = read_header(path)
    data = np.memmap(path, dtype=np.uint8, mode="r")
    return hashlib.blake2b(data[:start].tobytes() + chunk_sums(data[start:]), digest_size=32).hexdigest()


def files_fingerprint(paths: list[Path]) -> str:
    """Of all files of a checkpoint, whatever folder they lie in."""
    parts = sorted((path.name, file_fingerprint(path)) for path in paths)
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
