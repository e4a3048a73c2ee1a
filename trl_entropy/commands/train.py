# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Shared by the commands `grpo` and `distillation`: launching, loading data, saving. They follow TRL's scripts."""

import os
from collections.abc import Callable

import transformers
from packaging.version import Version
from trl import get_dataset

from ..runs.provenance import given_settings
from .arguments import StrictParser
from .data import data_file, load_problems, pick_split, to_trl_columns
from .dry_run import DRY_RUN, dry_run
from .launch import launch as launch_processes


def run_training(
    name: str, kinds: tuple[type, ...], checks: Callable, train: Callable, argv: list[str], launch: bool
) -> int:
    """Launches a training command, trains in this process, or only checks, and returns the exit status.

    Args:
        name: the command.
        kinds: dataclasses that hold its arguments.
        checks: gives the checks of the given values, see [`StrictParser`].
        train: what trains; takes the parser and one instance of each of `kinds`.
        argv: the words after the command.
        launch: whether to start training processes.
    """
    parser = StrictParser(kinds, f"trl-entropy {name}", checks)
    words = [word for word in argv if word not in DRY_RUN]
    if words != argv:
        return dry_run(parser, name, words)
    if launch:
        return launch_processes(parser, name, argv)
    train(parser, *parser.parse(argv))
    return 0


def model_kwargs(model_args, training_args, revision, given) -> dict:
    """Keyword arguments for loading a model. Those in `given`, from the user, win."""
    return {
        "revision": revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(given or {}),
    }


def train_and_save(trainer, model_args, script_args, dataset_args) -> None:
    """Trains, saves, pushes if `push_to_hub` is set, and shuts the processes down cleanly."""
    training_args = trainer.args
    # TRL's script omits the dataset from the cards written during training.
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
    # Destroying a process group right after a collective can deadlock: torch joins the group's threads while it holds
    # the interpreter lock, which a thread that still frees tensors needs. This barrier lets them finish first.
    trainer.accelerator.wait_for_everyone()
    if Version(transformers.__version__) >= Version("5.18.0"):  # closes trackers and the process group
        trainer.end()


def load_splits(script_args, training_args, dataset_args):
    """The training split, and the evaluation split or `None`."""
    dataset = load_dataset(script_args, dataset_args)
    train_dataset = pick_split(dataset, "dataset_train_split", script_args.dataset_train_split)
    if training_args.eval_strategy == "no":
        return train_dataset, None
    return train_dataset, pick_split(dataset, "dataset_test_split", script_args.dataset_test_split)


def load_dataset(script_args, dataset_args):
    """The mixture `datasets` or the dataset `dataset_name`, as splits with TRL's columns."""
    if dataset_args.datasets:
        for entry in dataset_args.datasets:
            if entry.data_files is None and (builder := data_file(entry.path)) is not None:
                entry.path, entry.data_files = builder, entry.path
        return to_trl_columns(get_dataset(dataset_args))
    return load_problems(script_args.dataset_name, script_args.dataset_config, script_args.dataset_streaming)


def check_processes(training_args) -> None:
    """Raises `ValueError` if the launched processes do not see each other."""
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != training_args.world_size:
        # Without this check each process would silently train its own model.
        raise ValueError(
            f"{launched} processes were launched, but each sees {training_args.world_size}: on a machine without "
            "accelerator, set `use_cpu: true`."
        )
