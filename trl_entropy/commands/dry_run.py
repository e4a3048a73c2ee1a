# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`--dry_run`: checks a recipe completely on any machine, without loading data or a model or starting processes."""

from argparse import Namespace

import yaml

from .launch import launcher_arguments


DRY_RUN = ("--dry_run", "--dry-run")


def dry_run(parser, name: str, argv: list[str]) -> int:
    """Prints what would run, or exits with all errors.

    Args:
        parser: the command's [`StrictParser`].
        name: the command.
        argv: the words after it, without the flag.
    """
    training, flags = parser.launch_options.split(argv)
    words, from_config = parser.read(training)
    launcher = None
    if not parser.problems:
        launcher = launcher_arguments(parser, flags, from_config, [name, *training])
    processes = number_of_processes(launcher) if launcher else 1
    parser.rehearse(words, processes)
    parser.report()
    print(f"{parser.prog}: would run {summary(parser.parse_known_args(words)[0], processes)}.")  # noqa: T201
    return 0


def number_of_processes(launcher: Namespace) -> int:
    """The processes that `accelerate launch` would start, as far as its flags and its config file say."""
    if launcher.num_processes:
        return launcher.num_processes
    if launcher.config_file:
        with open(launcher.config_file, encoding="utf-8") as file:
            return (yaml.safe_load(file) or {}).get("num_processes") or 1
    return 1


def summary(given: Namespace, processes: int) -> str:
    """One line: methods, model, data, length, processes."""
    acts = f"methods {', '.join(given.methods) or 'none'}" if hasattr(given, "methods") else f"tip {given.tip_rule}"
    parts = [
        acts,
        *([f"kappa {given.kappa_mode}"] if given.kappa_mode != "none" else []),
        f"model {given.model_name_or_path}",
        f"dataset {given.dataset_name or ', '.join(entry_path(entry) for entry in given.datasets)}",
        f"{given.max_steps} steps" if given.max_steps > 0 else f"{given.num_train_epochs:g} epochs",
        f"{processes} process{'es' if processes > 1 else ''}",
        f"output in {given.output_dir}",
    ]
    return ", ".join(parts)


def entry_path(entry) -> str:
    """The path of an entry of `datasets`."""
    return entry["path"] if isinstance(entry, dict) else entry.path
