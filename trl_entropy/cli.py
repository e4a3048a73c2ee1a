# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The command line.

`trl-entropy grpo --config recipe.yaml` starts the training processes by itself, as `trl grpo` does;
`accelerate launch -m trl_entropy.cli grpo --config recipe.yaml` trains in processes that are there already.
"""

import argparse
import os
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

    from .config import EntropyGRPOConfig

    kinds = (GRPOScriptArguments, EntropyGRPOConfig, ModelConfig, DatasetMixtureConfig)
    return run_training("grpo", kinds, train_grpo, argv, launch)


def kappa(argv: list[str], launch: bool) -> int:
    """Rank the weights of a model by condition number."""
    from .kappa.command import run

    return run(argv)


COMMANDS: dict[str, Callable[[list[str], bool], int]] = {"grpo": grpo, "kappa": kappa}


def run_training(name: str, kinds: tuple[type, ...], train: Callable, argv: list[str], launch: bool) -> int:
    """Launches a training command, or trains: `train` is called with the parser and one instance of each of `kinds`."""
    from .arguments import StrictParser
    from .launch import launch as launch_processes

    parser = StrictParser(kinds, prog=f"trl-entropy {name}")
    if launch:
        return launch_processes(parser, name, argv)
    train(parser, *parser.parse(argv))
    return 0


def train_grpo(parser, script_args, training_args, model_args, dataset_args) -> None:
    """What TRL's script does, with the entropy trainer."""
    import transformers
    from accelerate.logging import get_logger
    from packaging.version import Version
    from trl import get_peft_config, get_quantization_config

    from .data import asks_for_answer_line, pick_split
    from .grpo import EntropyGRPOTrainer
    from .rewards import accuracy_reward, reward_by_name

    with parser.reporting():
        check_arguments(script_args, training_args, model_args)
        reward_funcs = [reward_by_name(name) for name in script_args.reward_funcs or []]
        dataset = load_dataset(script_args, dataset_args)
        train_dataset = pick_split(dataset, "dataset_train_split", script_args.dataset_train_split)
        evaluates = training_args.eval_strategy != "no"
        eval_dataset = pick_split(dataset, "dataset_test_split", script_args.dataset_test_split) if evaluates else None
    if accuracy_reward in reward_funcs and asks_for_answer_line(next(iter(train_dataset))["prompt"]):
        get_logger(__name__).warning(
            "The prompts ask for a line `Answer: ...`, which `accuracy_reward` does not read: it gives 0 to a right "
            "answer outside a box. Use `answer_line_accuracy_reward`."
        )
    if script_args.reward_model_name_or_path:
        reward_funcs.insert(0, script_args.reward_model_name_or_path)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }

    trainer = EntropyGRPOTrainer(
        model=model_args.model_name_or_path,
        reward_funcs=reward_funcs,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.accelerator.print(f"Model saved to {training_args.output_dir}.")
    if training_args.push_to_hub:
        # The card of the model names its dataset only where others can find it.
        local = script_args.dataset_name is not None and os.path.exists(script_args.dataset_name)
        trainer.push_to_hub(dataset_name=None if local else script_args.dataset_name)
        trainer.accelerator.print(f"Model pushed to https://huggingface.co/{trainer.hub_model_id}.")
    # A process that tears its group down right after a collective can wait for ever: torch joins the group's threads
    # with the interpreter locked, and a thread that still frees tensors needs that lock. Waiting here releases it.
    trainer.accelerator.wait_for_everyone()
    if Version(transformers.__version__) >= Version("5.18.0"):  # closes trackers and the process group
        trainer.end()


def load_dataset(script_args, dataset_args):
    """The mixture `datasets`, or else `dataset_name`, with splits and in TRL's columns."""
    from trl import get_dataset

    from .data import data_file, load_problems, to_trl_columns

    if bool(dataset_args.datasets) == bool(script_args.dataset_name):
        raise ValueError("Either `dataset_name` or `datasets` must be given, and not both.")
    if dataset_args.datasets:
        for entry in dataset_args.datasets:
            if entry.data_files is None and (builder := data_file(entry.path)) is not None:
                entry.path, entry.data_files = builder, entry.path
        return to_trl_columns(get_dataset(dataset_args))
    return load_problems(script_args.dataset_name, script_args.dataset_config, script_args.dataset_streaming)


def check_arguments(script_args, training_args, model_args) -> None:
    """What no single dataclass can check. Raises `ValueError`."""
    model = model_args.model_name_or_path
    if not model:
        raise ValueError("`model_name_or_path` must be given.")
    if model.startswith(("/", ".")) and not os.path.exists(model):
        raise ValueError(f"`model_name_or_path` must exist, got {model!r}, which is no folder.")
    if not (script_args.reward_funcs or script_args.reward_model_name_or_path):
        raise ValueError("One of `reward_funcs` and `reward_model_name_or_path` must be given.")
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != training_args.world_size:
        # Without this each process would train a model of its own, with nothing to show for it.
        raise ValueError(
            f"{launched} processes were launched, but each sees {training_args.world_size}: on a machine without "
            "accelerator, set `use_cpu: true`."
        )


if __name__ == "__main__":
    sys.exit(main(launch=False))
