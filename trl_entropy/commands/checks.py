# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks of the training commands' values that need neither TRL's config nor data nor a model."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from typing import Any, cast

from huggingface_hub.utils import validate_repo_id

from ..gym import check_task, is_task
from ..kappa.config import KappaConfig, kappa_selection
from ..methods import METHODS, build_methods
from ..settings import one_of
from ..trainers.checks import check_model
from .data import data_file
from .problems import Check


def model_checks(given: Namespace, *names: str) -> Iterator[Check]:
    """That these fields name models."""
    for name in names:
        yield Check((name,), partial(check_model, getattr(given, name), name))


def dataset_checks(given: Namespace) -> Iterator[Check]:
    """That one dataset or a mixture is given, by names of files that exist or ids of the Hub."""
    yield Check(("dataset_name", "datasets"), partial(check_one_dataset, given))
    if given.dataset_name and is_task(given.dataset_name):
        names = ("dataset_name", "dataset_config", "dataset_streaming")
        yield Check(names, partial(check_generated, given))
    elif given.dataset_name:
        yield Check(("dataset_name",), partial(check_dataset_name, given.dataset_name))
    for entry in given.datasets or []:
        entry = entry if isinstance(entry, dict) else vars(entry)
        if entry.get("data_files") is None and entry.get("path"):
            yield Check(("datasets",), partial(check_dataset_name, entry["path"]))


def check_one_dataset(given: Namespace) -> None:
    """Raises `ValueError` unless exactly one of `dataset_name` and `datasets` is given."""
    if bool(given.datasets) == bool(given.dataset_name):
        raise ValueError("Either `dataset_name` or `datasets` must be given, and not both.")


def check_generated(given: Namespace) -> None:
    """Raises `ValueError` or `ImportError` if the task of reasoning-gym cannot be generated as asked."""
    check_task(given.dataset_name, given.dataset_config)
    if given.dataset_streaming:
        raise ValueError(f"`dataset_streaming` must be false with {given.dataset_name!r}, got true.")


def check_dataset_name(name: str) -> None:
    """Raises `ValueError` or `FileNotFoundError` for a dataset that cannot exist, or a task in a mixture."""
    if is_task(name):
        raise ValueError(f"`datasets` cannot mix in {name!r}: tasks of reasoning-gym are given as `dataset_name`.")
    if data_file(name) is None and "://" not in name and name.count("/") < 2:
        validate_repo_id(name)


def method_checks(given: Any) -> Iterator[Check]:
    """Each method by itself, then all of them together."""
    for name in given.methods:
        own = fields(METHODS[name].config) if name in METHODS else ()
        names = ("methods", *(field.name for field in own))
        yield Check(names, partial(build_methods, cast(Any, Namespace(**{**vars(given), "methods": [name]}))))
    if all(name in METHODS for name in given.methods):
        yield Check(("methods",), partial(build_methods, given))


def kappa_checks(given: Namespace) -> Iterator[Check]:
    """The fields of KappaTune, and that `lora` and `use_peft` go together."""
    yield Check(("kappa_mode",), partial(one_of, given, "kappa_mode", "none", "freeze", "lora"))
    yield Check(tuple(field.name for field in fields(KappaConfig)), partial(kappa_selection, given))
    yield Check(("kappa_mode", "use_peft"), partial(check_adapters_asked, given))


def check_adapters_asked(given: Any) -> None:
    """Raises `ValueError` if `kappa_mode` and `use_peft` contradict each other, or LoRA has targets of its own."""
    if given.kappa_mode != "none" and (given.kappa_mode == "lora") != bool(given.use_peft):
        needed = "true" if given.kappa_mode == "lora" else "false"
        raise ValueError(
            f"`use_peft` must be {needed} with `kappa_mode` {given.kappa_mode!r}, got {given.use_peft!r}."
        )
    if given.kappa_mode == "lora" and given.lora_target_modules:
        raise ValueError(
            "`lora_target_modules` must be unset with `kappa_mode` 'lora', because KappaTune selects the targets, got "
            f"{given.lora_target_modules!r}."
        )
