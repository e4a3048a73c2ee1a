# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Learning rates of transformers' schedules, as numbers."""

import numpy as np


SCHEDULES = {  # by the name that users give
    "cosine": "cosine",
    "linear": "linear",
    "wsd": "warmup_stable_decay",
    "constant": "constant_with_warmup",
}
DECAY = 0.1  # of all steps, at the end of `wsd`


def scheduled_rates(name: str, steps: int, peak: float, warmup: int = 0) -> np.ndarray:
    """(steps,) learning rate of each step.

    Args:
        name: a key of `SCHEDULES`.
        steps: of the run.
        peak: the highest learning rate.
        warmup: steps of warm-up.
    """
    import torch  # not at the top: it takes seconds
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    own = {"num_decay_steps": max(1, round(DECAY * steps))} if name == "wsd" else None
    scheduler = get_scheduler(SCHEDULES[name], optimizer, warmup, steps, scheduler_specific_kwargs=own)
    return peak * np.array([scheduler.lr_lambdas[0](step) for step in range(steps)])
