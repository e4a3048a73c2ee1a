# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Methods for agents against stock GRPO: Countdown with a calculator, in TRL's own tool loop.

    python recipes/benchmarks/agents.py           # the runs of agents.yaml; repeat to continue
    python recipes/benchmarks/agents.py --report  # tables and plot of the finished runs

The policy calls the calculator for each of three running totals, and is rewarded for its answer alone. The only
conversation that works out an answer has an exact probability. Right answers after other calls are counted in samples.
Options, order of runs and the comparison are those of `trajectories.py`, with one more table: what a run spent.
"""

from countdown_scores import AgentScores
from trajectories import HERE, Task, main

from trl_entropy.commands import quickstart
from trl_entropy.countdown.chat import calculator
from trl_entropy.countdown.model import WARM_STARTS, load_warm_start, warm_start
from trl_entropy.countdown.task import TASKS, countdown_dataset, countdown_reward


SAMPLES = 8  # per prompt: of the warm start's completions, one in 10,000 is right after other calls

AGENTS = Task(
    plan=HERE / "agents.yaml",
    recipe=quickstart.RECIPES["tools"],
    reward=countdown_reward,
    load=load_warm_start,
    dataset=lambda folder: countdown_dataset(task=TASKS["tools"]),
    evaluation=lambda folder, tokenizer: AgentScores(tokenizer, samples=SAMPLES),
    cache=quickstart.CACHES["tools"],
    start=lambda cache: warm_start(cache, WARM_STARTS["tools"]),
    tools=(calculator,),
)


if __name__ == "__main__":
    main(AGENTS)
