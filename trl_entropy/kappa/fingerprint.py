# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of weights: what a cached analysis belongs to."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np


CHUNK = 1 << 20  # bytes that are summed together
PLACES = np.arange(1, CHUNK // 4, 2, dtype=np.uint64)  # weights of the words of a chunk: odd, so that no bit is lost
SHA256 = re.compile(r"[0-9a-f]{64}")


def chunk_sums(data: np.ndarray) -> bytes:
    """Weighted sums of the 64-bit words of each chunk of (N,) uint8, modulo 2^64: every byte counts, and its place."""
    whole = len(data) // CHUNK * CHUNK
    sums = data[:whole].view(np.uint64).reshape(-1, CHUNK // 8) @ PLACES
    rest = np.zeros((len(data) - whole + 7) // 8 * 8, dtype=np.uint8)
    rest[: len(data) - whole] = data[whole:]
    return sums.tobytes() + (rest.view(np.uint64) @ PLACES[: len(rest) // 8]).tobytes()


def read_header(path: Path) -> tuple[dict, int]:
    """The header of a safetensors file, and where its data begin."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def file_fingerprint(path: Path) -> str:
    """Of a safetensors file: the SHA-256 by which the Hub's cache names it, or else of its header and sums of its data."""
    if SHA256.fullmatch(path.resolve().name):
        return path.resolve().name
    _, start = read_header(path)
    data = np.memmap(path, dtype=np.uint8, mode="r")
    return hashlib.blake2b(data[:start].tobytes() + chunk_sums(data[start:]), digest_size=32).hexdigest()


def files_fingerprint(paths: list[Path]) -> str:
    """Of all files of a checkpoint, whatever folder they lie in."""
    parts = sorted((path.name, file_fingerprint(path)) for path in paths)
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
