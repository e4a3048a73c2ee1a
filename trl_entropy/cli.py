# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The command line.

`trl-entropy grpo --config recipe.yaml` starts the training processes by itself, as `trl grpo` does;
`accelerate launch -m trl_entropy.cli grpo --config recipe.yaml` trains in processes that are there already.
"""

import argparse
import sys
from collections.abc import Callable


def main(argv: list[str] | None = None, launch: bool = True) -> int:
    """Runs a command and returns its exit status. `launch=False`: train in this process, start no others."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="trl-entropy", description="Entropy control for TRL.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.__doc__, add_help=False)
    name = parser.parse_args(argv[:1]).command  # what follows is the command's own
    return COMMANDS[name](argv[1:], launch)


def grpo(argv: list[str], launch: bool) -> int:
    """Train with GRPO and entropy methods."""
    from trl import DatasetMixtureConfig, ModelConfig
    from trl.scripts.grpo import GRPOScriptArguments

    from .trainers.grpo_config import EntropyGRPOConfig

    kinds = (GRPOScriptArguments, EntropyGRPOConfig, ModelConfig, DatasetMixtureConfig)
    return run_training("grpo", kinds, argv, launch)


def distillation(argv: list[str], launch: bool) -> int:
    """Distil a teacher on the tokens that TIP keeps of the student's own completions."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from .trainers.distillation_config import EntropyDistillationConfig

    kinds = (ScriptArguments, EntropyDistillationConfig, ModelConfig, DatasetMixtureConfig)
    return run_training("distillation", kinds, argv, launch)


def kappa(argv: list[str], launch: bool) -> int:
    """Rank the weights of a model by condition number."""
    from .commands.kappa import run

    return run(argv)


def report(argv: list[str], launch: bool) -> int:
    """Compare runs in a page and a picture."""
    from .commands.report import main as run

    return run(argv)


def methods(argv: list[str], launch: bool) -> int:
    """List the methods with their papers and fields."""
    from .commands.methods import main as run

    return run(argv)


def env(argv: list[str], launch: bool) -> int:
    """Print versions and hardware, for bug reports."""
    from .commands.env import main as run

    return run(argv)


COMMANDS: dict[str, Callable[[list[str], bool], int]] = {
    "grpo": grpo,
    "distillation": distillation,
    "kappa": kappa,
    "report": report,
    "methods": methods,
    "env": env,
}


def run_training(name: str, kinds: tuple[type, ...], argv: list[str], launch: bool) -> int:
    """Launches a training command, or trains, with one instance of each of `kinds` from the command line."""
    from .commands.arguments import StrictParser
    from .commands.launch import launch as launch_processes

    parser = StrictParser(kinds, prog=f"trl-entropy {name}")
    if launch:
        return launch_processes(parser, name, argv)
    parsed = parser.parse(argv)
    from .commands.train import TRAIN  # only now: it imports the trainers

    TRAIN[name](parser, *parsed)
    return 0


if __name__ == "__main__":
    sys.exit(main(launch=False))
