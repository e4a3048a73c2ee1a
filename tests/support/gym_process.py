# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""One of several processes, started by test_gym.py with a hash seed of its own: writes the rows of a task."""

import json
import sys
from pathlib import Path

import torch

from trl_entropy.gym import load_task


if __name__ == "__main__":
    rank, count, folder, task = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
    splits = load_task(f"reasoning_gym:{task}", "size=6,test_size=4")
    (folder / f"{rank}.json").write_text(json.dumps({name: rows.to_list() for name, rows in splits.items()}))
    torch.distributed.destroy_process_group()
