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
    shared["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported
    shared["PYTHONPATH"] = f"{HERE.parents[1]}:{HERE.parent}"
    # Files, not pipes: a process that waits for one to be read would hold up the others.
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "forks.py"), str(HERE / script), str(count), str(folder)],
            env={**os.environ, **shared},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        status = process.wait(timeout)
        logs = sorted(folder.glob("log*.txt"))
        assert status == 0, "\n".join(f"{path.name}: {path.read_text()[-3000:]}" for path in logs)
    finally:
        process.terminate()  # which it passes on to its forks
    return folder
