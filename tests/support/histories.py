# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Records the healthy histories in `tests/data/healthy`: short runs of a tiny model that learns slowly.

`PYTHONPATH=tests python -m tests.support.histories` from the root of the repository writes them again.
"""

import json
import sys
import tempfile
from pathlib import Path


FOLDER = Path(__file__).parents[1] / "data" / "healthy"
STEPS = 24
RUNS = {
    "stock": {},
    "stock_two_iterations": dict(num_iterations=2),
    "clip_cov": dict(methods=["clip_cov"], clip_cov_ratio=0.02, clip_cov_low=0.1),
    "thermostat": dict(methods=["clip_cov"], clip_cov_low=0.1, entropy_keep=0.7),
    "kl_cov": dict(methods=["kl_cov"], kl_cov_ratio=0.02, num_iterations=2),
    "clip_b": dict(methods=["clip_b"], clip_b_mu=1.0),
    "clip_v": dict(methods=["clip_v"], clip_v_mu=1.0, clip_v_max_ratio=0.02),
    "steer": dict(methods=["steer"]),
    "siren": dict(methods=["siren"]),
    "epo": dict(methods=["epo"]),
    "simko": dict(methods=["simko"]),
    "entropy_advantage": dict(methods=["entropy_advantage"], entropy_advantage_coef=0.05),
    "nsr": dict(methods=["nsr"]),
    "m2po": dict(methods=["m2po"], m2po_budget=1e-5, num_iterations=2),
    "two_methods": dict(methods=["clip_b", "steer"], clip_b_mu=1.0),
}


def record(name: str) -> None:
    """Trains one of `RUNS` and writes its history."""
    from support.tiny import build_trainer

    from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer

    with tempfile.TemporaryDirectory() as folder:
        settings = dict(max_completion_length=48, learning_rate=1e-4, max_steps=STEPS, diagnosis=False)
        trainer = build_trainer(EntropyGRPOTrainer, EntropyGRPOConfig, folder, **settings | RUNS[name])
        trainer.train()
    lines = [
        {key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()}
        for line in trainer.state.log_history
    ]
    content = {"settings": RUNS[name], "log_history": lines}
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")


def main() -> int:
    for name in sys.argv[1:] or RUNS:
        record(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
