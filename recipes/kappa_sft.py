# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Continual training on new text with KappaTune, on weights of low condition number only: TRL's SFT script.

    accelerate launch recipes/kappa_sft.py --config kappa_sft

It takes the options of `SFTConfig`, `ModelConfig` and `ScriptArguments`, and the fields `kappa_*`.
"""

import sys
from dataclasses import dataclass

from datasets import load_dataset
from trl import ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, get_peft_config

from trl_entropy.commands.arguments import StrictParser
from trl_entropy.commands.train import model_kwargs
from trl_entropy.kappa.config import KappaConfig
from trl_entropy.kappa.wiring import with_kappa


@dataclass
class KappaSFTConfig(KappaConfig, SFTConfig):
    """TRL's config with the fields of KappaTune."""


KINDS = (ScriptArguments, KappaSFTConfig, ModelConfig)


def main(argv: list[str]) -> None:
    parser = StrictParser(KINDS, prog="kappa_sft")
    script_args, training_args, model_args = parser.parse(argv)
    training_args.model_init_kwargs = model_kwargs(
        model_args, training_args, model_args.model_revision, training_args.model_init_kwargs
    )
    with parser.reporting():
        dataset = load_dataset(script_args.dataset_name, script_args.dataset_config)[script_args.dataset_train_split]
    arguments = with_kappa(
        SFTTrainer,
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=dataset,
        peft_config=get_peft_config(model_args),
    )
    trainer = SFTTrainer(**arguments)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)


if __name__ == "__main__":
    main(sys.argv[1:])
