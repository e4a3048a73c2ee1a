# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Starts a script in several processes of one group on this machine, and waits for all of them."""

import os
import socket
import subprocess
import sys
from pathlib import Path


HERE = Path(__file__).parent


def run_processes(script: str, count: int, folder: Path, timeout: int = 240) -> Path:
    """`folder`, once `script` has run in `count` processes that talk through gloo. No process outlives the call."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = dict(
        WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="1"
    )
    shared["PYTHONPATH"] = f"{HERE.parents[1]}:{HERE.parent}"
    # Files, not pipes: a process that waits for one to be read would hold up the others.
    logs = [folder / f"log{rank}.txt" for rank in range(count)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / script), str(folder)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        for process in processes:
            # All logs: the process that is found first may only have lost its connection to the one that failed.
            assert process.wait(timeout) == 0, "\n\n".join(f"{log.name}: {log.read_text()[-3000:]}" for log in logs)
    finally:
        for process in processes:
            process.kill()
    return folder
