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


def distillation(argv: list[str], launch: bool) -> int:
    """Distil a teacher on the tokens that TIP keeps of the student's own completions."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from .distillation_config import EntropyDistillationConfig

    kinds = (ScriptArguments, EntropyDistillationConfig, ModelConfig, DatasetMixtureConfig)
    return run_training("distillation", kinds, train_distillation, argv, launch)


def kappa(argv: list[str], launch: bool) -> int:
    """Rank the weights of a model by condition number."""
    from .kappa.command import run

    return run(argv)


def report(argv: list[str], launch: bool) -> int:
    """Compare runs in a page and a picture."""
    from .report.command import main as run

    return run(argv)


def methods(argv: list[str], launch: bool) -> int:
    """List the methods with their papers and fields."""
    from .method_list import main as run

    return run(argv)


def env(argv: list[str], launch: bool) -> int:
    """Print versions and hardware, for bug reports."""
    from .environment import main as run

    return run(argv)


COMMANDS: dict[str, Callable[[list[str], bool], int]] = {
    "grpo": grpo,
    "distillation": distillation,
    "kappa": kappa,
    "report": report,
    "methods": methods,
    "env": env,
}


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
    from accelerate.logging import get_logger
    from trl import get_peft_config, get_quantization_config

    from .data import asks_for_answer_line
    from .grpo import EntropyGRPOTrainer
    from .rewards import accuracy_reward, reward_by_name

    with parser.reporting():
        check_model("model_name_or_path", model_args.model_name_or_path)
        if not (script_args.reward_funcs or script_args.reward_model_name_or_path):
            raise ValueError("One of `reward_funcs` and `reward_model_name_or_path` must be given.")
        check_processes(training_args)
        reward_funcs = [reward_by_name(name) for name in script_args.reward_funcs or []]
        train_dataset, eval_dataset = load_splits(script_args, training_args, dataset_args)
    if accuracy_reward in reward_funcs and asks_for_answer_line(next(iter(train_dataset))["prompt"]):
        get_logger(__name__).warning(
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
    )
    train_and_save(trainer, model_args, script_args, dataset_args)


def train_distillation(parser, script_args, training_args, model_args, dataset_args) -> None:
    """What TRL's script does, with the entropy trainer."""
    from trl import get_peft_config, get_quantization_config

    from .distillation import EntropyDistillationTrainer

    with parser.reporting():
        check_model("model_name_or_path", model_args.model_name_or_path)
        check_model("teacher_model_name_or_path", training_args.teacher_model_name_or_path)
        check_processes(training_args)
        train_dataset, eval_dataset = load_splits(script_args, training_args, dataset_args)
    training_args.model_init_kwargs = model_kwargs(
        model_args, training_args, model_args.model_revision, training_args.model_init_kwargs
    )
    # The teacher is not quantized with the student: that would change the distribution to be matched.
    training_args.teacher_model_init_kwargs = model_kwargs(
        model_args, training_args, training_args.teacher_model_revision, training_args.teacher_model_init_kwargs
    )

    trainer = EntropyDistillationTrainer(
        model=model_args.model_name_or_path,
        teacher_model=training_args.teacher_model_name_or_path,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    train_and_save(trainer, model_args, script_args, dataset_args)


def model_kwargs(model_args, training_args, revision, given) -> dict:
    """The arguments with which a model is loaded; what the user has given wins."""
    return {
        "revision": revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(given or {}),
    }


def train_and_save(trainer, model_args, script_args, dataset_args) -> None:
    """Trains, saves, pushes if asked to, and ends the processes of the trainer in order."""
    import transformers
    from packaging.version import Version

    from .provenance import given_settings

    training_args = trainer.args
    # TRL's script leaves the dataset out of the cards that it writes while it trains.
    recipe = {
        key: value for part in (model_args, script_args, dataset_args) for key, value in given_settings(part).items()
    }
    trainer.card_facts = {"dataset_name": script_args.dataset_name, "recipe": recipe}
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_state()  # which `trl-entropy report` reads
    trainer.save_model(training_args.output_dir)
    trainer.accelerator.print(f"Model saved to {training_args.output_dir}.")
    trainer.create_model_card()
    if training_args.push_to_hub:
        trainer.push_to_hub()
        trainer.accelerator.print(f"Model pushed to https://huggingface.co/{trainer.hub_model_id}.")
    # A process that tears its group down right after a collective can wait for ever: torch joins the group's threads
    # with the interpreter locked, and a thread that still frees tensors needs that lock. Waiting here releases it.
    trainer.accelerator.wait_for_everyone()
    if Version(transformers.__version__) >= Version("5.18.0"):  # closes trackers and the process group
        trainer.end()


def load_splits(script_args, training_args, dataset_args):
    """The split to train on, and the one to evaluate on or `None`."""
    from .data import pick_split

    dataset = load_dataset(script_args, dataset_args)
    train_dataset = pick_split(dataset, "dataset_train_split", script_args.dataset_train_split)
    if training_args.eval_strategy == "no":
        return train_dataset, None
    return train_dataset, pick_split(dataset, "dataset_test_split", script_args.dataset_test_split)


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


def check_model(field: str, model: str | None) -> None:
    """Raises `ValueError` where a model is not given, or a folder that does not exist."""
    if not model:
        raise ValueError(f"`{field}` must be given.")
    if model.startswith(("/", ".")) and not os.path.exists(model):
        raise ValueError(f"`{field}` must exist, got {model!r}, which is no folder.")


def check_processes(training_args) -> None:
    """Raises `ValueError` where the launched processes do not see each other."""
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != training_args.world_size:
        # Without this each process would train a model of its own, with nothing to show for it.
        raise ValueError(
            f"{launched} processes were launched, but each sees {training_args.world_size}: on a machine without "
            "accelerator, set `use_cpu: true`."
        )


if __name__ == "__main__":
    sys.exit(main(launch=False))
