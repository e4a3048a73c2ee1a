# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy grpo`: TRL's GRPO script with the entropy trainer."""

from argparse import Namespace
from functools import partial
from typing import Any

from accelerate.logging import get_logger
from trl import DatasetMixtureConfig, ModelConfig, get_peft_config, get_quantization_config

from ..methods import build_methods
from ..rewards import accuracy_reward
from ..trainers.grpo import EntropyGRPOTrainer
from ..trainers.grpo_config import EntropyGRPOConfig
from .checks import dataset_checks, kappa_checks, method_checks, model_checks
from .data import asks_for_answer_line
from .problems import Check
from .rewards import imported, reward_by_name
from .script_arguments import AgentScriptArguments
from .tools import tool_by_name
from .train import check_processes, load_splits, model_kwargs, run_training, train_and_save


logger = get_logger(__name__)

KINDS = (AgentScriptArguments, EntropyGRPOConfig, ModelConfig, DatasetMixtureConfig)


def main(argv: list[str], launch: bool) -> int:
    """Starts the training processes, or trains in this one, and returns the exit status."""
    return run_training("grpo", KINDS, checks, train, argv, launch)


def checks(given: Namespace, imports: bool) -> list[Check]:
    """The checks of the given values. With `imports`, modules of rewards are imported."""
    names = [name for name in given.reward_funcs or [] if imports or "." not in name]
    tools = [name for name in given.tools or [] if imports or "." not in name]
    factories = [given.environment_factory] if given.environment_factory and imports else []
    return [
        *model_checks(given, "model_name_or_path"),
        Check(("reward_funcs", "reward_model_name_or_path"), partial(check_rewards_given, given)),
        *(Check(("reward_funcs",), partial(reward_by_name, name)) for name in names),
        *(Check(("tools",), partial(tool_by_name, name)) for name in tools),
        *(Check(("environment_factory",), partial(imported, path, "environment_factory")) for path in factories),
        *dataset_checks(given),
        *method_checks(given),
        Check(("methods",), partial(check_tools, given)),
        *kappa_checks(given),
    ]


def check_rewards_given(given: Namespace) -> None:
    """Raises `ValueError` without any reward."""
    if not (given.reward_funcs or given.reward_model_name_or_path):
        raise ValueError("One of `reward_funcs` and `reward_model_name_or_path` must be given.")


def check_tools(given: Any) -> None:
    """Raises `ValueError` if a method needs tools and none are given."""
    for method in build_methods(given):
        method.check_tools(bool(given.tools or given.environment_factory))


def train(parser, script_args, training_args, model_args, dataset_args) -> None:
    """Trains with GRPO and entropy methods, with the arguments that TRL's script parses."""
    with parser.reporting():
        check_processes(training_args)
        reward_funcs = [reward_by_name(name) for name in script_args.reward_funcs or []]
        tools = [tool_by_name(name) for name in script_args.tools or []]
        factory = script_args.environment_factory
        environment = imported(factory, "environment_factory") if factory else None
        train_dataset, eval_dataset = load_splits(script_args, training_args, dataset_args)
    if accuracy_reward in reward_funcs and asks_for_answer_line(next(iter(train_dataset))["prompt"]):
        logger.warning(
            "The prompts ask for a line `Answer: ...`, which `accuracy_reward` does not read: it gives 0 to a right "
            "answer outside a box. Use `answer_line_accuracy_reward`."
        )
    if script_args.reward_model_name_or_path:
        reward_funcs.insert(0, script_args.reward_model_name_or_path)
    training_args.model_init_kwargs = model_kwargs(
        model_args, training_args, model_args.model_revision, training_args.model_init_kwargs
    )

    trainer = EntropyGRPOTrainer(
        model=model_args.model_name_or_path,
        reward_funcs=reward_funcs,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        tools=tools or None,
        environment_factory=environment,
    )
    train_and_save(trainer, model_args, script_args, dataset_args)
