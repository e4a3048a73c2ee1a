# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs a script in several processes that share what they load: `python forks.py SCRIPT COUNT FOLDER`.

Loading torch, TRL and all methods takes longer than what most scripts do. So one process loads them, and each of
`COUNT` forks of it runs the script with the environment of its rank. Its output goes to `FOLDER/logRANK.txt`.
"""

import os
import runpy
import signal
import sys
import traceback
from pathlib import Path

import support.environment  # noqa: F401 (before the libraries that read it)
from support import registry

from trl_entropy import EntropyDistillationTrainer, EntropyGRPOTrainer  # noqa: F401 (loaded once for all)


def run_rank(script: str, rank: int, folder: str) -> int:
    """The exit status of `script` in a fork."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    log = os.open(Path(folder) / f"log{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = [script, folder]
    try:
        runpy.run_path(script, run_name="__main__")
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main(script: str, count: int, folder: str) -> int:
    """0, or 1 if a rank failed. The others, which would wait for it for ever, are then killed."""
    registry.covered()
    forks = {}

    def stop():
        for fork in forks:
            os.kill(fork, signal.SIGKILL)

    signal.signal(signal.SIGTERM, lambda *_: (stop(), os._exit(1)))
    for rank in range(count):
        fork = os.fork()
        if fork == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            status = run_rank(script, rank, folder)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        forks[fork] = rank
    while forks:
        fork, status = os.wait()
        del forks[fork]
        if status:
            stop()
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
