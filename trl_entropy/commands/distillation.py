# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy distillation`: TRL's distillation script on the tokens that TIP selects."""

from argparse import Namespace
from dataclasses import fields
from functools import partial

from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from ..methods.tip import Tip, TipConfig
from ..trainers.distillation import EntropyDistillationTrainer
from ..trainers.distillation_config import EntropyDistillationConfig
from .checks import dataset_checks, kappa_checks, model_checks
from .problems import Check
from .train import check_processes, load_splits, model_kwargs, run_training, train_and_save


KINDS = (ScriptArguments, EntropyDistillationConfig, ModelConfig, DatasetMixtureConfig)


def main(argv: list[str], launch: bool) -> int:
    """Starts the training processes, or trains in this one, and returns the exit status."""
    return run_training("distillation", KINDS, checks, train, argv, launch)


def checks(given: Namespace, imports: bool) -> list[Check]:
    """The checks of the given values."""
    return [
        *model_checks(given, "model_name_or_path", "teacher_model_name_or_path"),
        *dataset_checks(given),
        Check(tuple(field.name for field in fields(TipConfig)), partial(Tip, given)),
        *kappa_checks(given),
    ]


def train(parser, script_args, training_args, model_args, dataset_args) -> None:
    """Distills on the tokens that TIP selects, with the arguments that TRL's script parses."""
    with parser.reporting():
        check_processes(training_args)
        train_dataset, eval_dataset = load_splits(script_args, training_args, dataset_args)
    training_args.model_init_kwargs = model_kwargs(
        model_args, training_args, model_args.model_revision, training_args.model_init_kwargs
    )
    # Quantization applies to the student only: quantizing the teacher would change the distribution to match.
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
