# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Entropy over difficulty, after training: is there a U-curve, and can a probe tell hard sums from easy ones?

    python recipes/real_model/diagnostics.py  # the training; leaves its model in runs/diagnostics/model
    python recipes/real_model/difficulty.py   # samples answers, then `trl-entropy difficulty label` and `fit`

The model answers sums that it may have been trained on, at temperature 1.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import torch


HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from addition import load, sums  # noqa: E402
from sampled_sums import answers_to  # noqa: E402

from trl_entropy.cli import main as command  # noqa: E402
from trl_entropy.commands.quickstart_common import silence_libraries  # noqa: E402


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/diagnostics/model"), help="folder (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/difficulty"), help="folder (%(default)s)")
    parser.add_argument("--prompts", type=int, default=480, help="sums (%(default)s)")
    parser.add_argument("--samples", type=int, default=10, help="answers to each (%(default)s)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    silence_libraries()
    answers, labels = options.output / "answers.jsonl", options.output / "labels.jsonl"
    rows = random.Random(0).sample(sums(held_out=False), options.prompts)
    found = answers_to(*load(options.model), rows, options.samples, seed=0)
    answers.write_text("".join(json.dumps(row) + "\n" for row in found.rows))
    shared = ["--model", str(options.model), "--batch-size", "64"]
    command(["difficulty", "label", "--data", str(answers), "--label", "correct", *shared, "--out", str(labels)])
    command(["difficulty", "fit", "--labels", str(labels), *shared, "--out", str(options.output / "probe")])


if __name__ == "__main__":
    main()
