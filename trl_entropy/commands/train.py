# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the commands `grpo` and `distillation` do in each training process: TRL's scripts with the entropy trainers."""

import os

import transformers
from accelerate.logging import get_logger
from packaging.version import Version
from trl import get_dataset, get_peft_config, get_quantization_config

from ..rewards import accuracy_reward
from ..runs.provenance import given_settings
from ..trainers.checks import check_model
from ..trainers.distillation import EntropyDistillationTrainer
from ..trainers.grpo import EntropyGRPOTrainer
from .data import asks_for_answer_line, data_file, load_problems, pick_split, to_trl_columns
from .rewards import reward_by_name


logger = get_logger(__name__)


def train_grpo(parser, script_args, training_args, model_args, dataset_args) -> None:
    """Trains with GRPO and entropy methods; the arguments as TRL's script parses them."""
    with parser.reporting():
        check_model(model_args.model_name_or_path, "model_name_or_path")
        if not (script_args.reward_funcs or script_args.reward_model_name_or_path):
            raise ValueError("One of `reward_funcs` and `reward_model_name_or_path` must be given.")
        check_processes(training_args)
        reward_funcs = [reward_by_name(name) for name in script_args.reward_funcs or []]
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
    )
    train_and_save(trainer, model_args, script_args, dataset_args)


def train_distillation(parser, script_args, training_args, model_args, dataset_args) -> None:
    """Distils on the tokens that TIP keeps; the arguments as TRL's script parses them."""
    with parser.reporting():
        check_model(model_args.model_name_or_path, "model_name_or_path")
        check_model(training_args.teacher_model_name_or_path, "teacher_model_name_or_path")
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
    dataset = load_dataset(script_args, dataset_args)
    train_dataset = pick_split(dataset, "dataset_train_split", script_args.dataset_train_split)
    if training_args.eval_strategy == "no":
        return train_dataset, None
    return train_dataset, pick_split(dataset, "dataset_test_split", script_args.dataset_test_split)


def load_dataset(script_args, dataset_args):
    """The mixture `datasets`, or else `dataset_name`, with splits and in TRL's columns."""
    if bool(dataset_args.datasets) == bool(script_args.dataset_name):
        raise ValueError("Either `dataset_name` or `datasets` must be given, and not both.")
    if dataset_args.datasets:
        for entry in dataset_args.datasets:
            if entry.data_files is None and (builder := data_file(entry.path)) is not None:
                entry.path, entry.data_files = builder, entry.path
        return to_trl_columns(get_dataset(dataset_args))
    return load_problems(script_args.dataset_name, script_args.dataset_config, script_args.dataset_streaming)


def check_processes(training_args) -> None:
    """Raises `ValueError` where the launched processes do not see each other."""
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != training_args.world_size:
        # Without this each process would train a model of its own, with nothing to show for it.
        raise ValueError(
            f"{launched} processes were launched, but each sees {training_args.world_size}: on a machine without "
            "accelerator, set `use_cpu: true`."
        )


TRAIN = {"grpo": train_grpo, "distillation": train_distillation}
